"""From results to a listening page: clips with their sounds, summary tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..listening import Page, PageClip, PageModel, Sound, Table
from ..listening.contents import ORIGINAL
from ..listening.writing import encode_flac
from .clips import EvaluationClip
from .measuring import Measured, Reconstruction
from .models import EvaluatedModel
from .results import Line, Results, real_time_factors
from .statistics import Estimate

Cell = tuple[str, float | None]


def page_clip(
    clip: EvaluationClip,
    models: Sequence[EvaluatedModel],
    measured: Sequence[Measured],
    note: str = "",
    values: Mapping[str, Mapping[str, float | None]] | None = None,
) -> PageClip:
    """A clip with what every model made of it; `values` by sound and metric, None: they are filled in later."""
    sounds = [
        Sound(ORIGINAL, "original", None, None, True, encode_flac(clip.audio, clip.sampling_rate), clip.sampling_rate)
    ]
    for number, (model, found) in enumerate(zip(models, measured, strict=True)):
        count = len(found.codes)
        for version in reversed(found.reconstructions):  # the full one first
            sounds.append(_sound(number, model, version, count))
    codes = {number: [level.tolist() for level in found.codes] for number, found in enumerate(measured)}
    seconds = len(clip.audio) / clip.sampling_rate
    return PageClip(clip.name, clip.source, clip.speaker, seconds, sounds, codes, values or {}, note)


def _sound(number: int, model: EvaluatedModel, version: Reconstruction, count: int) -> Sound:
    is_full = version.levels == count
    label = model.label if is_full else f"{model.label}, {level_words(version.levels, count)}"
    rate = model.generator.sampling_rate
    return Sound(f"{number}/{version.levels}", label, number, version.levels, is_full, encode_flac(version.audio, rate), rate)


def level_words(levels: int, count: int) -> str:
    """How many levels were decoded: "level 0", "levels 0–1", "all levels"."""
    if levels == count:
        return "all levels"
    return "level 0 only" if levels == 1 else f"levels 0–{levels - 1}"


def evaluation_page(results: Results, lines: Sequence[Line], clips: Sequence[PageClip], title: str) -> Page:
    """The page of an evaluation."""
    return Page(
        title,
        f"{len({row['clip'] for row in results.rows})} clips, {_minutes(results)} min",
        facts_of(results),
        results.metrics,
        page_models(results),
        summary_tables(results, lines),
        clips,
        notes=notes_of(results),
    )


def _minutes(results: Results) -> str:
    seconds = {row["clip"]: row["seconds"] for row in results.rows}
    return f"{sum(seconds.values()) / 60:.1f}"


def facts_of(results: Results) -> list[tuple[str, str]]:
    """What was evaluated, as pairs of words."""
    facts = [(name, str(value)) for name, value in results.settings.items() if isinstance(value, (str, int, float))]
    for model in results.models:
        rates = " / ".join(f"{rate:.3g}" for rate in model["token_rates"])
        kind = f"{model.get('kind') or 'model'}" + (f", step {model['step']}" if model.get("step") is not None else "")
        facts.append((model["label"], f"{kind}; {model['sampling_rate']} Hz, tokens at {rates} Hz, "
                      f"{model['bitrate'] / 1000:.3g} kbit/s, {model['parameters'] / 1e6:.2f} M parameters"))  # fmt: skip
    return facts


def page_models(results: Results) -> list[PageModel]:
    """The models in their order."""
    return [PageModel(m["label"], m["token_rates"], m["codebook_size"]) for m in results.models]


def notes_of(results: Results) -> list[str]:
    """What a reader should know beside the numbers."""
    notes = [f"{name} is missing: {what}" for name, what in results.missing_metrics.items()]
    if results.failures:
        first = results.failures[0]
        notes.append(f"{len(results.failures)} clips are left out; the first, {first['name']}, {first['reason']}")
    if len({model["sampling_rate"] for model in results.models}) > 1:
        notes.append("The models have different sampling rates, and each is measured at its own: distances that look at high "
                     "frequencies are then not of the same thing.")  # fmt: skip
    return notes


def summary_tables(results: Results, lines: Sequence[Line]) -> list[Table]:
    """Means over all clips, by levels, by source, by speaker; codebooks; speed."""
    whole = [line for line in lines if line.group == "all" and line.levels == _count(results, line.model)]
    tables = [_estimates("All clips", "Mean over clips, with the 95 % interval of a bootstrap over clips.", results, whole)]
    partial = [line for line in lines if line.group == "all"]
    if len(partial) > len(whole):
        note = "Decoded from the coarsest levels of codes alone: what the finer ones add."
        tables.append(_estimates("By levels of quantization", note, results, partial, with_levels=True))
    for word in ("source", "speaker"):
        group = [line for line in lines if line.group.startswith(f"{word}: ")]
        if group:
            tables.append(_estimates(f"By {word}", "All levels.", results, group, with_group=True))
    return [*tables, _codebooks(results), _speed(results)]


def _count(results: Results, label: str) -> int:
    return next(len(model["token_rates"]) for model in results.models if model["label"] == label)


def _estimates(
    title: str, note: str, results: Results, lines: Sequence[Line], with_levels: bool = False, with_group: bool = False
) -> Table:
    headers = ["model"] + ["levels"] * with_levels + ["clips of"] * with_group + ["clips"] + [heading(m) for m in results.metrics]
    rows = []
    for line in lines:
        cells: list[Cell] = [(line.model, None)]
        if with_levels:
            cells.append((level_words(line.levels, _count(results, line.model)), float(line.levels)))
        if with_group:
            cells.append((line.group.partition(": ")[2], None))
        cells.append((str(line.num_clips), float(line.num_clips)))
        rows.append([*cells, *(estimate_cell(line.estimates[name]) for name in results.names)])
    return Table(title, note, headers, rows)


def heading(metric: dict[str, Any]) -> str:
    """A metric's name over a column: with its unit, and which way is better."""
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{metric['label']}{unit} {'↓' if metric['better'] == 'lower' else '↑'}"


def estimate_cell(found: Estimate | None) -> Cell:
    """A mean with its interval."""
    if found is None:
        return "–", None
    if found.low is None or found.high is None:
        return f"{found.mean:.4g}", found.mean
    return f"{found.mean:.4g} [{found.low:.4g}, {found.high:.4g}]", found.mean


def _codebooks(results: Results) -> Table:
    rows: list[list[Cell]] = []
    for model in results.models:
        nominal = (model["codebook_size"] - 1).bit_length()
        for level, rate in enumerate(model["token_rates"]):
            used, entropy = model["perplexity"][level], model["entropy_bits_per_second"][level]
            rows.append(
                [
                    (model["label"], None),
                    (f"level {level}", float(level)),
                    (f"{rate:.3g}", rate),
                    (f"{used:.0f} of {model['codebook_size']}", used),
                    (f"{model['share_used'][level]:.1%}", model["share_used"][level]),
                    (f"{entropy:.0f} of {nominal * rate:.0f}", entropy),
                ]
            )
    note = "Over all tokens of these clips; few clips cannot show all codes, so compare models on the same clips."
    headers = ["model", "level", "tokens per second", "perplexity", "codes used", "bits per second, of nominal"]
    return Table("Codebooks", note, headers, rows)


def _speed(results: Results) -> Table:
    rows: list[list[Cell]] = []
    for label in results.labels:
        factors = real_time_factors(results.of(label))
        rows.append([(label, None), *((f"{factors[name]:.1f}", factors[name]) for name in ("encode", "decode"))])
    note = "Seconds of audio in a second of work, one clip at a time, on the machine of the evaluation."
    return Table("Speed", note, ["model", "encoding", "decoding"], rows)
