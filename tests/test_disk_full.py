"""Runs on a disk that fills up: a real one of a few megabytes, where the system lets the test mount it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_train import rows, tiny_config

from snac_accel import keeping, tracking, validating
from snac_accel.dataset.block_cache import BlockCache
from snac_accel.errors import CheckpointError, ConfigError, DataError, UserError
from snac_accel.stored import list_checkpoints, newest_checkpoint, verify_checkpoint
from snac_accel.train import main

LONG = {"num_iterations": 6, "save_interval": 1, "log_interval": 1, "validation_interval": 3}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte."""
    with open(folder / "filler", "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        try:
            while True:
                file.write(b"x")
        except OSError:
            pass


def before_save(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], Any]]) -> None:
    """Do something before the checkpoint of a step is written."""
    write = keeping.write_snapshot

    def watch(folder: Path, taken: Any, *arguments: Any) -> Path:
        actions.get(taken.step, lambda: None)()
        return write(folder, taken, *arguments)

    monkeypatch.setattr(keeping, "write_snapshot", watch)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".incomplete-*")]


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_saves(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, changes = small_disk / "run", {"training": LONG, "tracking": {"trackers": ["tensorboard"]}}
    before_save(monkeypatch, {2: lambda: fill(small_disk), 4: (small_disk / "filler").unlink})
    assert main(tiny_config(run, **changes)) == 0
    printed = capfd.readouterr()
    assert "warning: step 2 is not saved: " in printed.out and "warning: step 3 is not saved: " in printed.out
    assert "bytes free" in printed.out and str(run / "checkpoints") in printed.out
    assert "Traceback" not in printed.out + printed.err
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"step_0000000{n}" for n in (4, 5, 6)]
    assert leftovers(small_disk) == []
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5, 6]  # no line of the log is lost
    assert [row["step"] for row in tracking.validations(run / "logs")] == [0, 3, 6]


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_stays_so_ends_the_run_with_one_line(
    trouble: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run, checkpoints = small_disk / "run", small_disk / "run" / "checkpoints"

    def remount() -> None:
        subprocess.run(["mount", "--bind", str(checkpoints), str(checkpoints)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(checkpoints)], check=True)

    try:
        before_save(monkeypatch, {2: (lambda: fill(small_disk)) if trouble == "full" else remount})
        with pytest.raises(CheckpointError) as error:
            training = {**LONG, "num_iterations": 60, "validation_interval": 100}
            main(tiny_config(run, training=training))
        message = one_line(error)
        assert "3 saves in a row failed (checkpoint.max_failed_saves)" in message
        assert str(checkpoints) in message and "bytes free" in message
        assert [verify_checkpoint(path)["step"] for path in list_checkpoints(checkpoints)] == [1]
        assert leftovers(checkpoints) == []
        printed = capfd.readouterr()
        assert "Traceback" not in printed.out + printed.err
    finally:
        if trouble == "read-only":
            subprocess.run(["umount", "--lazy", str(checkpoints)], check=True)


def test_the_last_save_is_worth_an_error(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_disk / "run"
    before_save(monkeypatch, {2: lambda: fill(small_disk)})
    with pytest.raises(CheckpointError) as error:
        main(tiny_config(run, training={**LONG, "num_iterations": 2}))
    assert "bytes free" in one_line(error)
    assert newest_checkpoint(run / "checkpoints") == run / "checkpoints" / "step_00000001"
    assert not (run / "export").exists()


def test_an_export_without_room_says_how_to_make_it_later(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_disk / "run"
    write = validating.write_export
    monkeypatch.setattr(validating, "write_export", lambda *arguments, **card: (fill(small_disk), write(*arguments, **card))[1])
    with pytest.raises(CheckpointError) as error:
        main(tiny_config(run, training={**LONG, "num_iterations": 2}))
    message = one_line(error)
    assert str(run / "export") in message and "bytes free" in message and f"snac-accel export {run} DIR" in message
    assert newest_checkpoint(run / "checkpoints") == run / "checkpoints" / "step_00000002"
    assert not (run / "export").exists() and leftovers(small_disk) == []


def test_samples_without_room_are_left_out(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    write = validating.write_samples
    monkeypatch.setattr(validating, "write_samples", lambda *arguments: (fill(small_disk), write(*arguments))[1])
    assert main(tiny_config(run, training={**LONG, "num_iterations": 2})) == 0
    assert f"warning: {run / 'samples'} cannot be written: No space left on device (0 bytes free)" in capfd.readouterr().out
    assert not (run / "samples").exists() and leftovers(small_disk) == []


def test_a_full_disk_at_the_start_is_one_line(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(ConfigError) as error:
        main(tiny_config(small_disk / "run"))
    assert str(small_disk / "run") in one_line(error)


def test_logs_that_cannot_be_written_end_the_start(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").mkdir()
    config = tiny_config(tmp_path / "run", paths={"log_dir": str(tmp_path / "logs")})
    with pytest.raises(ConfigError) as error:
        main(config)
    assert "logs" in one_line(error)


def test_a_cache_without_room_is_one_line(small_disk: Path) -> None:
    def write(file: Any) -> None:
        for _ in range(64):
            file.write(bytes(1 << 20))

    with pytest.raises(DataError) as error:
        BlockCache(small_disk / "cache").get("block", write)
    assert str(small_disk / "cache") in one_line(error) and "bytes free" in one_line(error)
    assert leftovers(small_disk) == []


def test_a_new_best_one_is_saved_and_kept(tmp_path: Path) -> None:
    """Whatever the interval of saving."""
    options = {"keep_best": 1, "keep_last": 1}
    training = {**LONG, "save_interval": 100, "validation_interval": 1}
    assert main(tiny_config(tmp_path / "run", training=training, checkpoint=options)) == 0
    manifests = [verify_checkpoint(path) for path in list_checkpoints(tmp_path / "run/checkpoints")]
    found = {manifest["step"]: manifest["score"] for manifest in manifests}
    validated = {
        row["step"]: row["validation/mel_distance"] for row in tracking.validations(tmp_path / "run/logs") if row["step"]
    }
    best = min(validated, key=lambda step: validated[step])
    assert found.keys() == {best, 6}
    assert found[best]["value"] == pytest.approx(validated[best])
    assert all("time/save_stall" in row for row in _saves(tmp_path / "run")) and len(_saves(tmp_path / "run")) >= 2
    assert len(rows(tmp_path / "run")) == 6


def _saves(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "time/save_seconds" in line]
