"""Where results are written: below one folder, whatever the clips are called, each file whole or absent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import soundfile
from torch import Tensor

from ..dataset.folder import AUDIO_SUFFIXES
from ..files import TEMPORARY_PREFIX

MAX_NAME = 200  # bytes of a part of a name that file systems take, with room for suffixes
WRITE_SAMPLES = 1 << 18  # handed to libsndfile at a time
FORMATS = ("wav", "flac")


class OutputFolder:
    """Names for results: that of the clip with another suffix, or, where two clips would share it, after its own."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix
        self._taken: set[Path] = set()

    def place(self, name: str) -> Path:
        """The file for a clip of this name."""
        path = safe_path(name)
        stem = path.with_suffix("") if path.suffix.lower() in {*AUDIO_SUFFIXES, ".safetensors"} else path
        number = 1
        chosen = self.folder / f"{stem}{self.suffix}"
        while chosen in self._taken:
            number += 1
            chosen = self.folder / (f"{path}{self.suffix}" if number == 2 else f"{path}-{number - 1}{self.suffix}")
        self._taken.add(chosen)
        return chosen


def safe_path(name: str) -> PurePosixPath:
    """A relative path for a name that nobody has looked at: no way up, no hidden files, no odd characters, not too long."""
    parts = (re.sub(r"[\x00-\x1f\x7f\\:*?\"<>|]", "_", part).lstrip(". ") for part in name.split("/"))
    kept = [_shortened(part) for part in parts if part]
    return PurePosixPath(*kept) if kept else PurePosixPath("clip")


def _shortened(part: str) -> str:
    return part.encode("utf-8", "replace")[-MAX_NAME:].decode("utf-8", "ignore")


def write_audio(path: Path, pieces: Iterable[Tensor], sampling_rate: int) -> int:
    """Write pieces (T,) as one mono file of 16 bits as they come; return its number of samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    kind = path.suffix.lstrip(".").upper()
    count = 0
    with soundfile.SoundFile(temporary, "w", sampling_rate, 1, "PCM_16", format=kind) as file:
        for piece in pieces:
            for part in piece.split(WRITE_SAMPLES):
                file.write(part.numpy())
            count += len(piece)
    os.replace(temporary, path)
    return count
