"""Which clips are read: the first of the keyed order, all of them, or the head of a stream without an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

from ..dataset import AudioDataset
from ..dataset.clips import RawClip

Candidate = tuple[
    str, Callable[[], RawClip]
]  # what to call the clip until its own name is known; how to get it

EXACT = "exact for any number of processes and workers; a resumed run goes on where it stopped"
WEAKER = "weaker: every process reads all of it, and a resumed run reads again what came before"


class Stock(NamedTuple):
    """What can be said of a source without reading a clip."""

    name: str
    num_clips: int | None  # of its training part; None: a stream without an index does not say
    num_blocks: (
        int | None
    )  # row groups that are fetched whole; None: each clip is read alone, or one after the other
    share: float  # of the run's windows

    @property
    def promise(self) -> str:
        """What the run promises about the order of this source."""
        return WEAKER if self.num_clips is None else EXACT


def stock_of(dataset: AudioDataset, name: str, share: float) -> Stock:
    """Describe an opened source; reads nothing."""
    blocks = None if dataset.block_lengths is None else len(dataset.block_lengths)
    return Stock(name, len(dataset) if dataset.indexed else None, blocks, share)


def candidates(dataset: AudioDataset, count: int | None) -> Iterator[Candidate]:
    """Yield `count` clips of a source, or all (None).

    By number: those that epoch 0 takes first, which is what the run meets first and a fair sample. Of a stream
    without an index its head, in the order of the source. Raises DataError if the source is lost.
    """
    if not dataset.indexed:
        for number, clip in enumerate(islice(dataset.stream_clips(None), count)):
            yield f"clip {number}", partial(_given, clip)
        return
    is_sample = count is not None and count < len(dataset)
    for index in dataset.order.epoch(0).clips[:count].tolist() if is_sample else range(len(dataset)):
        yield f"clip {index}", partial(dataset.clip, index)


def _given(clip: RawClip) -> RawClip:
    return clip
