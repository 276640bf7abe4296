"""One run, one folder: exactly one of several gets it, and the lock dies with its holder."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snac_accel import cli, locks
from snac_accel.config import load_config, to_dict
from snac_accel.locks import LOCK_FILE, FolderLock, RunLockedError, read_holder
from snac_accel.resuming import RunClaim
from snac_accel.run_folder import create_run

HOLD = "import sys, time; from pathlib import Path; from snac_accel.locks import FolderLock\n"
RACE = f"""{HOLD}
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    lock = FolderLock(Path(sys.argv[1]))
    print('won', flush=True)
    time.sleep(1)
except Exception as error:
    print('lost', error, flush=True)
"""


@contextmanager
def holder(folder: Path, more: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that has the folder's lock."""
    code = f"{HOLD}lock = FolderLock(Path({str(folder)!r}))\n{more}\nprint('ready', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        words = rf"run is in use by another run \(host {re.escape(os.uname().nodename)}, pid {process.pid}\)"
        with pytest.raises(RunLockedError, match=words) as caught:
            FolderLock(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_holder(number: signal.Signals, tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(number)
        process.wait()
        lock = FolderLock(tmp_path)
    assert (read_holder(tmp_path) or {})["pid"] == os.getpid()
    lock.release()


def test_children_do_not_keep_it(tmp_path: Path) -> None:
    """A data worker that outlives the trainer for a while must not keep the next one out."""
    child = "import os\nif os.fork() == 0:\n    print(os.getpid(), file=open('child', 'w'), flush=True)\n    time.sleep(30)\n"
    with holder(tmp_path / "run", f"import os; os.chdir({str(tmp_path)!r})\n{child}") as process:
        deadline = time.monotonic() + 10
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child_pid = int((tmp_path / "child").read_text())
        process.kill()
        process.wait()
        os.kill(child_pid, 0)  # it lives
        try:
            FolderLock(tmp_path / "run").release()
        finally:
            os.kill(child_pid, signal.SIGKILL)


def test_it_can_be_taken_again_and_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        lock = FolderLock(tmp_path / "deep" / "run")
        with pytest.raises(RunLockedError):
            FolderLock(tmp_path / "deep" / "run")  # in one process too: a notebook
        lock.release()
        lock.release()
        assert not list(tmp_path.iterdir())


def test_what_lies_in_the_folder_by_then_stays(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    lock.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before the holder removed it, locked afterwards: a third could have made a new one."""
    taken, plain = [], locks._lock

    def lock(descriptor: int, folder: Path) -> None:
        if not taken:
            (folder / LOCK_FILE).unlink()
        taken.append(descriptor)
        plain(descriptor, folder)

    monkeypatch.setattr(locks, "_lock", lock)
    held = FolderLock(tmp_path)
    assert len(taken) == 2 and (tmp_path / LOCK_FILE).exists()
    held.release()


def test_of_several_at_once_exactly_one_wins(tmp_path: Path) -> None:
    start = str(time.time() + 1.0)
    command = [sys.executable, "-c", RACE, str(tmp_path / "run"), start]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.communicate(timeout=60)[0] for process in racers]
    winners = [process.pid for process, text in zip(racers, said, strict=True) if text == "won\n"]
    assert len(winners) == 1, said
    assert all(f"pid {winners[0]})" in text for text in said if text != "won\n"), said


def test_without_locks_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    FolderLock(tmp_path).release()
    assert "has no locks" in caplog.text


# The claim of a run


def config(**paths: str) -> dict[str, Any]:
    nested = {"checkpoint": {"resume": "auto"}, "paths": paths}
    return to_dict(load_config("demo", overrides=nested, environment={}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_claim_that_comes_to_nothing_leaves_nothing(here: Path) -> None:
    for settings in (config(), config(run_dir="deep/mine"), config(run_dir="a", checkpoint_dir="b", log_dir="c/d")):
        with RunClaim() as claim:
            assert claim.take(settings).root.exists() and claim.take(settings) is claim.folder
        assert not list(here.iterdir())


def test_runs_of_one_folder_exclude_each_other(here: Path) -> None:
    with RunClaim() as first, RunClaim() as second:
        first.take(config(run_dir="mine"))
        with pytest.raises(RunLockedError, match="mine is in use"):
            second.take(config(run_dir="mine"))
        second.take(config(run_dir="other"))


@pytest.mark.parametrize("shared", ["checkpoint_dir", "log_dir"])
def test_a_shared_folder_of_checkpoints_or_logs_is_enough(shared: str, here: Path) -> None:
    with RunClaim() as first, RunClaim() as second:
        first.take(config(run_dir="one", **{shared: "shared"}))
        with pytest.raises(RunLockedError, match="shared is in use"):
            second.take(config(run_dir="two", **{shared: "shared"}))
        assert not (here / "two").exists()


def test_fresh_runs_of_one_name_get_folders_of_their_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from snac_accel import run_folder

    monkeypatch.setattr(run_folder.time, "strftime", lambda *form: "now")
    with RunClaim() as first, RunClaim() as second:
        assert first.take(config()).root.name == "demo-now"
        assert second.take(config()).root.name == "demo-now-2"


def test_the_newest_run_of_a_name_has_one_trainer(here: Path) -> None:
    with RunClaim() as first, RunClaim() as second:
        create_run(first.take(config()), config())
        with pytest.raises(RunLockedError, match="demo-.* is in use"):
            second.take(config())


def test_a_killed_start_is_no_run(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / LOCK_FILE).write_text('{"host": "gone", "pid": 1}')
    (here / "mine" / ".incomplete-config.json").write_text('{"model')
    with RunClaim() as claim:
        claim.take(config(run_dir="mine"))


def test_a_run_that_came_and_went_meanwhile_is_seen(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the folder and the lock another run began there."""
    from snac_accel import resuming

    plain = resuming.place_run

    def place(settings: Any) -> Any:
        folder = plain(settings)
        monkeypatch.setattr(resuming, "place_run", plain)
        other = to_dict(load_config("demo", overrides={"training": {"seed": 5}}, environment={}))
        (here / "mine").mkdir()
        (here / "mine" / "config.json").write_text(json.dumps(other))
        return folder

    monkeypatch.setattr(resuming, "place_run", place)
    with RunClaim() as claim, pytest.raises(Exception, match="mine holds another run .training.seed was 5"):
        claim.take(config(run_dir="mine"))


def test_the_second_train_ends_within_two_seconds(tmp_path: Path) -> None:
    """The command as it is typed, with all that Python has to load for it; processor time, the best of three."""
    command = [sys.executable, "-m", "snac_accel", "train", "--preset", "demo", "--paths.run_dir", "run"]
    with holder(tmp_path / "run") as process:
        seconds = []
        for _ in range(3):
            before = _processor_seconds_of_children()
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            seconds.append(_processor_seconds_of_children() - before)
            assert done.returncode == 2 and f"pid {process.pid})" in done.stderr
            assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert min(seconds) < 2, seconds


def _processor_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


RANKS_OF_ONE_MACHINE = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({}, True),
        ({**RANKS_OF_ONE_MACHINE, "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({**RANKS_OF_ONE_MACHINE, "RANK": "1", "LOCAL_RANK": "1"}, False),
        ({**RANKS_OF_ONE_MACHINE, "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, False),
    ],
    ids=["alone", "first of one machine", "second of one machine", "first of two machines"],
)
def test_a_second_run_is_refused_before_torch_is_loaded_where_one_rank_may_decide(
    environment: dict[str, str], refused: bool, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes that one agent started end together; others have to meet before they can be told."""
    began: list[Any] = []
    monkeypatch.setattr("snac_accel.train.main", lambda *arguments, **options: began.append(arguments))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with holder(here / "run") as process:
        code = cli.main(["train", "--preset", "demo", "--paths.run_dir", "run"])
    assert (code, bool(began)) == ((2, False) if refused else (0, True))
    assert (f"pid {process.pid})" in capsys.readouterr().err) == refused
