"""A preparation that is stopped, killed, repeated or disturbed: whole shards, the same bytes, or one line."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from snac_accel.cli.prepare import prepare as command
from snac_accel.errors import DataError
from snac_accel.prepare import (
    collecting,
    prepare,
    processes,
    shard_files,
    sources,
)
from snac_accel.prepare.conversion import convert

from preparations import SECONDS, settings, sums


# --- stopping and going on


def words(tmp_path: Path, output: str, *options: str) -> list[str]:
    """Return the command's words."""
    places = ["--dataset_path", str(tmp_path / "sound"), "--output", str(tmp_path / output)]
    return [*places, "--workers", "2", "--clips_per_shard", "3", *options]


def held(folder: Path, pattern: str, count: int, arguments: list[str]) -> None:
    """Run the command, which comes to a halt when so many files are there; for a process of its own."""

    def halting(function: Any) -> Any:
        def halted(*values: Any) -> Any:
            end = time.monotonic() + SECONDS
            while len(list(folder.glob(pattern))) >= count and time.monotonic() < end:
                processes.context()  # ends here when the preparation is to end
                time.sleep(0.01)
            return function(*values)

        return halted

    sources.CLIPS_PER_STEP = 5
    collecting.convert = halting(convert)
    shard_files.WRITERS.update({name: halting(write) for name, write in shard_files.WRITERS.items()})
    try:
        command(arguments)
    except KeyboardInterrupt:
        os._exit(130)


STEPS, SHARDS = ".work/steps/[!.]*.parquet", "data/*"


def start(tmp_path: Path, output: str, pattern: str, count: int, *options: str) -> Any:
    """Start the command as a process that halts half way; a fork, which has loaded everything already."""
    values = (tmp_path / output, pattern, count, words(tmp_path, output, *options))
    process = multiprocessing.get_context("fork").Process(target=held, args=values)
    process.start()
    return process


def stop(process: Any, folder: Path, pattern: str, count: int, number: int = signal.SIGKILL) -> int:
    """Send a process a signal when it has come to its halt; see that its workers end too. Returns its exit code."""
    end = time.monotonic() + SECONDS
    while len(list(folder.glob(pattern))) < count:
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    process.join(SECONDS)
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=SECONDS)[1]
    return int(process.exitcode)


def kill_half_way(tmp_path: Path, output: str, pattern: str, count: int, *options: str) -> None:
    process = start(tmp_path, output, pattern, count, *options)
    assert stop(process, tmp_path / output, pattern, count) == -signal.SIGKILL


@pytest.mark.parametrize(
    "options",
    [[], ["--encode", "flac"], ["--format", "webdataset", "--max_clip_seconds", "1.5"]],
    ids=lambda words: "-".join(words),
)
def test_a_killed_preparation_goes_on_to_the_same_bytes(
    options: list[str], clips: dict[str, bytes], tmp_path: Path
) -> None:
    """Killed in the first pass, and again in the second; then compared with one that nobody disturbed."""
    assert command(words(tmp_path, "straight", *options)) == 0
    out = tmp_path / "killed"
    kill_half_way(tmp_path, "killed", STEPS, 2, *options)
    assert not list((out / "data").iterdir())
    kill_half_way(tmp_path, "killed", SHARDS, 3, *options)
    kept = {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    assert 3 <= len(kept) < len(sums(tmp_path / "straight"))
    damaged = sorted(kept)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])  # as a full disk might have left it
    assert command(words(tmp_path, "killed", *options)) == 0
    assert sums(out) == sums(tmp_path / "straight")
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items() if path != damaged)
    assert {path.name for path in out.iterdir()} == {
        "data",
        "README.md",
        "bad_samples.jsonl",
        "prepared.json",
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_workers_too(number: int, clips: dict[str, bytes], tmp_path: Path) -> None:
    code = stop(start(tmp_path, "out", STEPS, 1), tmp_path / "out", STEPS, 1, number)
    assert code == (130 if number == signal.SIGINT else -number)


def test_a_complete_preparation_is_left_alone(clips: dict[str, bytes], tmp_path: Path) -> None:
    first = prepare(settings(tmp_path))
    before = sums(tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir()  # killed while it tidied up
    again = prepare(settings(tmp_path, workers=1))
    assert (first.was_complete, again.was_complete) == (False, True)
    assert again.splits == first.splits
    assert again.text().startswith(f"{tmp_path / 'out'} is prepared already\ntrain: 23 clips")
    assert sums(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".work").exists()
    next((tmp_path / "out" / "data").iterdir()).unlink()
    with pytest.raises(DataError, match="is missing or damaged: remove"):
        prepare(settings(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_shards": 5},
            r"holds another preparation \(its num_shards is 4, here it is 5\): give another --output",
        ),
        ({"seed": 7}, "its seed is 0, here it is 7"),
        ({"encode": "flac"}, 'its encode is null, here it is "flac"'),
        ({"path": "other"}, "its dataset_path is .*sound.*, here it is .*other"),
    ],
)
def test_another_preparation_is_refused(
    options: dict[str, Any], message: str, clips: dict[str, bytes], tmp_path: Path
) -> None:
    prepare(settings(tmp_path))
    with pytest.raises(DataError, match=message):
        prepare(settings(tmp_path, **options))


def test_other_folders_and_changed_sources_are_refused(clips: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="out' is not empty and holds no preparation"):
        prepare(settings(tmp_path))
    (tmp_path / "out" / "mine.txt").unlink()
    kill_half_way(tmp_path, "out", SHARDS, 1)
    shutil.copy(next((tmp_path / "sound").rglob("*.flac")), tmp_path / "sound" / "new.flac")
    with pytest.raises(DataError, match="the clips of the sources have changed since"):
        command(words(tmp_path, "out"))


def test_a_second_preparation_at_once_is_refused(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snac_accel.prepare.output.LOCK_SECONDS", 0.2)
    process = start(tmp_path, "out", STEPS, 1)
    try:
        end = time.monotonic() + SECONDS
        while not list((tmp_path / "out").glob(STEPS)):
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(DataError, match="is being prepared by another process"):
            command(words(tmp_path, "out"))
    finally:
        stop(process, tmp_path / "out", STEPS, 1)


def test_a_file_that_changes_is_noticed(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the pass that checks and the one that writes."""

    def change(*_: object) -> int:
        path = next((tmp_path / "sound").rglob("*.flac"))
        path.write_bytes(path.read_bytes() + b"x")
        return 0

    monkeypatch.setattr("snac_accel.prepare.running._bytes_left", change)
    with pytest.raises(DataError, match="was changed while it was prepared: begin anew"):
        prepare(settings(tmp_path))


def test_space_is_looked_at_first(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(
        DataError, match=r"this preparation needs about 1.4 MB, but .*out' has 1.0 MB free: give --output"
    ):
        prepare(settings(tmp_path))
    assert not list((tmp_path / "out" / "data").iterdir())


def test_a_full_disk_is_one_line(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, rows: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setitem(shard_files.WRITERS, "parquet", fail)
        with pytest.raises(DataError, match="out' failed: No space left on device; start again to go on"):
            prepare(settings(tmp_path))
    assert prepare(settings(tmp_path)).splits["train"]["clips"] == 23
