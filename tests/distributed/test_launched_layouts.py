"""The user's path: the same JSON file, one process or two by `accelerate launch`, gives the same weights.

Float32 and AdamW, as users have them. What is asked for is what was measured, with a margin of ten: after four steps the
weights differ by 3e-7 at most, while training moved them by up to 1e-3. AdamW divides by the size of the gradient and would
make whole steps of rounding where a gradient is almost 0, so its epsilon is raised to the size of a typical gradient.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layouts import Layout, tiny_run
from safetensors.torch import load_file
from snac import SNAC
from worlds import run_world

ROOT = Path(__file__).parents[2]
YAML = ROOT / "accelerate_configs" / "cpu_multi_process.yaml"
NUM_STEPS = 4
LAUNCH = [
    str(Path(sys.executable).parent / "accelerate"),
    "launch",
    "--config_file",
    str(YAML),
    str(ROOT / "launch" / "train.py"),
]


def flags(run_dir: Path, batch_size: int) -> list[str]:
    """What a user types for a layout; everything else stands in the file."""
    return [
        "--config",
        str(run_dir.parent / "tiny.json"),
        "--paths.run_dir",
        str(run_dir),
        "--batch_size",
        str(batch_size),
    ]


def train_alone(arguments: list[str]) -> int:
    """On the one rank of a world: the command `snac-accel train`."""
    from snac_accel.cli import main

    return main(["train", *arguments])


def two_cores() -> None:
    """One core for each of two processes: more threads would round differently from one."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a run of one process and of a run of two."""
    folder = tmp_path_factory.mktemp("launched")
    config = tiny_run(
        folder / "unused",
        Layout(1, 4, 1),
        training={"num_iterations": NUM_STEPS},
        losses={"stft": 0.0},
        optimizer={"epsilon": 1e-2},
    )
    (folder / "tiny.json").write_text(json.dumps(config))
    one, two = folder / "one", folder / "two"
    assert run_world(1, train_alone, flags(one, 4)) == [0]
    command = [*LAUNCH, *flags(two, 1)]  # 2 processes x 1 clip x 2 micro-batches
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
        preexec_fn=two_cores,
    )
    assert done.returncode == 0, done.stderr
    assert "4 windows (batch 1 x 2 processes x 2 micro-batches)" in done.stdout
    return one, two


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint."""
    checkpoint = run / "checkpoints" / f"step_{NUM_STEPS:08d}"
    return {
        f"{file.stem}:{name}": t
        for file in checkpoint.glob("*.safetensors")
        for name, t in load_file(file).items()
    }


def test_two_launched_processes_end_with_the_weights_of_one(folders: tuple[Path, Path]) -> None:
    one, two = map(tensors, folders)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if name.startswith(("generator", "discriminator")):
            assert torch.allclose(two[name], tensor, rtol=1e-5, atol=3e-6), name
        elif name.startswith("codebook_usage"):
            assert torch.equal(two[name], tensor), name


def story(run: Path) -> list[dict[str, float]]:
    """What was logged of the training: times and what they come to are each run's own."""
    told = ("train/", "discriminator/", "codebook/", "data/", "validation/")
    rows = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    found = [{name: row[name] for name in row if name == "step" or name.startswith(told)} for row in rows]
    return [row for row in found if len(row) > 1]


def test_their_logs_tell_the_same_story(folders: tuple[Path, Path]) -> None:
    one, two = map(story, folders)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if not name.startswith("validation/"):
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
        assert theirs.get("train/learning_rate") == mine.get("train/learning_rate")


def test_both_leave_an_export_that_snac_reads(folders: tuple[Path, Path]) -> None:
    one, two = (SNAC.from_pretrained(str(run / "export")) for run in folders)
    audio = torch.sin(torch.arange(4096) / 20)[None, None]
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(one.encode(audio), two.encode(audio), strict=True))
