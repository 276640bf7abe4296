"""Signals at any moment of a run, to one rank or all: they agree, save, and leave with the documented code; nothing is lost."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from interrupted import config_for, last_step, logged, running

from snac_accel.stored import list_checkpoints, place_of, verify_checkpoint

GRACE = 20.0  # seconds; a step takes a tenth of one
ENDLESS = {"num_iterations": 100_000, "save_interval": 100_000, "validation_interval": 100_000, "log_interval": 1}
STEP, VALIDATION, SAVE = "train.train_step", "validating.evaluate", "keeping.write_snapshot"
LONG = {"max_clips": 64, "max_clip_seconds": 10.0}


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of all checkpoints, each of which is intact."""
    paths = list_checkpoints(run_dir / "checkpoints")
    for path in paths:
        verify_checkpoint(path)
    return [place.step for place in map(place_of, paths) if place is not None]


def endless(folder: Path, processes: int, **changes: dict[str, Any]) -> dict[str, Any]:
    training = {**ENDLESS, **changes.pop("training", {})}
    return config_for(folder / "run", processes, training=training, **changes)


def stopped(folder: Path, codes: list[int | None], number: int, output: str) -> None:
    """All ranks left with the code, the last step that was done is saved, and rank 0 said so."""
    assert codes == [128 + number] * len(codes), output
    newest = saved_steps(folder / "run")[-1]
    assert newest == last_step(folder / "run"), output
    assert f"stopped after step {newest} (" in output and "--resume auto continues from there" in output


@pytest.mark.parametrize(
    ("number", "processes", "ranks", "moment"),
    [
        (signal.SIGTERM, 1, None, STEP),
        (signal.SIGINT, 2, [1], STEP),
        (signal.SIGUSR1, 2, [0], VALIDATION),
        (signal.SIGTERM, 1, None, SAVE),
    ],
)
def test_at_its_first_step_in_a_validation_and_in_a_save(
    number: signal.Signals, processes: int, ranks: list[int] | None, moment: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"validation": LONG} if moment == VALIDATION else {"validation": {"enabled": False}}
    if moment == SAVE:
        changes["training"] = {"save_interval": 2}
    with running(processes, endless(tmp_path, processes, **changes), tmp_path, [moment]) as run:
        run.until(tmp_path / moment)
        started = time.monotonic()
        run.signal(number, ranks)
        codes = run.wait(GRACE)
        stopped(tmp_path, codes, number, run.output())
    if moment == VALIDATION:
        assert time.monotonic() - started < 10  # 64 clips of 10 seconds take longer
        assert last_step(tmp_path / "run") == 0
        assert not [row for row in logged(tmp_path / "run") if "validation/mel_distance" in row]


def test_a_validation_that_was_broken_off_is_made_after_the_next_start(tmp_path: Path) -> None:
    training = {"num_iterations": 2, "save_interval": 2, "validation_interval": 2, "log_interval": 1}
    config = config_for(tmp_path / "run", training=training, validation={**LONG, "max_clips": 8})
    with running(1, config, tmp_path, [VALIDATION]) as run:
        run.until(tmp_path / VALIDATION)
        run.signal(signal.SIGTERM)
        stopped(tmp_path, run.wait(GRACE), signal.SIGTERM, run.output())
    with running(1, config, tmp_path) as run:
        assert run.wait() == [0], run.output()
    assert [row["step"] for row in logged(tmp_path / "run") if "validation/mel_distance" in row] == [0, 2]


def test_a_second_signal_within_50_milliseconds_changes_nothing(tmp_path: Path) -> None:
    with running(1, endless(tmp_path, 1, validation={"enabled": False}), tmp_path, [STEP]) as run:
        run.until(tmp_path / STEP)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            run.signal(number)
            time.sleep(0.02)
        stopped(tmp_path, run.wait(GRACE), signal.SIGINT, run.output())


def test_before_the_first_step_all_end_and_nothing_is_left(tmp_path: Path) -> None:
    with running(1, endless(tmp_path, 1), tmp_path, ["train.setup_dataset"]) as run:
        run.until(tmp_path / "train.setup_dataset")
        run.signal(signal.SIGTERM)
        assert run.wait(GRACE) == [143], run.output()
        assert "stopped by SIGTERM before the first step" in run.output()
    assert not (tmp_path / "run").exists()


def test_the_file_stop_and_the_clock(tmp_path: Path) -> None:
    config = endless(tmp_path, 2, validation={"enabled": False})
    with running(2, config, tmp_path, [STEP]) as run:
        run.until(tmp_path / STEP)
        (tmp_path / "run" / "STOP").touch()
        stopped(tmp_path, run.wait(GRACE), signal.SIGINT, run.output())
    assert not (tmp_path / "run" / "STOP").exists()
    (tmp_path / STEP).unlink()
    before = last_step(tmp_path / "run")
    config["stopping"] = {"wall_clock_hours": 6 / 3600}  # counted from the start of the program
    with running(2, config, tmp_path) as run:
        stopped(tmp_path, run.wait(GRACE), signal.SIGUSR1, run.output())
        assert "its time is up" in run.output()
    assert last_step(tmp_path / "run") > before


MOMENTS = [STEP, VALIDATION, SAVE, None]


def storm(folder: Path, processes: int, number_of_signals: int, chance: random.Random) -> None:
    """One run, stopped at random moments, each time started again."""
    training = {"save_interval": 4, "validation_interval": 5}
    config = endless(folder, processes, training=training, validation={"max_clips": 8, "max_clip_seconds": 2.0})
    done = 0
    for _ in range(number_of_signals):
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
        ranks = chance.choice([None, [0], [processes - 1]])
        moment = chance.choice(MOMENTS)
        for mark in MOMENTS[:-1]:
            (folder / str(mark)).unlink(missing_ok=True)
        with running(processes, config, folder, [mark for mark in MOMENTS if mark]) as run:
            run.until(folder / (moment or STEP))
            time.sleep(chance.uniform(0.0, 0.4 if moment is None else 0.02))
            for _ in range(chance.choice([1, 2])):
                run.signal(number, ranks)
                time.sleep(chance.uniform(0.0, 0.05))
            stopped(folder, run.wait(GRACE), number, run.output())
        newest = saved_steps(folder / "run")[-1]
        assert newest >= done
        done = newest
        for log in folder.glob("rank_*.log"):
            log.unlink()


def test_one_run_stopped_at_random_moments(tmp_path: Path) -> None:
    storm(tmp_path, 2, 2, random.Random(1))


@pytest.mark.torture
@pytest.mark.parametrize("processes", [1, 2])
def test_forty_random_moments(processes: int, tmp_path: Path) -> None:
    storm(tmp_path, processes, 20, random.Random(processes))
    shutil.rmtree(tmp_path / "run")


def test_what_was_validated_best_is_remembered(tmp_path: Path) -> None:
    """Across a stop: the best value, of which step."""
    training = {"num_iterations": 4, "save_interval": 2, "validation_interval": 2, "log_interval": 1}
    for steps in (2, 4):
        config = config_for(tmp_path / "run", training={**training, "num_iterations": steps})
        with running(1, config, tmp_path) as run:
            assert run.wait() == [0], run.output()
    values = {row["step"]: row["validation/mel_distance"] for row in logged(tmp_path / "run") if "validation/mel_distance" in row}
    progress = json.loads((list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "progress.json").read_text())
    best = min(values, key=lambda step: values[step])
    assert progress["best"] == {"metric": "mel_distance", "value": values[best], "step": best, "better": "lower"}
    assert progress["validated_at"] == 4 and sorted(values) == [0, 2, 4]
