"""The first pass: every clip of the sources is read and decoded once, in the order in which they lie.

A step (a hundred clips or a few blocks) leaves a table of its pieces; bytes that could not be had again cheaply (fetched,
cut or encoded ones) lie beside it. A step that left its table is not done again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import pyarrow
import pyarrow.parquet

from ..audio import AudioError
from ..dataset.clips import RawClip
from ..dataset.streams import StreamedClips
from ..files import TEMPORARY_PREFIX, sync_folder
from .contents import Store, digest, local_source, storable, whole
from .conversion import convert
from .processes import Workers, context
from .settings import PrepareSettings
from .sources import CLIPS_PER_STEP, Part, steps

STEP_BYTES = 64 * 2**20  # of a stream's clips that are handed to a worker at once

PIECES = pyarrow.schema(
    {
        "part": pyarrow.int32(),
        "clip": pyarrow.int64(),  # its number in the source
        "name": pyarrow.string(),  # of the clip; of a piece of it with the number of the piece
        "path": pyarrow.string(),  # what it is called in the shards
        "speaker": pyarrow.string(),
        "seconds": pyarrow.float64(),
        "sampling_rate": pyarrow.int32(),
        "suffix": pyarrow.string(),
        "size": pyarrow.int64(),  # bytes
        "digest": pyarrow.binary(16),  # of the bytes
        "file": pyarrow.string(),  # in the work folder, with the bytes at `offset`; "" where the source has them
        "offset": pyarrow.int64(),
        "reason": pyarrow.string(),  # why the clip is left out; "": it is not
    }
)


class Step(NamedTuple):
    """Clips that are checked together."""

    split: str
    part: int
    number: int
    begin: int  # of the clips in the source
    end: int
    clips: list[RawClip] | None  # of a stream; None: the worker reads them itself


class Steps(Protocol):
    """What is done in steps, and where their tables lie."""

    @property
    def parts(self) -> dict[str, list[Part]]:
        """The opened sources of each split."""

    def table(self, step: tuple[str, int, int]) -> Path:
        """Return the place of a step's table, which has a column `clip`; the folder exists."""


class Collector(NamedTuple):
    """What the workers of this pass need."""

    settings: PrepareSettings
    parts: dict[str, list[Part]]
    folder: Path  # of the tables

    def table(self, step: tuple[str, int, int]) -> Path:
        """Return the place of a step's table."""
        split, part, number = step
        return self.folder / f"{split}-{part:03d}-{number:07d}.parquet"


def collect(collector: Steps, processes: Workers, do: Callable[[Step], int]) -> Iterator[int]:
    """Do the steps that are not done; yield the number of clips of each step, done before or now."""
    for name, parts in collector.parts.items():
        for number, part in enumerate(parts):
            if isinstance(part.clips, StreamedClips):
                todo: Iterable[Step] = _streamed_steps(collector, name, number, part.clips.read(0, None, 1))
            else:
                todo = [Step(name, number, index, *edges, None) for index, edges in enumerate(steps(part))]
            yield from processes.run(do, todo)


def _streamed_steps(collector: Steps, split: str, part: int, clips: Iterator[RawClip]) -> Iterator[Step]:
    """Yield the steps of a stream; those that are done are read past, since there is no other way behind them."""
    begin, number = 0, 0
    while True:
        table = collector.table((split, part, number))
        if table.exists():
            end = int(pyarrow.parquet.ParquetFile(table).read(["clip"]).column("clip")[-1].as_py()) + 1
            found = sum(1 for _ in islice(clips, end - begin))
            step = Step(split, part, number, begin, begin + found, [])
        else:
            step = Step(split, part, number, begin, begin, _some(clips))
            step = step._replace(end=begin + len(step.clips or ()))
        if step.end == begin:
            return
        yield step
        begin, number = step.end, number + 1


def _some(clips: Iterator[RawClip]) -> list[RawClip]:
    """Return the next clips of a stream, few enough to be held in memory."""
    found: list[RawClip] = []
    num_bytes = 0
    while len(found) < CLIPS_PER_STEP and num_bytes < STEP_BYTES:
        clip = next(clips, None)
        if clip is None:
            break
        found.append(clip)
        num_bytes += len(clip.source)
    return found


def check_step(step: Step) -> int:
    """Check the clips of a step, in a worker; return their number."""
    collector: Collector = context()
    path = collector.table(step[:3])
    if path.exists():
        return step.end - step.begin
    store = Store(path.with_suffix(".bin"))
    rows = [row for number in range(step.begin, step.end) for row in _rows(collector, step, number, store)]
    store.close()
    write_table(path, pyarrow.Table.from_pylist(rows, PIECES))
    return step.end - step.begin


def write_table(path: Path, table: pyarrow.Table) -> None:
    """Write the table of a step, whole or not at all."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    with open(temporary, "wb") as file:
        pyarrow.parquet.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _rows(collector: Collector, step: Step, number: int, store: Store) -> list[dict[str, object]]:
    """Return the rows of a clip: its pieces, or the reason why it is left out."""
    part = collector.parts[step.split][step.part]
    context()  # ends here if the preparation does
    row: dict[str, object] = {
        "part": step.part,
        "clip": number,
        "reason": "",
        "name": f"{step.split}/{number}",
    }
    try:
        raw = part.clips.clip(number) if step.clips is None else step.clips[number - step.begin]  # type: ignore[union-attr]
        row |= {"name": storable(raw.name), "speaker": storable(raw.speaker or "")}
        begin = store.size
        try:
            return [row | piece for piece in _pieces(collector.settings, raw, part.keep_in_place, store)]
        except AudioError:
            store.cut(begin)  # pieces before the bad one
            raise
    except AudioError as error:
        return [row | {"reason": storable(str(error))}]


def _pieces(
    settings: PrepareSettings, raw: RawClip, keep_in_place: bool, store: Store
) -> Iterator[dict[str, object]]:
    """Yield what is to be known of each piece of a clip; store the bytes that the source will not give again."""
    source, is_own = local_source(raw)
    rate = settings.sampling_rate if settings.encode else None
    for piece in convert(source, rate, settings.max_clip_seconds, raw.segment):
        content = whole(source) if piece.content is None else piece.content
        is_kept = piece.content is None and is_own and keep_in_place
        name = storable(raw.name)
        if piece.number is not None:
            name, path = f"{name}#{piece.number:04d}", f"{name}#{piece.number:04d}.{piece.suffix}"
        else:
            path = (
                name
                if piece.content is None
                else str(PurePosixPath(name or "clip").with_suffix(f".{piece.suffix}"))
            )
        yield {
            "name": name,
            "path": path,
            "seconds": piece.seconds,
            "sampling_rate": piece.sampling_rate,
            "suffix": piece.suffix,
            "size": len(content),
            "digest": digest(content),
            "file": "" if is_kept else store.name,
            "offset": 0 if is_kept else store.add(content),
        }


def read_pieces(folder: Path) -> dict[str, pyarrow.Table]:
    """Return the tables of all steps, joined for each split, in the order of the sources."""
    return {
        split: pyarrow.concat_tables(pyarrow.parquet.ParquetFile(path).read() for path in paths)
        for split, paths in tables_of(folder).items()
    }


def tables_of(folder: Path) -> dict[str, list[Path]]:
    """Return the files of all steps, for each split, in the order of the sources."""
    by_split: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("[!.]*.parquet")):
        by_split.setdefault(path.name.rsplit("-", 2)[0], []).append(path)
    return by_split
