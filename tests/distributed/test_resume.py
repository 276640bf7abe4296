"""Killed at random and started again, a run is the one that was not interrupted: every logged number and tensor, bit by bit."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import config_for, last_step, logged, newest_tensors, running

from snac_accel.stored import list_checkpoints

EVERYTHING = {"data": {"num_workers": 1}, "training": {"mixed_precision": "bf16", "log_interval": 1}}


def train(config: dict[str, Any], folder: Path, processes: int) -> None:
    """To the end."""
    with running(processes, config, folder) as run:
        assert run.wait() == [0] * processes, run.output()


def train_killed(config: dict[str, Any], folder: Path, processes: int, kills: int, chance: random.Random) -> int:
    """To the end, started again after each of at most `kills` SIGKILLs at random moments; returns how many met it alive."""
    run_dir = Path(config["paths"]["run_dir"])
    met = 0
    for _ in range(kills):
        with running(processes, config, folder) as run:
            if chance.random() < 0.15:  # while it starts
                time.sleep(chance.uniform(0.0, 2.0))
            else:
                begun, steps = last_step(run_dir), chance.randint(1, 7)
                deadline = time.monotonic() + 60
                while run.alive() and last_step(run_dir) < begun + steps:
                    assert time.monotonic() < deadline, run.output()
                    time.sleep(0.01)
                time.sleep(chance.uniform(0.0, 0.1))
            met += run.alive()
            run.signal(signal.SIGKILL)
            codes = run.wait()
        if codes == [0] * processes:
            break
    train(config, folder, processes)
    return met


def compare(straight: Path, killed: Path) -> None:
    """Rows that a killed run wrote twice must agree as well."""
    expected = {(row["step"], "train/commitment" in row): row for row in logged(straight)}
    rows = logged(killed)
    assert {(row["step"], "train/commitment" in row) for row in rows} == expected.keys()
    for row in rows:
        one = expected[row["step"], "train/commitment" in row]
        different = {name for name in row.keys() | one.keys() if row.get(name) != one.get(name)}
        assert not different, (row["step"], {name: (one.get(name), row.get(name)) for name in different})
    ours, theirs = newest_tensors(straight), newest_tensors(killed)
    assert ours.keys() == theirs.keys() and any("average" in name for name in ours)
    mine, other = ours.pop("progress"), theirs.pop("progress")
    for name in mine.keys() | other.keys():
        assert mine.get(name) == other.get(name), (name, mine.get(name), other.get(name))
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert same, (name, value, theirs[name])


def storm(folder: Path, processes: int, kills: int, seed: int, **changes: Any) -> int:
    """Both runs, compared; returns how often the second was killed."""
    for name in ("straight", "killed"):
        (folder / name).mkdir()
    straight = config_for(folder / "straight" / "run", processes, **changes)
    train(straight, folder / "straight", processes)
    killed = config_for(folder / "killed" / "run", processes, **changes)
    met = train_killed(killed, folder / "killed", processes, kills, random.Random(seed))
    compare(folder / "straight" / "run", folder / "killed" / "run")
    return met


def test_a_run_killed_twice_is_the_run(tmp_path: Path) -> None:
    """A line of the log is the mean of four steps here, saves are every three: sums must go on, too."""
    training = {"num_iterations": 12, "log_interval": 4, "validation_interval": 6}
    assert storm(tmp_path, 1, 2, seed=3, training=training) > 0


@pytest.mark.torture
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_twenty_times_is_the_run(processes: int, seed: int, tmp_path: Path) -> None:
    met = storm(tmp_path, processes, 20, seed, accumulation=2, **EVERYTHING)
    assert met >= 8


@pytest.mark.torture
def test_without_workers_in_float32_and_with_longer_lines_of_the_log(tmp_path: Path) -> None:
    assert storm(tmp_path, 2, 20, 5, training={"log_interval": 7, "num_iterations": 60}) >= 5


@pytest.mark.parametrize("fault", ["byte", "missing", "truncated", "exchanged"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(fault: str, tmp_path: Path, finished: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    straight = newest_tensors(run_dir)
    before, newest = list_checkpoints(run_dir / "checkpoints")[-2:]
    file = newest / "optimizer.generator.safetensors"
    content = bytearray(file.read_bytes())
    if fault == "byte":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif fault == "missing":
        file.unlink()
    elif fault == "truncated":
        file.write_bytes(content[:-100])
    else:
        file.write_bytes((before / file.name).read_bytes())
    config = config_for(run_dir, training={"num_iterations": 6, "validation_interval": 3})
    with running(1, config, tmp_path) as run:
        assert run.wait() == [0], run.output()
        said = run.output()
    assert f"warning: {file}" in said and "falling back to the checkpoint before it" in said
    again = newest_tensors(run_dir)
    assert all(
        torch.equal(value, again[name]) for name, value in straight.items() if isinstance(value, torch.Tensor)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    train(config_for(folder / "run", training={"num_iterations": 6, "validation_interval": 3}), folder, 1)
    return folder / "run"


def test_an_allowed_change_of_the_learning_rate_is_one(tmp_path: Path, finished: Path) -> None:
    """The optimisers' own numbers stand in the checkpoint; those of the config must win."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    changes = {"training": {"num_iterations": 7, "validation_interval": 3, "learning_rate": 1e-6, "warmup_steps": 0}}
    config = config_for(run_dir, **changes)
    with running(1, config, tmp_path) as run:
        assert run.wait() == [2]
        assert "holds another run (training.learning_rate was" in run.output()
    config["checkpoint"]["allow_changes"] = ["training.learning_rate", "training.warmup_steps"]
    with running(1, config, tmp_path) as run:
        assert run.wait() == [0], run.output()
        assert "training.learning_rate: 0.0005 -> 1e-06  (allowed)" in run.output()
    rates = {row["step"]: row["train/learning_rate"] for row in logged(run_dir) if "train/learning_rate" in row}
    assert rates[7] == pytest.approx(1e-6 * 0.9**7) and rates[6] > 1e-5
