"""The start: help and mistakes cost no heavy import, a checkpoint is read once, and the run says what its start took."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from accelerate import Accelerator
from test_train import tiny_config
from tiny import make_state

from snac_accel import stored
from snac_accel.checkpoint import save_checkpoint, verify_checkpoint
from snac_accel.cli import COMMANDS
from snac_accel.errors import CheckpointError
from snac_accel.stopwatch import Stopwatch, process_start
from snac_accel.train import main

ROOT = Path(__file__).parent.parent
SCRIPT = [str(ROOT / "launch" / "train.py")]
CLI = ["-m", "snac_accel"]
HEAVY = {
    "torch", "torchaudio", "datasets", "accelerate", "transformers", "pandas", "numpy", "scipy", "matplotlib",
    "pyarrow", "soundfile", "snac", "safetensors", "huggingface_hub", "fsspec", "tensorboard",
}  # fmt: skip
MISTAKES = {
    "a preset": [*CLI, "train", "--preset", "demoo"],
    "a value by flag": [*CLI, "train", "--batch_size", "0"],
    "a value by file": [*CLI, "train", "--config", "value.yaml"],
    "a value by environment": [*CLI, "train"],
    "an unknown flag": [*CLI, "doctor", "--training.sed", "1"],
    "an unknown field in a file": [*CLI, "show-config", "--config", "field.json"],
    "a missing file": [*CLI, "prepare", "--output", "out", "--config", "nowhere.yaml"],
    "settings that contradict each other": [*CLI, "train", "--losses.mel", "1", "--profile", "5:3"],
    "a file that is no configuration": [*CLI, "train", "--config", "broken.yaml"],
    "a command": [*CLI, "trian"],
    "a flag of launch/train.py": [*SCRIPT, "--preset", "demo", "--batch-size", "8"],
}
HELP = [
    [*CLI, "--help"], [*CLI, "--version"], [*SCRIPT, "--help"], *([*CLI, name, "--help"] for name in COMMANDS)
]  # fmt: skip


def run(arguments: list[str], cwd: Path, **environment: str) -> tuple[int, str, list[str], set[str]]:
    """Exit code, output, lines of errors, and the top names of all modules that a fresh interpreter imported."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")
    }
    return (
        done.returncode,
        done.stdout,
        [line for line in lines if not line.startswith("import time:")],
        imported,
    )


@pytest.mark.parametrize("arguments", HELP, ids=lambda words: " ".join(map(os.path.basename, words)))
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code, output, errors, imported = run(arguments, tmp_path)
    assert (code, errors) == (0, []) and output
    assert "snac_accel" in imported and not imported & HEAVY
    if len(arguments) == len(CLI) + 1 and arguments[:-1] == CLI:  # of no command: not even the schema
        assert not imported & {"pydantic", "yaml", "argparse", "psutil"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_nothing_heavy(mistake: str, tmp_path: Path) -> None:
    (tmp_path / "value.yaml").write_text("training: {batch_size: many}\n")
    (tmp_path / "field.json").write_text('{"training": {"batchsize": 4}}')
    (tmp_path / "broken.yaml").write_text("training: [\n")
    environment = {"SNAC_ACCEL_TRAINING__SEED": "x"} if mistake == "a value by environment" else {}
    code, output, errors, imported = run(MISTAKES[mistake], tmp_path, **environment)
    assert (code, output, len(errors)) == (2, "", 1) and errors[0].startswith("error: ")
    assert not imported & HEAVY


def test_what_is_imported_would_be_noticed(tmp_path: Path) -> None:
    assert {"numpy", "soundfile"} <= run(["-c", "import numpy, soundfile"], tmp_path)[-1]


def test_the_trainer_loads_no_pictures(tmp_path: Path) -> None:
    """Only what draws needs matplotlib; TensorBoard is opened by the run that wants it."""
    code, _, _, imported = run(["-c", "import snac_accel.train"], tmp_path)
    assert code == 0 and "torch" in imported
    assert not imported & {"matplotlib", "tensorboard", "scipy", "transformers", "PIL"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_what_the_commands_say_of_themselves(name: str) -> None:
    command = COMMANDS[name]
    function = getattr(import_module(f"snac_accel.cli.{command.module}"), command.function)
    assert function.__doc__.splitlines()[0] == command.summary


def test_a_run_says_once_what_its_start_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path / "run", training={"num_iterations": 2}, validation={"enabled": False})
    before = time.perf_counter()
    assert main(config, started=before - 100.0) == 0
    output = capsys.readouterr().out
    (line,) = re.findall(r"^started in .*$", output, re.MULTILINE)
    total, *parts = map(float, re.findall(r"\d+\.\d", line))
    assert 100 <= total < 100 + time.perf_counter() - before
    assert line.startswith(f"started in {total} s: imports 100.") and "models" in line
    assert sum(parts) == pytest.approx(total, abs=0.05 * 12)  # each is rounded, and the shortest are left out
    assert output.index("started in") < output.index("step 2: saved")


def test_phases_add_up() -> None:
    watch = Stopwatch()
    for phase in ("imports", "data", "imports"):
        time.sleep(0.06)
        watch.end(phase)
    assert list(watch.phases) == ["imports", "data"]
    assert watch.phases["imports"] > watch.phases["data"] >= 0.06
    total = sum(watch.phases.values())
    assert watch.line().startswith(f"started in {total:.1f} s: imports ")
    assert Stopwatch().line() == "started in 0.0 s"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_the_start_of_the_process_is_known(tmp_path: Path) -> None:
    assert process_start() < time.perf_counter()
    script = "import time; time.sleep(0.5); from snac_accel.stopwatch import process_start as p; print(time.perf_counter() - p())"
    before = time.perf_counter()
    age = float(run(["-c", script], tmp_path)[1])
    assert 0.45 < age < time.perf_counter() - before + 0.1


@pytest.fixture
def settled(tmp_path: Path, make_accelerator: Callable[..., Accelerator]) -> Iterator[Path]:
    """A checkpoint that was written some time ago."""
    path = save_checkpoint(tmp_path, make_state(make_accelerator()), config={}, config_hash="0")
    for file in path.iterdir():
        os.utime(file, (time.time() - 60, time.time() - 60))
    stored._known_sha256.cache_clear()
    yield path
    stored._known_sha256.cache_clear()


def test_a_checkpoint_is_read_once_and_a_change_is_still_seen(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = stored.sha256
    monkeypatch.setattr(stored, "sha256", lambda file: read.append(file) or real(file))
    for _ in range(2):
        verify_checkpoint(settled)
    assert (
        len(read) == len(set(read)) == len(list(settled.iterdir())) - 1
    )  # the manifest does not name itself
    victim = settled / "generator.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match="generator.safetensors is damaged"):
        verify_checkpoint(settled)
    content[-1] ^= 1
    victim.write_bytes(content)
    verify_checkpoint(settled)
