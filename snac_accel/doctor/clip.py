"""From an undecoded clip to what the doctor knows about it. A clip that cannot be read gives a reason, never an error.

Shapes: T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..audio import AudioError, AudioReader, loudness
from ..audio.decoding import AudioFile
from ..audio.reading import MAX_LEVEL
from ..config.messages import one_line
from ..dataset.clips import RawClip, read_source
from ..errors import DataError
from .measures import (
    SILENT_PEAK,
    band_powers,
    content_hash,
    count_clipped_runs,
    dc_offset,
    effective_bandwidth,
    mono_loss_db,
    silence_share,
)

MAX_READ_SECONDS = 30.0  # of one clip; a longer one is read in stretches spread over it
STRETCH_SECONDS = 5.0
MAX_READ_VALUES = (
    2**24
)  # numbers held in memory at a time: 64 MiB, whatever rate and channels a header claims


class WindowRule(NamedTuple):
    """What the run asks of a clip."""

    sampling_rate: int  # Hz, of the model
    num_samples: int  # of a window, at that rate
    min_clip_seconds: float
    channels: str = "mean"  # what becomes of stereo; left and random are judged by the first channel

    @property
    def seconds(self) -> float:
        """Length of a window."""
        return self.num_samples / self.sampling_rate


class Sound(NamedTuple):
    """What was measured on a clip that can be decoded."""

    seconds: float  # the whole clip's
    sampling_rate: int  # Hz
    num_channels: int
    encoding: str  # as libsndfile has it: "FLAC PCM_16"
    silence_share: float  # 0 to 1, of the time
    clipped_runs: int
    dc_offset: float
    mono_loss_db: float
    loudness: list[float]  # LUFS of each window, -inf for silence
    is_silent: list[bool]  # whether nothing reaches one step of 16 bits, for each window
    powers: Tensor  # (K,) long-term spectrum, its sum is 1
    bandwidth: float | None  # Hz, None: no sound
    content: str  # hash


class ClipReport(NamedTuple):
    """One clip: its sound, or the reason why there is none."""

    name: str
    sound: Sound | None
    problem: str | None = None


def examine_clip(
    fetch: Callable[[], RawClip], name: str, rule: WindowRule, max_seconds: float = MAX_READ_SECONDS
) -> ClipReport:
    """Fetch, decode and measure one clip; `name` is used where not even the clip's own can be had.

    At most `max_seconds` are read, from the beginning to the end of the clip. Raises DataError if the whole source is
    lost.
    """
    try:
        clip = fetch()
        name = one_line(clip.name)  # names of files hold anything
        return ClipReport(name, _measure(clip, rule, max_seconds))
    except DataError:
        raise
    except AudioError as error:
        return ClipReport(name, None, one_line(str(error)))
    except Exception as error:  # whatever a broken file does to the decoder is a finding, not the end
        return ClipReport(name, None, one_line(f"{type(error).__name__}: {str(error)[:200]}"))


def _measure(clip: RawClip, rule: WindowRule, max_seconds: float) -> Sound:
    with AudioReader(read_source(clip), rule.sampling_rate, clip.segment) as reader:
        reader.read(max(0, reader.num_samples - rule.num_samples))  # its end, as training would read it
    with AudioFile(read_source(clip), clip.segment) as file:
        info, encoding = file.info, encoding_of(file)
        rate = info.sampling_rate
        window = max(1, round(rule.seconds * rate))
        limit = min(round(max_seconds * rate), MAX_READ_VALUES // info.num_channels)
        places = stretches(info.num_frames, max(window, round(STRETCH_SECONDS * rate)), limit)
        parts = [_checked(torch.from_numpy(file.decode(start, count))) for start, count in places]
    return _sound(parts, info.num_frames, rate, encoding, window, rule.channels)


def stretches(num_frames: int, stretch: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield (start, count) of what is read: all of a clip, or of a long one stretches from beginning to end."""
    if num_frames <= limit:
        yield 0, num_frames
        return
    stretch = min(stretch, limit)
    number = max(1, limit // stretch)
    for index in range(number):
        yield (num_frames - stretch) * index // max(1, number - 1), stretch


def _checked(frames: Tensor) -> Tensor:
    """Return `frames` (T, C) if training would take them, by the rules of `AudioReader`."""
    if not len(frames):
        raise AudioError("ends before its header says")
    if not bool(torch.isfinite(frames).all()):
        raise AudioError("holds samples that are not finite")
    if (level := float(frames.abs().max())) > MAX_LEVEL:
        raise AudioError(f"has a level of {level:.3g}, full scale is 1")
    return frames


def _sound(
    parts: list[Tensor], num_frames: int, rate: int, encoding: str, window: int, channels: str
) -> Sound:
    """Measure the stretches (T, C) of a clip; spectra and windows are taken of each alone, without the joints."""
    frames = torch.cat(parts)
    mono = [part.mean(dim=1) if channels == "mean" else part[:, 0].contiguous() for part in parts]
    window = min(window, len(mono[0]))
    windows = torch.cat([part.unfold(0, window, window) for part in mono if len(part) >= window])
    powers = torch.stack([band_powers(part, rate) for part in mono]).mean(dim=0)
    return Sound(
        seconds=num_frames / rate,
        sampling_rate=rate,
        num_channels=frames.shape[1],
        encoding=encoding,
        silence_share=sum(silence_share(part, rate) * len(part) for part in mono) / len(frames),
        clipped_runs=sum(count_clipped_runs(part) for part in parts),
        dc_offset=dc_offset(frames),
        mono_loss_db=mono_loss_db(frames),
        loudness=[loudness(row.unsqueeze(0), rate) for row in windows],
        is_silent=(windows.abs().amax(dim=1) <= SILENT_PEAK).tolist(),
        powers=powers,
        bandwidth=effective_bandwidth(powers),
        content=f"{num_frames}:{content_hash(frames)}",
    )


def encoding_of(file: AudioFile) -> str:
    """Return container and encoding of an opened clip, as libsndfile names them: "FLAC PCM_16"."""
    return file.encoding
