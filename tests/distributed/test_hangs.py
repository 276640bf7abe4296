"""A rank that is stopped, a worker that is stopped, a file system that does not answer: nobody waits for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from layouts import Layout, tiny_run
from worlds import _environment, _free_port

from snac_accel.heartbeat import FOLDER, file_of, read_beat

LIMIT = 10.0  # distributed.timeout_seconds
ENDLESS = {"num_iterations": 100_000, "save_interval": 3, "log_interval": 1}
# A file system that stops answering once the file `blocked` is there: whoever writes, waits.
BLOCKING = """
import os, sys, time
real = os.fsync
def fsync(descriptor):
    while os.path.exists(sys.argv[1]):
        time.sleep(0.1)
    real(descriptor)
os.fsync = fsync
from snac_accel.cli import main
sys.exit(main(sys.argv[2:]))
"""


def start(folder: Path, ranks: int, *changes: str, blocking: bool = False) -> list[subprocess.Popen[str]]:
    """The processes of a run, started as a scheduler would, without a launcher that ends them."""
    config = tiny_run(folder / "run", Layout(ranks, 2, 1), training=ENDLESS, distributed={"timeout_seconds": LIMIT})
    (folder / "config.json").write_text(json.dumps(config))
    program = ["-c", BLOCKING, str(folder / "blocked")] if blocking else ["-m", "snac_accel"]
    command = [sys.executable, *program, "train", "--config", str(folder / "config.json"), *changes]
    port = _free_port()
    return [
        subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", **_environment(rank, ranks, port)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def until(condition: Callable[[], bool], processes: list[subprocess.Popen[str]], seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.05)


def steps(folder: Path) -> int:
    log = folder / "run" / "logs" / "metrics.jsonl"
    return sum("train/adversarial" in line for line in log.read_text().splitlines()) if log.exists() else 0


def watch(folder: Path) -> int:
    return subprocess.run(
        [sys.executable, "-m", "snac_accel", "watch", str(folder / "run")], check=False, stdout=subprocess.DEVNULL
    ).returncode


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def test_a_stopped_rank_is_named_by_the_others_which_end_in_time(tmp_path: Path) -> None:
    processes = start(tmp_path, 2)
    try:
        until(lambda: steps(tmp_path) >= 4, processes)
        assert watch(tmp_path) == 0
        os.kill(processes[1].pid, signal.SIGSTOP)
        stopped = time.monotonic()
        _, printed = processes[0].communicate(timeout=60)
        assert time.monotonic() - stopped < LIMIT + 3
        assert processes[0].returncode == 75
        line = next(line for line in printed.splitlines() if line.startswith("error: "))
        assert line.startswith("error: rank 0 of 2 on ") and f"(pid {processes[1].pid}), silent for " in line
        assert "missing: rank 1 on " in line and "in phase " in line.partition("missing: ")[2]
        assert "train_step" in printed and "train_step" in (tmp_path / "run" / "logs" / "stacks.rank_0.txt").read_text()
        assert watch(tmp_path) == 1
        beat = read_beat(file_of(tmp_path / "run" / "logs" / FOLDER, 0))
        assert beat is not None and beat.waits, "its stack shows that it waits for another rank"
    finally:
        end(processes)


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    """The other one hears of it from the network, long before the timeout."""
    processes = start(tmp_path, 2)
    try:
        until(lambda: steps(tmp_path) >= 4, processes)
        processes[1].kill()
        _, printed = processes[0].communicate(timeout=60)
        assert processes[0].returncode == 75
        line = next(line for line in printed.splitlines() if line.startswith("error: "))
        assert f"missing: rank 1 on {socket.gethostname()} (pid {processes[1].pid}), which is gone, last in phase" in line
    finally:
        end(processes)


def test_a_file_system_that_does_not_answer_ends_the_run(tmp_path: Path) -> None:
    processes = start(tmp_path, 1, blocking=True)
    try:
        until(lambda: steps(tmp_path) >= 4, processes)
        (tmp_path / "blocked").touch()
        _, printed = processes[0].communicate(timeout=60)
        assert processes[0].returncode == 75
        line = next(line for line in printed.splitlines() if line.startswith("error: "))
        assert "in phase saving at " in line and "fsync" in printed
    finally:
        end(processes)


@pytest.mark.torture
def test_all_ranks_end_where_one_of_them_cannot_write(tmp_path: Path) -> None:
    processes = start(tmp_path, 2, blocking=True)
    try:
        until(lambda: steps(tmp_path) >= 4, processes)
        (tmp_path / "blocked").touch()
        outputs = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] == [75, 75]
        assert "in phase saving" in outputs[0]
        assert "rank 0 on " in outputs[1] and "phase saving" in outputs[1]
    finally:
        end(processes)


def test_a_stopped_data_worker_is_replaced_before_anybody_gives_up(tmp_path: Path) -> None:
    processes = start(tmp_path, 1, "--data.num_workers", "1")
    try:
        until(lambda: steps(tmp_path) >= 4, processes)
        children = psutil.Process(processes[0].pid).children()
        (worker,) = [child for child in children if "resource_tracker" not in str(child.cmdline())]
        os.kill(worker.pid, signal.SIGSTOP)
        until(lambda: not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE, processes)
        before = steps(tmp_path)
        until(lambda: steps(tmp_path) > before + 4, processes)
        processes[0].send_signal(signal.SIGTERM)
        _, printed = processes[0].communicate(timeout=60)
        assert processes[0].returncode == 143 and "others take over" in printed
    finally:
        end(processes)
