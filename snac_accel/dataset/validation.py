"""The fixed clips of validation: the same in every run, whole up to a stated length."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from ..audio import AudioError, AudioReader, apply_gain
from ..errors import DataError
from .audio_dataset import AudioDataset
from .hold_out import name_hash
from .samples import BAD, Failure
from .clips import RawClip, read_source


class Clip(NamedTuple):
    """A validation clip."""

    name: str
    audio: Tensor  # (1, T) float32, T differs from clip to clip


class ValidationClips:
    """Iterates over the first `max_clip_seconds` of at most `max_clips` clips, decoded one at a time.

    The clips are those whose names have the smallest hashes; of a stream the first ones, kept encoded in
    memory. `names` lists them. Those that cannot be used are left out, and stand in `failures` after an
    iteration. Raises DataError if there are none.
    """

    def __init__(self, dataset: AudioDataset, max_clips: int = 64, max_clip_seconds: float = 10.0) -> None:
        self.failures: list[Failure] = []
        self._dataset = dataset
        self._max_samples = round(max_clip_seconds * dataset.windows.sampling_rate)
        self._clips: list[RawClip | int]  # streamed clips, or indices of clips
        if dataset.streaming:
            streamed = list(islice(dataset.stream_clips(None), max_clips))
            self.names = [clip.name for clip in streamed]
            self._clips = [*streamed]
        else:
            names = dataset.clip_names()
            order = sorted(range(len(names)), key=lambda index: (name_hash(names[index]), index))[:max_clips]
            self.names = [names[index] for index in order]
            self._clips = [*order]

        if not self._clips:
            raise DataError(
                f"{dataset.dataset_path!r} leaves no clips for validation: hold out a larger share"
            )

    def share(self, process_index: int, num_processes: int) -> ValidationClips:
        """Return the share of one process: clip i belongs to process i % num_processes."""
        part = copy(self)
        part.failures = []
        part.names = self.names[process_index::num_processes]
        part._clips = self._clips[process_index::num_processes]
        return part

    def __len__(self) -> int:
        """Return how many clips were chosen."""
        return len(self._clips)

    def __iter__(self) -> Iterator[Clip]:
        """Yield the clips that can be used."""
        self.failures = []
        for clip in self._clips:
            raw = self._dataset.clip(clip) if isinstance(clip, int) else clip
            try:
                audio = self._read(raw)
            except AudioError as error:
                self.failures.append(Failure(raw.name, str(error), BAD))
            else:
                yield Clip(raw.name, audio.unsqueeze(0))

    def _read(self, clip: RawClip) -> Tensor:
        """Return the beginning of a clip (T,)."""
        with AudioReader(read_source(clip), self._dataset.windows.sampling_rate) as reader:
            return apply_gain(reader.read(0, self._max_samples))
