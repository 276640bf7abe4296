"""A process that does not get on ends itself, says where it was, and leaves its stacks behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snac_accel.clock import GOODPUT_FILE, read_account
from snac_accel.heartbeat import FOLDER, Beat, file_of, read_beat, write_beat
from snac_accel.pulse import Pulse
from snac_accel.runs import look_at
from snac_accel.watchdog import Watchdog, within

STUCK = """
import sys, time
from pathlib import Path
from snac_accel.pulse import Pulse

def never_ends():
    {body}

with Pulse(int(sys.argv[2]), int(sys.argv[3]), limit_seconds=float(sys.argv[4])) as pulse:
    pulse.begin(Path(sys.argv[1]))
    pulse.watch()
    for step in range(3):
        pulse.enter("data", step)
        pulse.enter("step", step)
    pulse.enter("saving")
    print("working", flush=True)
    never_ends()
"""


def start(logs: Path, body: str, rank: int = 0, world_size: int = 1, limit: float = 1.0) -> subprocess.Popen[str]:
    arguments = [str(logs), str(rank), str(world_size), str(limit)]
    command = [sys.executable, "-c", STUCK.format(body=body), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_that_is_stuck_ends_with_one_line_and_its_stacks(tmp_path: Path) -> None:
    started = time.monotonic()
    process = start(tmp_path, "time.sleep(1000)")
    _, printed = process.communicate(timeout=30)
    assert time.monotonic() - started < 15
    assert process.returncode == 75
    line = next(line for line in printed.splitlines() if line.startswith("error: "))
    assert line.startswith("error: rank 0 of 1 on ") and "in phase saving at" in line and "after step 2" in line
    assert "distributed.timeout_seconds = 1" in line
    stacks = (tmp_path / "stacks.rank_0.txt").read_text()
    assert "in never_ends" in printed and "in never_ends" in stacks
    beat = read_beat(file_of(tmp_path / FOLDER, 0))
    assert beat is not None and beat.outcome.startswith("gave up in phase saving")


def test_the_missing_rank_is_named(tmp_path: Path) -> None:
    """Rank 1 gave its last sign long ago, in its data."""
    (tmp_path / FOLDER).mkdir()
    gone = Beat(1, 2, "elsewhere", 4711, time.time() - 60, 2, "data", time.time() - 61, beat_seconds=0.1)
    write_beat(tmp_path / FOLDER, gone)
    process = start(tmp_path, "time.sleep(1000)", world_size=2)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "missing: rank 1 on elsewhere (pid 4711), silent for 6" in printed and "last in phase data after step 2" in printed


def test_heartbeats_that_cannot_be_read_do_not_hold_it_up(tmp_path: Path) -> None:
    """A file system that does not answer: here a pipe that nobody writes to."""
    (tmp_path / FOLDER).mkdir()
    os.mkfifo(file_of(tmp_path / FOLDER, 1))
    process = start(tmp_path, "time.sleep(1000)", world_size=2)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "the heartbeats of the others cannot be read: the file system does not answer" in printed


def test_a_process_that_gets_on_is_left_alone(tmp_path: Path) -> None:
    process = start(tmp_path, "[(time.sleep(0.1), pulse.got_on()) for _ in range(25)]")
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 0, printed


def test_a_stopped_process_is_not_to_blame_for_the_time_in_which_it_was(tmp_path: Path) -> None:
    process = start(tmp_path, "sys.stdin.readline()", limit=3.0)
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(1)
    _, printed = process.communicate("go on\n", timeout=30)
    assert process.returncode == 0, printed
    account = read_account(tmp_path / GOODPUT_FILE)
    assert account is not None and 3 < account["seconds"]["hang"] < 5


def test_a_new_phase_is_told_at_once(tmp_path: Path) -> None:
    """It may be what the file system blocks: a save, here, between two beats that are five seconds apart."""
    with Pulse() as pulse:
        pulse.begin(tmp_path)
        time.sleep(0.7)
        pulse.enter("saving", 7)
        time.sleep(1.0)
        beat = read_beat(file_of(tmp_path / FOLDER, 0))
    assert beat is not None and (beat.phase, beat.step, beat.beat_seconds) == ("saving", 7, 5.0)


def test_a_phase_that_may_take_any_time_does(tmp_path: Path) -> None:
    process = start(tmp_path, "pulse.enter('data', 3, patient=True); time.sleep(2.5)")
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 0, printed


def test_barks_once_and_only_after_its_limit() -> None:
    barks: list[float] = []
    dog = Watchdog(0.5, barks.append, lambda seconds: None)
    dog.start()
    time.sleep(1.2)
    dog.stop()
    assert len(barks) == 1 and barks[0] >= 0.45


def test_within_gives_up_in_time() -> None:
    started = time.monotonic()
    assert within(0.2, lambda: time.sleep(5)) is None
    assert time.monotonic() - started < 2
    assert within(5, lambda: 3) == 3
    assert within(5, lambda: 1 // 0) is None


def test_how_a_process_ended_is_in_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    (tmp_path / "config.json").write_text("{}")

    def outcome_of(error: Exception | None, outcome: str = "") -> tuple[str, str]:
        try:
            with Pulse() as pulse:
                pulse.begin(tmp_path / "logs")
                pulse.outcome = outcome
                if error is not None:
                    raise error
        except ValueError:
            pass
        run = look_at(tmp_path)
        return run.state, run.reason

    assert outcome_of(None, "complete") == ("complete", "")
    assert outcome_of(None, "stopped: SIGTERM") == ("stopped", "SIGTERM")
    state, reason = outcome_of(ValueError("no\nclips, https://me:hf_secretsecretsecret@host/x"))
    assert state == "failed" and "no clips" in reason and "secret" not in reason


def test_without_a_folder_nothing_is_written_and_phases_nest() -> None:
    with Pulse() as pulse:
        pulse.enter("step", 4)
        with pulse.phase("validation"):
            assert (pulse.name, pulse.clock.bucket) == ("validation", "validation")
            assert list(pulse.along([1, 2])) == [1, 2]
        assert (pulse.name, pulse.clock.bucket, pulse.step) == ("step", "step", 4)
        pulse.enter("export")
        assert pulse.clock.bucket == "other"
