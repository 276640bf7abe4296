"""How good a generator is on held-out clips: metrics, codebook use, what each level carries, and samples to hear and see.

Clips are whole, of their own lengths, one at a time: nothing is padded but the model's own quantum. The decoder's noise is seeded
by the clip, so the same weights give the same numbers. Shapes: T samples, F_l frames of level l, K codebook size.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import soundfile
import torch
from torch import Tensor

from .audio import stft_magnitude
from .codebook import Reduce, count_codes, identity, perplexity, share_used
from .files import new_folder, write_bytes
from .generator import GeneratorOutput, TrainableSNAC
from .meter import precise
from .metrics import VALIDATION_METRICS, MetricSum, find_metric, mel_distance
from .seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NamedClip(Protocol):
    """A held-out clip."""

    @property
    def name(self) -> str:
        """Unique among the clips."""

    @property
    def audio(self) -> Tensor:
        """(1, T), in -1..1."""


class EvaluationStopped(Exception):
    """It was broken off, on some rank, and gives no numbers."""


class Evaluation(NamedTuple):
    """Means over held-out clips, and codebook use over all their frames."""

    metrics: dict[str, float]  # by name, mean over the clips on which it is defined; not a number if there are none
    perplexity: list[float]  # per level, 1 to K
    share_used: list[float]  # per level, 0 to 1
    num_clips: int
    audio_seconds: float
    counts: list[list[int]]  # per level, how often each of the K codes was chosen

    def scalars(self, prefix: str = "validation") -> dict[str, float]:
        """Everything as `validation/…` for logs."""
        named = {f"{prefix}/{name}": value for name, value in self.metrics.items()}
        for level, (value, share) in enumerate(zip(self.perplexity, self.share_used, strict=True)):
            named[f"{prefix}/level_{level}/perplexity"] = value
            named[f"{prefix}/level_{level}/share_used"] = share
        return named


@torch.no_grad()
def evaluate(
    generator: TrainableSNAC,
    clips: Iterable[NamedClip],
    *,
    metrics: Sequence[str] = VALIDATION_METRICS,
    seed: int = 0,
    reduce: Reduce = identity,
    stopped: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Measure `generator` on this rank's `clips`; `reduce` sums over ranks, so every rank returns the same result.

    `stopped` is asked before each clip. Once it says so on any rank, that rank leaves its other clips, joins the sum, and every
    rank raises EvaluationStopped.
    """
    device = next(generator.parameters()).device
    chosen = [find_metric(name) for name in metrics]
    # totals and numbers of clips of the metrics; samples, clips, broken off
    sums = torch.zeros(2 * len(chosen) + 3, dtype=precise(device), device=device)
    counts = torch.zeros(len(generator.vq_strides), generator.codebook_size, dtype=torch.int64, device=device)
    with evaluation_mode(generator):
        for clip in clips:
            if stopped():
                sums[-1] += 1
                break
            real = clip.audio[None].to(device)  # (1, 1, T)
            output = reconstruct(generator, real, seed=seed, name=clip.name)
            found = [metric(real, output.audio, sampling_rate=generator.sampling_rate) for metric in chosen]
            values = [*(one.total for one in found), *(one.num_clips for one in found), real.shape[-1], 1, 0]
            sums += torch.tensor(values, dtype=sums.dtype, device=device)
            counts += count_codes(output.codes, generator.codebook_size)
    sums, counts = reduce(sums), reduce(counts)
    *totals, samples, number, broken_off = sums.tolist()
    if broken_off:
        raise EvaluationStopped
    pairs = zip(totals[: len(chosen)], totals[len(chosen) :], strict=True)
    means = {name: MetricSum(*pair).mean() for name, pair in zip(metrics, pairs, strict=True)}
    used = share_used(counts).tolist()
    return Evaluation(
        means, perplexity(counts).tolist(), used, int(number), samples / generator.sampling_rate, counts.tolist()
    )


def reconstruct(generator: TrainableSNAC, real: Tensor, *, seed: int, name: str) -> GeneratorOutput:
    """The generator's output on `real` (1, 1, T) with noise keyed by (seed, name)."""
    torch.manual_seed(derive_seed(seed, "evaluate", name))
    return generator(real)


@torch.no_grad()
def level_information(generator: TrainableSNAC, clips: Iterable[NamedClip], *, seed: int = 0) -> list[float]:
    """What each level carries: relative growth of the mel distance when its codes are shuffled in time, all others kept.

    0 means that the level could as well be left out; 0.1 that the distance grows by a tenth.
    """
    device = next(generator.parameters()).device
    plain, shuffled = 0.0, [0.0] * len(generator.vq_strides)
    with evaluation_mode(generator):
        for clip in clips:
            real = clip.audio[None].to(device)
            output = reconstruct(generator, real, seed=seed, name=clip.name)
            plain += mel_distance(real, output.audio, sampling_rate=generator.sampling_rate).total
            for level in range(len(shuffled)):
                fake = _decode_shuffled(generator, output.codes, level, seed, clip.name)[
                    ..., : real.shape[-1]
                ]
                shuffled[level] += mel_distance(real, fake, sampling_rate=generator.sampling_rate).total
    return [total / plain - 1 if plain else math.nan for total in shuffled]


def _decode_shuffled(
    generator: TrainableSNAC, codes: Sequence[Tensor], level: int, seed: int, name: str
) -> Tensor:
    order = torch.Generator().manual_seed(derive_seed(seed, "shuffle", level, name))
    changed = list(codes)
    changed[level] = codes[level][
        :, torch.randperm(codes[level].shape[1], generator=order).to(codes[level].device)
    ]
    torch.manual_seed(derive_seed(seed, "evaluate", name))
    return generator.decode(changed)


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """`module.eval()` inside, its former mode and the random state of before afterwards."""
    training = module.training
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        module.eval()
        try:
            yield
        finally:
            module.train(training)


class SamplePair(NamedTuple):
    """A held-out clip beside its reconstruction, both (T,) on the CPU."""

    name: str
    real: Tensor
    fake: Tensor


@torch.no_grad()
def sample_pairs(generator: TrainableSNAC, clips: Iterable[NamedClip], *, seed: int = 0) -> list[SamplePair]:
    """Reconstruct a few clips for listening."""
    device = next(generator.parameters()).device
    with evaluation_mode(generator):
        outputs = [
            (clip, reconstruct(generator, clip.audio[None].to(device), seed=seed, name=clip.name))
            for clip in clips
        ]
    return [
        SamplePair(clip.name, clip.audio[0], output.audio[0, 0].float().cpu()) for clip, output in outputs
    ]


def write_samples(folder: Path, pairs: Sequence[SamplePair], sampling_rate: int) -> None:
    """Write `NAME.original.wav`, `NAME.reconstruction.wav` (16 bit) and `NAME.png` for each pair, over the samples of before."""
    with new_folder(folder) as draft:
        for pair in pairs:
            stem = safe_stem(pair.name)
            for suffix, audio in (("original", pair.real), ("reconstruction", pair.fake)):
                write_bytes(draft / f"{stem}.{suffix}.wav", _wav(audio, sampling_rate))
            picture = io.BytesIO()
            spectrogram_figure(pair, sampling_rate).savefig(picture, dpi=100, format="png")
            write_bytes(draft / f"{stem}.png", picture.getvalue())


def _wav(audio: Tensor, sampling_rate: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, audio.clamp(-1, 1).numpy(), sampling_rate, subtype="PCM_16", format="WAV")
    return content.getvalue()


def safe_stem(name: str) -> str:
    """A clip's name as one file name, without an audio suffix; its path's separators and everything unusual become `_`."""
    plain = re.sub(r"\.(wav|flac|ogg|oga|opus|mp3|m4a|aac|aif|aiff)$", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", plain).strip("._") or "clip"


def spectrogram_figure(pair: SamplePair, sampling_rate: int, fft_size: int = 1024) -> Figure:
    """Magnitude spectrograms in dB of original (above) and reconstruction (below), as a matplotlib figure."""
    from matplotlib.figure import Figure  # only where something is drawn; without pyplot: no global state, no display

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, title, audio in zip(axes, ("original", "reconstruction"), (pair.real, pair.fake), strict=True):
        decibels = (
            20 * stft_magnitude(audio[None], fft_size, fft_size // 4)[0].clamp_min(1e-5).log10().numpy()
        )
        extent = (0.0, len(audio) / sampling_rate, 0.0, sampling_rate / 2000)
        image = axis.imshow(
            decibels, origin="lower", aspect="auto", extent=extent, vmin=-80, vmax=40, cmap="magma"
        )
        axis.set(title=f"{pair.name}: {title}", ylabel="frequency (kHz)")
    axes[-1].set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="level (dB)")
    return figure
