"""Training windows per second and core: decoded alone, against decoding the whole clip and against `datasets`.

    python benchmarks/data_throughput.py                    all; about ten minutes
    python benchmarks/data_throughput.py --quick            two formats, short clips: seconds
    python benchmarks/data_throughput.py --source bytes     clips in memory, as rows of a parquet file are

Real speech of the demo, repeated to length and resampled to 48 kHz, in five formats; windows of 0.768 s at 24 kHz at
random places. Three ways, in turn (ours, whole, datasets, ours, whole …) in one process with one thread:

- ours: `AudioReader`, which seeks, decodes the window and resamples it;
- whole: the clip decoded by soundfile, averaged, resampled (the same resampler) and cut;
- datasets: the clip as `datasets.Audio(sampling_rate=24000, mono)` gives it by torchcodec and FFmpeg, and cut. Left
  empty where torchcodec is missing (pip install torchcodec==0.11.*; it needs FFmpeg's libraries).

Then batches per second through the loader with 0, 1 and 2 workers, from a folder of all these clips.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
import torchaudio
from measure import Ratio, alternate, machine, ratio, table
from numpy.typing import NDArray

import snac_accel
from snac_accel.audio import AudioReader
from snac_accel.dataset import AudioDataset, make_loader

RATE, CLIP_RATE, WINDOW = 24_000, 48_000, 18_432  # 0.768 s
FORMATS = {
    "wav": ("wav", "WAV", "PCM_16"),
    "flac": ("flac", "FLAC", "PCM_16"),
    "ogg": ("ogg", "OGG", "VORBIS"),
    "opus": ("opus", "OGG", "OPUS"),
    "mp3": ("mp3", "MP3", "MPEG_LAYER_III"),
}
SHORT_FORMATS, SHORT_ROUNDS, SHORT_SECONDS = ("wav", "flac", "mp3"), 9, 0.25
WAYS = ("ours", "whole", "datasets")
Way = Callable[[str | bytes, float], int]  # clip, where in it (0 to 1) -> samples


def speech(seconds: float) -> NDArray[np.float32]:
    """Real speech (T,) at 48 kHz: the demo's validation clips one after another, repeated."""
    clips = sorted((Path(snac_accel.__file__).parent / "demo" / "validation").glob("*.flac"))
    samples = np.concatenate([soundfile.read(clip, dtype="float32")[0] for clip in clips])
    samples = np.resize(samples, round(seconds * 16_000))
    resampled = torchaudio.functional.resample(torch.from_numpy(samples), 16_000, CLIP_RATE)
    return np.asarray(resampled.clamp(-1, 1))


def write_clip(folder: Path, name: str, seconds: float) -> Path:
    """Write a clip in one of the formats."""
    suffix, container, subtype = FORMATS[name]
    path = folder / f"{name}-{seconds:g}.{suffix}"
    samples = speech(seconds)
    with soundfile.SoundFile(path, "w", CLIP_RATE, 1, subtype=subtype, format=container) as file:
        for start in range(0, len(samples), CLIP_RATE):  # libsndfile's Vorbis writer overflows on long pieces
            file.write(samples[start : start + CLIP_RATE])
    return path


# --- the three ways


def ours(source: str | bytes, place: float) -> int:
    """A window by seeking."""
    with AudioReader(source, RATE) as reader:
        return len(reader.read(int(place * max(1, reader.num_samples - WINDOW)), WINDOW))


def whole(source: str | bytes, place: float) -> int:
    """The whole clip, then the window."""
    frames, rate = soundfile.read(
        io.BytesIO(source) if isinstance(source, bytes) else source, dtype="float32"
    )
    mono = torch.from_numpy(frames if frames.ndim == 1 else frames.mean(axis=1))
    return _cut(RESAMPLE(mono), place)


def by_datasets(source: str | bytes, place: float) -> int:
    """What a row of a Hub dataset gives when its audio column is read, then the window."""
    stored = {"bytes": source, "path": None} if isinstance(source, bytes) else {"bytes": None, "path": source}
    return _cut(FEATURE.decode_example(stored)["array"], place)


def _cut(audio: torch.Tensor | NDArray[np.float32], place: float) -> int:
    start = int(place * max(1, audio.shape[-1] - WINDOW))
    return len(torch.as_tensor(audio)[..., start : start + WINDOW].clone())


RESAMPLE = torchaudio.transforms.Resample(CLIP_RATE, RATE)
FEATURE = datasets.Audio(sampling_rate=RATE, num_channels=1)


def ways() -> dict[str, Way]:
    """The ways that work here."""
    found: dict[str, Way] = {"ours": ours, "whole": whole}
    try:
        importlib.import_module("torchcodec")  # loads the libraries of FFmpeg
    except (ImportError, RuntimeError, OSError):
        print("torchcodec is missing or does not find FFmpeg: the column `datasets` stays empty\n")
    else:
        found["datasets"] = by_datasets
    return found


# --- measuring


def rates(
    clip: str | bytes, measured: Mapping[str, Way], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Windows per second of each way in each of `rounds`, the ways in turn."""
    places = np.random.default_rng(0).random(100_000)
    calls = {name: partial(_rate, way, clip, places, seconds) for name, way in measured.items()}
    return alternate(calls, rounds, measured_by=lambda call: call())


def _rate(way: Way, clip: str | bytes, places: NDArray[np.float64], seconds: float) -> float:
    """Windows per second, of at least one window and about so many seconds."""
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds or count == 0:
        way(clip, float(places[count % len(places)]))
        count += 1
    return count / passed


def row(name: str, seconds: float, found: Mapping[str, Sequence[float]]) -> list[str]:
    """A row of the table: medians, and the ratios of ours with their spread over the rounds."""
    medians = [f"{statistics.median(found[way]):.0f}" if way in found else "" for way in WAYS]
    return [name, f"{seconds:g}", *medians, *(_ratio(found, way) for way in WAYS[1:])]


def _ratio(found: Mapping[str, Sequence[float]], way: str) -> str:
    """Ours over another way: median (lowest to highest)."""
    if way not in found:
        return ""
    ratios = [mine / other for mine, other in zip(found["ours"], found[way], strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def short() -> list[Ratio]:
    """Windows per second of a core over those of decoding the whole clip of ten seconds."""
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for encoding in SHORT_FORMATS:
            clip = write_clip(Path(folder), encoding, 10.0)
            rate = rates(str(clip), {"ours": ours, "whole": whole}, SHORT_ROUNDS, SHORT_SECONDS)
            name = f"windows of {encoding} clips, sought / decoded whole"
            found.append(ratio(name, rate["ours"], rate["whole"], better="higher"))
    return found


def batches_per_second(folder: Path, num_workers: int, seconds: float, batch_size: int) -> float:
    """Batches per second through the loader, after the first of each worker."""
    dataset = AudioDataset(folder, RATE, segment_samples=WINDOW)
    loader = iter(make_loader(dataset, batch_size, num_workers=num_workers, pin_memory=False))
    for _ in range(4 * max(1, num_workers)):  # what the workers have made ahead
        next(loader)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds or count < 4:
        next(loader)
        count += 1
    return count / (time.perf_counter() - started)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    flags = parse(arguments)
    torch.set_num_threads(1)
    measured = ways()
    print(machine())
    print(f"clips as {flags.source}, {flags.rounds} rounds of {flags.seconds:g} s for each way\n")
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        for encoding in flags.formats:
            for length in flags.lengths:
                path = write_clip(folder, encoding, length)
                clip = path.read_bytes() if flags.source == "bytes" else str(path)
                rows.append(row(encoding, length, rates(clip, measured, flags.rounds, flags.seconds)))
        headers = ["format", "clip (s)", *(f"{way} (1/s)" for way in WAYS), "ours / whole", "ours / datasets"]
        print(table(rows, headers))
        loaded = [
            [workers, f"{batches_per_second(folder, workers, flags.loader_seconds, flags.batch_size):.1f}"]
            for workers in (0, 1, 2)
        ]
    print(f"\nbatches of {flags.batch_size} windows through the loader, all these clips\n")
    print(table(loaded, ["workers", "batches (1/s)"]))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="wav and flac, 2 and 10 s, one short round")
    parser.add_argument("--source", choices=("path", "bytes"), default="path")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--lengths", nargs="+", type=float, default=[2.0, 10.0, 60.0], help="of the clips, s")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each way in each round")
    parser.add_argument("--batch_size", type=int, default=16)
    flags = parser.parse_args(arguments)
    flags.loader_seconds = 8.0
    if flags.quick:
        flags.formats, flags.lengths, flags.rounds = ["wav", "flac"], [2.0, 10.0], 1
        flags.seconds, flags.loader_seconds = 0.05, 0.1
    return flags


if __name__ == "__main__":
    raise SystemExit(main())
