"""What a preparation is asked to do, and what came of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config import TrainingConfig
from ..config.data import SourceSettings
from ..errors import ConfigError

Format = Literal["parquet", "webdataset"]
SUFFIXES: dict[Format, str] = {"parquet": ".parquet", "webdataset": ".tar"}
DEFAULT_SHARD_BYTES = 256 * 10**6  # of audio, if neither clips nor shards are counted
MAX_NUMBER = 99_999  # of shards: their names have five digits


@dataclass(frozen=True)
class PrepareSettings:
    """Sources and what becomes of them. Raises ConfigError if they contradict each other."""

    output: Path
    splits: Mapping[str, Sequence[SourceSettings]]  # the name a split is given, and where it comes from
    format: Format = "parquet"
    clips_per_shard: int | None = None  # at most; shards differ by one clip at most
    num_shards: int | None = None  # of each split
    encode: Literal["flac"] | None = None  # mono, 16 bits; None: the files as they are
    sampling_rate: int = 24_000  # Hz, of what is encoded
    max_clip_seconds: float | None = None  # longer clips are cut into equal pieces
    seed: int = 0  # of the order
    workers: int = 1  # processes
    cache_dir: str | None = None  # of what is read from an address
    cache_gigabytes: float = 10.0
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.clips_per_shard is not None and self.num_shards is not None:
            raise ConfigError(
                "--clips_per_shard and --num_shards: give one of them, the other follows from it"
            )
        limits = {"clips_per_shard": 10**9, "num_shards": MAX_NUMBER, "workers": 1024}
        for flag, limit in limits.items():
            value = getattr(self, flag)
            if value is not None and not 1 <= value <= limit:
                raise ConfigError(f"--{flag} = {value}: should lie in 1..{limit}")
        if self.encode is not None and not 4000 <= self.sampling_rate <= 384_000:
            raise ConfigError(f"--sampling_rate = {self.sampling_rate}: should lie in 4000..384000 Hz")
        if self.max_clip_seconds is not None and not self.max_clip_seconds >= 1:
            raise ConfigError(f"--max_clip_seconds = {self.max_clip_seconds:g}: should be 1 or more")
        check_splits(self.splits, self.output)

    def identity(self) -> dict[str, Any]:
        """Return everything that the shards depend on, as plain values."""
        return {
            "splits": {
                name: [
                    {**source.model_dump(exclude={"weight", "max_passes"}, mode="json"), "name": source.label}
                    for source in sources
                ]
                for name, sources in self.splits.items()
            },
            "format": self.format,
            "clips_per_shard": self.clips_per_shard,
            "num_shards": self.num_shards,
            "encode": self.encode,
            "sampling_rate": self.sampling_rate if self.encode else None,
            "max_clip_seconds": self.max_clip_seconds,
            "seed": self.seed,
        }


def check_splits(splits: Mapping[str, Sequence[SourceSettings]], output: Path) -> None:
    """Raise ConfigError if `output` and a source lie one in the other, or if a split has a name that it cannot have."""
    for path in {source.dataset_path for sources in splits.values() for source in sources}:
        place, folder = Path(path).expanduser().resolve(), output.resolve()
        if place.exists() and (folder.is_relative_to(place) or place.is_relative_to(folder)):
            raise ConfigError(
                f"--output = {str(output.resolve())!r}: one of it and the source {path!r} lies in the other"
            )
    for name in splits:
        if not re.fullmatch(r"\w+(\.\w+)*", name):  # what `datasets` takes for the name of a split
            raise ConfigError(
                f"--splits: {name!r} cannot be the name of a split: letters, digits, '_' and single dots"
            )


def splits_of(config: TrainingConfig, names: Sequence[str] | None = None) -> dict[str, list[SourceSettings]]:
    """Return the splits to prepare and their sources.

    Without `names`: "train" is what the configuration trains on, and "validation" what it validates on, if that is a
    split or a source of its own; a share that is held out stays in "train", where training will hold out the same clips.
    With names: these splits of the sources.
    """
    training = config.data.each_source()
    if names:
        return {name: [source.model_copy(update={"split": name}) for source in training] for name in names}
    splits = {"train": training}
    held_out = config.validation
    if held_out.enabled and held_out.dataset_path is not None:
        changes = {
            "dataset_path": held_out.dataset_path,
            "configuration": held_out.configuration,
            "revision": None,
            "name": None,
        }
        splits["validation"] = [
            training[0].model_copy(update={**changes, "split": held_out.split or config.data.split})
        ]
    elif held_out.enabled and held_out.split is not None:
        changes = {"split": held_out.split}
        if held_out.configuration is not None:
            changes["configuration"] = held_out.configuration
        splits["validation"] = [source.model_copy(update=changes) for source in training]
    return splits


def usable_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Summary(NamedTuple):
    """What a preparation gave."""

    folder: Path
    splits: dict[str, dict[str, Any]]  # clips, seconds, bytes, left_out, shards
    was_complete: bool  # before it began

    def text(self) -> str:
        """Return a line for each split."""
        lines = [f"{self.folder} is prepared already"] if self.was_complete else []
        for name, split in self.splits.items():
            lines.append(
                f"{name}: {split['clips']} clips, {split['seconds'] / 3600:.2f} h, {split['bytes'] / 1e6:.1f} MB "
                f"in {len(split['shards'])} shards; {split['left_out']} left out"
                + (" (see bad_samples.jsonl)" if split["left_out"] else "")
            )
        return "\n".join(lines)
