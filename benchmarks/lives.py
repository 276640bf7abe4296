"""A training run that lives several times: processes of the command line that can be watched, signalled and killed.

They are forked from a server that has loaded torch and the package once, so that each begins within a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil

MEGABYTE = 2**20
SECONDS = 300.0  # longest life
OF_THE_CLOCK = ("time/", "throughput/", "goodput/", "ranks/", "clock/", "unix_time")  # numbers of the log
_CONTEXT = multiprocessing.get_context("forkserver")


class Sample(NamedTuple):
    """What a process and its workers had at a step."""

    step: int
    private: float  # memory that nothing else uses, MB
    descriptors: int  # open files of the process itself
    threads: int


class Life:
    """One process of the run."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.run_dir = Path(config["paths"]["run_dir"])
        self.log = folder / "output.log"
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        (folder / "config.json").write_text(json.dumps(config))
        _CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "accelerate", "snac_accel.train"])
        self.process: BaseProcess = _CONTEXT.Process(target=_train, args=(str(folder),))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code, negative if a signal killed it; raises TimeoutError with the output."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"did not end in {seconds:g} s:\n{self.output()}")
        return self.process.exitcode

    def until(self, condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
        """Wait for something; False if the process ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if not self.process.is_alive():
                return condition()
            if time.monotonic() > end:
                self.process.kill()
                raise TimeoutError(f"waited {seconds:g} s in vain:\n{self.output()}")
            time.sleep(0.01)
        return True

    def workers(self) -> list[psutil.Process]:
        """Its data workers."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return []

    def sample(self) -> Sample | None:
        """What it has now; None if it ended."""
        try:
            main = psutil.Process(self.pid)
            memory = sum(one.memory_full_info().uss for one in (main, *self.workers()))
            return Sample(last_step(self.run_dir), memory / MEGABYTE, main.num_fds(), main.num_threads())
        except psutil.Error:
            return None

    def output(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")[self._read_from :] if self.log.exists() else ""


def _train(folder: str) -> None:
    output = os.open(Path(folder) / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    multiprocessing.set_start_method("fork", force=True)  # of the data workers: not another server for each life
    import torch

    from snac_accel.cli import main

    torch.set_num_threads(1)
    torch.set_num_threads = lambda nthreads: None  # the same in every life, whatever else the machine does
    code = main(["train", "--config", str(Path(folder) / "config.json")])
    sys.stdout.flush()
    os._exit(code)


@contextmanager
def life(config: dict[str, Any], folder: Path) -> Iterator[Life]:
    """A process of the run, killed at the end if it has not ended by then."""
    one = Life(config, folder)
    try:
        yield one
    finally:
        if one.process.is_alive():
            one.process.kill()
        one.process.join()


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of the log without what depends on the clock; those that a kill cut short are passed over."""
    file, found = run_dir / "logs" / "metrics.jsonl", []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found.append({name: value for name, value in row.items() if not name.startswith(OF_THE_CLOCK)})
    return [row for row in found if len(row) > 1]


def last_step(run_dir: Path) -> int:
    """The last step of training in the log; 0 before there is one."""
    return max((row["step"] for row in rows(run_dir) if "train/learning_rate" in row), default=0)
