"""Models against the first of them, clip by clip: a difference on the same clips is seen long before one of means is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..listening import Page, PageClip, Sound, Table, read_page_clip
from ..listening.contents import ORIGINAL
from ..listening.writing import CLIPS
from .models import distinct
from .pages import estimate_cell, facts_of, heading, notes_of, page_models, summary_tables
from .results import Results, Row, summarize
from .statistics import Estimate, estimate


class Difference(NamedTuple):
    """Of one metric: a model minus the baseline, over the clips that both were measured on."""

    model: str
    metric: str
    found: Estimate | None
    share_better: float  # of the clips, 0 to 1; where both are the same half

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.found is not None and self.found.low is not None and not self.found.low <= 0 <= (self.found.high or 0.0)


def merge(parts: Sequence[Results]) -> Results:
    """Several evaluations as one, on the clips that all of them have; DataError if there is none."""
    labels = distinct([label for part in parts for label in part.labels])
    names = [name for name in parts[0].names if all(name in part.names for part in parts)]
    common = set.intersection(*({_key(row) for row in part.rows} for part in parts))
    if not common or not names:
        raise DataError("these evaluations have no clip, or no metric, in common: evaluate them on the same data")
    models: list[dict[str, Any]] = []
    rows: list[Row] = []
    for part in parts:
        renamed = dict(zip(part.labels, labels[len(models) :], strict=False))
        models += [{**model, "label": renamed[model["label"]]} for model in part.models]
        rows += [{**row, "model": renamed[row["model"]]} for row in part.rows if _key(row) in common]
    metrics = [metric for metric in parts[0].metrics if metric["name"] in names]
    return Results(models, metrics, rows, settings=dict(parts[0].settings))


def _key(row: Mapping[str, Any]) -> tuple[str, float]:
    """What makes a clip the same in two evaluations: its name and its length."""
    return row["clip"], round(row["seconds"], 3)


def differences(results: Results, seed: int = 0) -> list[Difference]:
    """Every model against the first one, from all levels."""
    first, *others = results.labels
    baseline = {row["clip"]: row for row in results.of(first)}
    found = []
    for label in others:
        for metric in results.metrics:
            pairs = _pairs(baseline, results.of(label), metric["name"])
            changes = [other - own for own, other in pairs]
            sign = -1 if metric["better"] == "lower" else 1
            wins = [0.5 if change == 0 else float(sign * change > 0) for change in changes]
            share = sum(wins) / max(len(wins), 1)
            found.append(Difference(label, metric["name"], estimate(changes, seed=seed), share))
    return found


def _pairs(baseline: Mapping[str, Row], rows: Sequence[Row], metric: str) -> list[tuple[float, float]]:
    pairs = [(baseline[row["clip"]][metric], row[metric]) for row in rows if row["clip"] in baseline]
    return [(own, other) for own, other in pairs if own is not None and other is not None]


def difference_table(results: Results, found: Sequence[Difference]) -> Table:
    """The differences, each with what it says."""
    traits = {metric["name"]: metric for metric in results.metrics}
    headers = ["model", "metric", "difference [95 % interval]", "clips that are better", "verdict"]
    rows = []
    for one in found:
        cells = [(one.model, None), (heading(traits[one.metric]), None), estimate_cell(one.found)]
        rows.append([*cells, (f"{one.share_better:.0%}", one.share_better), (verdict(one, traits[one.metric]), None)])
    note = f"Each model minus {results.labels[0]}, on the same clips; the interval is a bootstrap over clips."
    return Table("Differences", note, headers, rows)


def verdict(one: Difference, metric: Mapping[str, Any]) -> str:
    """One word: better, worse, or that these clips cannot tell."""
    if one.found is None:
        return "not measured"
    if not one.is_clear:
        return "no difference seen"
    return "better" if (one.found.mean < 0) == (metric["better"] == "lower") else "worse"


def comparison_page(results: Results, found: Sequence[Difference], clips: Sequence[PageClip], title: str) -> Page:
    """The page of a comparison: differences first."""
    tables = [difference_table(results, found), *summary_tables(results, summarize(results))]
    number = len({row["clip"] for row in results.rows})
    subtitle = f"{number} clips, against {results.labels[0]}"
    return Page(title, subtitle, facts_of(results), results.metrics, page_models(results), tables, clips, notes=notes_of(results))


def merge_page_clips(folders: Sequence[Path], parts: Sequence[Results], labels: Sequence[str]) -> list[PageClip]:
    """The clips that the pages of all evaluations have, with the sounds of all; `labels` of the merged models."""
    pages = [_page_clips(folder) for folder in folders]
    common = [name for name in pages[0] if all(name in page for page in pages)]
    merged = []
    for name in common:
        sounds = [sound for sound in pages[0][name].sounds if sound.key == ORIGINAL]
        codes: dict[int, Sequence[Sequence[int]]] = {}
        values: dict[str, Mapping[str, float | None]] = {}
        offset = 0
        for page, part in zip(pages, parts, strict=True):
            clip = page[name]
            for sound in clip.sounds:
                if sound.model is not None:
                    moved = _moved(sound, offset, part.labels[sound.model], labels[sound.model + offset])
                    sounds.append(moved)
                    values[moved.key] = clip.values.get(sound.key, {})
            codes |= {number + offset: levels for number, levels in clip.codes.items()}
            offset += len(part.models)
        first = pages[0][name]
        merged.append(PageClip(name, first.source, first.speaker, first.seconds, sounds, codes, values, first.note))
    return merged


def _moved(sound: Sound, offset: int, old: str, new: str) -> Sound:
    assert sound.model is not None
    number = sound.model + offset
    label = new + sound.label.removeprefix(old)
    return Sound(f"{number}/{sound.levels}", label, number, sound.levels, sound.is_full, sound.content, sound.sampling_rate)


def _page_clips(folder: Path) -> dict[str, PageClip]:
    number = len(list((folder / CLIPS).glob("*.js")))
    clips = [read_page_clip(folder, index) for index in range(number)]
    return {clip.name: clip for clip in clips}
