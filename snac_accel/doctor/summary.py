"""From the reports of single clips to what a source is like: shares, quantiles, and what becomes of the windows.

A clip weighs as often as training draws it, so that shares are those of the windows that a run will hear.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import NamedTuple

from ..errors import DataError
from .clip import ClipReport, Sound, WindowRule
from .sampling import Stock
from .spread import Quantiles, quantiles, shares

GOOD, PADDED, QUIET, SILENT, SHORT, BAD = "good", "padded", "quiet", "silent", "short", "bad"
FATES = (GOOD, PADDED, QUIET, SILENT, SHORT, BAD)
QUIET_LUFS = -50.0  # where data.min_loudness says nothing: speech lies at -30 to -15, a quiet room at -60
MAX_DC = 0.01  # of full scale
MAX_MONO_LOSS_DB = 6.0  # a tone with one channel silent loses 3
NARROW_SHARE, NARROW_HZ = 0.85, 13_000.0  # speech at 44.1 kHz fades out from 14 kHz on
LOW_RATE = 0.9  # of the model's: 22.05 kHz will do for 24
RELIABLE = 1.96  # standard errors on either side that hold 95 %


class Examined(NamedTuple):
    """A source and its clips that were read."""

    stock: Stock
    reports: list[ClipReport]
    is_complete: bool  # no clip was left out
    lost: DataError | None = None  # what ended the reading early


class Problem(NamedTuple):
    """A reason for which clips cannot be used."""

    reason: str  # with N for every number
    num_clips: int
    example: str  # name of a clip, and the reason in full


@dataclass(frozen=True)
class Summary:
    """What a source is like, or all of them together. Shares are 0 to 1.

    Rates, channels and encodings are those of all clips that can be decoded, what is measured of the sound leaves out
    those that are too short to be trained on.
    """

    name: str
    num_clips: int | None
    num_read: int
    is_complete: bool  # every clip was read: the hours are exact
    share: float  # of the run's windows
    hours: float | None
    hours_error: float  # the true number lies this near, with 95 %
    seconds: Quantiles | None
    loudness: Quantiles | None  # of windows, LUFS
    bandwidth: Quantiles | None  # Hz
    sampling_rates: dict[str, float]
    channels: dict[str, float]
    encodings: dict[str, float]
    silence_share: float  # of the time
    clipped_share: float
    dc_share: float
    cancelled_share: float
    narrow_share: float
    low_rate_share: float
    num_duplicates: int
    problems: list[Problem]
    windows: dict[str, float]  # fate -> share of the draws
    padding_share: float  # of the samples that are trained on

    @property
    def num_bad(self) -> int:
        """Clips that cannot be decoded."""
        return sum(problem.num_clips for problem in self.problems)

    @property
    def unusable_share(self) -> float:
        """Share of the draws that are replaced by another clip."""
        return self.windows[BAD] + self.windows[SHORT]


def summarize(name: str, parts: Sequence[Examined], rule: WindowRule, quiet: float = QUIET_LUFS) -> Summary:
    """Bring the clips of some sources together, each source with its share of the run's windows."""
    clips = [(report, part.stock.share / len(part.reports)) for part in parts for report in part.reports]
    sounds = [(report.sound, weight) for report, weight in clips if report.sound is not None]
    numbers = [part.stock.num_clips or (len(part.reports) if part.is_complete else None) for part in parts]
    hours, error = _hours(parts)
    used = [(sound, weight) for sound, weight in sounds if sound.seconds >= rule.min_clip_seconds]
    contents = Counter(sound.content for sound, _ in sounds)
    return Summary(
        name=name,
        num_clips=None if None in numbers else sum(number or 0 for number in numbers),
        num_read=len(clips),
        is_complete=all(part.is_complete for part in parts),
        share=sum(part.stock.share for part in parts),
        hours=hours,
        hours_error=error,
        seconds=quantiles((sound.seconds, weight) for sound, weight in sounds),
        loudness=quantiles(window_loudness(used)),
        bandwidth=quantiles(
            (sound.bandwidth, weight) for sound, weight in used if sound.bandwidth is not None
        ),
        sampling_rates=shares((str(sound.sampling_rate), weight) for sound, weight in sounds),
        channels=shares((str(sound.num_channels), weight) for sound, weight in sounds),
        encodings=shares((sound.encoding, weight) for sound, weight in sounds),
        silence_share=mean(used, lambda sound: sound.silence_share),
        clipped_share=mean(used, lambda sound: sound.clipped_runs > 0),
        dc_share=mean(used, lambda sound: sound.dc_offset > MAX_DC),
        cancelled_share=mean(used, lambda sound: sound.mono_loss_db > MAX_MONO_LOSS_DB),
        narrow_share=mean(used, lambda sound: is_narrow(sound, rule.sampling_rate)),
        low_rate_share=mean(used, lambda sound: sound.sampling_rate < LOW_RATE * rule.sampling_rate),
        num_duplicates=sum(contents.values()) - len(contents),
        problems=problems(report for report, _ in clips),
        windows=window_fates(clips, rule, quiet),
        padding_share=mean(used, lambda sound: max(0.0, 1.0 - sound.seconds / rule.seconds)),
    )


def is_narrow(sound: Sound, model_rate: int) -> bool:
    """Whether a clip holds less than its rate, or the model's, promises: upsampled, or strongly coded."""
    if sound.bandwidth is None:
        return False
    expected = NARROW_SHARE * min(sound.sampling_rate, model_rate) / 2
    return sound.bandwidth < min(expected, NARROW_HZ)


def window_fates(
    clips: Sequence[tuple[ClipReport, float]], rule: WindowRule, quiet: float
) -> dict[str, float]:
    """Share of the draws that meet each of `FATES`; a window has the last one that fits it."""
    total = sum(weight for _, weight in clips)
    found = dict.fromkeys(FATES, 0.0)
    for report, weight in clips:
        for fate, share in _fates(report.sound, rule, quiet):
            found[fate] += share * weight / total
    return found


def _fates(sound: Sound | None, rule: WindowRule, quiet: float) -> list[tuple[str, float]]:
    if sound is None:
        return [(BAD, 1.0)]
    if sound.seconds < rule.min_clip_seconds:
        return [(SHORT, 1.0)]
    plain = GOOD if sound.seconds >= rule.seconds else PADDED
    fates = [
        SILENT if silent else QUIET if level < quiet else plain
        for level, silent in zip(sound.loudness, sound.is_silent, strict=True)
    ]
    return [(fate, 1.0 / len(fates)) for fate in fates]


def window_loudness(sounds: Iterable[tuple[Sound, float]]) -> list[tuple[float, float]]:
    """Loudness (LUFS) and weight of every window that is not silent."""
    return [
        (level, weight / len(sound.loudness))
        for sound, weight in sounds
        for level, silent in zip(sound.loudness, sound.is_silent, strict=True)
        if not silent and math.isfinite(level)
    ]


def mean(sounds: Sequence[tuple[Sound, float]], measure: Callable[[Sound], float]) -> float:
    """Weighted mean of a measure; 0 where there is nothing."""
    total = sum(weight for _, weight in sounds)
    return sum(measure(sound) * weight for sound, weight in sounds) / total if total else 0.0


def problems(reports: Iterable[ClipReport]) -> list[Problem]:
    """The reasons why clips cannot be used, the most frequent first; reasons that differ in numbers are one."""
    found: dict[str, list[str]] = {}
    for report in reports:
        if report.problem is not None:
            reason = re.sub(r"\d[\d.e+-]*", "N", report.problem)
            found.setdefault(reason, []).append(f"{report.name}: {report.problem}")
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Problem(reason, len(names), names[0]) for reason, names in ordered]


def _hours(parts: Sequence[Examined]) -> tuple[float | None, float]:
    """Hours of all sources, and how far off that may be; None where a stream does not say how many clips it has."""
    hours, variance = 0.0, 0.0
    for part in parts:
        lengths = [report.sound.seconds / 3600 if report.sound else 0.0 for report in part.reports]
        if part.is_complete:
            hours += sum(lengths)
        elif part.stock.num_clips is None:
            return None, 0.0
        else:
            number = part.stock.num_clips
            hours += number * (fmean(lengths) if lengths else 0.0)
            spread = pstdev(lengths) if lengths else 0.0
            variance += number**2 * spread**2 / max(1, len(lengths)) * (1 - len(lengths) / number)
    return hours, RELIABLE * math.sqrt(variance)
