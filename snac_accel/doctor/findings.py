"""What is wrong with the data, in one line each.

`error`: the run will break; `warning`: the model will suffer; `note`: good to know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ..config import TrainingConfig
from ..dataset.windows import MAX_ATTEMPTS
from .plan import Plan
from .summary import PADDED, QUIET, QUIET_LUFS, RELIABLE, SHORT, SILENT, Summary

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Shares from which on a thing is worth a warning; below, from `WORTH_A_NOTE` on, it is a note.
WARN_NARROW, WARN_CLIPPED, WARN_DC, WARN_CANCELLED = 0.1, 0.05, 0.05, 0.01
WARN_DUPLICATES, WARN_QUIET, WARN_PADDING, WARN_SHORT = 0.01, 0.1, 0.1, 0.05
WORTH_A_NOTE, NARROW_WORTH_A_NOTE = 0.001, 0.03  # of a few clips, such as empty ones, bandwidth says nothing
MANY_PASSES = 300  # the paper made one; LJ Speech with the published settings makes a thousand
QUIET_CORPUS_LUFS = -40.0  # median of the windows
STOPS_EXPECTED = 0.1  # in a run, from windows for which no usable clip was found


class Finding(NamedTuple):
    """One thing found, and what to do about it."""

    severity: Severity
    code: str  # stable, for machines
    source: str | None  # None: the run as a whole
    message: str

    def __str__(self) -> str:
        """The finding in one line."""
        return ": ".join([self.severity, *([self.source] if self.source else []), self.message])


def find(config: TrainingConfig, sources: list[Summary], together: Summary, plan: Plan) -> list[Finding]:
    """Everything worth saying, the worst first."""
    found = list(_will_stop(config, together, plan))
    for source in sources:
        name = source.name if len(sources) > 1 else None
        for severity, code, message in _about(config, source):
            found.append(Finding(severity, code, name, message))
    shared = together.num_duplicates - sum(source.num_duplicates for source in sources)
    if shared > 0:
        message = f"{shared} clips stand in more than one source: they weigh more than the weights say"
        found.append(Finding("warning", "shared_clips", None, message))
    found += _about_run(config, together, plan)
    return ordered(found)


def ordered(findings: list[Finding]) -> list[Finding]:
    """The worst first, else as they came."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _will_stop(config: TrainingConfig, together: Summary, plan: Plan) -> Iterator[Finding]:
    """Errors: what ends a run."""
    if together.num_read == 0 or together.unusable_share > 1.0 - 1e-9:
        reason = f": {together.problems[0].example}" if together.problems else ""
        yield Finding(
            "error", "nothing_usable", None, f"no clip of {together.num_read} read can be used{reason}"
        )
        return
    bad, allowed = together.windows["bad"], config.data.max_bad_fraction
    if bad > allowed:
        is_sure = together.is_complete or lower_bound(bad, together.num_read) > allowed
        end = "the run will stop" if is_sure else "the run may stop"
        message = f"{bad:.1%} of the clips cannot be used, data.max_bad_fraction allows {allowed:.1%}: {end}"
        yield Finding("error" if is_sure else "warning", "too_many_bad", None, message)
    share = together.unusable_share
    surely = share if together.is_complete else lower_bound(share, together.num_read)
    if plan.windows_per_step * plan.num_steps * surely**MAX_ATTEMPTS > STOPS_EXPECTED:
        message = (
            f"{share:.0%} of the clips are bad or shorter than data.min_clip_seconds = "
            f"{config.data.min_clip_seconds:g}: {MAX_ATTEMPTS} such clips in a row stop the run; "
            "leave them out of the data"
        )
        yield Finding("error", "replacements_run_out", None, message)


def lower_bound(share: float, count: int) -> float:
    """What the true share is at least, with 97.5 %, if `share` of `count` clips were seen (Wilson's interval)."""
    z, extra = RELIABLE, RELIABLE**2 / count
    spread = z * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    return max(0.0, (share + extra / 2 - spread) / (1 + extra))


def _about(config: TrainingConfig, source: Summary) -> Iterator[tuple[Severity, str, str]]:
    """What is to be said of one source."""
    yield from _about_files(config, source)
    if source.seconds is not None:
        yield from _about_sound(config, source)
        yield from _about_spectrum(config, source)


def _about_files(config: TrainingConfig, source: Summary) -> Iterator[tuple[Severity, str, str]]:
    for problem in source.problems[:5]:
        example = f", such as {problem.example}" if problem.num_clips > 1 else f": {problem.example}"
        yield (
            "warning",
            "bad_clips",
            f"{problem.num_clips} of {source.num_read} clips cannot be used{example}",
        )
    if more := sum(problem.num_clips for problem in source.problems[5:]):
        yield (
            "warning",
            "bad_clips",
            f"{more} more clips cannot be used, for {len(source.problems) - 5} other reasons",
        )
    if source.num_duplicates:
        share = source.num_duplicates / max(1, source.num_read - source.num_bad)
        message = (
            f"{source.num_duplicates} of {source.num_read} clips repeat the sound of another: they weigh more, "
            "and a copy may stand among the validation clips"
        )
        yield _graded(share, WARN_DUPLICATES), "duplicates", message
    if (share := source.windows[SHORT]) > WORTH_A_NOTE:
        shortest = config.data.min_clip_seconds
        message = (
            f"{share:.1%} of the clips are shorter than data.min_clip_seconds = {shortest:g} and left out"
        )
        yield _graded(share, WARN_SHORT), "short_clips", message
    if (share := source.padding_share) > WORTH_A_NOTE:
        message = (
            f"{share:.1%} of what is trained on is padding, since {source.windows[PADDED]:.1%} of the windows "
            f"come from clips shorter than data.segment_length = {config.data.segment_length:g}: join such clips, "
            "or raise data.min_clip_seconds"
        )
        yield _graded(share, WARN_PADDING), "padding", message


def _about_sound(config: TrainingConfig, source: Summary) -> Iterator[tuple[Severity, str, str]]:
    quiet = source.windows[QUIET] + source.windows[SILENT]
    if quiet > WORTH_A_NOTE:
        limit = config.data.min_loudness
        advice = (
            "others are tried instead"
            if limit is not None
            else f"data.min_loudness = {QUIET_LUFS:g} passes over them"
        )
        message = (
            f"{quiet:.1%} of the windows are below {QUIET_LUFS if limit is None else limit:g} LUFS or silent "
            f"({source.windows[SILENT]:.1%} hold nothing at all): {advice}"
        )
        yield ("note" if limit is not None else _graded(quiet, WARN_QUIET)), "quiet_windows", message
    if source.loudness and source.loudness.median < QUIET_CORPUS_LUFS and config.data.loudness is None:
        median = f"{source.loudness.median:.0f} LUFS"
        message = f"half of the windows lie below {median}: data.loudness = -23 brings them up"
        yield "warning", "quiet_source", message
    if (share := source.clipped_share) > WORTH_A_NOTE:
        message = f"{share:.1%} of the clips are clipped: three samples or more in a row at full scale"
        yield _graded(share, WARN_CLIPPED), "clipping", message
    if (share := source.dc_share) > WORTH_A_NOTE:
        yield (
            _graded(share, WARN_DC),
            "dc_offset",
            f"{share:.1%} of the clips have a DC offset above 1 % of full scale",
        )
    if (share := source.cancelled_share) > WORTH_A_NOTE and config.data.channels == "mean":
        message = (
            f"in {share:.1%} of the clips the channels cancel each other in their mean: "
            "data.channels = left or random"
        )
        yield _graded(share, WARN_CANCELLED), "channels_cancel", message


def _about_spectrum(config: TrainingConfig, source: Summary) -> Iterator[tuple[Severity, str, str]]:
    rate = config.model.sampling_rate
    if (share := source.low_rate_share) > WORTH_A_NOTE:
        message = (
            f"{share:.1%} of the clips have a lower sampling rate than the model's {rate} Hz: it learns that there "
            "is nothing above; train a model of a lower rate, or leave them out"
        )
        yield _graded(share, WARN_NARROW), "low_rate", message
    if (share := source.narrow_share) > NARROW_WORTH_A_NOTE:
        median = (
            ""
            if source.bandwidth is None
            else f" (median bandwidth {source.bandwidth.median / 1000:.1f} kHz)"
        )
        message = (
            f"{share:.1%} of the clips hold less than their sampling rate promises: upsampled, or coded at a low "
            f"rate{median}"
        )
        yield _graded(share, WARN_NARROW), "narrow_band", message


def _about_run(config: TrainingConfig, together: Summary, plan: Plan) -> Iterator[Finding]:
    number = together.num_clips
    if number is not None and number < plan.windows_per_step:
        message = (
            f"a step takes {plan.windows_per_step} windows, but there are {number} clips: "
            "each comes several times in a step"
        )
        yield Finding("warning", "fewer_clips_than_a_step", None, message)
    if plan.epochs is not None and plan.epochs < 1:
        message = f"the run ends after {plan.epochs:.0%} of the clips"
        yield Finding("note", "less_than_an_epoch", None, message)
    most = max((passes for passes in plan.passes.values() if passes is not None), default=0.0)
    if most > MANY_PASSES:
        sound = "" if together.hours is None else f" from {together.hours:.3g} h of sound"
        message = (
            f"clips are drawn up to {most:,.0f} times in the run, {plan.hours_heard:,.3g} h of windows{sound}: watch the "
            "held-out numbers, or set training.num_iterations lower"
        )
        yield Finding("note", "many_passes", None, message)
    if not config.validation.enabled:
        yield Finding(
            "note",
            "no_validation",
            None,
            "validation is switched off: nothing will tell whether the model overfits",
        )


def _graded(share: float, warn_from: float) -> Severity:
    return "warning" if share >= warn_from else "note"
