"""Encode and decode clips of any length, in chunks without seams, several at a time.

A clip that is longer than a chunk is cut into chunks with margins as wide as the network looks (`reach`), so that what is kept of
them is what the whole clip gives: the same codes but for ties, and audio to the rounding of float32. The memory that this
takes does not grow with the clip. Short clips are put together into batches of one length, which changes nothing either.

Shapes: B batch, T samples, F frames of the finest level, F_l codes of level l.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..audio import AudioError
from ..errors import DataError
from .networks import Network
from .reach import Chunk, chunks_of

CHUNK_SECONDS = 10.0
BATCH_SIZE = 4
LOOK_AHEAD = 8  # batches of short clips that are sorted by length at a time

Member = TypeVar("Member")
Read = Callable[[int, int], Tensor]  # first sample, number of samples -> (T,) at the model's rate


class Clip(NamedTuple):
    """A clip to encode; its sound is read when its turn comes."""

    num_samples: int  # at the model's rate
    read: Read


class Codes(NamedTuple):
    """What a clip is encoded to."""

    levels: list[Tensor]  # per level (F_l,), int64 below K, on the CPU, coarse to fine
    num_samples: int  # of the clip, at the model's rate: the decoder gives whole quanta


class Codec:
    """A network in use. `noise_seed` None decodes without noise; `chunk_seconds` is what is kept of a chunk."""

    def __init__(
        self,
        network: Network,
        *,
        chunk_seconds: float = CHUNK_SECONDS,
        batch_size: int = BATCH_SIZE,
        noise_seed: int | None = 0,
    ) -> None:
        self.network, self.batch_size, self.noise_seed = network, batch_size, noise_seed
        self.sampling_rate: int = network.model.sampling_rate
        self.hop = int(network.model.hop_length)
        self.strides: list[int] = list(network.model.vq_strides)
        self.codebook_size: int = network.model.codebook_size
        quantum = network.reach.quantum
        self.body = max(1, round(chunk_seconds * self.sampling_rate / self.hop / quantum)) * quantum  # frames

    # --- from sound to codes

    def encode(self, clips: Iterable[Clip | AudioError]) -> Iterator[tuple[int, Codes | AudioError]]:
        """Yield the number of each clip, counted from 0, and its codes, short clips not quite in their order.

        A clip that cannot be read gives its AudioError in their place; so does one that was an error to begin with.
        """
        for group in _some(enumerate(clips), self.batch_size * LOOK_AHEAD):
            short: list[tuple[int, int, Clip]] = []  # frames, number, clip
            for number, clip in group:
                if isinstance(clip, AudioError):
                    yield number, clip
                elif self._is_short(frames := self.num_frames(clip.num_samples), self.network.reach.encoder):
                    short.append((frames, number, clip))
                else:
                    yield number, self._encode_long(clip)
            short.sort(key=lambda member: member[:2])
            for frames, members in groupby(short, lambda member: member[0]):
                for batch in _some(members, self.batch_size):
                    yield from self._encode_short(frames, batch)

    def _encode_short(
        self, frames: int, batch: Sequence[tuple[int, int, Clip]]
    ) -> Iterator[tuple[int, Codes | AudioError]]:
        rows, whole = [], Chunk(0, frames, 0, frames)
        for _, number, clip in batch:
            try:
                rows.append((number, clip.num_samples, self._read(clip, whole)))
            except AudioError as error:
                yield number, error
        if rows:
            levels = self._encode([audio for *_, audio in rows])
            for row, (number, num_samples, _) in enumerate(rows):
                yield number, Codes([level[row] for level in levels], num_samples)

    def _encode_long(self, clip: Clip) -> Codes | AudioError:
        parts: list[list[Tensor]] = [[] for _ in self.strides]
        chunks = chunks_of(self.num_frames(clip.num_samples), self.body, self.network.reach.encoder)
        for batch in self._batches(chunks):
            try:
                levels = self._encode([self._read(clip, chunk) for chunk in batch])
            except AudioError as error:
                return error
            for row, chunk in enumerate(batch):
                for part, level, stride in zip(parts, levels, self.strides, strict=True):
                    part.append(level[row, chunk.kept_codes(stride)])
        return Codes([torch.cat(part) for part in parts], clip.num_samples)

    @torch.inference_mode()
    def _encode(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Codes, per level (B, F_l), of rows (T,) of whole quanta."""
        audio = torch.stack(list(rows))[:, None].to(self.network.device)
        return [codes.cpu() for codes in self.network.model.encode(audio)]

    def _read(self, clip: Clip, chunk: Chunk) -> Tensor:
        """The samples (T,) of a chunk: zeros after the clip's end, as `snac.SNAC.preprocess` has them."""
        first, count = chunk.begin * self.hop, chunk.num_frames * self.hop
        audio = clip.read(first, min(count, clip.num_samples - first))
        return torch.nn.functional.pad(audio, (0, count - len(audio)))

    # --- from codes to sound

    def decode(self, clips: Iterable[Codes]) -> Iterator[tuple[int, Iterator[Tensor]]]:
        """Yield the number of each clip and its audio, in pieces (T,) to be taken at once; of short clips there is one."""
        for group in _some(enumerate(clips), self.batch_size * LOOK_AHEAD):
            short: list[tuple[int, int, Codes]] = []  # frames, number, codes
            for number, codes in group:
                frames = self.check(codes)
                if self._is_short(frames, self.network.reach.decoder):
                    short.append((frames, number, codes))
                else:
                    yield number, self._decode_long(codes, frames)
            short.sort(key=lambda member: member[:2])
            for _, members in groupby(short, lambda member: member[0]):
                for batch in _some(members, self.batch_size):
                    audio = self._decode([codes.levels for *_, codes in batch], [0])
                    for row, (_, number, codes) in enumerate(batch):
                        yield number, iter([audio[row, : codes.num_samples]])

    def _decode_long(self, codes: Codes, num_frames: int) -> Iterator[Tensor]:
        left = codes.num_samples
        for batch in self._batches(chunks_of(num_frames, self.body, self.network.reach.decoder)):
            rows = [
                [
                    level[chunk.begin // stride : chunk.end // stride]
                    for level, stride in zip(codes.levels, self.strides, strict=True)
                ]
                for chunk in batch
            ]
            audio = self._decode(rows, [chunk.begin for chunk in batch])
            for row, chunk in enumerate(batch):
                piece = audio[row, chunk.kept_samples(self.hop)][:left]
                left -= len(piece)
                yield piece

    @torch.inference_mode()
    def _decode(self, rows: Sequence[Sequence[Tensor]], first_frames: Sequence[int]) -> Tensor:
        """Audio (B, T) of rows of codes, per level (F_l,), that begin at these frames of their clips (one number: all do)."""
        noise = self.network.noise
        noise.seed, noise.first_frames = self.noise_seed, first_frames
        codes = [torch.stack(list(level)).to(self.network.device) for level in zip(*rows, strict=True)]
        audio: Tensor = self.network.model.decode(codes)
        return audio[:, 0].float().cpu()

    def check(self, codes: Codes) -> int:
        """Number of frames of codes that this model can decode; raises DataError, one line, for others."""
        if len(codes.levels) != len(self.strides):
            raise DataError(f"codes of {len(codes.levels)} levels: this model has {len(self.strides)}")
        frames = len(codes.levels[0]) * self.strides[0]
        for number, (level, stride) in enumerate(zip(codes.levels, self.strides, strict=True)):
            if len(level) * stride != frames:
                raise DataError(f"level {number} has {len(level)} codes where {frames // stride} belong to those of level 0")
            if len(level) and not 0 <= int(level.min()) <= int(level.max()) < self.codebook_size:
                known = f"0..{self.codebook_size - 1}"
                raise DataError(f"level {number} has codes from {int(level.min())} to {int(level.max())}: {known} are known")
        if frames == 0 or frames % self.network.reach.quantum:
            raise DataError(f"codes of {frames} frames: this model decodes multiples of {self.network.reach.quantum}")
        if not 0 < codes.num_samples <= frames * self.hop:
            raise DataError(f"codes of {frames} frames give {frames * self.hop} samples, not {codes.num_samples}")
        return frames

    # --- both

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip: whole quanta."""
        quantum = self.network.reach.quantum
        return max(1, -(-num_samples // (self.hop * quantum))) * quantum

    def _is_short(self, num_frames: int, margin: int) -> bool:
        """Whether a clip is one chunk."""
        return num_frames <= self.body + 2 * margin

    def _batches(self, chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
        """Chunks of one length, at most `batch_size`, in their order."""
        for _, members in groupby(chunks, lambda chunk: chunk.num_frames):
            yield from _some(members, self.batch_size)


def _some(members: Iterable[Member], size: int) -> Iterator[list[Member]]:
    """Lists of `size` members, the last one shorter."""
    rest = iter(members)
    while some := list(islice(rest, size)):
        yield some
