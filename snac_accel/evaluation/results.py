"""What an evaluation found: a line for each clip, model and number of levels, and the sums over them.

DIR/index.html           the page to listen to; see `listening`
DIR/clips.parquet        the table, a row for each clip, model and number of levels
DIR/clips.csv            the same for spreadsheets
DIR/evaluation.json      summary, codebooks, what was evaluated and how
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from pyarrow import ArrowException

from ..errors import DataError
from ..files import write_bytes, write_json
from ..plain_json import read_json
from .statistics import Estimate, estimate

FORMAT = 1
TABLE_FILE, CSV_FILE, SUMMARY_FILE = "clips.parquet", "clips.csv", "evaluation.json"
MAX_JSON_BYTES = 64 * 2**20
MAX_SPEAKERS = 100  # of whom each gets a line of the summary
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet would begin to compute
TIMES = ("encode_seconds", "decode_seconds")
Row = dict[str, Any]


@dataclass
class Results:
    """Of one evaluation; `rows` by clip, model and levels."""

    models: list[dict[str, Any]]  # label, kind, step, rates, perplexity and share of codes used
    metrics: list[dict[str, Any]]  # name, label, unit, better
    rows: list[Row]
    failures: list[dict[str, str]] = field(default_factory=list)  # name, reason
    missing_metrics: dict[str, str] = field(default_factory=dict)  # name, what to install
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The models, in their order."""
        return [model["label"] for model in self.models]

    @property
    def names(self) -> list[str]:
        """The metrics, in their order."""
        return [metric["name"] for metric in self.metrics]

    def of(self, label: str, levels: int | None = None) -> list[Row]:
        """The rows of a model; `levels` None: those of all levels."""
        mine = (row for row in self.rows if row["model"] == label)
        return [row for row in mine if (row["all_levels"] if levels is None else row["levels"] == levels)]


class Line(NamedTuple):
    """A line of the summary."""

    model: str
    group: str  # "all", "source: …" or "speaker: …"
    levels: int
    num_clips: int
    estimates: dict[str, Estimate | None]


def summarize(results: Results, seed: int = 0) -> list[Line]:
    """Means with intervals: of all clips by the levels that were decoded; by source and by speaker from all levels."""
    lines = []
    for label in results.labels:
        for levels in sorted({row["levels"] for row in results.rows if row["model"] == label}):
            lines.append(_line(results, label, "all", results.of(label, levels), seed))
        for column in ("source", "speaker"):
            values = sorted({row[column] for row in results.rows if row[column]})
            if 1 < len(values) <= MAX_SPEAKERS:
                for value in values:
                    rows = [row for row in results.of(label) if row[column] == value]
                    lines.append(_line(results, label, f"{column}: {value}", rows, seed))
    return [line for line in lines if line.num_clips]


def _line(results: Results, label: str, group: str, rows: Sequence[Row], seed: int) -> Line:
    estimates = {name: estimate([row[name] for row in rows], seed=seed) for name in results.names}
    return Line(label, group, rows[0]["levels"] if rows else 0, len(rows), estimates)


def real_time_factors(rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of audio in a second of work, for encoding and decoding; higher is faster."""
    audio = sum(row["seconds"] for row in rows)
    work = {name: sum(row[name] for row in rows) for name in TIMES}
    return {name.removesuffix("_seconds"): audio / seconds for name, seconds in work.items() if seconds}


def write_results(
    folder: Path, results: Results, lines: Sequence[Line], found: Sequence[NamedTuple] | None = None
) -> None:
    """Write table and summary into a folder that is there; `found`: differences of a comparison."""
    table = pyarrow.Table.from_pylist(results.rows, schema=_schema(results.names))
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content, compression="zstd")
    write_bytes(folder / TABLE_FILE, content.getvalue())
    write_bytes(folder / CSV_FILE, to_csv(results.rows, table.column_names).encode())
    about = {name: value for name, value in asdict(results).items() if name != "rows"}
    summary: dict[str, Any] = {"format": FORMAT, **about, "summary": list(_plain(lines))}
    if found is not None:
        summary["differences"] = [_nested(one) for one in found]
    write_json(folder / SUMMARY_FILE, summary)


def _plain(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    for line in lines:
        means = {name: None if found is None else found._asdict() for name, found in line.estimates.items()}
        yield {**line._asdict(), "estimates": means}


def _nested(one: NamedTuple) -> dict[str, Any]:
    """A named tuple as a mapping, and those in it."""
    return {name: value._asdict() if isinstance(value, Estimate) else value for name, value in one._asdict().items()}


def _schema(metrics: Sequence[str]) -> pyarrow.Schema:
    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int32()
    columns = [("model", text), ("clip", text), ("source", text), ("speaker", text), ("levels", whole)]
    columns += [("all_levels", pyarrow.bool_()), ("seconds", number), ("sampling_rate", whole)]
    return pyarrow.schema([*columns, *((name, number) for name in metrics), *((name, number) for name in TIMES)])


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV with a header; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return content.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def read_results(folder: Path) -> Results:
    """What an evaluation wrote; DataError, one line, if the folder holds none that can be read."""
    try:
        about = read_json(folder / SUMMARY_FILE, MAX_JSON_BYTES)
        if about["format"] != FORMAT:
            raise DataError(f"{folder} has evaluation format {str(about['format'])[:20]}, this version reads {FORMAT}")
        names = [metric["name"] for metric in about["metrics"]]
        rows = pyarrow.parquet.read_table(folder / TABLE_FILE, schema=_schema(names)).to_pylist()
        parts = {name: about[name] for name in ("models", "metrics", "failures", "missing_metrics", "settings")}
        return Results(rows=rows, **parts)
    except (OSError, ValueError, KeyError, TypeError, ArrowException) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:200]}"
        raise DataError(f"{folder} holds no evaluation: {reason}; `snac-accel evaluate` writes one") from error


def best_first(metric: Mapping[str, Any]) -> Callable[[float], float]:
    """A key that sorts values of a metric from the best to the worst."""
    return (lambda value: value) if metric["better"] == "lower" else (lambda value: -value)
