"""What may be wrong with a step, and what is done about it: numbers that are not finite, losses that jump.

Every rank looks at what it has itself, the sums over all ranks are judged, and so all of them come to the same verdict, before a
weight changes.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

STOP, SKIP, ROLLBACK, OFF = "stop", "skip", "rollback", "off"
NOT_FINITE, SPIKE = "not finite", "spike"
PLACES = ("input", "generator loss", "discriminator loss", "generator gradient", "discriminator gradient")
GRADIENTS = PLACES[3:]
FEWEST_LOSSES = 10  # of the window, before anything counts as a spike
BY_FAMILY = "discriminator/"  # how the names of the discriminators' losses begin


@dataclass(frozen=True)
class Guards:
    """What to do about trouble; a spike is a loss above `spike_factor` times the median of the last `spike_window`."""

    non_finite: str = SKIP
    spikes: str = OFF
    spike_factor: float = 3.0
    spike_window: int = 100

    @property
    def roll_back(self) -> bool:
        """Whether the run may have to go back to a checkpoint."""
        return ROLLBACK in (self.non_finite, self.spikes)


class Trouble(NamedTuple):
    """Why a step changes no weight; the same on every rank."""

    kind: str  # NOT_FINITE or SPIKE
    places: tuple[str, ...]  # of `PLACES`
    policy: str  # STOP, SKIP or ROLLBACK
    loss: float  # the generator's, weighted, mean over ranks and micro-batches
    usual: float | None = None  # median of the losses before, of a spike

    @property
    def is_overflow(self) -> bool:
        """Whether float16 has overflowed, which its loss scale is there for."""
        return self.kind == NOT_FINITE and not self.places

    def __str__(self) -> str:
        if self.kind == SPIKE:
            return f"the loss jumped to {self.loss:.4g}, usual is {self.usual:.4g}"
        return f"not finite: {', '.join(self.places)}" if self.places else "float16 overflowed"


@dataclass
class Part:
    """One micro-batch, as this rank saw it; tensors stay on the device."""

    finite_rows: Tensor  # (B,) whether the input is
    losses: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Add to a loss; each discriminator has its part in the generator's."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value

    def generator(self, weights: Mapping[str, float]) -> Tensor:
        """The generator's loss: the weighted sum."""
        return _total([weights[name] * value for name, value in self.losses.items() if weights.get(name, 0.0) > 0], self)

    def discriminator(self) -> Tensor:
        """The sum of the discriminators' losses."""
        return _total([value for name, value in self.losses.items() if name.startswith(BY_FAMILY)], self)


def _total(values: Sequence[Tensor], part: Part) -> Tensor:
    if not values:
        return torch.zeros((), device=part.finite_rows.device)
    return torch.stack([value.float() for value in values]).sum()


def look_at(real: Tensor) -> Part:
    """Begin with a micro-batch (B, 1, T)."""
    return Part(real.detach().isfinite().flatten(1).all(1))


def findings(parts: Sequence[Part], weights: Mapping[str, float], norms: Sequence[Tensor]) -> Tensor:
    """What this rank has to say about a step, (6,): 1 for each of `PLACES` that is not finite, else 0; the generator's loss."""
    generator = torch.stack([part.generator(weights) for part in parts])
    discriminator = torch.stack([part.discriminator() for part in parts])
    finite = [torch.stack([part.finite_rows.all() for part in parts]).all()]
    finite += [generator.isfinite().all(), discriminator.isfinite().all()]
    finite += [norm.isfinite() for norm in norms]
    finite += [finite[0]] * (len(PLACES) - len(finite))  # a run without discriminators
    return torch.cat([~torch.stack(finite), generator.mean()[None]]).float()


def judge(
    sums: Sequence[float], num_processes: int, recent: list[float], guards: Guards, *, scaled: bool
) -> Trouble | None:
    """The verdict on a step from the `findings` summed over all ranks; a loss without trouble joins `recent`.

    `scaled`: the losses are multiplied by float16's scale, which makes gradients overflow now and then.
    """
    *flags, total = sums
    loss = total / num_processes
    if places := tuple(place for place, ranks in zip(PLACES, flags, strict=True) if ranks):
        if scaled and set(places) <= set(GRADIENTS):
            return Trouble(NOT_FINITE, (), SKIP, loss)
        return Trouble(NOT_FINITE, places, guards.non_finite, loss)
    if guards.spikes == OFF:
        return None
    if len(recent) >= min(FEWEST_LOSSES, guards.spike_window):
        usual = statistics.median(recent[-guards.spike_window :])
        if not loss <= guards.spike_factor * usual:
            return Trouble(SPIKE, ("generator loss",), guards.spikes, loss, usual)
    recent.append(loss)
    del recent[: -guards.spike_window]
    return None


def suspects(trouble: Trouble, parts: Sequence[Part], weights: Mapping[str, float], guards: Guards) -> list[list[int]]:
    """The rows of each micro-batch of this rank that may be to blame, as closely as it can be told.

    Of input that is not finite: its rows. Of a loss: the micro-batch. Of a gradient, which is known only after it was
    averaged over ranks: all of them.
    """
    rows = [range(len(part.finite_rows)) for part in parts]
    if trouble.kind == SPIKE:
        limit = guards.spike_factor * (trouble.usual or 0.0)
        return [list(own) if float(part.generator(weights)) > limit else [] for part, own in zip(parts, rows, strict=True)]
    if set(trouble.places) <= set(GRADIENTS):
        return [list(own) for own in rows]
    found = [[row for row, good in enumerate(part.finite_rows.tolist()) if not good] for part in parts]
    for number, part in enumerate(parts):
        total = float(part.generator(weights) + part.discriminator())
        if not found[number] and not math.isfinite(total):
            found[number] = list(rows[number])
    return found
