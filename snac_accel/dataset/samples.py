"""Samples, batches, and the account of what could not be used.

Shapes: B batch, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

BAD, SHORT = (
    "bad",
    "short",
)  # kinds of failure: cannot be decoded or is invalid; shorter than the stated minimum


class Failure(NamedTuple):
    """A clip that was replaced by another one."""

    name: str
    reason: str
    kind: str  # BAD counts against the run, SHORT does not
    source: int = 0  # its number in the mixture


class Sample(NamedTuple):
    """One training window."""

    audio: Tensor  # (1, T) float32
    name: str  # of the clip
    num_padding: int  # zeros appended because the clip is shorter than the window
    failures: list[Failure]  # clips tried before this one
    source: int = 0  # its number in the mixture


class Batch(NamedTuple):
    """One micro-batch. It holds only `error`, which the loader raises as DataError, if nothing was usable."""

    audio: Tensor  # (B, 1, T) float32
    names: list[str]
    num_padding: int  # samples, of all rows together
    failures: list[Failure]
    sources: list[int]  # of each row: its number in the mixture
    num_retries: int = 0  # requests that the network made necessary
    error: str | None = None


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples of equal length into one batch."""
    return Batch(
        audio=torch.stack([sample.audio for sample in samples]),
        names=[sample.name for sample in samples],
        num_padding=sum(sample.num_padding for sample in samples),
        failures=[failure for sample in samples for failure in sample.failures],
        sources=[sample.source for sample in samples],
    )


class BadSamples:
    """Counts the clips of one process that could not be used; `reported` are those (source, name) written out before.

    The counts are plain numbers: processes add theirs and ask `stop_message` with the sums, so that all of
    them decide alike.
    """

    MIN_TRIES = 20  # before that one bad clip would be a large share

    def __init__(self, max_bad_fraction: float = 0.05, reported: Iterable[tuple[int, str]] = ()) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.num_tries = 0  # clips opened for training, usable or not
        self.num_bad = 0
        self.num_short = 0
        self.last_failure: Failure | None = None
        self._reported = set(reported)

    def add(self, batch: Batch) -> list[dict[str, Any]]:
        """Count a batch; return a record (name, reason, kind) of each clip that failed for the first time."""
        bad = [failure for failure in batch.failures if failure.kind == BAD]
        self.num_tries += len(batch.names) + len(batch.failures)
        self.num_bad += len(bad)
        self.num_short += len(batch.failures) - len(bad)
        self.last_failure = bad[-1] if bad else self.last_failure
        return [failure._asdict() for failure in batch.failures if self._is_new(failure)]

    def _is_new(self, failure: Failure) -> bool:
        key = failure.source, failure.name
        is_new = key not in self._reported
        self._reported.add(key)
        return is_new

    @property
    def share(self) -> float:
        """Share of the clips opened that were bad, 0 to 1."""
        return self.num_bad / max(self.num_tries, 1)

    def stop_message(self, num_bad: int | None = None, num_tries: int | None = None) -> str | None:
        """Return why the run should stop, or None: by the sums over all processes, or by the own counts."""
        bad = self.num_bad if num_bad is None else num_bad
        tries = self.num_tries if num_tries is None else num_tries
        if tries < self.MIN_TRIES or bad <= self.max_bad_fraction * tries:
            return None
        example = (
            f", the last one {self.last_failure.name}: {self.last_failure.reason}"
            if self.last_failure
            else ""
        )
        return (
            f"{bad} of {tries} clips could not be used ({bad / tries:.1%}, allowed by data.max_bad_fraction "
            f"{self.max_bad_fraction:.1%}){example}"
        )
