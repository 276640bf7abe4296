"""A corpus of 1000 broken audio files, made from the shipped speech; the same for the same seed.

Eight encodings, each cut, damaged, misnamed and joined in eight ways, and what else lies in folders of audio: web
pages, Git LFS pointers, absurd headers, numbers that are not finite, bombs, links, pipes, files that change.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

NUM_CASES = 1000
# name: suffix, container, subtype, rates that it can have
ENCODINGS = {
    "wav16": ("wav", "WAV", "PCM_16", (16_000, 44_100, 8_000, 192_000)),
    "wavfloat": ("wav", "WAV", "FLOAT", (16_000, 48_000, 192_000)),
    "aiff24": ("aiff", "AIFF", "PCM_24", (16_000, 44_100)),
    "flac": ("flac", "FLAC", "PCM_16", (16_000, 48_000, 8_000, 192_000)),
    "vorbis": ("ogg", "OGG", "VORBIS", (16_000, 44_100, 8_000)),
    "opus": ("opus", "OGG", "OPUS", (16_000, 48_000, 8_000)),
    "mp3": ("mp3", "MP3", "MPEG_LAYER_III", (16_000, 44_100, 8_000)),
    "alac": ("caf", "CAF", "ALAC_16", (16_000, 48_000)),
}
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
Random = np.random.Generator


class Case(NamedTuple):
    """One broken input on disk."""

    kind: str
    path: bytes  # as the file system has it; not always UTF-8
    change: Callable[[], None] | None = None  # what happens to the file after the first window was read


class _Plan(NamedTuple):
    """How to make a case; nothing is written yet."""

    kind: str
    suffix: str
    make: Callable[[Random, bytes], bytes | Callable[[], None] | None]  # content, or the file's later change


def corpus(
    folder: Path,
    speech: NDArray[np.float32],
    seed: int,
    one_of_each: bool = False,
    kinds: tuple[str, ...] = ("",),
) -> Iterator[Case]:
    """Write the corpus into `folder`, case by case; or one case of each kind; or the `kinds` that begin so.

    `speech` is recorded speech (T,) at 16 kHz, of which pieces are taken.
    """
    written: set[str] = set()
    for number, plan in enumerate(_plans(speech)):
        if plan.kind.startswith(kinds) and not (one_of_each and plan.kind in written):
            written.add(plan.kind)
            yield _write(plan, folder, number, np.random.default_rng([seed, number]))


def _write(plan: _Plan, folder: Path, number: int, random: Random) -> Case:
    stem = f"{number:04d}-{plan.kind}".encode()
    if plan.kind == "name":
        stem = b"caf\xe9-" + stem + b"-\xff\xfe"  # not UTF-8
    path = os.fsencode(folder) + b"/" + stem + b"." + plan.suffix.encode()
    made = plan.make(random, path)
    if isinstance(made, bytes):
        with open(path, "wb") as file:
            file.write(made)
    return Case(plan.kind, path, made if callable(made) else None)


def _plans(speech: NDArray[np.float32]) -> list[_Plan]:
    """All plans, the kinds mixed, so that every few of them hold all kinds."""
    special = _special_plans(speech)
    damaged: list[_Plan] = []
    ways = [(encoding, damage) for damage in DAMAGES for encoding in ENCODINGS]
    while len(special) + len(damaged) < NUM_CASES:
        damaged += [_damaged(speech, *way) for way in ways][: NUM_CASES - len(special) - len(damaged)]
    plans = special + damaged
    order = np.random.default_rng(0).permutation(len(plans))
    return [plans[place] for place in order]


# --- real speech, damaged


def encoded(speech: NDArray[np.float32], encoding: str, random: Random, seconds: float = 1.5) -> bytes:
    """A piece of speech in an encoding, with one of its rates, mono or stereo."""
    rates = ENCODINGS[encoding][3]
    piece = int(random.integers(4))
    return _encode(speech.tobytes(), encoding, rates[random.integers(len(rates))], piece, seconds)


@lru_cache(maxsize=None)
def _encode(speech: bytes, encoding: str, rate: int, piece: int, seconds: float) -> bytes:
    _, container, subtype, _ = ENCODINGS[encoding]
    samples = np.frombuffer(speech, dtype=np.float32)
    length = int(seconds * rate)
    samples = np.resize(np.roll(samples, -piece * 20_000), length)
    if piece % 2:
        samples = np.stack([samples, 0.5 * samples[::-1]], axis=1)
    return _file(samples, rate, container, subtype)


def _file(samples: NDArray[np.float32], rate: int, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def _damaged(speech: NDArray[np.float32], encoding: str, damage: str) -> _Plan:
    suffix = ENCODINGS[encoding][0]
    if damage == "misnamed":
        others = sorted({name for name, *_ in ENCODINGS.values()} - {suffix})
        suffix = others[sum(map(ord, encoding)) % len(others)]

    def make(random: Random, path: bytes) -> bytes:
        other = encoded(speech, list(ENCODINGS)[random.integers(len(ENCODINGS))], random)
        return DAMAGES[damage](encoded(speech, encoding, random), other, random)

    return _Plan(f"{damage} {encoding}", suffix, make)


def _truncated(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def _cut_header(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: int(random.integers(1, 200))]


def _flipped(content: bytes, other: bytes, random: Random, within: int | None = None) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(2 ** random.integers(8))):
        place = int(random.integers(min(within or len(damaged), len(damaged))))
        damaged[place] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def _flipped_header(content: bytes, other: bytes, random: Random) -> bytes:
    return _flipped(content, other, random, within=int(random.choice([16, 64, 256])))


def _overwritten(content: bytes, other: bytes, random: Random) -> bytes:
    size = int(random.integers(1, max(2, len(content) // 2)))
    start = int(random.integers(len(content) - size))
    filling = [bytes(size), b"\xff" * size, random.bytes(size)][random.integers(3)]
    return content[:start] + filling + content[start + size :]


def _shifted(content: bytes, other: bytes, random: Random) -> bytes:
    """Bytes put in or taken out, as a careless transfer does."""
    start, size = int(random.integers(len(content))), int(random.integers(1, 2000))
    if random.integers(2):
        return content[:start] + random.bytes(size) + content[start:]
    return content[:start] + content[start + size :]


def _joined(content: bytes, other: bytes, random: Random) -> bytes:
    return content + other


def _misnamed(content: bytes, other: bytes, random: Random) -> bytes:
    return content


DAMAGES = {
    "truncated": _truncated,
    "header cut": _cut_header,
    "flipped": _flipped,
    "header flipped": _flipped_header,
    "overwritten": _overwritten,
    "shifted": _shifted,
    "joined": _joined,
    "misnamed": _misnamed,
}


# --- what else lies in folders of audio


def _special_plans(speech: NDArray[np.float32]) -> list[_Plan]:
    plans = [
        *_content_plans("zero bytes", b"", ("wav", "flac", "mp3")),
        *_content_plans("web page", PAGE, ("wav", "flac", "mp3", "ogg")),
        *_content_plans("page without header", PAGE, ("au", "snd", "vox", "gsm", "raw")),
        *_content_plans("pointer", POINTER, ("wav", "flac", "opus", "au")),
        *_content_plans("zeros", bytes(50_000), ("wav", "mp3", "raw", "sd2")),
        *_content_plans("ones", b"\xff" * 50_000, ("wav", "mp3", "au")),
        *_content_plans("tag alone", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(1000), ("mp3", "wav")),
    ]
    for value in (np.nan, np.inf, -np.inf, 1e30, -3e38, 5.0, 1e-40):
        for share in (1.0, 0.3):
            plans.append(_Plan(f"number {value:g}", "wav", _numbers(speech, value, share)))
    for encoding, (suffix, container, subtype, rates) in ENCODINGS.items():
        for length in (0, 1, 2):
            samples = np.full(length, 0.25, dtype=np.float32)
            make = _written(samples, rates[0], container, subtype)
            plans.append(_Plan(f"{length} samples {encoding}", suffix, make))
    for channels in (64, 9, 8):
        samples = np.zeros((3000, channels), dtype=np.float32) + 0.1
        plans.append(_Plan(f"{channels} channels", "wav", _written(samples, 16_000, "WAV", "PCM_16")))
        plans.append(_Plan(f"{channels} channels", "au", _written(samples, 16_000, "AU", "FLOAT")))
    for rate in (1, 100, 3999, 8_000, 192_000, 384_000, 800_000, 2**31 - 1, 24_001, 23_999, 383_987):
        plans.append(_Plan(f"{rate} Hz", "wav", _written(speech[:8000], rate, "WAV", "PCM_16")))
    plans += [
        _Plan(f"header {name}", suffix, _headed(speech, name)) for name, (suffix, *_) in HEADERS.items()
    ]
    plans.append(_Plan("bomb flac", "flac", lambda random, path: _bomb("FLAC", "PCM_16", hours=4.0)))
    plans.append(_Plan("bomb vorbis", "ogg", lambda random, path: _bomb("OGG", "VORBIS", hours=0.25)))
    plans += [_Plan(f"is a {name}", "wav", make) for name, make in NODES.items()]
    for encoding in ("wav16", "flac", "mp3", "vorbis"):
        for change in CHANGES:
            plans.append(_changing(speech, encoding, change))
    plans += [_Plan("name", "wav", lambda random, path: encoded(speech, "wav16", random)) for _ in range(4)]
    return plans


def _content_plans(kind: str, content: bytes, suffixes: tuple[str, ...]) -> list[_Plan]:
    return [_Plan(kind, suffix, lambda random, path: content) for suffix in suffixes]


def _written(samples: NDArray[np.float32], rate: int, container: str, subtype: str) -> Callable[..., bytes]:
    return lambda random, path: _file(samples, rate, container, subtype)


def _numbers(speech: NDArray[np.float32], value: float, share: float) -> Callable[..., bytes]:
    def make(random: Random, path: bytes) -> bytes:
        samples = speech[:24_000].copy()
        samples[random.random(len(samples)) < share] = value
        return _file(samples, 16_000, "WAV", "FLOAT")

    return make


def _bomb(container: str, subtype: str, hours: float) -> bytes:
    """Hours of silence: a small file, of which four hours make 460 MB even at 8 kHz."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, format=container, subtype=subtype) as writer:
        for _ in range(round(hours * 60)):
            writer.write(np.zeros(8000 * 60, dtype=np.int16))
    return file.getvalue()


# name: suffix, encoding, where, what is written there
HEADERS: dict[str, tuple[str, str, int, bytes]] = {
    "wav riff size": ("wav", "wav16", 4, b"\xff\xff\xff\xff"),
    "wav riff size 0": ("wav", "wav16", 4, bytes(4)),
    "wav data size": ("wav", "wav16", 40, b"\xff\xff\xff\xff"),
    "wav data size 2 GB": ("wav", "wav16", 40, b"\xfe\xff\xff\x7f"),
    "wav data size 0": ("wav", "wav16", 40, bytes(4)),
    "wav no channels": ("wav", "wav16", 22, bytes(2)),
    "wav channels": ("wav", "wav16", 22, b"\xff\xff"),
    "wav rate 0": ("wav", "wav16", 24, bytes(4)),
    "wav rate": ("wav", "wav16", 24, b"\xff\xff\xff\xff"),
    "wav bits 0": ("wav", "wav16", 34, bytes(2)),
    "wav bits": ("wav", "wav16", 34, b"\xff\xff"),
    "wav align 0": ("wav", "wav16", 32, bytes(2)),
    "wav format": ("wav", "wav16", 20, b"\x55\x00"),
    "aiff frames": ("aiff", "aiff24", 22, b"\xff\xff\xff\xff"),
    "aiff rate": ("aiff", "aiff24", 28, b"\x7f\xff" + b"\xff" * 8),
    "flac frames": ("flac", "flac", 21, b"\x0f\xff\xff\xff\xff"),
    "flac frames 0": ("flac", "flac", 22, bytes(4)),
    "flac block": ("flac", "flac", 8, b"\xff\xff\xff\xff"),
    "flac rate": ("flac", "flac", 18, b"\xff\xff"),
    "flac picture": ("flac", "flac", 4, b"\x06\xff\xff\xff"),
    "vorbis rate": ("ogg", "vorbis", 40, b"\xff\xff\xff\x7f"),
    "vorbis channels": ("ogg", "vorbis", 39, b"\xff"),
    "opus skip": ("opus", "opus", 38, b"\xff\xff"),
    "opus gain": ("opus", "opus", 44, b"\xff\x7f"),
    "opus channels": ("opus", "opus", 37, b"\xff"),
    "last page": ("ogg", "vorbis", -1, struct.pack("<Q", 2**39)),
    "last page opus": ("opus", "opus", -1, struct.pack("<Q", 2**62)),
    "mp3 frames": ("mp3", "mp3", -2, b"\x7f\xff\xff\xff"),
    "caf size": ("caf", "alac", 12, b"\x7f" + b"\xff" * 7),
}


def _headed(speech: NDArray[np.float32], name: str) -> Callable[..., bytes]:
    _, encoding, place, field = HEADERS[name]

    def make(random: Random, path: bytes) -> bytes:
        content = encoded(speech, encoding, random)
        start = place
        if place == -1:  # the position in the last page of an Ogg file
            start = content.rindex(b"OggS") + 6
        elif place == -2:  # the number of frames in the header that LAME writes
            tags = [content.find(tag) for tag in (b"Xing", b"Info") if tag in content]
            start = (tags[0] if tags else 0) + 8
        return content[:start] + field + content[start + len(field) :]

    return make


def _node(create: Callable[[bytes], object]) -> Callable[[Random, bytes], None]:
    def make(random: Random, path: bytes) -> None:
        create(path)

    return make


def _folder_with_file(path: bytes) -> None:
    os.mkdir(path)
    with open(path + b"/clip.wav", "wb") as file:
        file.write(PAGE)


NODES = {
    "folder": _node(os.mkdir),
    "full folder": _node(_folder_with_file),
    "dangling link": _node(lambda path: os.symlink(b"nowhere.wav", path)),
    "link to itself": _node(lambda path: os.symlink(path, path)),
    "link to a folder": _node(lambda path: os.symlink(b".", path)),
    "link to a device": _node(lambda path: os.symlink(b"/dev/zero", path)),
    "pipe": _node(os.mkfifo),
    "missing file": _node(lambda path: None),
}


# --- files that change while they are read


def _cut(path: bytes, other: bytes) -> None:
    os.truncate(path, os.path.getsize(path) // 3)


def _empty(path: bytes, other: bytes) -> None:
    os.truncate(path, 0)


def _grow(path: bytes, other: bytes) -> None:
    with open(path, "ab") as file:
        file.write(other)


def _rewrite(path: bytes, other: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(other)


def _replace(path: bytes, other: bytes) -> None:
    with open(path + b".new", "wb") as file:
        file.write(other)
    os.replace(path + b".new", path)


def _delete(path: bytes, other: bytes) -> None:
    os.remove(path)


CHANGES = {
    "cut": _cut,
    "emptied": _empty,
    "grown": _grow,
    "rewritten": _rewrite,
    "replaced": _replace,
    "deleted": _delete,
}


def _changing(speech: NDArray[np.float32], encoding: str, change: str) -> _Plan:
    def make(random: Random, path: bytes) -> Callable[[], None]:
        other = encoded(speech, list(ENCODINGS)[random.integers(len(ENCODINGS))], random)
        with open(path, "wb") as file:
            file.write(encoded(speech, encoding, random))
        return lambda: CHANGES[change](path, other)

    return _Plan(f"{change} while read {encoding}", ENCODINGS[encoding][0], make)
