"""The table that a run ends with: held-out numbers at step 0 and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

ROWS = {"validation/mel_distance": "log-mel distance (7 scales)", "validation/stft_distance": "STFT distance", "validation/si_sdr_db": "SI-SDR (dB)"}


def results_table(first: Mapping[str, float], last: Mapping[str, float], information: Sequence[float], *, step: int) -> str:
    """Held-out metrics and perplexities `first` and `last`, and what each level carries, as lines of text.

    `information` is `evaluate.level_information`: growth of the log-mel distance when a level's codes are shuffled in time.
    """
    rows: list[list[object]] = [
        [label, first.get(name), last.get(name), _ratio(first.get(name), last.get(name)) if "distance" in name else None]
        for name, label in ROWS.items()
    ]
    for level, growth in enumerate(information):
        name = f"validation/level_{level}/perplexity"
        rows.append([f"perplexity, level {level}", first.get(name), last.get(name), None])
        rows.append([f"  its codes shuffled in time: log-mel", None, f"{growth:+.0%}", None])
    headers = ["held-out", "step 0", f"step {step}", "ratio"]
    return tabulate(rows, headers=headers, floatfmt=".2f", missingval="", colalign=("left", "right", "right", "right"))


def _ratio(first: float | None, last: float | None) -> float | None:
    return last / first if first and last is not None else None
