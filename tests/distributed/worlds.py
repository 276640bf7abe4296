"""Worlds of a few gloo processes on this machine: one function called on every rank, its results brought back.

The processes are forked from a server that has imported torch, accelerate and the package once, so that a world starts in
a second. Nothing waits for ever: a rank that hangs prints where and ends itself, and so do the others, and the test fails.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch",
    "torch._dynamo",
    "accelerate",
    "snac_accel.train",
]  # torch's optimisers load its compiler
WORLD_SECONDS = 120.0  # longest life of a world
CONTEXT = multiprocessing.get_context("forkserver")


class RankFailed(AssertionError):
    """A rank raised an exception, ended, or hung; the message holds its traceback and the end of its output."""


def run_world(
    num_processes: int, function: Callable[..., Any], *arguments: Any, seconds: float = WORLD_SECONDS
) -> list[Any]:
    """The results of `function(*arguments)` on every rank, rank 0 first; `function` must be importable by name."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    port = _free_port()
    processes: list[BaseProcess] = []
    receivers: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="world_") as folder:
        try:
            for rank in range(num_processes):
                receiver, sender = CONTEXT.Pipe(duplex=False)
                environment = _environment(rank, num_processes, port)
                job = (environment, function, arguments, sender, _log(folder, rank), seconds)
                process: BaseProcess = CONTEXT.Process(target=_rank, args=job, daemon=False)
                process.start()
                sender.close()  # the rank's own is the last one, so that its end is the end of the pipe
                processes.append(process)
                receivers.append(receiver)
            return _collect(receivers, folder, time.monotonic() + seconds)
        finally:
            for process in processes:
                _end(process)


def _collect(receivers: list[Connection], folder: str, deadline: float) -> list[Any]:
    """The result of each rank; the first failure ends the wait."""
    results: dict[int, Any] = {}
    open_ones = {receiver: rank for rank, receiver in enumerate(receivers)}
    while open_ones:
        ready = wait(list(open_ones), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailed(f"ranks {sorted(open_ones.values())} gave no result in time")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = open_ones.pop(receiver)
            try:
                good, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                good, value = False, "ended without a result"
            if not good:
                raise RankFailed(f"rank {rank} of {len(receivers)}: {value}\n{_tail(folder, rank)}")
            results[rank] = value
    return [results[rank] for rank in range(len(receivers))]


def _rank(
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    sender: Connection,
    log: Path,
    seconds: float,
) -> None:
    """The life of one rank: run the function, send what came of it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(seconds, exit=True)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers: not a server for each rank
    import torch

    torch.set_num_threads(1)
    # `train.main` gives a lone process all cores, which is slow while they are busy, and rounds otherwise than one.
    torch.set_num_threads = lambda nthreads: None
    try:
        outcome = (True, function(*arguments))
    except (Exception, SystemExit):
        outcome = (False, traceback.format_exc())
    sender.send_bytes(pickle.dumps(outcome))
    sender.close()
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    """What torchrun would set; nothing for a world of one, which is a plain `python`."""
    if num_processes == 1:
        return {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank_{rank}.log"


def _tail(folder: str, rank: int, characters: int = 3000) -> str:
    log = _log(folder, rank)
    return log.read_text(errors="replace")[-characters:] if log.exists() else ""


def _end(process: BaseProcess) -> None:
    """Let a process end by itself, or kill it."""
    process.join(5)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
        process.join(5)
