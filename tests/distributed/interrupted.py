"""Training runs in real processes that can be killed or signalled, each a second after it is asked for.

As in `worlds` they are forked from a server that has loaded everything. What they do is what the command line does, after its
flags are read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import worlds
from layouts import Layout, tiny_run

from snac_accel.stored import list_checkpoints

SECONDS = 100.0  # longest life of a run
NOT_REPEATED = ("time/", "throughput/", "goodput/", "unix_time", "ranks/", "clock/")  # in the log: of the clock


class Run:
    """The processes of a run."""

    def __init__(self, processes: list[BaseProcess], folder: Path) -> None:
        self.processes = processes
        self.folder = folder

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to some ranks, or to all that live."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            pid = self.processes[rank].pid
            if pid is not None and self.processes[rank].is_alive():
                os.kill(pid, number)

    def alive(self) -> bool:
        """Whether any rank lives."""
        return any(process.is_alive() for process in self.processes)

    def wait(self, seconds: float = SECONDS) -> list[int | None]:
        """The exit codes, negative if a signal killed the process, None if it still lives."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def until(self, path: Path) -> None:
        """Wait until a file is there or the run has ended."""
        deadline = time.monotonic() + SECONDS
        while not path.exists() and self.alive():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.002)

    def output(self) -> str:
        """What all ranks printed."""
        return "\n".join(file.read_text(errors="replace") for file in sorted(self.folder.glob("rank_*.log")))


@contextmanager
def running(num_processes: int, config: dict[str, Any], folder: Path, marks: Sequence[str] = ()) -> Iterator[Run]:
    """A run, killed at the end if it has not ended by then.

    `marks` are functions as MODULE.NAME of the package; the file MODULE.NAME is made in `folder` when rank 0 calls one.
    """
    worlds.CONTEXT.set_forkserver_preload(worlds.PRELOADED)
    port = worlds._free_port()
    run = Run([], folder)
    try:
        for rank in range(num_processes):
            job = (worlds._environment(rank, num_processes, port), config, str(folder), rank, list(marks))
            process: BaseProcess = worlds.CONTEXT.Process(target=_train, args=job, daemon=False)
            process.start()
            run.processes.append(process)
        yield run
    finally:
        run.signal(signal.SIGKILL)
        run.wait(10)


def _train(environment: dict[str, str], config: dict[str, Any], folder: str, rank: int, marks: list[str]) -> None:
    output = os.open(Path(folder) / f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    import multiprocessing

    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers: not a server for each rank
    import torch

    torch.set_num_threads(1)
    torch.set_num_threads = lambda nthreads: None
    from snac_accel.errors import UserError
    from snac_accel.resuming import RunClaim
    from snac_accel.signals import ending_at_once
    from snac_accel.train import main

    if rank == 0:
        _mark(marks, Path(folder))
    claim = RunClaim()
    with ending_at_once(claim.release), claim:
        try:
            code = main(config, claim=claim)
        except UserError as error:
            print(f"error: {error}", flush=True)
            code = error.exit_code
    sys.stdout.flush()
    os._exit(code)


def _mark(marks: list[str], folder: Path) -> None:
    import importlib

    for mark in marks:
        module_name, name = mark.rsplit(".", 1)
        module = importlib.import_module(f"snac_accel.{module_name}")

        setattr(module, name, _marked(getattr(module, name), folder / mark))


def _marked(plain: Callable[..., Any], file: Path) -> Callable[..., Any]:
    def marked(*arguments: Any, **named: Any) -> Any:
        file.touch()
        return plain(*arguments, **named)

    return marked


def config_for(run_dir: Path, processes: int = 1, accumulation: int = 1, **changes: dict[str, Any]) -> dict[str, Any]:
    """A tiny run with everything on that moves: validation, average, dead codes that are restarted."""
    own: dict[str, dict[str, Any]] = {
        "training": {"num_iterations": 60, "save_interval": 3, "validation_interval": 10, "max_grad_norm": 5.0},
        "validation": {"enabled": True, "max_clips": 2, "max_clip_seconds": 0.5, "num_samples": 0},
        "averaging": {"decay": 0.9},
        "codebook": {"initialization_clips": 8, "restart": True, "restart_after": 2},
        "losses": {"stft": 0.0, "mel": 0.0},
        "model": {"noise": True},
    }
    for section, settings in changes.items():
        own[section] = {**own.get(section, {}), **settings}
    return tiny_run(run_dir, Layout(processes, 1, accumulation), **own)


def logged(run_dir: Path) -> list[dict[str, Any]]:
    """The log's lines without what depends on the clock; lines cut short are passed over."""
    found = []
    file = run_dir / "logs" / "metrics.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found.append({name: value for name, value in row.items() if not name.startswith(NOT_REPEATED)})
    return [row for row in found if len(row) > 1]


def last_step(run_dir: Path) -> int:
    """The last step of training in the log, 0 before there is one."""
    return max((row["step"] for row in logged(run_dir) if "train/commitment" in row), default=0)


def newest_tensors(run_dir: Path) -> dict[str, Any]:
    """Every tensor of the newest checkpoint, and what it says about its progress."""
    from safetensors.torch import load

    newest = list_checkpoints(run_dir / "checkpoints")[-1]
    # Not `load_file`, which maps the file: what a test writes into it later would show here.
    files = {file.name: load(file.read_bytes()) for file in newest.glob("*.safetensors")}
    tensors = {f"{file}:{name}": tensor for file, content in files.items() for name, tensor in content.items()}
    return {**tensors, "progress": json.loads((newest / "progress.json").read_text()), "name": newest.name}
