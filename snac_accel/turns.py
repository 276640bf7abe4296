"""Whose turn it is in a step: when the discriminators begin, pause, and how often each side learns. Functions of the step alone.

So a resumed run, and every rank, has the same turns, and nothing of them is kept. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Turn(NamedTuple):
    """Who does what in a step; at least one side learns."""

    generator: bool = True  # learns
    judged: bool = True  # the discriminators look at the audio
    discriminators: bool = True  # learn
    weight: float = 1.0  # of what the discriminators say to the generator, 0 to 1


@dataclass(frozen=True)
class Turns:
    """The turns of a run; the defaults let both sides learn in every step."""

    start_step: int = 0  # before it there are no discriminators
    ramp_steps: int = 0  # over which their weight rises, once the generator listens
    generator_wait_steps: int = 0  # from start_step on, in which they alone learn
    discriminator_every: int = 1  # steps from one of their updates to the next
    generator_every: int = 1
    pauses: tuple[tuple[int, int], ...] = ()  # first and last + 1 of steps in which they judge, and do not learn

    def of(self, step: int) -> Turn:
        """The turn of a step, counted from 0."""
        since = step - self.start_step
        if since < 0:
            return Turn(judged=False, discriminators=False, weight=0.0)
        waits = since < self.generator_wait_steps
        paused = any(first <= step < end for first, end in self.pauses)
        discriminators = not paused and (waits or since % self.discriminator_every == 0)
        generator = not waits and step % self.generator_every == 0
        listening = since - self.generator_wait_steps + 1
        weight = min(1.0, max(0, listening) / (self.ramp_steps + 1))
        return Turn(generator or not discriminators, True, discriminators, weight)

    def changes_at(self, step: int) -> bool:
        """Whether the generator's loss is made of other terms than in the step before."""
        return step > 0 and self.of(step).judged != self.of(step - 1).judged
