"""`AudioDataset`: windows of equal length from one source, for training and for use on its own.

Shapes: T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from .block_cache import BlockCache, default_folder
from .clips import Clips, RawClip
from .hold_out import hold_out, is_held_out
from .order import ClipOrder, Draws, SampleKey
from .samples import Sample
from .sources import Request, open_source
from .streams import SampleStream, StreamedClips
from .windows import WindowReader

POOLS_AHEAD = 1  # of blocks, fetched while the present one is used


class AudioDataset(Dataset[Any]):
    """Windows of `segment_length` seconds, mono at `sample_rate`, from a Hub dataset, an address, a folder or file.

    `dataset[i]` is a window (T,) of clip i, `dataset[key]` the `Sample` of a `SampleKey`; iterating gives
    windows in the order of the source. Only the window is decoded; a clip shorter than it is padded with zeros at
    its end (counted in `Sample.num_padding`), one shorter than `min_clip_seconds` or one that cannot be decoded is
    replaced by another (`Sample.failures`). `indexed` is False for the few sources that can only be read one clip
    after the other (tar files at an address): they have no length and no indexing.

    Args:
        dataset_path: Hub id, address (s3://…), audio folder, folder or file of parquet / arrow / JSON lines / CSV,
            or a folder made by `save_to_disk`.
        sample_rate: of the windows, Hz.
        segment_length: seconds; `segment_samples` overrides it with a number of samples.
        streaming: read a Hub dataset while training instead of downloading it first.
        audio_column: column with the audio, or with paths to it (relative to the folder or the manifest).
        configuration, revision: of a Hub dataset.
        seed: of windows, gains and replacements.
        gain_db: range of a random gain; the peak never passes 1.
        random_window: False takes the beginning of each clip, without gain.
        speaker_column: needed only to hold out whole speakers.
        shuffle_buffer: clips of a stream that are shuffled among each other.
        cache_dir, cache_gigabytes: where the parts of a stream being read are kept, and how much of it.
        window_options: further arguments of `WindowReader`: channels, loudness, augmentation.

    Raises DataError if the source is missing, empty, or lacks the column or split.
    """

    block_lengths: NDArray[np.int64] | None  # clips of this part in each block; None: no blocks
    _blocks: NDArray[np.int64]  # the source's number of each of these blocks
    _rows_kept: NDArray[np.int64] | None  # the rows of the source that belong to this part, None: all
    _order: ClipOrder | None
    _pool: tuple[int, int] | None  # of the last sample: (epoch, pool)
    _stream: SampleStream | None  # not indexed: of this process

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
        cache_dir: str | Path | None = None,
        cache_gigabytes: float = 10.0,
        **window_options: Any,
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
            sample_rate,
            num_samples,
            seed,
            (gain_db[0], gain_db[1]),
            min_clip_seconds,
            random_window,
            **window_options,
        )
        cache = BlockCache(Path(cache_dir) if cache_dir else default_folder(), int(cache_gigabytes * 1e9))
        source = open_source(
            Request(
                self.dataset_path, split, streaming, audio_column, configuration, revision, speaker_column, cache
            )
        )
        self.speaker_column = speaker_column
        self._clips: Clips | None = None if isinstance(source, StreamedClips) else source
        self._streamed: StreamedClips | None = source if isinstance(source, StreamedClips) else None
        self._is_kept: partial[bool] | None = None  # not indexed: which clips belong to this part, None: all
        self._keep(None)

    @property
    def indexed(self) -> bool:
        """Whether clips can be had in any order."""
        return self._clips is not None

    @property
    def clips(self) -> Clips:
        """The source's clips, those of other parts included; TypeError if they can only be read in turn."""
        if self._clips is None:
            raise TypeError("a stream of clips has no length and no index")
        return self._clips

    @property
    def seed(self) -> int:
        """The seed of order, windows and augmentation."""
        return self.windows.seed

    def __len__(self) -> int:
        """Return the number of clips; TypeError if they can only be read in turn."""
        return len(self.clips) if self._rows_kept is None else len(self._rows_kept)

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
        if self.indexed:
            yield from (self[index] for index in range(len(self)))
            return
        stream = SampleStream(self.windows, lambda epoch: self.stream_clips(None))
        while stream.next_key().epoch == 0:
            yield stream.next_sample().audio.squeeze(0)

    def sample_at(self, position: int) -> Sample:
        """Return the sample at a position of the endless training stream; raises DataError if no clip can be used."""
        if not self.indexed:
            return self._stream_at(position).next_sample()
        key = self.order.key_at(position)
        self._look_ahead(key)
        return self[key]

    @property
    def order(self) -> ClipOrder:
        """What comes when."""
        if self._order is None:
            self._order = ClipOrder(len(self), self.seed, self.block_lengths, self.shuffle_buffer)
        return self._order

    def _look_ahead(self, key: SampleKey) -> None:
        """Have the blocks of this pool and the next fetched in the background."""
        if self.block_lengths is not None and (place := self.order.pool_at(key)) != self._pool:
            self._pool = place
            wanted = self.order.blocks_of_pools(*place, 1 + POOLS_AHEAD)
            self.clips.prefetch(self._blocks[wanted].tolist())

    def _stream_at(self, position: int) -> SampleStream:
        """Return the stream with its next sample at a position, read anew if it has gone past."""
        if self._stream is None or self._stream.position > position:
            self._stream = SampleStream(self.windows, self.stream_clips)
        self._stream.skip_to(position)
        return self._stream

    def _candidate(self, key: SampleKey, attempt: int, draws: Draws) -> RawClip:
        """Return the clip of a key, or from attempt 1 on one drawn to replace it, from its pool where there are pools."""
        if attempt == 0:
            return self.clip(key.clip)
        if self.block_lengths is None:
            return self.clip(int(draws.clip * len(self)))
        _, pool = self.order.pool_at(key)
        epoch = self.order.epoch(key.epoch)
        first = int(epoch.pool_ends[pool - 1]) if pool else 0
        return self.clip(int(epoch.clips[first + int(draws.clip * (int(epoch.pool_ends[pool]) - first))]))

    def clip(self, index: int) -> RawClip:
        """Return clip `index` undecoded."""
        return self.clips.clip(int(index if self._rows_kept is None else self._rows_kept[index]))

    def stream_clips(self, epoch: int | None) -> Iterator[RawClip]:
        """Yield all clips undecoded; without an index shuffled for `epoch`, else or if that is None in the source's order."""
        if self._streamed is None:
            yield from map(self.clip, range(len(self)))
            return
        for clip in self._streamed.read(self.seed, epoch, self.shuffle_buffer):
            if self._is_kept is None or self._is_kept(clip):
                yield clip

    def clip_names(self, max_streamed: int = 0) -> list[str]:
        """Return the names of all clips, without reading their audio, or without an index of the first ones."""
        if not self.indexed:
            return [clip.name for clip in islice(self.stream_clips(None), max_streamed)]
        return [name for name, _ in self._names_and_speakers()]

    def digest(self, max_streamed: int = 64) -> str:
        """Return a short text that differs if the clips differ; without an index, if the first ones do."""
        if not self.indexed:
            return f"names {' '.join(self.clip_names(max_streamed))[:200]}"
        return f"{len(self)} clips ({self.clips.digest()})"

    def hold_out(self, fraction: float, by: str = "clip") -> tuple[AudioDataset, AudioDataset]:
        """Return (training part, held-out part): about `fraction` of the clips, or (`by` "speaker") speakers.

        The parts share no clip. Raises DataError if one of them would be empty, or if speakers are asked for
        without their column.
        """
        if by == "speaker" and self.speaker_column is None:
            raise DataError("holding out speakers needs the column that names them (data.speaker_column)")
        if not self.indexed:
            return tuple(  # type: ignore[return-value]
                self._part(None, partial(_is_in_part, fraction=fraction, by=by, held_out=held))
                for held in (False, True)
            )
        names, speakers = zip(*self._names_and_speakers(), strict=True)
        mask = hold_out(names, fraction, speakers if by == "speaker" else None)
        rows = np.arange(len(self.clips)) if self._rows_kept is None else self._rows_kept
        return self._part(rows[~mask]), self._part(rows[mask])

    def _part(self, rows_kept: NDArray[np.int64] | None, is_kept: partial[bool] | None = None) -> AudioDataset:
        """Return a dataset over some of this one's clips, sharing the opened source."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._is_kept = is_kept
        part._keep(rows_kept)
        return part

    def _keep(self, rows: NDArray[np.int64] | None) -> None:
        """Restrict this part to some rows of the source (None: all), and forget what was derived from others."""
        self._rows_kept = rows
        self._order, self._stream, self._pool = None, None, None
        self.block_lengths = lengths = None if self._clips is None else self._clips.block_lengths
        self._blocks = np.arange(0 if lengths is None else len(lengths))
        if lengths is not None and rows is not None:
            block_of_row = np.searchsorted(np.cumsum(lengths), rows, side="right")
            self._blocks, self.block_lengths = np.unique(block_of_row, return_counts=True)

    def _names_and_speakers(self) -> list[tuple[str, str]]:
        """Return name and speaker ("" without a column) of each clip of this part; reads no audio."""
        found = self.clips.names_and_speakers()
        return found if self._rows_kept is None else [found[row] for row in self._rows_kept]


def _is_in_part(clip: RawClip, fraction: float, by: str, held_out: bool) -> bool:
    """Return whether a streamed clip belongs to the held-out part (`held_out` False: to the other one)."""
    return is_held_out((clip.speaker or "") if by == "speaker" else clip.name, fraction) == held_out
