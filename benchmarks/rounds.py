"""The measured part of `scaling.py`: rounds of timings of one process and of two, and what they say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from measure import quartiles, table
from ranks import Ranks

from snac_accel.config import TrainingConfig, load_config

WIDTHS = (32, 128, 512, 1024, 1024)  # channels of the original discriminators
WARM_UP = 3  # steps; DDP lays out its buckets after the first


class Round(NamedTuple):
    """Seconds, one after the other."""

    one: float  # a step of one process with all cores
    two: float  # a step of two processes, each with half of the cores and of the batch
    local: float  # the same without averaging gradients
    all_reduce: float  # the averaging alone

    @property
    def ratio(self) -> float:
        """Two processes over one: below 1 is faster."""
        return self.two / self.one

    @property
    def cost(self) -> float:
        """What averaging adds to the step."""
        return self.two - self.local


def timing_config(width: float, seconds: float) -> TrainingConfig:
    """The demo's generator, and the original discriminators with `width` times their channels.

    The demo's own discriminators are so small that their gradients take no time.
    """
    channels = {"channels": [max(4, int(width * full)) for full in WIDTHS]}
    overrides: dict[str, Any] = {
        "data": {"segment_length": seconds},
        "discriminators": {"mpd": channels, "msstftd": channels},
        "training": {"mixed_precision": "no"},
        "tracking": {"trackers": []},
    }
    return load_config("demo", overrides=overrides, environment={})


def measure(config: TrainingConfig, *, global_batch: int, rounds: int, cores: int) -> list[Round]:
    """Rounds of all four timings, every second one the other way round, so that a drift hits all alike."""
    with (
        Ranks(1, threads=cores, config=config, global_batch=global_batch) as one,
        Ranks(2, threads=max(1, cores // 2), config=config, global_batch=global_batch) as two,
    ):
        for _ in range(WARM_UP):
            one.ask("step")
            two.ask("step")
        timings = {"one": one, "two": two, "local": two, "all_reduce": two}
        commands = {"one": "step", "two": "step", "local": "local", "all_reduce": "all_reduce"}
        found = []
        for index in range(rounds):
            order = list(timings)[:: -1 if index % 2 else 1]
            found.append(Round(**{name: timings[name].seconds(commands[name]) for name in order}))
    return found


def report(rounds: Sequence[Round]) -> str:
    """Table of medians and spreads, and what they say about overlap."""
    lines = {
        "step, 1 process, all cores (s)": [one.one for one in rounds],
        "step, 2 processes, half of the cores each (s)": [one.two for one in rounds],
        "the same, gradients not averaged (s)": [one.local for one in rounds],
        "all-reduce of the gradients alone (s)": [one.all_reduce for one in rounds],
        "2 processes over 1, by round": [one.ratio for one in rounds],
        "what averaging adds, by round (s)": [one.cost for one in rounds],
    }
    rows = [[name, *_spread(values)] for name, values in lines.items()]
    return f"{table(rows, ['', 'median', 'middle half', 'all'])}\n\n{overlap(rounds)}"


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    lower, upper = quartiles(values)
    middle, every = f"{lower:.3f} to {upper:.3f}", f"{min(values):.3f} to {max(values):.3f}"
    return f"{statistics.median(values):.3f}", middle, every


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 % confidence if the rounds are independent: order statistics of the binomial distribution."""
    ordered, reach = sorted(values), 0.98 * math.sqrt(len(values))
    lower, upper = math.floor(len(values) / 2 - reach), math.ceil(len(values) / 2 + reach)
    return ordered[max(lower, 0)], ordered[min(upper, len(values) - 1)]


def overlap(rounds: Sequence[Round]) -> str:
    """The share of the all-reduce that the step hides, if the rounds agree well enough to tell."""
    alone = statistics.median(one.all_reduce for one in rounds)
    costs = [one.cost for one in rounds]
    lower, upper = median_interval(costs)
    found = (
        f"averaging adds {statistics.median(costs):.3f} s (median; {lower:.3f} to {upper:.3f} with 95 % confidence), "
        f"the all-reduce alone takes {alone:.3f} s"
    )
    if lower >= alone:
        return f"overlap: none; {found}"
    if upper - lower > alone:
        return f"overlap: not resolved; {found}"
    return f"overlap: {max(0.0, 1 - upper / alone):.0%} to {min(1.0, 1 - lower / alone):.0%} of the all-reduce; {found}"
