"""Time `train_step` against the plain step that updates generator and discriminators separately.

    python benchmarks/step_time.py                  the published 24 kHz model, full discriminators
    python benchmarks/step_time.py --model tiny     the demo's model and discriminators: seconds, not minutes
    python benchmarks/step_time.py --precision bf16 our step in bfloat16, as the trainer runs it; the plain one stays float32

Both steps train the same models on the same batch on a CPU, alternating (plain, ours, plain,
ours …) in one process, so that whatever else the machine does hits both. Before anything is timed, one
SGD step of each from the same weights is compared; if the updates differ by more than rounding, the
script says so and leaves with exit code 1. The timed steps use AdamW as the trainer does. What the plain
step does is written in `plain_step.py`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from measure import Ratio, available_cores, machine, positive, seconds, table
from plain_step import PlainSNAC, plain_step
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from snac_accel.codebook import CodebookUsage
from snac_accel.config import TrainingConfig, load_config, to_dict
from snac_accel.generator import TrainableSNAC
from snac_accel.state import TrainState
from snac_accel.step import StepSettings, seed_noise, train_step
from snac_accel.train import setup_models, setup_optimizers, step_settings

PRESETS = {"24khz": "24khz", "tiny": "demo"}  # --model -> the preset with its discriminators
TOLERANCE = 1e-5  # largest parameter difference after a step, relative to the largest change of that network
Step = Callable[[], None]


class Models(NamedTuple):
    """A generator and its discriminators, of one of the two ways."""

    generator: TrainableSNAC
    discriminators: dict[str, nn.Module]

    def networks(self) -> dict[str, nn.Module]:
        """All networks by name."""
        return {"generator": self.generator, **self.discriminators}


class Pair(NamedTuple):
    """Seconds of one plain step and of the step of ours that followed it."""

    plain: float
    ours: float

    @property
    def ratio(self) -> float:
        """Ours over plain: below 1 is faster."""
        return self.ours / self.plain


def build(config: TrainingConfig) -> tuple[Models, Models]:
    """(ours, plain): two sets of the same freshly initialised models."""
    generator, discriminators = setup_models(config)
    plain = PlainSNAC(**to_dict(config)["model"])
    plain.load_state_dict(generator.state_dict())
    return Models(generator, discriminators), Models(plain, copy.deepcopy(discriminators))


def make_batch(config: TrainingConfig, batch_size: int) -> Tensor:
    """Noise of a speech-like level, (B, 1, T); what the audio is does not change the time of a step."""
    noise = torch.randn(batch_size, 1, config.segment_samples, generator=torch.Generator().manual_seed(0))
    return 0.1 * noise


def our_step(
    models: Models,
    optimizers: dict[str, Optimizer],
    batch: Tensor,
    settings: StepSettings,
    precision: str = "no",
) -> Step:
    """The step of the trainer on `models`, with everything it does beside the update; `precision` is Accelerate's."""
    AcceleratorState._reset_state(reset_partial_state=True)  # may hold another precision
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    generator = models.generator
    usage = CodebookUsage(len(generator.vq_strides), generator.codebook_size)
    schedules: dict[str, LRScheduler] = {
        name: LambdaLR(optimizer, lambda step: 1.0) for name, optimizer in optimizers.items()
    }
    discriminators = {
        name: accelerator.prepare_model(module) for name, module in models.discriminators.items()
    }
    state = TrainState(accelerator.prepare_model(generator), discriminators, optimizers, schedules, usage)
    return lambda: void(train_step([batch], state, accelerator, settings))


def their_step(
    models: Models, optimizers: dict[str, Optimizer], batch: Tensor, settings: StepSettings
) -> Step:
    """The plain step on `models`, with the noise that ours has in its first step."""

    def step() -> None:
        seed_noise(settings.seed, 0, 0, 0)
        weights, rate = settings.loss_weights, settings.sampling_rate
        plain_step(batch, *models, optimizers, loss_weights=weights, sampling_rate=rate)

    return step


def void(result: object) -> None:
    """Drop a result."""


def update_difference(config: TrainingConfig, batch: Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Largest parameter difference between the two ways after one SGD step from the same weights.

    For each network the largest difference is divided by the largest change that the plain step makes; the
    worst network counts. No code is restarted, which is not a gradient's work.
    """
    ours, plain = build(config)
    for module in (*ours.networks().values(), *plain.networks().values()):
        module.to(dtype)
    before = {name: flat(module) for name, module in plain.networks().items()}
    settings = replace(step_settings(config), restart_after=None)
    our_step(ours, sgd(ours), batch.to(dtype), settings)()
    their_step(plain, sgd(plain), batch.to(dtype), settings)()
    return max(
        float(
            (flat(ours.networks()[name]) - flat(module)).abs().max()
            / (flat(module) - before[name]).abs().max()
        )
        for name, module in plain.networks().items()
    )


def sgd(models: Models) -> dict[str, Optimizer]:
    """Plain gradient descent with a rate of 1: the update is the gradient."""
    adversaries = [p for module in models.discriminators.values() for p in module.parameters()]
    return {
        "generator": SGD(models.generator.parameters(), lr=1.0),
        "discriminator": SGD(adversaries, lr=1.0),
    }


def flat(module: nn.Module) -> Tensor:
    """All parameters as one float64 vector."""
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])


def timed_ways(config: TrainingConfig, batch: Tensor, precision: str = "no") -> dict[str, Step]:
    """Our step with the trainer's optimisers, the plain one with AdamW as torch makes it when not asked for more."""
    ours, plain = build(config)
    settings = step_settings(config)
    return {
        "plain": their_step(plain, default_adamw(plain, config), batch, settings),
        "ours": our_step(ours, setup_optimizers(*ours, config)[0], batch, settings, precision),
    }


def default_adamw(models: Models, config: TrainingConfig) -> dict[str, Optimizer]:
    """AdamW with the run's rates and torch's own choice of implementation."""
    adversaries = [p for module in models.discriminators.values() for p in module.parameters()]
    rate, decay, betas = config.training.learning_rate, config.optimizer.weight_decay, config.optimizer.betas
    groups = {"generator": list(models.generator.parameters()), "discriminator": adversaries}
    return {name: AdamW(group, lr=rate, betas=betas, weight_decay=decay) for name, group in groups.items()}


def measure(ways: Mapping[str, Step], pairs: int) -> list[Pair]:
    """One step of each to warm up, then `pairs` alternating pairs."""
    for step in ways.values():
        step()
    return [Pair(seconds(ways["plain"]), seconds(ways["ours"])) for _ in range(pairs)]


def report(pairs: Sequence[Pair]) -> str:
    """Table of all pairs, and the line with the ratio."""
    rows = [
        [index, f"{pair.plain:.3f}", f"{pair.ours:.3f}", f"{pair.ratio:.3f}"]
        for index, pair in enumerate(pairs, 1)
    ]
    middle = [statistics.median(values) for values in zip(*pairs, strict=True)]
    ratios = [pair.ratio for pair in pairs]
    rows.append(["median", *(f"{value:.3f}" for value in middle), f"{statistics.median(ratios):.3f}"])
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    printed = table(rows, ["pair", "plain (s)", "ours (s)", "ratio"])
    return f"{printed}\n\nratio: median {statistics.median(ratios):.3f}, spread {spread}"


def circumstances(flags: argparse.Namespace, config: TrainingConfig) -> str:
    """What was measured, and on what."""
    window = config.segment_samples / config.model.sampling_rate
    return (
        f"model {flags.model}, batch {flags.batch_size} x {window:.3f} s, {flags.pairs} pairs, "
        f"{'bfloat16' if flags.precision == 'bf16' else 'float32'} to float32\n"
        f"{machine(flags.threads)}"
    )


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", choices=list(PRESETS), default="24khz", help="which models (default: 24khz)"
    )
    parser.add_argument("--batch-size", type=positive, default=1, help="windows per step (default: 1)")
    parser.add_argument(
        "--precision",
        choices=["no", "bf16"],
        default="no",
        help="of our step, as Accelerate calls it (default: no)",
    )
    parser.add_argument("--pairs", type=positive, default=7, help="measured pairs (default: 7)")
    parser.add_argument("--seconds", type=float, help="length of a window (default: the preset's)")
    parser.add_argument(
        "--threads", type=positive, default=available_cores(), help="of torch (default: all cores)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, measure, print; returns 1 if the two steps do not give the same update."""
    flags = parse_flags(arguments)
    torch.set_num_threads(flags.threads)
    overrides = {} if flags.seconds is None else {"data": {"segment_length": flags.seconds}}
    config = load_config(PRESETS[flags.model], overrides=overrides, environment={})
    batch = make_batch(config, flags.batch_size)
    print(circumstances(flags, config))
    difference = update_difference(config, batch)
    print(f"largest parameter difference after one step: {difference:.1e} of the largest change\n")
    if not difference <= TOLERANCE:
        print(
            f"error: the two steps differ by more than {TOLERANCE:.0e}: their times cannot be compared",
            file=sys.stderr,
        )
        return 1
    print(report(measure(timed_ways(config, batch, flags.precision), flags.pairs)))
    return 0


def short() -> list[Ratio]:
    """Our step over the plain one: published model in both precisions, tiny model."""
    cases = [("24khz", "no", 3, 0.55), ("24khz", "bf16", 3, 0.40), ("tiny", "no", 9, 0.50)]
    found = []
    for model, precision, pairs, target in cases:
        config = load_config(PRESETS[model], environment={})
        timed = measure(timed_ways(config, make_batch(config, 1), precision), pairs)
        name = f"step, {model}, {'bfloat16' if precision == 'bf16' else 'float32'}"
        found.append(Ratio(name, tuple(pair.ratio for pair in timed), "lower", target))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
