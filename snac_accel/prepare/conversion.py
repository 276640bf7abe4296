"""A clip's sound, checked from beginning to end; encoded or cut if that is asked for.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from ..audio import AudioError, AudioReader, probe
from ..audio.decoding import AudioFile

Segment = tuple[float, float]  # start and length in seconds
BLOCK_SECONDS = 30.0  # decoded at a time
SHORTEST_BLOCK_SECONDS = (
    2.0  # an mp3 may end up to 4608 frames before its header says; no block lies in there
)
FINE = {"PCM_24", "PCM_32", "FLOAT", "DOUBLE"}  # encodings with more than 16 bits of sound
MAGIC = {
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"RIFF": "wav",
    b"RF64": "wav",
    b"FORM": "aiff",
    b".snd": "au",
    b"caff": "caf",
    b"riff": "w64",
    b"ID3": "mp3",
    b"\xff": "mp3",
}


class Piece(NamedTuple):
    """A clip as it will stand in a shard, or a part of one."""

    seconds: float
    sampling_rate: int  # Hz
    suffix: str  # without a dot: what the bytes are, whatever they were called
    content: bytes | None  # None: the clip's own file
    number: int | None  # of the part; None: the whole clip


def convert(
    source: str | bytes,
    encode_rate: int | None = None,
    max_clip_seconds: float | None = None,
    segment: Segment | None = None,
) -> Iterator[Piece]:
    """Yield the pieces of a clip, a path or the bytes of a file; at least one. Raises AudioError if it is bad.

    Without `encode_rate` (Hz, mono) a clip that is short enough stays as it is; a longer one is cut into FLAC with its own
    rate and channels, which loses nothing of 16 and 24 bits. `segment` (start and length in seconds) is cut out of a longer
    file the same way.
    """
    info = probe(source, segment)
    rate = encode_rate or info.sampling_rate
    num_samples, peak = _check(source, rate, segment)
    limit = num_samples if max_clip_seconds is None else max(1, int(max_clip_seconds * rate))
    num_pieces = -(-num_samples // limit)
    suffix = _suffix(source)
    if num_pieces == 1 and encode_rate is None and segment is None:
        yield Piece(num_samples / rate, rate, suffix, None, None)
        return
    for number in range(num_pieces):
        start, end = (num_samples * edge // num_pieces for edge in (number, number + 1))
        if encode_rate is None:
            content = _cut(source, segment, rate, info.num_channels, start, end)
        else:
            content = _encode(source, segment, rate, start, end, min(1.0, 1.0 / peak) if peak else 1.0)
        yield Piece((end - start) / rate, rate, "flac", content, None if num_pieces == 1 else number)


def _check(source: str | bytes, rate: int, segment: Segment | None) -> tuple[int, float]:
    """Decode a clip to its end; return its length at `rate` in samples, and its peak."""
    peak = 0.0
    with AudioReader(source, rate, segment) as reader:
        for start, end in _blocks(0, reader.num_samples, rate):
            peak = max(peak, float(reader.read(start, end - start).abs().max()))
        return reader.num_samples, peak


def _blocks(start: int, end: int, rate: int) -> Iterator[tuple[int, int]]:
    """Yield the beginning and end of blocks; the last one is not tiny."""
    step = int(BLOCK_SECONDS * rate)
    while end - start >= step + SHORTEST_BLOCK_SECONDS * rate:
        yield start, start + step
        start += step
    yield start, end


def _encode(
    source: str | bytes, segment: Segment | None, rate: int, start: int, end: int, gain: float
) -> bytes:
    """Return part of a clip as mono FLAC of 16 bits at `rate`."""
    with AudioReader(source, rate, segment) as reader:
        blocks = (reader.read(first, last - first) * gain for first, last in _blocks(start, end, rate))
        return _flac((block.unsqueeze(1) for block in blocks), rate, 1, "PCM_16")


def _cut(
    source: str | bytes, segment: Segment | None, rate: int, num_channels: int, start: int, end: int
) -> bytes:
    """Return part of a clip as FLAC with its own rate, channels and, up to 24, bits."""
    with soundfile.SoundFile(source if isinstance(source, str) else io.BytesIO(source)) as file:
        subtype = "PCM_24" if file.subtype in FINE else "PCM_16"
    with AudioFile(source, segment) as clip:
        blocks = (
            torch.from_numpy(clip.decode(first, last - first)) for first, last in _blocks(start, end, rate)
        )
        return _flac(blocks, rate, num_channels, subtype)


def _flac(blocks: Iterable[torch.Tensor], rate: int, num_channels: int, subtype: str) -> bytes:
    """Return blocks (T, C) of sound between -1 and 1 as a FLAC file."""
    target = io.BytesIO()
    try:
        with soundfile.SoundFile(target, "w", rate, num_channels, subtype, format="FLAC") as file:
            for block in blocks:
                file.write(_integers(block.numpy(), subtype))
    except (soundfile.SoundFileError, ValueError) as error:
        raise AudioError(f"cannot be written as FLAC: {' '.join(str(error).split())[:200]}") from error
    return target.getvalue()


def _integers(block: NDArray[np.float32], subtype: str) -> NDArray[np.int16] | NDArray[np.int32]:
    """Return samples as whole numbers: those that a file of 16 or 24 bits held, to the bit.

    (libsndfile would scale by 32767 what it had divided by 32768.)
    """
    bits = 16 if subtype == "PCM_16" else 24
    scaled = np.rint(block.astype(np.float64) * 2 ** (bits - 1)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return scaled.astype(np.int16) if bits == 16 else (scaled * 256).astype(np.int32)


def _suffix(source: str | bytes) -> str:
    """Return what a file is, by its first bytes: its name may be wrong, or missing."""
    try:
        head = _head(source) if isinstance(source, str) else source[:4]
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from error
    return next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), "audio")


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)
