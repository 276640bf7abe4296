"""Ratios of now against stored ones: what is a change, what is noise, and the table that says so.

A change counts when the medians lie further apart than `MARGIN` times both spreads (distances of the quartiles) together, and
further than `SMALLEST_CHANGE`. Where only independent noise differs, that calls a ratio of seven rounds worse three times in
ten thousand (simulated, normal noise; tests/test_bench.py). The quartiles of few rounds say little: with fewer than
`ENOUGH_ROUNDS` the margin grows in proportion, which leaves one to two false alarms in a thousand at three or five.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from measure import Ratio, describe, from_json, table, to_json

MARGIN, ENOUGH_ROUNDS = 1.5, 7
SMALLEST_CHANGE = 0.02  # of the stored median; what is counted and not timed has no spread at all
SAME, BETTER, WORSE, NEW, GONE = "same within noise", "better", "WORSE", "new", "gone"
FAILED, NOT_MEASURED, MISSED = "FAILED", "not measured", "target missed"
HEADERS = ("ratio", "now (quartiles)", "stored", "change", "noise, now and stored", "target", "verdict")


class Record(NamedTuple):
    """What the short version of one script gave, and where."""

    ratios: list[Ratio]
    machine: str  # as `measure.machine` names it, without the date
    date: str
    versions: Mapping[str, str]
    seconds: float  # that it took; for the forecast of the next run only


class Row(NamedTuple):
    """A line of the table."""

    name: str
    verdict: str
    now: Ratio | None = None
    stored: Ratio | None = None

    @property
    def is_bad(self) -> bool:
        """Whether `make bench` fails for it."""
        return self.verdict.startswith((WORSE, FAILED))


def noise(now: Ratio, stored: Ratio) -> float:
    """The distance of the medians up to which nothing has changed."""
    rounds = min(len(now.values), len(stored.values), ENOUGH_ROUNDS)
    margin = MARGIN * ENOUGH_ROUNDS / rounds
    return max(margin * (now.spread + stored.spread), SMALLEST_CHANGE * abs(stored.median))


def verdict(now: Ratio, stored: Ratio | None) -> str:
    """What became of a ratio, and whether it keeps what is promised."""
    return change(now, stored) if now.meets_target else f"{change(now, stored)}, {MISSED}"


def change(now: Ratio, stored: Ratio | None) -> str:
    """Better or worse than stored, or the same within noise."""
    if stored is None:
        return NEW
    difference = now.median - stored.median
    if abs(difference) <= noise(now, stored):
        return SAME
    return BETTER if (difference < 0) == (now.better == "lower") else WORSE


def compare(now: Sequence[Ratio], stored: Sequence[Ratio]) -> list[Row]:
    """A row for each ratio of one script, those that it no longer gives at the end."""
    before = {found.name: found for found in stored}
    rows = [
        Row(found.name, verdict(found, before.get(found.name)), found, before.get(found.name))
        for found in now
    ]
    names = {found.name for found in now}
    return rows + [Row(name, GONE, None, found) for name, found in before.items() if name not in names]


def report(rows: Sequence[Row]) -> str:
    """The table."""
    return table([_cells(row) for row in rows], HEADERS)


def _cells(row: Row) -> list[str]:
    now, stored = row.now, row.stored
    moved = f"{now.median / stored.median - 1:+.1%}" if now and stored and stored.median else ""
    spreads = f"{now.spread:.3f}" if now else ""
    spreads += f" and {stored.spread:.3f}" if now and stored else ""
    sign = "at most" if now and now.better == "lower" else "at least"
    target = f"{sign} {now.target:.3g}" if now and now.target is not None else ""
    return [
        row.name,
        describe(now) if now else "",
        f"{stored.median:.3f}" if stored else "",
        moved,
        spreads,
        target,
        row.verdict,
    ]


def differences(here: Record, stored: Record) -> list[str]:
    """What may explain a change beside the code: another machine, other versions."""
    found = [] if here.machine == stored.machine else [f"stored on another machine ({stored.machine})"]
    return found + [
        f"stored with {name} {version}, here {here.versions.get(name, 'none')}"
        for name, version in stored.versions.items()
        if here.versions.get(name) != version
    ]


def record_to_json(record: Record) -> dict[str, Any]:
    """A record as plain values."""
    return record._asdict() | {"ratios": to_json(record.ratios)}


def record_from_json(plain: Mapping[str, Any]) -> Record:
    """A record from plain values; TypeError if they are not what `record_to_json` gives."""
    return Record(**{**plain, "ratios": from_json(plain["ratios"])})
