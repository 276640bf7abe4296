"""`AudioDataset`: windows of equal length from any source, for training and for use on its own.

Shapes: T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from .hold_out import hold_out, is_held_out
from .order import SHUFFLE, Draws, SampleKey, draw_words
from .samples import Sample
from .clips import RawClip
from .sources import Source, open_source
from .streaming import SampleStream
from .windows import WindowReader


class AudioDataset(Dataset[Any]):
    """Windows of `segment_length` seconds, mono at `sample_rate`, from a Hub dataset, a local folder or file.

    `dataset[i]` is a window (T,) of clip i, `dataset[key]` the `Sample` of a `SampleKey`; iterating gives
    windows in the order of the source. When streaming there is no length and no indexing. Only the window is
    decoded; a clip shorter than it is padded with zeros at its end (counted in `Sample.num_padding`), one
    shorter than `min_clip_seconds` or one that cannot be decoded is replaced by another (`Sample.failures`).

    Args:
        dataset_path: Hub id, audio folder, folder or file of parquet / arrow / JSON lines / CSV, or a folder
            made by `save_to_disk`.
        sample_rate: of the windows, Hz.
        segment_length: seconds; `segment_samples` overrides it with a number of samples.
        audio_column: column with the audio, or with paths to it (relative to the folder or the manifest).
        configuration, revision: of a Hub dataset.
        seed: of windows, gains and replacements.
        gain_db: range of a random gain; the peak never passes 1.
        random_window: False takes the beginning of each clip, without gain.
        speaker_column: needed only to hold out whole speakers.
        shuffle_buffer: clips held in memory, undecoded, to shuffle a stream.

    Raises DataError if the source is missing, empty, or lacks the column or split.
    """

    def __init__(
        self,
        dataset_path: str | Path,
        sample_rate: int = 24000,
        segment_length: float = 0.8,
        split: str = "train",
        streaming: bool = False,
        audio_column: str = "audio",
        *,
        configuration: str | None = None,
        revision: str | None = None,
        segment_samples: int | None = None,
        seed: int = 0,
        gain_db: tuple[float, float] = (0.0, 0.0),
        min_clip_seconds: float = 0.2,
        random_window: bool = True,
        speaker_column: str | None = None,
        shuffle_buffer: int = 1000,
    ) -> None:
        num_samples = round(segment_length * sample_rate) if segment_samples is None else segment_samples
        if sample_rate <= 0 or num_samples <= 0:
            raise DataError(
                f"a window needs a positive rate and length, not {sample_rate} Hz and {num_samples} samples"
            )
        self.dataset_path = str(dataset_path)
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.windows = WindowReader(
            sample_rate, num_samples, seed, (gain_db[0], gain_db[1]), min_clip_seconds, random_window
        )
        self.source: Source = open_source(
            dataset_path, split, streaming, audio_column, configuration, revision, speaker_column
        )
        self._rows_kept: NDArray[np.int64] | None = (
            None  # map-style: the rows of this part of the source, None: all
        )
        self._is_kept: partial[bool] | None = None  # streaming: which clips belong to this part, None: all

    def __len__(self) -> int:
        """Return the number of clips; TypeError when streaming."""
        if self.streaming:
            raise TypeError("a stream of clips has no length")
        return len(self.source.rows) if self._rows_kept is None else len(self._rows_kept)

    @overload
    def __getitem__(self, key: SampleKey) -> Sample: ...

    @overload
    def __getitem__(self, key: int) -> Tensor: ...

    def __getitem__(self, key: int | SampleKey) -> Sample | Tensor:
        """Return the sample of a key, or for a whole number the window (T,) that clip has in epoch 0."""
        if isinstance(key, SampleKey):
            return self.windows.sample(key, partial(self._candidate, key))
        index = range(len(self))[key]  # negative ones count from the end; IndexError outside
        return self[SampleKey(epoch=0, position=index, clip=index)].audio.squeeze(0)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield one window (T,) of each clip in the order of the source; unusable clips are replaced."""
        if not self.streaming:
            yield from (self[index] for index in range(len(self)))
            return
        stream = SampleStream(self.windows, lambda epoch: self.stream_clips(None))
        while stream.next_key().epoch == 0:
            yield stream.next_sample().audio.squeeze(0)

    def _candidate(self, key: SampleKey, attempt: int, draws: Draws) -> RawClip:
        """Return the clip of a key, or from attempt 1 on one drawn to replace it."""
        return self.clip(key.clip if attempt == 0 else int(draws.clip * len(self)))

    def clip(self, index: int) -> RawClip:
        """Return clip `index` undecoded (map-style)."""
        row = int(index if self._rows_kept is None else self._rows_kept[index])
        return self.source.clip(self.source.rows[row], row)

    def stream_clips(self, epoch: int | None) -> Iterator[RawClip]:
        """Yield the clips of a stream undecoded, shuffled for `epoch` (None: in the order of the source).

        The order is that of the whole source on every process and worker. Raises DataError when reading
        fails.
        """
        rows = self.source.rows
        if epoch is not None:
            seed = int(draw_words(1, SHUFFLE, self.windows.seed, epoch)[0] >> np.uint64(1))
            rows = rows.shuffle(seed=seed, buffer_size=self.shuffle_buffer)
        try:
            # `iter(rows)` would give each worker process of a loader other rows; here each of them follows
            # the same stream.
            for batch in rows.iter(batch_size=1):
                clip = self.source.clip({column: values[0] for column, values in batch.items()})
                if self._is_kept is None or self._is_kept(clip):
                    yield clip
        except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"reading {self.dataset_path!r} failed: {' '.join(str(error).split())[:200]}"
            ) from error

    def clip_names(self, max_streamed: int = 0) -> list[str]:
        """Return the names of all clips (map-style), without reading their audio, or of the first ones of a stream."""
        if self.streaming:
            return [clip.name for clip in islice(self.stream_clips(None), max_streamed)]
        return [name for name, _ in self._names_and_speakers()]

    def hold_out(self, fraction: float, by: str = "clip") -> tuple[AudioDataset, AudioDataset]:
        """Return (training part, held-out part): about `fraction` of the clips, or (`by` "speaker") speakers.

        The parts share no clip. Raises DataError if one of them would be empty, or if speakers are asked for
        without their column.
        """
        if by == "speaker" and self.source.speaker_column is None:
            raise DataError("holding out speakers needs the column that names them (data.speaker_column)")
        if self.streaming:
            return tuple(  # type: ignore[return-value]
                self._part(is_kept=partial(_is_in_part, fraction=fraction, by=by, held_out=held))
                for held in (False, True)
            )
        names, speakers = zip(*self._names_and_speakers(), strict=True)
        mask = hold_out(names, fraction, speakers if by == "speaker" else None)
        rows = np.arange(len(self.source.rows)) if self._rows_kept is None else self._rows_kept
        return self._part(rows_kept=rows[~mask]), self._part(rows_kept=rows[mask])

    def _part(
        self, rows_kept: NDArray[np.int64] | None = None, is_kept: partial[bool] | None = None
    ) -> AudioDataset:
        """Return a dataset over some of this one's clips, sharing the opened source."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._rows_kept, part._is_kept = rows_kept, is_kept
        return part

    def _names_and_speakers(self) -> list[tuple[str, str]]:
        """Return name and speaker ("" without a column) of each clip of this part; reads no audio."""
        source = self.source
        found: list[tuple[str, str]] = []
        for table in source.rows.with_format("arrow").iter(batch_size=1000):
            paths = _paths(table.column(source.audio_column))
            speakers = (
                table.column(source.speaker_column).to_pylist()
                if source.speaker_column
                else [""] * len(table)
            )
            found += [
                (source.name(p, len(found) + row), str(s))
                for row, (p, s) in enumerate(zip(paths, speakers, strict=True))
            ]
        return found if self._rows_kept is None else [found[row] for row in self._rows_kept]


def _paths(column: pyarrow.ChunkedArray) -> list[str | None]:
    """Return the path of each row of an audio column, None where there are only bytes."""
    if pyarrow.types.is_struct(column.type):
        if column.type.get_field_index("path") < 0:
            return [None] * len(column)
        column = pyarrow.compute.struct_field(column, "path")
    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    return column.to_pylist() if is_text else [None] * len(column)


def _is_in_part(clip: RawClip, fraction: float, by: str, held_out: bool) -> bool:
    """Return whether a streamed clip belongs to the held-out part (`held_out` False: to the other one)."""
    return is_held_out((clip.speaker or "") if by == "speaker" else clip.name, fraction) == held_out
