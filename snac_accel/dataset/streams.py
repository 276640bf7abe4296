"""Clips that can only be read one after the other: tar files at an address, archives of a streamed repository.

There is no index, so a place in the middle is reached by reading what lies before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets

from ..errors import DataError
from .clips import RawClip
from .order import SHUFFLE, draw_words
from .tables import RowReader


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
        except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"reading {self.dataset_path!r} failed: {' '.join(str(error).split())[:200]}"
            ) from error
