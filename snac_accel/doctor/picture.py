"""The doctor's picture: lengths, loudness, spectrum, and what becomes of the windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .clip import Sound
from .examination import Diagnosis
from .measures import BAND_HZ
from .summary import BAD, FATES, GOOD, PADDED, QUIET, SHORT, SILENT, Examined, Summary, window_loudness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
)  # Okabe and Ito's, told apart by all eyes
FATE_COLORS = {
    GOOD: "#009e73", PADDED: "#a6d96a", QUIET: "#9ecae1", SILENT: "#3b6ea5", SHORT: "#e69f00", BAD: "#d55e00"
}  # fmt: skip
NUM_BINS = 40
DEEPEST_DB = -100.0
SHORTEST_SHOWN = 0.02  # seconds; what is shorter stands there too


def draw_picture(diagnosis: Diagnosis, path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure  # the trainer, which asks for no picture, starts without it

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    lengths, levels, spectrum, fates = figure.subplots(2, 2).flat
    draw_lengths(lengths, diagnosis)
    draw_loudness(levels, diagnosis)
    draw_spectrum(spectrum, diagnosis)
    draw_fates(fates, diagnosis)
    figure.suptitle(_title(diagnosis))
    handles, labels = spectrum.get_legend_handles_labels()
    if len(diagnosis.sources) > 1 and handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    figure.savefig(path, dpi=100)


def _title(diagnosis: Diagnosis) -> str:
    together = diagnosis.together
    names = ", ".join(summary.name for summary in diagnosis.sources)
    names = names if len(names) < 60 else f"{len(diagnosis.sources)} sources"
    number = "a stream" if together.num_clips is None else f"{together.num_clips:,} clips"
    hours = "" if together.hours is None else f", {together.hours:.3g} h"
    read = "all of them read" if together.is_complete else f"{together.num_read} of them read"
    return f"{names}: {number}{hours} ({read})"


def draw_lengths(axis: Axes, diagnosis: Diagnosis) -> None:
    """Histogram of the lengths of clips over a logarithmic axis, with the window and the shortest clip taken."""
    rule = diagnosis.rule
    values = [
        [max(SHORTEST_SHOWN, sound.seconds) for sound, _ in _sounds(item)] for item in diagnosis.examined
    ]
    marks = [rule.seconds, *([rule.min_clip_seconds] if rule.min_clip_seconds > 0 else [])]
    everything = [value for source in values for value in source] + marks
    edges = np.geomspace(min(everything) / 1.1, max(everything) * 1.1, NUM_BINS + 1)
    _histogram(axis, values, edges, diagnosis)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    _mark(axis, rule.seconds, f"window {rule.seconds:.3g} s", "black")
    if rule.min_clip_seconds > 0:
        _mark(axis, rule.min_clip_seconds, f"shortest {rule.min_clip_seconds:g} s", "dimgray")
    axis.set(title="length of the clips", xlabel="seconds", ylabel="% of the clips read")


def draw_loudness(axis: Axes, diagnosis: Diagnosis) -> None:
    """Histogram of the loudness of windows, with the level below which they count as quiet."""
    values = [[level for level, _ in window_loudness(_sounds(item))] for item in diagnosis.examined]
    _histogram(axis, values, np.linspace(-70.0, 0.0, NUM_BINS + 1), diagnosis)
    _mark(axis, diagnosis.quiet_lufs, f"quiet below {diagnosis.quiet_lufs:g}", "black")
    axis.set(
        title="loudness of the windows (without silent ones)", xlabel="LUFS", ylabel="% of the windows read"
    )


def draw_spectrum(axis: Axes, diagnosis: Diagnosis) -> None:
    """Median long-term spectrum of each source, its median bandwidth (dashed) and the model's half rate (black)."""
    nyquist = diagnosis.rule.sampling_rate / 2000
    widest = nyquist
    for item, summary, color in zip(diagnosis.examined, diagnosis.sources, _colors(diagnosis), strict=False):
        levels = median_levels([sound for sound, _ in _sounds(item)])
        if levels is None or summary.bandwidth is None:
            continue
        kilohertz = (np.arange(len(levels)) + 0.5) * BAND_HZ / 1000
        axis.plot(kilohertz, levels, color=color, label=summary.name, linewidth=1.4)
        width = summary.bandwidth.median / 1000
        axis.axvline(width, ymax=0.5, color=color, linestyle="--", linewidth=1.4)
        _note(axis, width, f"{width:.1f} kHz", color, 0.04)
        widest = max(widest, float(kilohertz[-1]))
    _mark(axis, nyquist, f"the model ends at {nyquist:g} kHz", "black")
    axis.axvspan(nyquist, widest * 1.05, color="black", alpha=0.06)
    axis.set(
        title="spectrum, median of the clips (dashed: median bandwidth)",
        xlabel="kHz",
        ylabel="dB below the loudest band",
    )
    axis.set(xlim=(0, widest * 1.05), ylim=(DEEPEST_DB, 5))
    axis.grid(alpha=0.25)


def draw_fates(axis: Axes, diagnosis: Diagnosis) -> None:
    """Bars of what becomes of the windows that training draws, one for each source."""
    rows: list[Summary] = [*diagnosis.sources, *([diagnosis.together] if len(diagnosis.sources) > 1 else [])]
    left = np.zeros(len(rows))
    for fate in FATES:
        widths = np.array([100 * summary.windows[fate] for summary in rows])
        total = f"{diagnosis.together.windows[fate]:.1%}"
        bars = axis.barh(
            range(len(rows)), widths, left=left, height=0.6, color=FATE_COLORS[fate], label=f"{fate} {total}"
        )
        texts = [f"{width:.0f} %" if width >= 6 else "" for width in widths]
        axis.bar_label(
            bars, texts, label_type="center", color="white" if fate in (GOOD, SILENT, BAD) else "black"
        )
        left += widths
    axis.set_yticks(range(len(rows)), [_shortened(summary.name) for summary in rows])
    axis.set(title="what becomes of the windows", xlabel="% of the clips that training draws", xlim=(0, 100))
    spare = 0.6 if len(rows) > 1 else 1.1  # a single bar would fill the whole height
    axis.set_ylim(len(rows) - 1 + spare, -spare)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)


def median_levels(sounds: Sequence[Sound]) -> NDArray[np.float64] | None:
    """Median over clips of the level of each band below the clip's loudest, in dB; None if no clip has sound.

    A mean of powers would show the hiss of a few empty clips instead. Bands above a clip's half rate count as empty.
    """
    spectra = [sound.powers.numpy() for sound in sounds if sound.bandwidth is not None]
    if not spectra:
        return None
    levels = np.full((len(spectra), max(map(len, spectra))), DEEPEST_DB)
    for row, spectrum in zip(levels, spectra, strict=True):
        row[: len(spectrum)] = 10 * np.log10(np.maximum(spectrum / spectrum.max(), 10 ** (DEEPEST_DB / 10)))
    return np.asarray(np.median(levels, axis=0))


def _histogram(
    axis: Axes, values: list[list[float]], edges: NDArray[np.float64], diagnosis: Diagnosis
) -> None:
    """Steps for each source, in percent of its own values."""
    for numbers, color in zip(values, _colors(diagnosis), strict=False):
        counts, _ = np.histogram(numbers, edges)
        heights = 100 * counts / max(1, len(numbers))
        axis.stairs(heights, edges, fill=True, color=color, alpha=0.35)
        axis.stairs(heights, edges, color=color, linewidth=1.2)
    axis.set_ylim(bottom=0)
    axis.margins(y=0.15)
    axis.grid(alpha=0.25)


def _mark(axis: Axes, place: float, text: str, color: str) -> None:
    """A dotted line across, with its meaning along it."""
    axis.axvline(place, color=color, linestyle=":", linewidth=1.5)
    _note(axis, place, text, color, 0.97)


def _note(axis: Axes, place: float, text: str, color: str, height: float) -> None:
    axis.annotate(
        text,
        (place, height),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top" if height > 0.5 else "bottom",
        color=color,
        fontsize="small",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
    )


def _sounds(item: Examined) -> list[tuple[Sound, float]]:
    return [(report.sound, 1.0) for report in item.reports if report.sound is not None]


def _colors(diagnosis: Diagnosis) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(diagnosis.sources))]


def _shortened(name: str, longest: int = 18) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
