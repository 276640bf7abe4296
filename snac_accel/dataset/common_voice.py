"""The official download of Common Voice: `clips/*.mp3` beside `train.tsv`, `dev.tsv`, `test.tsv`, `validated.tsv`, …

The archive of a release holds a folder for each language; either that folder or the one above it can be opened.
Tables with other columns (clip_durations.tsv, reported.tsv, validated_sentences.tsv) are no splits and are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.compute
import pyarrow.csv

from ..errors import DataError
from .folder import SPLIT_FOLDERS
from .source_errors import no_split

CLIPS = "clips"  # the folder of the audio files
NEEDED = ("client_id", "path")  # columns of a table that lists clips
HEADER_BYTES = 4096


def is_common_voice(root: Path) -> bool:
    """Return whether `root` is the folder of a language, or holds such folders. Lists no clips."""
    return root.is_dir() and bool(_languages(root))


def open_common_voice(root: Path, split: str, configuration: str | None = None) -> datasets.Dataset:
    """Open a split of one language: column `audio` (paths below `root`), `client_id` and the others of its table.

    `configuration` is the language; it may be left out where there is only one. The splits "validation" and "dev" are the
    same. Raises DataError in one line.
    """
    folder = _language_folder(root, configuration)
    tables = _tables(folder)
    same = next((names for names in SPLIT_FOLDERS.values() if split in names), ())
    for name in (split, *same):
        if name in tables:
            return _read(root, tables[name])
    raise no_split(str(root), split, ", ".join(tables))


def _languages(root: Path) -> dict[str, Path]:
    """Return the folders of languages by their names: `root` itself, or those in it."""
    if _tables(root):
        return {root.name: root}
    folders = (path for path in _entries(root) if not path.name.startswith(".") and path.is_dir())
    return {folder.name: folder for folder in folders if _tables(folder)}


def _language_folder(root: Path, configuration: str | None) -> Path:
    """Return the folder of the language; raises DataError naming those there are."""
    languages = _languages(root)
    if configuration in languages:
        return languages[configuration]
    there_are = ", ".join(languages)
    if root not in languages.values():
        if configuration is None and len(languages) == 1:
            return next(iter(languages.values()))
        if configuration is None:
            raise DataError(
                f"{str(root)!r} has several languages: set data.configuration to one of {there_are}"
            )
        raise DataError(f"{str(root)!r} has no language {configuration!r}; there are: {there_are}")
    # The folder may have been renamed: then the column `locale` says what it holds.
    locale = _locale(next(iter(_tables(root).values())))
    if configuration is not None and locale is not None and configuration != locale:
        raise DataError(f"{str(root)!r} has no language {configuration!r}; it holds: {locale}")
    return root


def _tables(folder: Path) -> dict[str, Path]:
    """Return the tables of clips in a folder by split; none if it has no clips."""
    if not (folder / CLIPS).is_dir():
        return {}
    return {
        path.stem: path
        for path in _entries(folder)
        if path.suffix == ".tsv" and set(NEEDED) <= set(_header(path))
    }


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # a folder that may not be listed holds nothing for us
        return []


def _header(path: Path) -> list[str]:
    """Return the names of a table's columns."""
    try:
        with path.open("rb") as file:
            return (
                file.read(HEADER_BYTES)
                .split(b"\n")[0]
                .decode("utf-8-sig", "replace")
                .rstrip("\r")
                .split("\t")
            )
    except OSError:
        return []


def _locale(path: Path) -> str | None:
    """Return the language of a table's first row, None if it has no such column."""
    with path.open("rb") as file:
        lines = file.read(2 * HEADER_BYTES).decode("utf-8-sig", "replace").split("\n")
    names, values = (line.rstrip("\r").split("\t") for line in [*lines, "", ""][:2])
    return dict(zip(names, values, strict=False)).get("locale") or None


def _read(root: Path, path: Path) -> datasets.Dataset:
    """Return the rows of a table, all of them text. Quotes are text too: sentences hold lone ones."""
    names = _header(path)
    if len(set(names)) < len(names):
        raise DataError(f"{str(path)!r} has a column twice: {', '.join(names)}")
    bad: list[pyarrow.csv.InvalidRow] = []

    def note(row: pyarrow.csv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(use_threads=False),  # so that bad rows come with their numbers
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=note),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            ),
        )
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if bad:
        raise DataError(
            f"{str(path)!r} is damaged: line {bad[0].number} has {bad[0].actual_columns} fields "
            f"instead of {bad[0].expected_columns}"
        )
    return datasets.Dataset(_with_audio(root, path, table))


def _with_audio(root: Path, path: Path, table: pyarrow.Table) -> pyarrow.Table:
    """Return the table with the paths of the clips in front; raises DataError for one that leads elsewhere."""
    compute = pyarrow.compute
    clips = table.column("path")
    leads_out = compute.or_(
        compute.match_substring_regex(clips, r"^/|(^|/)\.\.(/|$)"), compute.equal(clips, "")
    )
    if compute.any(leads_out).as_py():
        row = compute.index(leads_out, True).as_py()
        raise DataError(
            f"{str(path)!r} line {row + 2} names {clips[row].as_py()!r}, which is no file of {CLIPS}/"
        )
    # The oldest releases leave the suffix out.
    clips = compute.if_else(
        compute.match_substring(clips, "."), clips, compute.binary_join_element_wise(clips, ".mp3", "")
    )
    folder = (path.parent / CLIPS).relative_to(root).as_posix()
    audio = compute.binary_join_element_wise(folder, clips, "/")
    others = [name for name in table.column_names if name != "audio"]
    return pyarrow.table([audio, *(table.column(name) for name in others)], names=["audio", *others])
