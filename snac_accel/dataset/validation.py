"""The fixed clips of validation: the same in every run, whole up to a stated length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..audio import AudioError, AudioReader, apply_gain
from ..errors import DataError
from .audio_dataset import AudioDataset
from .clips import RawClip, read_source
from .hold_out import name_hash
from .samples import BAD, Failure

MIN_BLOCKS, MAX_BLOCKS = 8, 32  # of a stream that are fetched for its validation clips


class Clip(NamedTuple):
    """A validation clip."""

    name: str
    audio: Tensor  # (1, T) float32, T differs from clip to clip


class ChosenClip(NamedTuple):
    """A clip of one of the sources."""

    name: str
    dataset: AudioDataset
    place: RawClip | int  # its number, or, from a stream, the clip itself, kept encoded in memory


class ValidationClips:
    """Iterates over the first `max_clip_seconds` of at most `max_clips` clips, decoded one at a time.

    The clips are those whose names have the smallest hashes; of a stream read by blocks those of a few blocks, of
    one without an index the first ones. Several sources have equal shares, and their `labels` before the names.
    `names` lists the clips. Those that cannot be used are left out, and stand in `failures` after an iteration.
    Raises DataError if a source has none.
    """

    def __init__(
        self,
        datasets: AudioDataset | Sequence[AudioDataset],
        max_clips: int = 64,
        max_clip_seconds: float = 10.0,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self._max_clip_seconds = max_clip_seconds
        datasets = [datasets] if isinstance(datasets, AudioDataset) else datasets
        self._clips: list[ChosenClip] = []
        for number, dataset in enumerate(datasets):
            count = max(1, (max_clips + len(datasets) - 1 - number) // len(datasets))
            prefix = f"{labels[number]}/" if labels and len(datasets) > 1 else ""
            chosen = choose_clips(dataset, count)
            if not chosen:
                raise DataError(
                    f"{dataset.dataset_path!r} leaves no clips for validation: hold out a larger share"
                )
            self._clips += [clip._replace(name=prefix + clip.name) for clip in chosen]

    @property
    def names(self) -> list[str]:
        """The names of the clips."""
        return [clip.name for clip in self._clips]

    def share(self, process_index: int, num_processes: int) -> ValidationClips:
        """Return the share of one process: clip i belongs to process i % num_processes."""
        part = copy(self)
        part.failures = []
        part._clips = self._clips[process_index::num_processes]
        return part

    def __len__(self) -> int:
        """Return how many clips were chosen."""
        return len(self._clips)

    def __iter__(self) -> Iterator[Clip]:
        """Yield the clips that can be used."""
        self.failures = []
        for name, dataset, place in self._clips:
            try:
                raw = dataset.clip(place) if isinstance(place, int) else place
                audio = self._read(raw, dataset.windows.sampling_rate)
            except AudioError as error:
                self.failures.append(Failure(name, str(error), BAD))
            else:
                yield Clip(name, audio.unsqueeze(0))

    def _read(self, clip: RawClip, sampling_rate: int) -> Tensor:
        """Return the beginning of a clip (T,)."""
        with AudioReader(read_source(clip), sampling_rate, clip.segment) as reader:
            return apply_gain(reader.read(0, round(self._max_clip_seconds * sampling_rate)))


def choose_clips(dataset: AudioDataset, count: int) -> list[ChosenClip]:
    """Return at most `count` clips of a source: those with the smallest hashes, or of a few blocks, or the first ones."""
    if not dataset.indexed:
        streamed = islice(dataset.stream_clips(None), count)
        return [ChosenClip(clip.name, dataset, clip) for clip in streamed]
    if dataset.block_lengths is None:
        names = dataset.clip_names()
        order = sorted(range(len(names)), key=lambda index: (name_hash(names[index]), index))
        return [ChosenClip(names[index], dataset, index) for index in order[:count]]
    clips = [dataset.clip(index) for index in _spread(dataset.block_lengths, count)]
    return [ChosenClip(clip.name, dataset, clip) for clip in clips]


def _spread(lengths: np.ndarray, count: int) -> list[int]:
    """Return the numbers of `count` clips that lie spread over a few blocks, chosen by the blocks' numbers alone."""
    ends = np.cumsum(lengths)
    blocks = sorted(range(len(lengths)), key=lambda block: name_hash(str(block)))
    enough = int(np.searchsorted(np.cumsum(lengths[blocks]), count)) + 1  # blocks, if all of their clips are taken
    blocks = blocks[: min(max(enough, MIN_BLOCKS), MAX_BLOCKS)]
    found: list[int] = []
    while len(found) < count and blocks:
        share = -(-(count - len(found)) // len(blocks))
        block = blocks.pop()
        number = min(share, int(lengths[block]))
        offsets = np.linspace(0, int(lengths[block]) - 1, number).astype(int)
        found += (int(ends[block]) - int(lengths[block]) + np.unique(offsets)).tolist()
    return sorted(found[:count])
