"""Clips that can only be read one after the other: tar files at an address, archives of a streamed repository.

There is no index, so a place in the middle is reached by reading what lies before it: every process and worker reads the
whole stream, undecoded, and resuming reads on from the beginning. What that buys: global batches that do not depend on the
layout, and a resumed run that continues them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from ..errors import DataError, UserError
from .clips import RawClip
from .order import SHUFFLE, SampleKey, draw_words
from .samples import Sample
from .tables import RowReader
from .windows import WindowReader


class StreamedClips:
    """The rows of a `datasets.IterableDataset`."""

    def __init__(self, rows: Any, reader: RowReader, dataset_path: str) -> None:
        self.rows, self.reader, self.dataset_path = rows, reader, dataset_path

    def read(self, seed: int, epoch: int | None, shuffle_buffer: int) -> Iterator[RawClip]:
        """Yield all clips undecoded, shuffled for `epoch` (None: in the order of the source).

        The order is that of the whole source on every process and worker. Raises DataError when reading fails.
        """
        rows = self.rows
        if epoch is not None:
            word = int(draw_words(1, SHUFFLE, seed, epoch)[0] >> 1)
            rows = rows.shuffle(seed=word, buffer_size=shuffle_buffer)
        try:
            # `iter(rows)` would give each worker process of a loader other rows; here each of them follows
            # the same stream.
            for batch in rows.iter(batch_size=1):
                yield self.reader.clip({column: values[0] for column, values in batch.items()})
        except UserError:
            raise
        except Exception as error:  # tarfile, zipfile, httpx, aiohttp: each has errors of its own
            raise DataError(
                f"reading {self.dataset_path!r} failed: {' '.join(str(error).split())[:200]}"
            ) from error


class SampleStream:
    """Epoch after epoch of clips, read one by one; `clips_of_epoch(epoch)` gives those of an epoch."""

    def __init__(self, windows: WindowReader, clips_of_epoch: Callable[[int], Iterator[RawClip]]) -> None:
        self.windows = windows
        self.position = 0  # in the endless stream, of the next sample
        self._clips = _endless(clips_of_epoch)
        self._ahead: deque[tuple[SampleKey, RawClip]] = deque()  # clips read already, the next sample's first

    def skip_to(self, position: int) -> None:
        """Go forward to a position without decoding."""
        while self.position < position:
            self._clip(0)
            self._ahead.popleft()
            self.position += 1

    def next_key(self) -> SampleKey:
        """Return the key of the next sample."""
        return self._clip(0)[0]

    def next_sample(self) -> Sample:
        """Return the next sample; an unusable clip is replaced by the next usable one, which comes again."""
        key = self.next_key()
        sample = self.windows.sample(key, lambda attempt, draws: self._clip(attempt)[1])
        self._ahead.popleft()
        self.position += 1
        return sample

    def _clip(self, ahead: int) -> tuple[SampleKey, RawClip]:
        """Return the clip that lies `ahead` places after the next one."""
        while len(self._ahead) <= ahead:
            self._ahead.append(next(self._clips))
        return self._ahead[ahead]


def _endless(clips_of_epoch: Callable[[int], Iterator[RawClip]]) -> Iterator[tuple[SampleKey, RawClip]]:
    """Yield key and clip of every position; raise DataError for an epoch without clips."""
    for epoch in count():
        position = -1
        for position, clip in enumerate(clips_of_epoch(epoch)):
            yield SampleKey(epoch, position, -1), clip
        if position < 0:
            raise DataError("the stream holds no clips to train on")
