"""`encode`, `decode` and `reconstruct`: from inputs to files, with an account of what went wrong and how fast it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..audio import AudioError
from ..dataset.clips import RawClip
from ..dataset.folder import list_files
from ..errors import DataError
from ..tokenize.reading import is_tokenized, read_tokenized
from .code_files import SUFFIX, facts_of, read_codes, write_codes
from .codec import Clip, Codec, Codes
from .inputs import to_encode
from .outputs import OutputFolder, write_audio

Report = Callable[[str], None]  # of a line about a clip that was left out


@dataclass
class Summary:
    """What was done."""

    sampling_rate: int
    num_clips: int = 0
    num_samples: int = 0
    num_bad: int = 0
    _started: float = field(default_factory=time.perf_counter)

    def add(self, num_samples: int) -> None:
        """Count a clip."""
        self.num_clips += 1
        self.num_samples += num_samples

    def text(self) -> str:
        """One line; the real-time factor is the time that a second of sound took."""
        audio, wall = self.num_samples / self.sampling_rate, time.perf_counter() - self._started
        speed = f", {wall:.1f} s: real-time factor {wall / audio:.3f}" if audio else ""
        return f"{self.num_clips} clips, {audio:.1f} s of sound{speed}; {self.num_bad} left out"


def encode(codec: Codec, clips: Iterable[RawClip | AudioError], output: OutputFolder, report: Report) -> Summary:
    """Write a file of codes for each clip."""
    summary, facts = Summary(codec.sampling_rate), facts_of(codec)
    for place, codes in _encoded(codec, clips, output, summary, report):
        write_codes(place, codes, facts)
        summary.add(codes.num_samples)
    return summary


def decode(codec: Codec, paths: Iterable[str], output: OutputFolder, report: Report) -> Summary:
    """Write the sound of each file of codes."""
    summary = Summary(codec.sampling_rate)
    _write(codec, _stored(codec, paths, output, summary, report), summary)
    return summary


def reconstruct(codec: Codec, clips: Iterable[RawClip | AudioError], output: OutputFolder, report: Report) -> Summary:
    """Write what is left of each clip after its codes."""
    summary = Summary(codec.sampling_rate)
    _write(codec, _encoded(codec, clips, output, summary, report), summary)
    return summary


def _write(codec: Codec, clips: Iterable[tuple[Path, Codes]], summary: Summary) -> None:
    places: dict[int, Path] = {}

    def placed() -> Iterator[Codes]:
        for number, (place, codes) in enumerate(clips):
            places[number] = place
            yield codes

    for number, pieces in codec.decode(placed()):
        summary.add(write_audio(places.pop(number), pieces, codec.sampling_rate))


def _encoded(
    codec: Codec, clips: Iterable[RawClip | AudioError], output: OutputFolder, summary: Summary, report: Report
) -> Iterator[tuple[Path, Codes]]:
    """Yield place and codes of the clips that could be read; report the others."""
    places: dict[int, tuple[str, Path]] = {}

    def opened() -> Iterator[Clip | AudioError]:
        for number, clip in enumerate(clips):
            name = "" if isinstance(clip, AudioError) else clip.name
            places[number] = name, output.place(name)
            yield clip if isinstance(clip, AudioError) else to_encode(clip, codec.sampling_rate)

    for number, codes in codec.encode(opened()):
        name, place = places.pop(number)
        if isinstance(codes, AudioError):
            summary.num_bad += 1
            report(f"{name} {codes}".strip())
        else:
            yield place, codes


def _stored(
    codec: Codec, paths: Iterable[str], output: OutputFolder, summary: Summary, report: Report
) -> Iterator[tuple[Path, Codes]]:
    """Yield place and codes of files, and of those in folders; report those that this model cannot decode."""
    facts = facts_of(codec)
    for word in paths:
        if is_tokenized(Path(word).expanduser()):
            for name, codes in read_tokenized(Path(word).expanduser(), facts):
                codec.check(codes)
                yield output.place(name), codes
            continue
        for name, path in _code_files(word):
            place = output.place(name)
            try:
                codes = read_codes(path, facts)
                codec.check(codes)
            except DataError as error:
                summary.num_bad += 1
                report(str(error))
            else:
                yield place, codes


def _code_files(word: str) -> Iterator[tuple[str, Path]]:
    path = Path(word).expanduser()
    if path.is_dir():
        found = [name for name in list_files(path) if name.endswith(SUFFIX)]
        if not found:
            raise DataError(f"{word} holds no files of codes (*{SUFFIX}), and no tokenized dataset")
        yield from ((name, path / name) for name in found)
    elif path.is_file():
        yield path.name, path
    else:
        raise DataError(f"no such file or folder: {word!r}")
