"""What all benchmarks share: rounds in turns, ratios with their noise, the machine, tables, ratios in JSON.

    times = alternate({"plain": plain, "ours": ours}, rounds=7)      A, B, A, B … after a warm-up
    found = ratio("step, tiny", times["ours"], times["plain"], better="lower", target=0.5)
    print(machine()); print(table([[found.name, describe(found)]], ["", "ratio"]))

Whatever else the machine does hits all ways of a round alike, so the ratios of single rounds are compared, not times.
A script that `make bench` runs offers `short() -> list[Ratio]`; what cannot be measured here raises `NotMeasured`,
and where only a part cannot, it prints a line that begins with "not measured".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tabulate import tabulate

Better = Literal["lower", "higher"]
VERSIONS_OF = ("torch", "accelerate", "snac")


class NotMeasured(Exception):
    """What `short` raises, with the reason in one line, where this machine cannot show its ratios (no GPU, say)."""


class Ratio(NamedTuple):
    """A ratio of two things that were measured in turns, once in each round."""

    name: str
    values: tuple[float, ...]  # one per round
    better: Better
    target: float | None = None  # what is promised: at most this if lower is better, at least this otherwise

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The lower quartile."""
        return quartiles(self.values)[0]

    @property
    def high(self) -> float:
        """The upper quartile."""
        return quartiles(self.values)[1]

    @property
    def spread(self) -> float:
        """The noise: distance of the quartiles."""
        return self.high - self.low

    @property
    def meets_target(self) -> bool:
        """Whether the median keeps what is promised; True without a promise."""
        if self.target is None:
            return True
        return self.median <= self.target if self.better == "lower" else self.median >= self.target


# --- measuring


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of `work`."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    measured_by: Callable[[Callable[[], Any]], float] = seconds,
) -> dict[str, list[float]]:
    """Measure the ways in turns, `rounds` times; the first `warm_up` rounds do not count.

    `measured_by` calls a way and gives a number: its seconds, unless another is asked for (`lambda way: way()`: what it returns).
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            value = measured_by(way)
            if number >= warm_up:
                found[name].append(value)
    return found


def ratio(
    name: str, over: Sequence[float], under: Sequence[float], *, better: Better, target: float | None = None
) -> Ratio:
    """`over` divided by `under`, round by round; ValueError if they have not as many rounds."""
    return Ratio(name, tuple(a / b for a, b in zip(over, under, strict=True)), better, target)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The values that a quarter lies below and above."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


# --- the machine


def cpu_model() -> str:
    """The processor as the system names it."""
    information = Path("/proc/cpuinfo")
    lines: Iterable[str] = information.read_text().splitlines() if information.is_file() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(threads: int | None = None) -> str:
    """The line about what was measured on: processor, cores, GPU, torch, date."""
    import torch  # here: scripts about the start of the program do without it

    parts = [cpu_model(), f"{available_cores()} cores"]
    parts += [f"{threads} threads"] if threads else []
    parts += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return f"machine: {', '.join(parts)}; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}"


def versions() -> dict[str, str]:
    """Versions of what the times depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS_OF}}


# --- printing, flags


def table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """A table for the terminal that is Markdown as well."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def describe(found: Ratio) -> str:
    """Median and quartiles."""
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


def positive(text: str) -> int:
    """A whole number of at least 1, as a flag's type."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return number


# --- ratios in files


def to_json(ratios: Iterable[Ratio]) -> list[dict[str, Any]]:
    """Ratios as plain values."""
    return [found._asdict() | {"values": list(found.values)} for found in ratios]


def from_json(plain: Iterable[Mapping[str, Any]]) -> list[Ratio]:
    """Ratios from plain values; TypeError if they are not what `to_json` gives."""
    return [Ratio(**{**found, "values": tuple(found["values"])}) for found in plain]


def write_json(path: Path, content: object) -> None:
    """Write a file that reads well and changes line by line."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text())
