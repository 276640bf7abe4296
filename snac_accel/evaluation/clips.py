"""The clips of an evaluation: as they are in their files, at their own rate, level and length. Shapes: T samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ..audio import AudioError, AudioReader
from ..config import TrainingConfig
from ..dataset import AudioDataset, Failure
from ..dataset.clips import RawClip, read_source
from ..dataset.samples import BAD
from ..dataset.validation import ChosenClip, choose_clips
from ..errors import DataError
from ..run_data import open_training, open_validation

SECONDS_IN_MEMORY = 60.0


class EvaluationClip(NamedTuple):
    """A clip as its file has it, mixed to mono; nothing is normalised."""

    name: str  # unique among the clips
    source: str
    speaker: str  # "" where it is not known
    audio: Tensor  # (T,), on the CPU
    sampling_rate: int


class EvaluationClips:
    """At most `max_clips` clips of the sources, in equal shares, and at most `max_seconds` of each.

    Which ones is decided by their names alone, so it is the same for every model and number of processes. Those that could not
    be used stand in `failures`. Raises DataError if a source has none.
    """

    def __init__(
        self,
        datasets: Sequence[AudioDataset],
        labels: Sequence[str],
        max_clips: int | None = None,
        max_seconds: float = SECONDS_IN_MEMORY,
        min_seconds: float = 0.2,
    ) -> None:
        self.failures: list[Failure] = []
        self._limits = (min_seconds, max_seconds)
        self._clips: list[tuple[str, ChosenClip]] = []
        for number, (dataset, label) in enumerate(zip(datasets, labels, strict=True)):
            share = None if max_clips is None else max(1, (max_clips + len(datasets) - 1 - number) // len(datasets))
            chosen = _every_clip(dataset) if share is None else choose_clips(dataset, share)
            if not chosen:
                raise DataError(f"{dataset.dataset_path!r} has no clips to evaluate on")
            self._clips += [(label, clip) for clip in chosen]

    @cached_property
    def names(self) -> list[str]:
        """The names of all clips, unique: with the source before it where there are several, numbered where one comes twice."""
        several = len({label for label, _ in self._clips}) > 1
        plain = [f"{label}/{clip.name}" if several else clip.name for label, clip in self._clips]
        seen: dict[str, int] = {}
        unique = []
        for name in plain:
            seen[name] = seen.get(name, 0) + 1
            unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        return unique

    def __len__(self) -> int:
        """Return how many clips were chosen."""
        return len(self._clips)

    def clip(self, number: int) -> EvaluationClip | None:
        """Return clip `number`, decoded; None if it cannot be used, which then stands in `failures`."""
        label, (_, dataset, place) = self._clips[number]
        name = self.names[number]
        try:
            raw = dataset.clip(place) if isinstance(place, int) else place
            audio, rate = self._read(raw)
        except AudioError as error:
            self.failures.append(Failure(name, str(error), BAD))
            return None
        return EvaluationClip(name, label, raw.speaker or "", audio, rate)

    def share(self, process_index: int, num_processes: int) -> list[int]:
        """The numbers of one process: clip i belongs to process i % num_processes."""
        return list(range(process_index, len(self), num_processes))

    def _read(self, clip: RawClip) -> tuple[Tensor, int]:
        """The beginning of a clip (T,) and its rate."""
        shortest, longest = self._limits
        with AudioReader(read_source(clip), None, clip.segment) as reader:
            rate = reader.sampling_rate
            if reader.num_samples < shortest * rate:
                raise AudioError(f"has {reader.num_samples / rate:.3g} s, shorter than data.min_clip_seconds ({shortest:g} s)")
            return reader.read(0, round(longest * rate)), rate


def _every_clip(dataset: AudioDataset) -> list[ChosenClip]:
    """All clips of a source; of one without an index they are kept in memory, encoded as they are."""
    if not dataset.indexed:
        return [ChosenClip(clip.name, dataset, clip) for clip in dataset.stream_clips(None)]
    return [ChosenClip(name, dataset, index) for index, name in enumerate(dataset.clip_names())]


def open_clips(
    config: TrainingConfig, max_clips: int | None, max_seconds: float, *, held_out: bool = False
) -> EvaluationClips:
    """The clips of a configuration: of its validation split or source, or all of its data where it names no such thing.

    `held_out`: then only what a run of that configuration holds out of its data.
    """
    sources = config.data.each_source()
    options = config.validation
    if held_out and options.is_share:
        parts = [open_training(config, source, number) for number, source in enumerate(sources)]
        datasets = [part.hold_out(options.fraction, options.by)[1] for part in parts]
    else:
        datasets = open_validation(config)
    labels = [source.label for source in sources][: len(datasets)]
    return EvaluationClips(datasets, labels, max_clips, max_seconds, config.data.min_clip_seconds)


def clip_of(name: str, audio: Tensor, sampling_rate: int) -> EvaluationClip:
    """A validation clip of a run (1, T) as one to evaluate."""
    return EvaluationClip(name, "", "", audio[0], sampling_rate)
