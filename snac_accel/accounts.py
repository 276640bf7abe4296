"""The account of a run's data: how many windows each source gave, and which clips could not be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .dataset import BadSamples, Batch
from .dataset.samples import BAD

BAD_SAMPLES_FILE = "bad_samples.jsonl"


class SourceAccounts:
    """Counts of windows and bad clips by source; `totals` are those of the whole run, which a checkpoint holds."""

    def __init__(
        self,
        names: Sequence[str],
        max_bad_fraction: float,
        logs: Path,
        rank: int = 0,
        totals: dict[str, dict[str, int]] | None = None,
    ) -> None:
        self.names = list(names)
        self.totals = {} if totals is None else totals  # over all ranks
        for name in self.names:
            self.totals.setdefault(name, {"windows": 0, "bad_clips": 0})
        self.bad = BadSamples(max_bad_fraction, self._reported_before(bad_samples_file(logs, rank)))
        self._own = self._zeros()  # of this rank, since the last `take`
        self._tries = self._bad = 0  # over all ranks, since this process started

    def _reported_before(self, file: Path) -> Iterator[tuple[int, str]]:
        """Yield source and name of the clips that a run wrote down before it was interrupted."""
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # a line cut off by a kill, a source of another run
                    record = json.loads(line)
                    yield self.names.index(record["source"]), record["name"]

    def _zeros(self) -> list[list[int]]:
        return [[0, 0] for _ in self.names]  # windows and bad clips of each source

    def add(self, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """Count the micro-batches of a step; return a record of each clip that failed for the first time."""
        for batch in batches:
            for source in batch.sources:
                self._own[source][0] += 1
            for failure in batch.failures:
                self._own[failure.source][1] += failure.kind == BAD
        records = [record for batch in batches for record in self.bad.add(batch)]
        return [{**record, "source": self.names[record["source"]]} for record in records]

    def own_numbers(self) -> list[int]:
        """Return what this rank counted since the last `take`, to be summed over the ranks."""
        return [self.bad.num_tries, self.bad.num_bad, *(number for pair in self._own for number in pair)]

    def take(self, numbers: Sequence[int]) -> int:
        """Take the sums over the ranks of everybody's `own_numbers`; return the number of new bad clips."""
        self._tries, self._bad, *pairs = numbers
        for name, windows, bad in zip(self.names, pairs[::2], pairs[1::2], strict=True):
            self.totals[name]["windows"] += windows
            self.totals[name]["bad_clips"] += bad
        self._own = self._zeros()
        return sum(pairs[1::2])

    def stop_message(self) -> str | None:
        """Return why the run should stop, or None; the same on all ranks."""
        return self.bad.stop_message(self._bad, self._tries)

    def scalars(self) -> dict[str, float]:
        """Return share of the windows and number of bad clips of each source, if there are several."""
        if len(self.names) == 1:
            return {}
        total = max(sum(self.totals[name]["windows"] for name in self.names), 1)
        shares = {f"data/{name}/share": self.totals[name]["windows"] / total for name in self.names}
        return shares | {f"data/{name}/bad_clips": self.totals[name]["bad_clips"] for name in self.names}


def bad_samples_file(logs: Path, rank: int) -> Path:
    """Return the file in which a rank names the clips that it could not use."""
    return logs / (BAD_SAMPLES_FILE if rank == 0 else f"rank_{rank}.{BAD_SAMPLES_FILE}")
