"""The sources of a preparation, opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config.data import SourceSettings
from ..dataset.block_cache import BlockCache, default_folder
from ..dataset.clips import Clips
from ..dataset.sources import Request, open_source
from ..dataset.streams import StreamedClips

CLIPS_PER_STEP = 100  # checked in one step; what is lost when a preparation is killed


class Part(NamedTuple):
    """One source of a split."""

    label: str
    clips: Clips | StreamedClips
    keep_in_place: bool  # its clips can be had again, in any order, at little cost

    def digest(self) -> str | None:
        """Return a text that differs if the clips differ, None where only reading them would tell."""
        return None if isinstance(self.clips, StreamedClips) else self.clips.digest()


def open_parts(
    splits: Mapping[str, Sequence[SourceSettings]], cache_dir: str | None, cache_gigabytes: float
) -> dict[str, list[Part]]:
    """Open the sources of all splits; raises DataError, one line, for the first that cannot be."""
    folder = Path(cache_dir) if cache_dir else default_folder()
    cache = BlockCache(folder, int(cache_gigabytes * 1e9))
    parts: dict[str, list[Part]] = {}
    for split, sources in splits.items():
        parts[split] = []
        for source in sources:
            request = Request(
                source.dataset_path,
                source.split or "train",
                bool(source.streaming),
                source.audio_column or "audio",
                source.configuration,
                source.revision,
                source.speaker_column,
                cache,
            )
            clips = open_source(request)
            keep_in_place = not isinstance(clips, StreamedClips) and clips.block_lengths is None
            parts[split].append(Part(source.label, clips, keep_in_place))
    return parts


def steps(part: Part) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the clips that are checked in one step; blocks that are read together stay together."""
    clips = part.clips
    assert not isinstance(clips, StreamedClips)
    ends: Sequence[int] = range(CLIPS_PER_STEP, len(clips), CLIPS_PER_STEP)
    if clips.block_lengths is not None:
        ends = np.cumsum(clips.block_lengths).tolist()
    begin = 0
    for end in [*ends, len(clips)]:
        if end - begin >= CLIPS_PER_STEP or (end == len(clips) and end > begin):
            yield begin, end
            begin = end
