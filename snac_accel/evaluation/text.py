"""What an evaluation prints: its first tables, as text."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from ..listening import Table

MOST_COLUMNS = 7  # that a terminal shows


def as_text(tables: Sequence[Table]) -> str:
    """Tables one below the other; names are shown without control characters."""
    return "\n\n".join(_one(table) for table in tables)


def _one(table: Table) -> str:
    lines = [list(table.headers), *([text for text, _ in row] for row in table.rows)]
    if len(table.headers) > MOST_COLUMNS:  # with a line for each metric, not a column
        lines = [list(line) for line in zip(*lines, strict=True)]
    first, *others = [[_printable(text) for text in line] for line in lines]
    return f"{table.title}\n" + tabulate(others, headers=first, disable_numparse=True)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
