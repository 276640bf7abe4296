"""What the metrics say about damage that everybody knows, and what they cost: noise, a telephone's band, mu-law, Opus, MP3.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --clips 8 --metrics mel_distance pesq

Whole clips of the demo's held-out speech at 16 kHz, means over clips. Metrics that are not installed are named. The last line of
the table is processor time per second of audio. The damage is seeded, so the numbers come again.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from measure import machine, table
from torch import Tensor
from torchaudio.functional import mu_law_decoding, mu_law_encoding, resample

import snac_accel
from snac_accel.metrics import METRICS, MetricSum, find_metric, usable_metrics

RATE = 16000


def noisy(audio: Tensor, decibels: float) -> Tensor:
    """With white noise `decibels` below the clip's power."""
    noise = torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
    return audio + noise * audio.pow(2).mean().sqrt() * 10 ** (-decibels / 20)


def coded(audio: Tensor, **options: Any) -> Tensor:
    """Through an encoder of libsndfile and back, at the length of before."""
    content = io.BytesIO()
    soundfile.write(content, audio.numpy(), RATE, **options)
    content.seek(0)
    decoded = torch.from_numpy(soundfile.read(content, dtype="float32")[0])
    return torch.nn.functional.pad(decoded, (0, max(0, len(audio) - len(decoded))))[: len(audio)]


DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {  # of one clip (T,)
    "none": lambda audio: audio,
    "half the level": lambda audio: 0.5 * audio,
    "one sample late": lambda audio: torch.roll(audio, 1),
    "noise at -40 dB": lambda audio: noisy(audio, 40),
    "noise at -20 dB": lambda audio: noisy(audio, 20),
    "noise at -10 dB": lambda audio: noisy(audio, 10),
    "band to 4 kHz": lambda audio: resample(resample(audio, RATE, 8000), 8000, RATE),
    "mu-law, 8 bit": lambda audio: mu_law_decoding(mu_law_encoding(audio, 256), 256),
    "MP3, 33 kbit/s": lambda audio: coded(audio, format="MP3", subtype="MPEG_LAYER_III"),
    "Opus, 28 kbit/s": lambda audio: coded(audio, format="OGG", subtype="OPUS"),
    "Opus, 7 kbit/s": lambda audio: coded(audio, format="OGG", subtype="OPUS", compression_level=1.0),
    "its own reverse": lambda audio: audio.flip(0),
}


def held_out(number: int) -> list[Tensor]:
    """The first clips (T,) of the demo's validation split that last 2 to 6 s."""
    folder = Path(snac_accel.__file__).parent / "demo" / "validation"
    clips = (soundfile.read(path, dtype="float32") for path in sorted(folder.iterdir()) if path.suffix == ".flac")
    return [torch.from_numpy(audio) for audio, rate in clips if rate == RATE and 2 <= len(audio) / rate <= 6][:number]


def main() -> None:
    """Measure and print."""
    arguments = parser().parse_args()
    usable, missing = usable_metrics(arguments.metrics)
    for name, text in missing.items():
        print(f"not measured: {name} {text}")
    clips = held_out(arguments.clips)
    print(f"{len(clips)} clips, {sum(map(len, clips)) / RATE:.1f} s; {machine()}\n")
    seconds = dict.fromkeys(usable, 0.0)
    rows = [[damage, *(f"{mean:.2f}" for mean in means(damage, clips, usable, seconds))] for damage in DAMAGE]
    audio_seconds = len(DAMAGE) * sum(map(len, clips)) / RATE
    rows.append(["cost (s/s)", *(f"{seconds[name] / audio_seconds:.3f}" for name in usable)])
    print(table(rows, ["damage", *usable]))


def means(damage: str, clips: Sequence[Tensor], names: Sequence[str], seconds: dict[str, float]) -> list[float]:
    """Of each metric over the damaged clips; its processor time is added to `seconds`."""
    chosen = {name: find_metric(name) for name in names}
    sums: dict[str, list[MetricSum]] = {name: [] for name in names}
    for clip in clips:
        real, fake = clip[None, None], DAMAGE[damage](clip)[None, None]
        for name, metric in chosen.items():
            begun = time.process_time()
            sums[name].append(metric(real, fake, sampling_rate=RATE))
            seconds[name] += time.process_time() - begun
    return [MetricSum(sum(one.total for one in found), sum(one.num_clips for one in found)).mean() for found in sums.values()]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--clips", type=int, default=2, help="how many")
    made.add_argument("--metrics", nargs="+", default=list(METRICS), help="names; default: all")
    return made


if __name__ == "__main__":
    main()
