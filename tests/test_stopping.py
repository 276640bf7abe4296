"""What a run stops for beside signals: the file STOP and the clock. And how signals are held, noted and passed over."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snac_accel.signals import STOP_SIGNALS, StopSignal
from snac_accel.stopping import BY_CLOCK, BY_FILE, LOOK_SECONDS, Stopping, find_deadline

HOUR = 3600.0


def test_nothing_stops_a_run_by_itself() -> None:
    assert Stopping().number == 0 and Stopping().reason == ""
    assert find_deadline(None, 120.0, {}, now=1e9) == math.inf


def test_the_file_is_looked_for_now_and_then_and_removed_when_it_was_honoured(tmp_path: Path) -> None:
    now = [100.0]
    stopping = Stopping(file=tmp_path / "STOP", clock=lambda: now[0])
    assert stopping.number == 0
    (tmp_path / "STOP").touch()
    assert stopping.number == 0  # looked a moment ago
    now[0] += LOOK_SECONDS
    assert stopping.number == BY_FILE == signal.SIGINT and "STOP is there" in stopping.reason
    (tmp_path / "STOP").unlink()
    assert stopping.number == BY_FILE  # what was asked for stays asked for
    (tmp_path / "STOP").touch()
    stopping.honour()
    assert not (tmp_path / "STOP").exists()


def test_a_file_that_was_not_what_stopped_the_run_stays(tmp_path: Path) -> None:
    stopping = Stopping(file=tmp_path / "STOP", deadline=0.0)
    (tmp_path / "STOP").touch()
    assert stopping.number == BY_CLOCK
    stopping.honour()
    assert (tmp_path / "STOP").exists()


def test_the_clock() -> None:
    now = [100.0]
    stopping = Stopping(deadline=101.0, clock=lambda: now[0])
    assert stopping.number == 0
    now[0] = 101.0
    assert stopping.number == BY_CLOCK == signal.SIGUSR1 and stopping.reason == "its time is up"


@pytest.mark.parametrize(
    ("hours", "margin", "end", "seconds"),
    [
        (2.0, 120.0, None, 2 * HOUR - 30),  # it has run for 30 seconds
        (None, 120.0, 24 * HOUR, 24 * HOUR - 120),
        (None, 120.0, 20.0, 18.0),  # a tenth of a short time is enough
        (2.0, 120.0, 24 * HOUR, 2 * HOUR - 30),
        (48.0, 0.0, 24 * HOUR, 24 * HOUR),
        (None, None, 24 * HOUR, math.inf),
        (None, 120.0, -5.0, -5.0),  # long gone
    ],
)
def test_deadlines(hours: float | None, margin: float | None, end: float | None, seconds: float) -> None:
    now = 1_700_000_000.0
    environment = {} if end is None else {"SLURM_JOB_END_TIME": str(int(now + end))}
    found = find_deadline(hours, margin, environment, running_seconds=30.0, now=now)
    assert found == pytest.approx(now + seconds, abs=0.01)


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf"])
def test_an_end_that_is_no_time_is_none(text: str) -> None:
    assert find_deadline(None, 120.0, {"SLURM_JOB_END_TIME": text}, now=1e9) == math.inf


def test_signals_are_held_only_after_hold_and_the_first_one_counts() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopSignal() as stop:
        assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before
        stop.hold()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGINT and Stopping(stop).reason == ""
        assert Stopping(stop).number == signal.SIGINT
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


BEFORE = """
import ctypes, sys, threading, time
from snac_accel.signals import StopSignal, ending_at_once

with ending_at_once(lambda: print("tidied", flush=True)):
    print("ready", flush=True)
    if sys.argv[1] == "blocked":  # in C, where no handler of Python's can run
        mutex = ctypes.create_string_buffer(128)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    if sys.argv[1] == "worker":
        import os
        if os.fork() == 0:
            os.kill(os.getpid(), 15)
            os._exit(0)
        os.wait()
    if sys.argv[1] == "held":
        with StopSignal() as stop:
            stop.hold()
            time.sleep(1)
            print("noted", stop.number, flush=True)
        sys.exit(128 + stop.number)
    time.sleep(30 if sys.argv[1] != "worker" else 0.3)
    print("went on", flush=True)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("where", ["python", "blocked", "held"])
def test_before_the_first_step_a_signal_ends_the_process_at_once(where: str, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", BEFORE, where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    if where == "held":
        time.sleep(0.3)
    started = time.monotonic()
    process.send_signal(number)
    if where == "held":
        process.send_signal(signal.SIGTERM)  # the first one counts, and the second one kills nothing
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number and time.monotonic() - started < 5
    if where == "held":
        assert out == f"noted {int(number)}\n"
    else:
        assert out == "tidied\n" and err == f"stopped by {number.name} before the first step\n"


def test_what_a_worker_is_sent_is_not_the_trainers() -> None:
    done = subprocess.run([sys.executable, "-c", BEFORE, "worker"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "ready\nwent on\n"), done.stderr


AFTER = """
import atexit, os, signal, sys, time
from snac_accel.signals import ending_at_once

def late():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)

atexit.register(late)
with ending_at_once(lambda: None):
    pass
sys.exit(130)
"""


def test_a_signal_while_the_interpreter_is_taken_down_changes_no_exit_code() -> None:
    assert subprocess.run([sys.executable, "-c", AFTER], timeout=20).returncode == 130
