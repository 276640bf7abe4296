"""The run's `Accelerator`: what the launcher says and what the config says, brought together in one place."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from .config import TrainingConfig
from .environment import check_launcher, complete_ranks, gradient_accumulation_steps, mixed_precision
from .errors import ConfigError, LaunchError


def create_accelerator(config: TrainingConfig) -> Accelerator:
    """Build the `Accelerator` and set the precision of float32; collective.

    Raises ConfigError, one line, if launcher, machine and config do not go together, LaunchError if the processes do not meet.
    """
    check_launcher(config, os.environ)
    have_met = torch.distributed.is_initialized()  # a notebook's launcher forks processes that know each other
    expected = torch.distributed.get_world_size() if have_met else complete_ranks(os.environ)
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = mixed_precision(config, os.environ)
    _check_device(precision, expected)
    _set_float32_precision(config)
    if expected > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the launchers do; without it Accelerate warns
        if not have_met:
            await_first_rank(os.environ, config.distributed.timeout_seconds)
    with _meeting(config.distributed.timeout_seconds):
        accelerator = Accelerator(
            cpu=on_cpu,  # without it every process under torchrun on a CPU would believe that it is alone
            mixed_precision=precision,
            log_with=list(config.tracking.trackers) or None,
            project_config=ProjectConfiguration(logging_dir="logs"),  # the run's own, once it is known
            # Windows, not loaders, end an accumulation: every step has the same number of micro-batches.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False),
                InitProcessGroupKwargs(timeout=timedelta(seconds=config.distributed.timeout_seconds)),
            ],
        )
    if accelerator.device.type == "cpu":
        use_all_cores()
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"the launcher started {expected} processes but {accelerator.num_processes} see each other"
        )
    return accelerator


def release(accelerator: Accelerator) -> None:
    """Free the accelerator's memory, and let Accelerate forget it.

    A notebook may then train again with another precision, or from a launcher; Accelerate would refuse both.
    """
    accelerator.free_memory()
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())


def await_first_rank(environment: Mapping[str, str], timeout_seconds: float) -> None:
    """Wait until rank 0 can be reached; raises LaunchError, one line, if it cannot, or if its port is taken.

    torch would find this out as well, but say it in pages of stack. torchrun's workers meet at their agent: nothing to ask.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    if environment["RANK"] == "0":
        _check_port(port)
        return
    end = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=timeout_seconds).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise LaunchError(
                    f"rank {environment['RANK']} of {environment['WORLD_SIZE']} cannot reach rank 0 at MASTER_ADDR={address}, "
                    f"MASTER_PORT={port} within {timeout_seconds:g} s ({error}): is that its address, is it started, is the "
                    "port open?"
                ) from error
            time.sleep(0.2)


def _check_port(port: int) -> None:
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise LaunchError(
            f"MASTER_PORT={port}: cannot be opened on this machine ({error.strerror}): choose another"
        ) from error


@contextmanager
def _meeting(timeout_seconds: float) -> Iterator[None]:
    """Turn the errors of the processes' first meeting into a LaunchError, one line."""
    try:
        yield
    except torch.distributed.DistError as error:
        rank, world_size, address = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
        reason = " ".join(str(error).split())[:200]
        raise LaunchError(
            f"rank {rank} of {world_size} did not meet the others at {address} within {timeout_seconds:g} s ({reason}): "
            "are all of them started, with the same WORLD_SIZE?"
        ) from error


def _check_device(precision: str, num_processes: int) -> None:
    has_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    if precision == "fp16" and not has_gpu:
        raise ConfigError("training.mixed_precision = fp16: needs an NVIDIA or AMD GPU; here use bf16 or no")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if has_gpu and num_processes > 1 and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {local_rank}, but this machine shows {torch.cuda.device_count()} GPUs: "
            "start one process for each GPU"
        )


def _set_float32_precision(config: TrainingConfig) -> None:
    torch.set_float32_matmul_precision(config.training.matmul_precision)
    torch.backends.cudnn.allow_tf32 = config.training.tf32_convolutions


def use_all_cores() -> None:
    """On a CPU, share the cores among the node's processes, unless OMP_NUM_THREADS asks for more than one thread.

    `accelerate launch` and torchrun set that variable to 1 in silence, which would leave all other cores idle.
    """
    if int(os.environ.get("OMP_NUM_THREADS") or 1) > 1:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def accumulation_steps(config: TrainingConfig, num_processes: int) -> int:
    """Micro-batches per step: derived from `training.global_batch_size` where that is given, else as config or launcher say."""
    stated = gradient_accumulation_steps(config, os.environ)
    batch_size, global_batch_size = config.training.batch_size, config.training.global_batch_size
    if global_batch_size is None:
        return stated or 1
    per_micro_step = batch_size * num_processes
    if global_batch_size % per_micro_step:
        raise ConfigError(
            f"training.global_batch_size = {global_batch_size}: should be a multiple of {per_micro_step} "
            f"(training.batch_size {batch_size} x {num_processes} processes)"
        )
    derived = global_batch_size // per_micro_step
    if stated not in (None, derived):
        raise ConfigError(
            f"the launcher says {stated} gradient accumulation steps (ACCELERATE_GRADIENT_ACCUMULATION_STEPS), but "
            f"training.global_batch_size = {global_batch_size} over {num_processes} processes gives {derived}: leave one out"
        )
    return derived
