"""The run's `Accelerator`: what the launcher says and what the config says, brought together in one place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from .errors import ConfigError

PROCESS_GROUP_TIMEOUT = timedelta(minutes=10)


def create_accelerator(*, mixed_precision: str | None, trackers: Sequence[str]) -> Accelerator:
    """Build the `Accelerator`; raises ConfigError if the launcher's processes do not see each other."""
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    accelerator = Accelerator(
        cpu=not has_device,  # without it every process under torchrun on a CPU would believe that it is alone
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(logging_dir="logs"),  # the run's own, once its folder is known
        # Windows, not loaders, end an accumulation: every step has the same number of micro-batches.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=False),
            InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT),
        ],
    )
    if not has_device:
        use_all_cores()
    expected = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != expected:
        raise ConfigError(
            f"the launcher started {expected} processes but {accelerator.num_processes} see each other"
        )
    return accelerator


def use_all_cores() -> None:
    """On a CPU, share the cores among the node's processes, unless OMP_NUM_THREADS asks for more than one thread.

    `accelerate launch` and torchrun set that variable to 1 in silence, which would leave all other cores idle.
    """
    if int(os.environ.get("OMP_NUM_THREADS") or 1) > 1:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def accumulation_steps(
    *, batch_size: int, num_processes: int, global_batch_size: int | None, steps: int
) -> int:
    """Micro-batches per step: derived from `global_batch_size` where that is given, else `steps`."""
    if global_batch_size is None:
        return steps
    per_micro_step = batch_size * num_processes
    if global_batch_size % per_micro_step:
        raise ConfigError(
            f"training.global_batch_size = {global_batch_size}: should be a multiple of {per_micro_step} "
            f"(training.batch_size {batch_size} x {num_processes} processes)"
        )
    return global_batch_size // per_micro_step
