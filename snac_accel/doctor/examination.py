"""The examination: read clips of every source, bring them together, say what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..config import TrainingConfig
from ..dataset import AudioDataset, Mixture, ValidationClips
from ..errors import ConfigError, DataError, UserError
from ..run_data import check_passes
from .clip import MAX_READ_SECONDS, ClipReport, WindowRule, examine_clip
from .findings import Finding, find, ordered
from .plan import Plan, plan_run
from .sampling import Candidate, Stock, candidates, stock_of
from .summary import QUIET_LUFS, Examined, Summary, summarize

TOGETHER = "together"
QUICK_CLIPS = 32
QUICK_SECONDS = 2.0  # after this no further clip is begun
QUICK_CLIP_SECONDS = 3.0  # read of one clip

Follow = Callable[
    [Iterator[Candidate], int | None, str], Iterator[Candidate]
]  # shows progress: clips, number, source


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor knows."""

    sources: list[Summary]
    together: Summary
    plan: Plan
    stocks: list[Stock]
    num_validation_clips: int | None  # None: validation is off, or failed
    findings: list[Finding]
    examined: list[Examined]  # the clips themselves, for pictures
    rule: WindowRule
    quiet_lufs: float

    @property
    def exit_code(self) -> int:
        """1 if something will break the run, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))


def examine(
    training: Mixture | AudioDataset,
    validation: ValidationClips | None,
    config: TrainingConfig,
    *,
    count: int | None = 200,
    num_processes: int = 1,
    follow: Follow = lambda clips, number, name: clips,
    max_seconds: float = MAX_READ_SECONDS,
    budget_seconds: float | None = None,
) -> Diagnosis:
    """Examine what `train.setup_dataset` returned: `count` clips of each source (None: all).

    Broken clips and a source that is lost half-way become findings. No clip is begun after `budget_seconds`. Raises
    ConfigError if the global batch does not divide among the processes.
    """
    mixture = training if isinstance(training, Mixture) else Mixture([training])
    stocks = [stock_of(*part) for part in zip(mixture.parts, mixture.names, mixture.shares, strict=True)]
    plan = plan_run(config, mixture, num_processes)
    rule = WindowRule(
        config.model.sampling_rate, config.segment_samples, config.data.min_clip_seconds, config.data.channels
    )
    quiet = QUIET_LUFS if config.data.min_loudness is None else config.data.min_loudness
    end = math.inf if budget_seconds is None else time.monotonic() + budget_seconds
    examined = []
    for part, stock in zip(mixture.parts, stocks, strict=True):
        number = stock.num_clips if count is None or stock.num_clips is None else min(count, stock.num_clips)
        clips = follow(candidates(part, count), number or count, stock.name)
        examined.append(_examine_source(clips, stock, rule, count, max_seconds, end))
    summaries = [summarize(item.stock.name, [item], rule, quiet) for item in examined]
    together = summarize(TOGETHER, examined, rule, quiet)
    found = _lost(examined) + _without_validation(validation) + _too_many_passes(config, mixture, plan)
    findings = ordered(found + find(config, summaries, together, plan))
    number = None if validation is None else len(validation)
    return Diagnosis(summaries, together, plan, stocks, number, findings, examined, rule, quiet)


def _examine_source(
    clips: Iterator[Candidate],
    stock: Stock,
    rule: WindowRule,
    count: int | None,
    max_seconds: float,
    end: float,
) -> Examined:
    """Examine the clips of one source, until `end` at most (of `time.monotonic`)."""
    reports: list[ClipReport] = []
    try:
        for name, fetch in clips:
            reports.append(examine_clip(fetch, name, rule, max_seconds))
            if time.monotonic() > end:
                return Examined(stock, reports, len(reports) == stock.num_clips)
    except DataError as error:
        return Examined(stock, reports, False, error)
    if stock.num_clips is not None:
        return Examined(stock, reports, len(reports) == stock.num_clips)
    return Examined(stock, reports, count is None or len(reports) < count)  # a stream that ended


def _lost(examined: Sequence[Examined]) -> list[Finding]:
    """A source whose reading ended with an error: the run would end there too."""
    return [
        Finding("error", "source_lost", item.stock.name, str(item.lost)) for item in examined if item.lost
    ]


def _without_validation(validation: ValidationClips | None) -> list[Finding]:
    """The run stops if none of the validation clips can be decoded; the first that can is enough."""
    if validation is None or next(iter(validation), None) is not None:
        return []
    failure = validation.failures[0] if validation.failures else None
    reason = f": {failure.name}: {failure.reason}" if failure else ""
    message = f"none of {len(validation)} validation clips can be decoded{reason}"
    return [Finding("error", "no_validation_clips", None, message)]


def _too_many_passes(config: TrainingConfig, mixture: Mixture, plan: Plan) -> list[Finding]:
    """The run refuses to begin if a source would be gone through more often than its max_passes allows."""
    try:
        check_passes(config, mixture, plan.windows_per_step)
    except ConfigError as error:
        return [Finding("error", "too_many_passes", None, str(error))]
    return []


def quick_check(dataset: Mixture | AudioDataset, config: TrainingConfig) -> list[Finding]:
    """What a look at the first clips of the run shows in a second or two: errors and warnings, the worst first.

    `dataset` is the training set, a mixture or one source. Reads at most `QUICK_CLIPS` clips of the keyed order (of a
    stream without an index: its first ones), `QUICK_CLIP_SECONDS` of each. Raises nothing.
    """
    number = len(getattr(dataset, "parts", [dataset]))
    with suppress(UserError):  # what is wrong with the configuration is said where it is used
        diagnosis = examine(
            dataset,
            None,
            config,
            count=max(4, QUICK_CLIPS // number),
            max_seconds=QUICK_CLIP_SECONDS,
            budget_seconds=QUICK_SECONDS,
        )
        return [finding for finding in diagnosis.findings if finding.severity != "note"]
    return []
