"""The run's `Accelerator`: what the launcher says and what the config says, brought together in one place."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from .agreement import lost_processes
from .config import TrainingConfig
from .environment import check_launcher, complete_ranks, gradient_accumulation_steps, mixed_precision
from .errors import ConfigError


def create_accelerator(config: TrainingConfig) -> Accelerator:
    """Build the `Accelerator` and set the precision of float32; collective.

    Raises ConfigError, one line, if launcher, machine and config do not go together, LaunchError if the processes do not meet.
    """
    check_launcher(config, os.environ)
    expected = complete_ranks(os.environ)
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    precision = mixed_precision(config, os.environ)
    _check_device(precision, expected)
    _set_float32_precision(config)
    with lost_processes(int(os.environ.get("RANK", 0)), expected):
        accelerator = Accelerator(
            cpu=on_cpu,  # without it every process under torchrun on a CPU would believe that it is alone
            mixed_precision=precision,
            log_with=list(config.tracking.trackers) or None,
            project_config=ProjectConfiguration(
                logging_dir="logs"
            ),  # the run's own, once its folder is known
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
