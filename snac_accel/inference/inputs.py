"""What can be encoded: audio files, folders of them, and every source of the data layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..audio import AudioError, AudioReader
from ..dataset.clips import RawClip, read_source
from ..dataset.folder import is_audio, list_files
from ..dataset.sources import Request, open_source
from ..dataset.streams import StreamedClips
from .codec import Clip


class Columns(NamedTuple):
    """How a dataset is read."""

    split: str = "train"
    audio_column: str = "audio"
    configuration: str | None = None
    streaming: bool = False


def find_clips(paths: Iterable[str], columns: Columns = Columns()) -> Iterator[RawClip | AudioError]:  # noqa: B008
    """Yield the clips of files, folders (all audio files below) and datasets; raises DataError, one line.

    A clip of a dataset that cannot be had gives an AudioError that names it.
    """
    for path in paths:
        local = Path(path).expanduser()
        if local.is_file() and is_audio(path):
            yield RawClip(local.name, str(local), None)
        elif local.is_dir() and (names := [name for name in list_files(local) if is_audio(name)]):
            yield from (RawClip(name, str(local / name), None) for name in names)
        else:
            yield from _of_dataset(path, columns)


def _of_dataset(path: str, columns: Columns) -> Iterator[RawClip | AudioError]:
    clips = open_source(Request(path, columns.split, columns.streaming, columns.audio_column, columns.configuration))
    if isinstance(clips, StreamedClips):
        yield from clips.read(0, None, 1)
        return
    for index in range(len(clips)):
        try:
            yield clips.clip(index)
        except AudioError as error:
            yield AudioError(f"clip {index} of {path} {error}")


def to_encode(raw: RawClip, sampling_rate: int) -> Clip | AudioError:
    """The clip as the codec reads it, or why it cannot be read. It is opened for each chunk, so that none stays open."""

    def read(first: int, count: int) -> Tensor:
        with AudioReader(read_source(raw), sampling_rate, raw.segment) as reader:
            return reader.read(first, count)

    try:
        with AudioReader(read_source(raw), sampling_rate, raw.segment) as reader:
            return Clip(reader.num_samples, read)
    except AudioError as error:
        return error
