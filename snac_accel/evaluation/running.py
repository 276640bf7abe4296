"""An evaluation from beginning to end: every clip through every model, over all processes, into one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..agreement import on_every_rank, on_first_rank
from ..codebook import count_codes, perplexity, share_used
from ..errors import ConfigError, DataError
from ..files import new_folder, writing_problem
from ..listening import Page, PageClip
from ..listening.writing import add_page
from .clips import EvaluationClips
from .comparing import Difference
from .measuring import measure_clip, row_of
from .models import EvaluatedModel
from .pages import page_clip
from .results import Line, Results, best_first, write_results
from .traits import traits_of

Follow = Callable[[Iterable[int]], Iterable[int]]  # the same numbers, with a bar


class Settings(NamedTuple):
    """How it is evaluated."""

    metrics: Sequence[str]
    of_levels: Sequence[str]  # those of them that are measured on less than all levels too
    missing_metrics: dict[str, str]  # that were asked for and cannot be computed here, with what to install
    seed: int
    num_page_clips: int
    every_level: bool
    facts: dict[str, Any]  # about the data, for the summary


class Evaluated(NamedTuple):
    """What every process returns; `page_clips` on the first one only."""

    results: Results
    page_clips: list[PageClip]


def evaluate_models(
    models: Sequence[EvaluatedModel],
    clips: EvaluationClips,
    accelerator: Accelerator,
    settings: Settings,
    follow: Follow = iter,
) -> Evaluated:
    """Measure every model on every clip; collective. The numbers do not depend on how many processes there are."""
    for model in models:
        model.generator.to(accelerator.device)
        _warm_up(model)
    own = clips.share(accelerator.process_index, accelerator.num_processes)
    found = on_every_rank(accelerator, lambda: _measure(models, clips, follow(own), settings))
    numbered = sorted(gather_object(found.rows), key=lambda pair: pair[0])
    rows = [row for _, row in numbered]
    if not rows:
        raise DataError(_nothing_usable(clips))
    counts = [accelerator.reduce(count.to(accelerator.device), reduction="sum") for count in found.counts]
    described = [_describe(model, count) for model, count in zip(models, counts, strict=True)]
    failures = sorted(gather_object([failure._asdict() for failure in clips.failures]), key=lambda failure: failure["name"])
    plain = [{"name": failure["name"], "reason": failure["reason"]} for failure in failures]
    about = {"seed": settings.seed, **settings.facts}
    results = Results(described, traits_of(settings.metrics), rows, plain, settings.missing_metrics, about)
    chosen = choose_page_clips(results, [number for number, _ in numbered], settings.num_page_clips)
    sounds = gather_object(on_every_rank(accelerator, lambda: _sounds(models, clips, own, chosen, settings)))
    by_number = dict(sounds) if accelerator.is_main_process else {}
    return Evaluated(results, [with_values(by_number[number], results) for number in chosen if number in by_number])


def with_values(clip: PageClip, results: Results) -> PageClip:
    """The clip with its lines of the table."""
    rows = [row for row in results.rows if row["clip"] == clip.name]
    keys = [f"{results.labels.index(row['model'])}/{row['levels']}" for row in rows]
    values = {key: {name: row.get(name) for name in results.names} for key, row in zip(keys, rows, strict=True)}
    return replace(clip, values=values)


class Found(NamedTuple):
    """What one process found."""

    rows: list[tuple[int, dict[str, Any]]]  # number of the clip, line of the table
    counts: list[Tensor]  # by model, how often each code was chosen (levels, K)


def _measure(models: Sequence[EvaluatedModel], clips: EvaluationClips, numbers: Iterable[int], settings: Settings) -> Found:
    rows: list[tuple[int, dict[str, Any]]] = []
    shapes = [(len(model.generator.vq_strides), model.generator.codebook_size) for model in models]
    counts = [torch.zeros(shape, dtype=torch.int64) for shape in shapes]
    for number in numbers:
        clip = clips.clip(number)
        if clip is None:
            continue
        for index, model in enumerate(models):
            measured = measure_clip(
                model,
                clip,
                settings.metrics,
                seed=settings.seed,
                every_level=settings.every_level,
                of_levels=settings.of_levels,
            )
            counts[index] += count_codes(measured.codes, shapes[index][1])
            for version in measured.reconstructions:
                rows.append((number, row_of(model.label, clip, measured, version, settings.metrics)))
    return Found(rows, counts)


def _sounds(
    models: Sequence[EvaluatedModel], clips: EvaluationClips, own: Sequence[int], chosen: dict[int, str], settings: Settings
) -> list[tuple[int, PageClip]]:
    """The page's clips among this process's own: made a second time, so that nobody has to keep the sound of all."""
    sounds = []
    for number in own:
        clip = clips.clip(number) if number in chosen else None
        if clip is not None:
            measured = [
                measure_clip(model, clip, (), seed=settings.seed, every_level=settings.every_level) for model in models
            ]
            sounds.append((number, page_clip(clip, models, measured, note=chosen[number])))
    return sounds


def choose_page_clips(results: Results, numbers: Sequence[int], count: int) -> dict[int, str]:
    """Numbers of the clips to listen to, with the reason: the worst by the first model and metric, and an even choice of all."""
    metric = results.metrics[0]
    mine = [
        (number, row[metric["name"]])
        for number, row in zip(numbers, results.rows, strict=True)
        if row["model"] == results.labels[0] and row["all_levels"]
    ]
    known = [pair for pair in mine if pair[1] is not None]
    worst = sorted(known, key=lambda pair: best_first(metric)(pair[1]), reverse=True)[: count // 3]
    chosen = {number: f"among the worst by {metric['label']}" for number, _ in worst} if len(mine) > count else {}
    others = [number for number, _ in mine if number not in chosen]
    room = min(count - len(chosen), len(others))
    for index in range(room):
        chosen[others[index * len(others) // room]] = ""
    return dict(sorted(chosen.items()))


def _warm_up(model: EvaluatedModel) -> None:
    """A second of silence, so that the first clip's time is like the others'."""
    device = next(model.generator.parameters()).device
    with torch.no_grad():
        model.generator(torch.zeros(1, 1, model.generator.sampling_rate, device=device))


def _describe(model: EvaluatedModel, counts: Tensor) -> dict[str, Any]:
    """The model's facts, with the use of its codes on these clips."""
    used, rates = perplexity(counts), torch.tensor(model.facts["token_rates"], dtype=torch.float64)
    entropy = used.clamp_min(1).log2() * rates
    return {
        "label": model.label,
        **model.facts,
        "perplexity": used.tolist(),
        "share_used": share_used(counts).tolist(),
        "entropy_bits_per_second": entropy.tolist(),
    }


def _nothing_usable(clips: EvaluationClips) -> str:
    first = f", the first because it {clips.failures[0].reason}" if clips.failures else ""
    return f"none of the {len(clips)} clips can be used{first}"


def write_evaluation(
    folder: Path,
    results: Results,
    lines: Sequence[Line],
    page: Page,
    accelerator: Accelerator | None = None,
    found: Sequence[Difference] | None = None,
) -> None:
    """Write table, summary and page over the evaluation that stood in `folder`; collective, None: in one process."""
    if accelerator is None:
        _write(folder, results, lines, page, found)
    else:
        on_first_rank(accelerator, lambda: _write(folder, results, lines, page, found))


def _write(folder: Path, results: Results, lines: Sequence[Line], page: Page, found: Sequence[Difference] | None) -> None:
    try:
        with new_folder(folder) as draft:
            write_results(draft, results, lines, found)
            add_page(draft, page)
    except OSError as error:
        raise ConfigError(f"--output: {writing_problem(error, folder)}") from error
