"""Which metrics are measured, and what their numbers mean, for tables and page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics import VALIDATION_METRICS, find_metric, usable_metrics


def traits_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """Name, label, unit and better direction of each metric."""
    found = []
    for name in names:
        metric = find_metric(name)
        found.append({"name": name, "label": metric.label, "unit": metric.unit, "better": metric.better})
    return found


def choose_metrics(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The metrics asked for (None: all) that can be computed here, and the others with what to install."""
    return usable_metrics(names)


def metrics_of_levels(names: Sequence[str], asked_for: bool) -> list[str]:
    """Those measured on less than all levels: the cheap ones, or all that were asked for by name."""
    return [name for name in names if asked_for or name in VALIDATION_METRICS]
