"""AdamW and the schedules of the learning rate: functions of the step alone, so that processes and restarts change nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .config import TrainingConfig, validate
from .generator import TrainableSNAC
from .rates import Group, generator_groups


def setup_optimizers(
    generator: TrainableSNAC,
    discriminators: Mapping[str, nn.Module],
    config: TrainingConfig | Mapping[str, Any],
) -> tuple[dict[str, Optimizer], dict[str, LRScheduler]]:
    """AdamW and schedule, one of each for the generator and one for all discriminators together."""
    config = validate(config)
    settings, options = config.training, config.optimizer
    groups = generator_groups(generator, settings)
    judging = [parameter for module in discriminators.values() for parameter in module.parameters()]
    shared: dict[str, Any] = {
        "betas": options.betas,
        "eps": options.epsilon,
        "weight_decay": options.weight_decay,
        "fused": True,  # one pass over all parameters instead of a dozen operations for each
    }
    optimizers: dict[str, Optimizer] = {
        "generator": AdamW([{"params": group.parameters} for group in groups], lr=settings.learning_rate, **shared)
    }
    if judging:
        rate = settings.discriminator_learning_rate or settings.learning_rate
        optimizers["discriminator"] = AdamW(judging, lr=rate, **shared)
    return optimizers, {name: schedule(name, optimizer, config, groups) for name, optimizer in optimizers.items()}


def schedule(name: str, optimizer: Optimizer, config: TrainingConfig, groups: Sequence[Group]) -> LRScheduler:
    """The schedule of an optimiser: functions of the step alone, one for each of its groups (the generator's: `groups`)."""
    settings, codebook = config.training, config.codebook

    begin = config.turns.start_step if name == "discriminator" else 0  # of its warm-up

    def factor(step: int) -> float:
        return learning_rate_factor(step, settings.lr_decay, settings.warmup_steps, begin)

    def of_group(group: Group) -> Callable[[int], float]:
        def generator_factor(step: int) -> float:
            moving = factor(step) * group.factor * (step >= settings.generator_wait_steps)
            held = release_factor(step, codebook.hold_steps, codebook.release_steps) if group.encoding else 1.0
            return moving * held

        return generator_factor

    return LambdaLR(optimizer, [of_group(group) for group in groups] if name == "generator" else factor)


def renew_optimizers(
    optimizers: Mapping[str, Optimizer], schedules: Mapping[str, LRScheduler], config: TrainingConfig
) -> None:
    """Give optimisers that were loaded from a checkpoint, which holds its own, the numbers of `config`."""
    settings, options = config.training, config.optimizer
    rates = {
        "generator": settings.learning_rate,
        "discriminator": settings.discriminator_learning_rate or settings.learning_rate,
    }
    for name, optimizer in optimizers.items():
        plan = schedules[name]
        assert isinstance(plan, LambdaLR)
        plan.base_lrs = [rates[name]] * len(optimizer.param_groups)
        for group, factor in zip(optimizer.param_groups, plan.lr_lambdas, strict=True):
            group |= {"betas": options.betas, "eps": options.epsilon, "weight_decay": options.weight_decay}
            group["initial_lr"] = rates[name]
            group["lr"] = rates[name] * factor(plan.last_epoch)


def advance(schedule: LRScheduler) -> None:
    """Move a schedule by one step, also where the update was skipped: it counts steps, not updates.

    torch warns then that the optimiser should have been called first.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        schedule.step()


def learning_rate_factor(step: int, decay: float, warmup_steps: int, begin: int = 0) -> float:
    """Exponential decay per step, times a linear warm-up from 1 / warmup_steps to 1 over the steps from `begin` on."""
    return decay**step * min(1.0, (max(step - begin, 0) + 1) / max(warmup_steps, 1))


def release_factor(step: int, hold_steps: int, release_steps: int) -> float:
    """0 for `hold_steps` steps, then rising to 1 over `release_steps`."""
    return min(1.0, max(0, step + 1 - hold_steps) / (release_steps + 1))
