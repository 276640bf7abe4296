"""Curves of a run, from its log: losses, held-out distances, health of the codebooks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..plain_json import parse_json
from ..runs import LOG_FILE
from .contents import Curves

MAX_POINTS = 400  # of a curve: more than a screen shows
Points = list[tuple[float, float]]


class Panel(NamedTuple):
    """One picture: which names of the log it shows."""

    title: str
    unit: str
    pattern: str  # of the whole name; what its group finds is the curve's name
    is_logarithmic: bool = False


PANELS = (
    Panel("Held-out distances", "distance, lower is better", r"validation/(\w*distance\w*)", True),
    Panel("Held-out SI-SDR", "dB, higher is better", r"validation/(si_sdr_db)"),
    Panel("Spectral losses in training", "loss", r"train/(multi_scale_mel|mel|stft)", True),
    Panel("Adversarial losses", "loss", r"(?:train|discriminator)/(adversarial|mpd|msstftd)"),
    Panel("Feature matching", "loss", r"train/(feature_matching)"),
    Panel("Quantizer losses", "loss", r"train/(commitment|codebook)", True),
    Panel("Held-out perplexity of the codebooks", "codes", r"validation/(level_\d+)/perplexity"),
    Panel("Share of codes in use, held out", "share", r"validation/(level_\d+)/share_used"),
    Panel("Perplexity of the codebooks in training", "codes", r"codebook/(level_\d+)/perplexity"),
    Panel("Dead codes", "codes", r"codebook/(level_\d+)/dead\w*"),
    Panel("Restarted codes", "codes", r"codebook/(level_\d+)/restart\w*"),
    Panel("Learning rate", "", r"train/(learning_rate)"),
)


def curves_of(rows: Iterable[Mapping[str, Any]]) -> list[Curves]:
    """The pictures of a log's rows that have something to show; rows of steps that were gone back over are left out."""
    points: dict[str, dict[float, float]] = {}  # by name and step: of a step that was made again the last value
    for row in _kept(list(rows)):
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, {})[float(row["step"])] = float(value)
    pictures = []
    for panel in PANELS:
        matches = {name: match[1] for name in sorted(points) if (match := re.fullmatch(panel.pattern, name))}
        found = {label: thin(list(points[name].items())) for name, label in matches.items()}
        if any(len(line) > 1 for line in found.values()):
            logarithmic = panel.is_logarithmic and all(y > 0 for line in found.values() for _, y in line)
            pictures.append(Curves(panel.title, panel.unit, found, logarithmic))
    return pictures


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log in a run's folder of logs; what cannot be read, such as a line cut short, is passed over."""
    rows = []
    with suppress(OSError):
        for line in (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                row = parse_json(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def _kept(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that no later row of a smaller step made void."""
    kept: list[Mapping[str, Any]] = []
    smallest = math.inf
    for row in reversed(rows):
        if isinstance(row.get("step"), int) and row["step"] <= smallest:
            kept.append(row)
            smallest = row["step"]
    return kept[::-1]


def thin(points: Points) -> Points:
    """At most `MAX_POINTS` points: means of neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
