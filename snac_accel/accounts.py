"""The account of a run's data: how many windows each source gave, and which clips could not be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dataset import BadSamples, Batch
from .dataset.samples import BAD

BAD_SAMPLES_FILE = "bad_samples.jsonl"


class SourceAccounts:
    """Counts by source, of this process and, from `take` on, of all of them together, since the process started."""

    def __init__(self, names: Sequence[str], max_bad_fraction: float, logs: Path, rank: int = 0) -> None:
        self.names = list(names)
        self.bad = BadSamples(max_bad_fraction, reported_before(bad_samples_file(logs, rank)))
        self._own_windows = [0] * len(self.names)  # since the last `take`
        self._own_bad = [0] * len(self.names)
        self.windows = [0] * len(self.names)  # over all ranks
        self.bad_clips = [0] * len(self.names)
        self.num_tries = 0

    def add(self, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """Count the micro-batches of a step; return a record of each clip that failed for the first time."""
        for batch in batches:
            for source in batch.sources:
                self._own_windows[source] += 1
            for failure in batch.failures:
                self._own_bad[failure.source] += failure.kind == BAD
        records = [record for batch in batches for record in self.bad.add(batch)]
        return [{**record, "source": self.names[record["source"]]} for record in records]

    def own_numbers(self) -> list[int]:
        """Return what this process counted since the last `take`, to be summed over the ranks."""
        return [self.bad.num_tries, *self._own_windows, *self._own_bad]

    def take(self, numbers: Sequence[int]) -> int:
        """Take the sums over the ranks of everybody's `own_numbers`; return the number of new bad clips."""
        self.num_tries, *rest = numbers
        windows, bad = rest[: len(self.names)], rest[len(self.names) :]
        self.windows = [total + new for total, new in zip(self.windows, windows, strict=True)]
        self.bad_clips = [total + new for total, new in zip(self.bad_clips, bad, strict=True)]
        self._own_windows, self._own_bad = [0] * len(self.names), [0] * len(self.names)
        return sum(bad)

    def stop_message(self) -> str | None:
        """Return why the run should stop, or None; the same on all ranks."""
        return self.bad.stop_message(sum(self.bad_clips), self.num_tries)

    def scalars(self) -> dict[str, float]:
        """Return share of the windows and number of bad clips of each source, if there are several."""
        if len(self.names) == 1:
            return {}
        total = max(sum(self.windows), 1)
        shares = {f"data/{n}/share": w / total for n, w in zip(self.names, self.windows, strict=True)}
        bad = {f"data/{n}/bad_clips": b for n, b in zip(self.names, self.bad_clips, strict=True)}
        return {**shares, **bad}


def bad_samples_file(logs: Path, rank: int) -> Path:
    """Return the file in which a rank names the clips that it could not use."""
    return logs / (BAD_SAMPLES_FILE if rank == 0 else f"rank_{rank}.{BAD_SAMPLES_FILE}")


def reported_before(file: Path) -> list[str]:
    """Return the names that a run wrote down before it was interrupted."""
    if not file.is_file():
        return []
    names = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            names.append(json.loads(line)["name"])
        except (ValueError, KeyError, TypeError):  # a line cut off by a kill
            continue
    return names
