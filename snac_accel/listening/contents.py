"""What is on a listening page, as plain values; nothing here knows how they were measured. Shapes: T samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ORIGINAL = "original"  # the key of the sound that all others are compared with


@dataclass(frozen=True)
class Sound:
    """One version of a clip: the original, or what a model made of it."""

    key: str  # unique among the sounds of a clip: `original`, or model and levels
    label: str
    model: int | None  # its number on the page; None: the original
    levels: int | None  # of quantization that it was decoded from, coarse to fine
    is_full: bool  # decoded from all levels, or the original
    content: bytes  # a FLAC file
    sampling_rate: int


@dataclass(frozen=True)
class PageClip:
    """A clip with all its versions."""

    name: str
    source: str
    speaker: str
    seconds: float
    sounds: Sequence[Sound]
    codes: Mapping[int, Sequence[Sequence[int]]]  # by model, per level
    values: Mapping[str, Mapping[str, float | None]]  # by sound and metric
    note: str = ""  # why it is on the page


@dataclass(frozen=True)
class PageModel:
    """A model, for the tokens and the legend."""

    label: str
    token_rates: Sequence[float]  # per level, Hz
    codebook_size: int


@dataclass(frozen=True)
class Table:
    """A table; a number stands beside its text, so that columns can be sorted."""

    title: str
    note: str
    headers: Sequence[str]
    rows: Sequence[Sequence[tuple[str, float | None]]]


@dataclass(frozen=True)
class Curves:
    """A picture of lines over the steps of a run."""

    title: str
    unit: str
    series: Mapping[str, Sequence[tuple[float, float]]]  # by name, points (step, value)
    is_logarithmic: bool = False


@dataclass(frozen=True)
class Page:
    """Everything on a page."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    metrics: Sequence[Mapping[str, Any]]  # name, label, unit, better ("lower" or "higher")
    models: Sequence[PageModel]
    tables: Sequence[Table]
    clips: Sequence[PageClip]
    curves: Sequence[Curves] = ()
    notes: Sequence[str] = field(default_factory=tuple)  # what a reader should know, such as clips left out
