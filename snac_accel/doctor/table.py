"""What the doctor found as a table for people and as one JSON object for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from .examination import Diagnosis
from .sampling import Stock
from .spread import Quantiles
from .summary import FATES, Summary

MAX_LISTED = 4  # rates, encodings
FORMAT = 1  # of the JSON object


def text_report(diagnosis: Diagnosis) -> str:
    """Table of the sources, what the run makes of them, and the findings, as lines of text."""
    columns = [*diagnosis.sources, *([diagnosis.together] if len(diagnosis.sources) > 1 else [])]
    by_name = {stock.name: stock for stock in diagnosis.stocks}
    cells = [_column(summary, by_name.get(summary.name), diagnosis) for summary in columns]
    rows = [[label, *(column[label] for column in cells)] for label in cells[0]]
    headers = ["data", *(summary.name for summary in columns)]
    align = ("left", *("right" for _ in columns))
    table = tabulate(rows, headers=headers, disable_numparse=True, colalign=align)
    lines = [table, "", *_run_lines(diagnosis), *_promises(diagnosis.stocks), ""]
    lines += [str(finding) for finding in diagnosis.findings] or ["nothing to complain of"]
    return "\n".join(lines)


def _column(summary: Summary, stock: Stock | None, diagnosis: Diagnosis) -> dict[str, str]:
    """Row -> what stands there for one source, or for all together (`stock` None)."""
    found = {
        "clips": "unknown" if summary.num_clips is None else f"{summary.num_clips:,}",
        "clips read": "all" if summary.is_complete else f"{summary.num_read}",
        "hours": _hours(summary),
        "share of the windows": f"{summary.share:.1%}",
        "length, median (s)": _middle(summary.seconds, 1.0, 2),
        "length, least to most (s)": _ends(summary.seconds, 1.0, 2),
        "sampling rate (Hz)": _listed(summary.sampling_rates),
        "channels": _listed(summary.channels),
        "encoding": _listed(summary.encodings),
        "bandwidth, median (kHz)": _middle(summary.bandwidth, 1000.0, 1),
        "loudness, median (LUFS)": _middle(summary.loudness, 1.0, 1),
        "loudness, 5 % to 95 %": _spread(summary.loudness, 1.0, 1),
        "digital silence": f"{summary.silence_share:.1%}",
        "clipped clips": f"{summary.clipped_share:.1%}",
        "clips with DC offset": f"{summary.dc_share:.1%}",
        "repeated clips": f"{summary.num_duplicates}",
        "bad clips": f"{summary.num_bad}",
        "padding": f"{summary.padding_share:.1%}",
    }
    meanings = {"quiet": f"quiet (below {diagnosis.quiet_lufs:g} LUFS)"}
    found |= {f"windows: {meanings.get(fate, fate)}": f"{summary.windows[fate]:.1%}" for fate in FATES}
    number = diagnosis.plan.passes[summary.name] if stock else diagnosis.plan.epochs
    found["passes in the run"] = "unknown" if number is None else _number(number)
    if any(stock.num_blocks is not None for stock in diagnosis.stocks):
        found["row groups"] = "" if stock is None or stock.num_blocks is None else f"{stock.num_blocks}"
    return found


def _hours(summary: Summary) -> str:
    if summary.hours is None:
        return "unknown"
    if summary.is_complete:
        return _number(summary.hours)
    return f"{_number(summary.hours)} ± {_number(summary.hours_error, 1)} (estimated)"


def _number(value: float, digits: int = 3) -> str:
    """A number to three digits, or whole with commas from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{digits}g}"


def _middle(quantiles: Quantiles | None, unit: float, digits: int) -> str:
    return "" if quantiles is None else f"{quantiles.median / unit:.{digits}f}"


def _ends(quantiles: Quantiles | None, unit: float, digits: int) -> str:
    return (
        ""
        if quantiles is None
        else f"{quantiles.smallest / unit:.{digits}f} to {quantiles.largest / unit:.{digits}f}"
    )


def _spread(quantiles: Quantiles | None, unit: float, digits: int) -> str:
    return (
        "" if quantiles is None else f"{quantiles.p05 / unit:.{digits}f} to {quantiles.p95 / unit:.{digits}f}"
    )


def _listed(shares: Mapping[str, float]) -> str:
    """The most frequent values, with their shares if there are several: a line each, as tabulate sets them."""
    if len(shares) == 1:
        return next(iter(shares))
    lines = [f"{value} ({share:.0%})" for value, share in list(shares.items())[:MAX_LISTED]]
    more = len(shares) - MAX_LISTED
    return "\n".join([*lines, *([f"{more} more"] if more > 0 else [])])


def _run_lines(diagnosis: Diagnosis) -> list[str]:
    plan, hours = diagnosis.plan, diagnosis.together.hours
    processes = "1 process" if plan.num_processes == 1 else f"{plan.num_processes} processes"
    validation = diagnosis.num_validation_clips
    return [
        f"step: {plan.windows_per_step} windows of {plan.window_seconds:.3g} s, on {processes}; "
        + (
            f"{_number(plan.steps_per_epoch)} steps are an epoch"
            if plan.steps_per_epoch
            else "the length of an epoch is unknown"
        ),
        f"run: {plan.num_steps:,} steps"
        + (f", {_number(plan.epochs)} epochs" if plan.epochs else "")
        + f", {_number(plan.hours_heard)} h of windows"
        + (f" from {_number(hours)} h of sound" if hours else ""),
        "validation: " + ("off" if validation is None else f"{validation} clips"),
    ]


def _promises(stocks: Sequence[Stock]) -> list[str]:
    promises = {stock.promise for stock in stocks}
    if len(promises) == 1:
        return [f"order: {stocks[0].promise}"]
    return [f"order of {stock.name}: {stock.promise}" for stock in stocks]


def json_report(diagnosis: Diagnosis) -> dict[str, Any]:
    """The same and more as plain values that JSON can write."""
    return {
        "format": FORMAT,
        "exit_code": diagnosis.exit_code,
        "findings": [finding._asdict() for finding in diagnosis.findings],
        "sources": [
            _plain(summary) | {"order": stock.promise, "num_blocks": stock.num_blocks}
            for summary, stock in zip(diagnosis.sources, diagnosis.stocks, strict=True)
        ],
        "together": _plain(diagnosis.together),
        "run": diagnosis.plan._asdict(),
        "num_validation_clips": diagnosis.num_validation_clips,
        "quiet_lufs": diagnosis.quiet_lufs,
    }


def _plain(summary: Summary) -> dict[str, Any]:
    values = asdict(summary)
    for name, value in values.items():
        if isinstance(value, Quantiles):
            values[name] = value._asdict()
    values["problems"] = [problem._asdict() for problem in summary.problems]
    return values
