"""Which rank holds up the others: the seconds of a step that each spends before it first waits for any other."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

SLOW = 1.5  # times the median of the other ranks
WORTH_SAYING = 0.1  # of a step's time
SAID_AGAIN = 10  # log lines, while the same rank is slow


class Span:
    """A stretch of a step on a device, which may work behind the program's back."""

    def __init__(self, device: torch.device) -> None:
        self.began = self.ended = time.perf_counter()
        self._events = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record(torch.cuda.current_stream(device))

    def end(self) -> None:
        """It ends here."""
        self.ended = time.perf_counter()
        if self._events is not None:
            self._events[1].record()

    def device_seconds(self) -> float:
        """What the device took longer than the program, waited for if need be."""
        if self._events is None:
            return 0.0
        self._events[1].synchronize()
        return max(self._events[0].elapsed_time(self._events[1]) / 1000 - (self.ended - self.began), 0.0)


class SlowRank(NamedTuple):
    """The rank that takes longest."""

    rank: int
    seconds: float  # of its own in a step
    usual: float  # median of the others
    step_seconds: float

    @property
    def lag(self) -> float:
        """How much longer it takes, as a share of a step."""
        return max(self.seconds - self.usual, 0.0) / max(self.step_seconds, 1e-9)

    @property
    def is_slow(self) -> bool:
        """Whether it is worth a line."""
        return self.seconds > SLOW * self.usual and self.lag > WORTH_SAYING

    def scalars(self) -> dict[str, float]:
        """For the log."""
        return {"time/slowest_rank": self.rank, "time/slowest_rank_lag": self.lag}


def slowest(own_seconds: Sequence[float], step_seconds: float) -> SlowRank | None:
    """The slowest of several ranks by their own seconds in a step; None where there is one alone."""
    if len(own_seconds) < 2:
        return None
    rank = max(range(len(own_seconds)), key=lambda number: own_seconds[number])
    others = [seconds for number, seconds in enumerate(own_seconds) if number != rank]
    return SlowRank(rank, own_seconds[rank], statistics.median(others), step_seconds)


class Pace:
    """Adds up this rank's own seconds between two log lines."""

    def __init__(self) -> None:
        self._seconds, self._steps, self._spans = 0.0, 0, list[Span]()
        self._said: int | None = None  # the rank that was called slow last
        self._lines = 0  # log lines since

    def add(self, seconds: float, span: Span | None = None) -> None:
        """Take a step's: seconds of the program, and what may have taken the device longer."""
        self._seconds += seconds
        self._steps += 1
        if span is not None:
            self._spans.append(span)

    def add_step(self, waited: float, entered: float, forward: Span, ended: float) -> None:
        """Take a step: it waited for its data, was entered, met the others behind its first forward pass, and has ended."""
        own = max(forward.ended - entered, 0.0) + time.perf_counter() - ended
        self.add(waited + own, forward)

    def flush(self) -> float:
        """Mean seconds of a step since the last flush."""
        seconds = self._seconds + sum(span.device_seconds() for span in self._spans)
        mean = seconds / max(self._steps, 1)
        self._seconds, self._steps, self._spans = 0.0, 0, []
        return mean

    def is_news(self, found: SlowRank) -> bool:
        """Whether a line should say so now; the same on every rank."""
        if not found.is_slow:
            self._said = None
            return False
        self._lines = self._lines + 1 if self._said == found.rank else SAID_AGAIN
        self._said = found.rank
        if self._lines < SAID_AGAIN:
            return False
        self._lines = 0
        return True


def slow_rank(
    accelerator: Accelerator, pace: Pace, step_seconds: float, step: int, say: Callable[[str], None]
) -> dict[str, float]:
    """What there is to log about the slowest of several ranks; it is named if it holds up the others; collective."""
    own = torch.tensor([pace.flush(), step_seconds], dtype=torch.float32, device=accelerator.device)
    if accelerator.num_processes == 1:
        return {}
    everyone = accelerator.gather(own[None]).tolist()
    found = slowest([seconds for seconds, _ in everyone], everyone[0][1])
    assert found is not None
    if pace.is_news(found):
        hosts = gather_object([socket.gethostname()])
        say(
            f"warning: step {step}: rank {found.rank} on {hosts[found.rank]} is slow: of a step of {found.step_seconds:.3g} s "
            f"it spends {found.seconds:.3g} s before it meets the others, who spend {found.usual:.3g} s"
        )
    return found.scalars()
