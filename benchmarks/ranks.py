"""Processes that make the trainer's step when they are asked to, joined by gloo: what `scaling.py` measures with.

    one = Ranks(1, threads=2, ...)      a process of its own, alone
    two = Ranks(2, threads=1, ...)      two processes that share each global batch

    two.seconds("step")                 a step of the trainer, DDP and optimisers included
    two.seconds("local")                the same step, but the gradients are not averaged
    two.seconds("all_reduce")           the gradients' all-reduces alone: the same buckets, no compute

All of them stay alive and wait, so that they can be timed in turns. The time of several ranks is that of the slowest.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from measure import seconds
from step_time import make_batch
from torch.nn.parallel import DistributedDataParallel

from snac_accel.config import TrainingConfig, to_dict, validate
from snac_accel.launching import create_accelerator
from snac_accel.step import train_step
from snac_accel.train import setup_models, setup_state, step_settings

ANSWER_SECONDS = 300.0  # longest wait for any answer of a rank


class Ranks:
    """`world_size` processes with `threads` threads each that train `config` on global batches of `global_batch` windows."""

    def __init__(self, world_size: int, *, threads: int, config: TrainingConfig, global_batch: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        port = free_port()
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = spawn.Pipe()
            arguments = (theirs, rank, world_size, port, threads, to_dict(config), global_batch // world_size)
            process = spawn.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()  # the end of the process is then the end of the pipe
            self.connections.append(ours)
            self.processes.append(process)

    def ask(self, command: str) -> list[Any]:
        """Let every rank carry out a command of `Rank`; their answers by rank."""
        try:
            for connection in self.connections:
                connection.send(command)
            return [_answer(connection) for connection in self.connections]
        except (EOFError, OSError) as error:
            raise RuntimeError(f"a process ended or does not answer when asked for {command!r}") from error

    def seconds(self, command: str) -> float:
        """Wall-clock time of a command on the slowest rank."""
        return max(self.ask(command))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self.connections:
            connection.close()  # ends `serve`
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def _answer(connection: Connection) -> Any:
    if not connection.poll(ANSWER_SECONDS):
        raise TimeoutError(f"no answer in {ANSWER_SECONDS:.0f} s")
    return connection.recv()


def serve(
    connection: Connection,
    rank: int,
    world_size: int,
    port: int,
    threads: int,
    config: Mapping[str, Any],
    batch_size: int,
) -> None:
    """Carry out what is asked until the other end is closed."""
    join(rank, world_size, port)
    worker = Rank(validate(config), batch_size)
    torch.set_num_threads(threads)
    while True:
        try:
            command = connection.recv()
        except EOFError:
            break
        connection.send(getattr(worker, command)())
    if dist.is_initialized():
        dist.destroy_process_group()


def join(rank: int, world_size: int, port: int) -> None:
    """Tell Accelerate who this process is, as a launcher does."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Rank:
    """The trainer's networks, optimisers and one batch; every method is a command."""

    def __init__(self, config: TrainingConfig, batch_size: int) -> None:
        self.accelerator = create_accelerator(config)
        self.state = setup_state(config, self.accelerator, *setup_models(config))
        self.settings = step_settings(config)
        self.batch = make_batch(config, batch_size)
        self.wrapped = [
            module for module in self.state.models() if isinstance(module, DistributedDataParallel)
        ]

    def step(self) -> float:
        """Seconds of a step."""
        return seconds(self._step)

    def local(self) -> float:
        """Seconds of a step that keeps its gradients to itself; weights differ between the ranks from then on."""
        with ExitStack() as stack:
            for module in self.wrapped:
                stack.enter_context(module.no_sync())
            return seconds(self._step)

    def all_reduce(self) -> float:
        """Seconds of the all-reduces of a step, module by module as the step has them."""
        buffers = [[torch.zeros(num_bytes // 4) for num_bytes in sizes] for sizes in self.buckets()]
        dist.barrier()
        return seconds(lambda: average(buffers))

    def buckets(self) -> list[tuple[int, ...]]:
        """Bytes of the buckets that DDP sends, for each wrapped module; known from the third step on."""
        sizes = [module._get_ddp_logging_data()["rebuilt_bucket_sizes"] for module in self.wrapped]
        return [tuple(int(number) for number in text.split(", ")) for text in sizes]

    def _step(self) -> None:
        train_step([self.batch], self.state, self.accelerator, self.settings)


def average(modules: list[list[torch.Tensor]]) -> None:
    """Module after module, send all buckets off, then wait for them."""
    for buffers in modules:
        for work in [dist.all_reduce(buffer, async_op=True) for buffer in buffers]:
            work.wait()
