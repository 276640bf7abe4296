"""What a source is to the rest of the data layer: clips by index, undecoded, in blocks that are read together."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from datasets.utils.file_utils import xopen
from numpy.typing import NDArray

from ..audio import AudioError


class RawClip(NamedTuple):
    """A clip before decoding."""

    name: str  # relative to the folder or repository; for messages and for the hash that holds clips out
    source: str | bytes  # a local path, an address such as hf://… or the bytes of the file
    speaker: str | None


def read_source(clip: RawClip) -> str | bytes:
    """Return what the decoder reads: a local path, or the bytes (fetched if the clip lies at an address)."""
    if isinstance(clip.source, bytes) or "://" not in clip.source:
        return clip.source
    try:
        with xopen(clip.source, "rb") as file:
            return bytes(file.read())
    except Exception as error:  # any file system may stand behind an address, each with errors of its own
        raise AudioError(f"cannot be fetched: {' '.join(str(error).split())[:200]}") from error


class Clips(Protocol):
    """One opened split whose clips can be had in any order.

    `clip` raises AudioError (reason alone) for a clip that cannot be had, DataError (one line) if the source is
    lost as a whole.
    """

    def __len__(self) -> int:
        """Return the number of clips."""

    def clip(self, index: int) -> RawClip:
        """Return clip `index` undecoded."""

    def names_and_speakers(self) -> list[tuple[str, str]]:
        """Return name and speaker ("" without a column) of each clip; reads no audio."""

    @property
    def block_lengths(self) -> NDArray[np.int64] | None:
        """Number of clips in each block of neighbours that are read together; None if each is read alone."""

    def digest(self) -> str:
        """Return a short text that differs if the clips differ, for comparing ranks; reads no audio."""
