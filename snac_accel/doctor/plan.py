"""What the run will do with the data: steps of an epoch, passes through each source, hours heard."""

from __future__ import annotations

from typing import NamedTuple

from ..config import TrainingConfig
from ..dataset import Mixture
from ..launching import accumulation_steps


class Plan(NamedTuple):
    """The run in numbers."""

    num_processes: int
    accumulation: int  # micro-batches per step
    windows_per_step: int  # of all processes
    window_seconds: float
    num_steps: int
    steps_per_epoch: float | None  # None: a stream does not say how many clips it has
    epochs: float | None
    hours_heard: float  # windows of the whole run, one after the other
    passes: dict[str, float | None]  # source -> how often each of its clips is drawn


def plan_run(config: TrainingConfig, mixture: Mixture, num_processes: int) -> Plan:
    """Work out the run; raises ConfigError if the global batch does not divide among the processes."""
    accumulation = accumulation_steps(config, num_processes)
    per_step = config.training.batch_size * num_processes * accumulation
    steps = config.training.num_iterations
    seconds = config.segment_samples / config.model.sampling_rate
    epoch: float | None = config.data.steps_per_epoch
    if epoch is None and mixture.num_clips is not None:
        epoch = mixture.num_clips / per_step
    return Plan(
        num_processes,
        accumulation,
        per_step,
        seconds,
        steps,
        epoch,
        None if epoch is None else steps / epoch,
        steps * per_step * seconds / 3600,
        dict(zip(mixture.names, mixture.passes(steps * per_step), strict=True)),
    )
