"""What a source is to the rest of the data layer: clips by index, undecoded, in blocks that are read together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..audio import AudioError
from ..errors import DataError
from ..redaction import nameable
from .network import NetworkError, is_address, is_network_failure, open_address, without_protocol


class RawClip(NamedTuple):
    """A clip before decoding."""

    name: str  # relative to the folder or repository; for messages and for the hash that holds clips out
    source: str | bytes  # a local path, an address such as hf://… or the bytes of the file
    speaker: str | None
    segment: tuple[float, float] | None = None  # start and length in seconds: this part of a longer file


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

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Begin to fetch these blocks in the background; nothing where there are none."""

    def digest(self) -> str:
        """Return a short text that differs if the clips differ, for comparing ranks; reads no audio."""


def read_source(clip: RawClip) -> str | bytes | BinaryIO:
    """Return what the decoder reads: a local path, bytes, or an opened file if the clip lies at an address."""
    if isinstance(clip.source, bytes) or not is_address(clip.source):
        return clip.source
    try:
        return open_address(clip.source)
    except (NetworkError, FileNotFoundError) as error:
        if is_network_failure(error):  # of the whole source: another clip would fare no better
            raise DataError(str(error)) from error
        raise AudioError(f"cannot be fetched: {str(error)[:200]}") from error


def clip_name(path: str, root: str | Path | None) -> str:
    """Return the part of a path that is the same wherever the data lie: no root, cache folder or address."""
    if ":/" in path:
        path = nameable(path)
    if root is not None and path.startswith(f"{root}/"):
        return path[len(str(root)) + 1 :]
    if is_address(path):
        if root is not None and without_protocol(path).startswith(f"{without_protocol(str(root))}/"):
            return without_protocol(path)[len(without_protocol(str(root))) + 1 :]
        inner = re.sub(r"^\w+://", "", path.split("::")[0])
        return (
            re.sub(r"^(datasets/)?[^/]+/[^/@]+(@[^/]+)?/", "", inner) if path.startswith("hf://") else inner
        )
    cached = re.search(r"/(?:snapshots|downloads/extracted)/[0-9a-f]{32,}/(.+)$", path)
    return cached.group(1) if cached else path


def path_and_bytes(value: Any) -> tuple[str | None, bytes | None]:
    """Return path and content of a value of an audio column: text, bytes, or a mapping with both."""
    if isinstance(value, Mapping):
        return value.get("path"), value.get("bytes")
    return (None, value) if isinstance(value, bytes) else (value, None)
