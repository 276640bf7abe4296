"""The metrics of hearing, from packages of others: equal to what was published, harmless on clips that they cannot measure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.functional import resample

from references import reference_pair
from snac_accel.metrics import METRICS, VALIDATION_METRICS

RATE = 16000
HEAVY = [name for name in METRICS if name not in VALIDATION_METRICS]
REFERENCES = json.loads((Path(__file__).parent / "metric_references.json").read_text())["clips"]


@pytest.fixture(scope="module")
def pair(demo_folder: Path) -> tuple[Tensor, Tensor]:
    """Speech and a noisy copy, both (1, 1, 48000)."""
    return reference_pair(demo_folder, "en-0000.ogg")


@pytest.mark.parametrize("clip", REFERENCES)
@pytest.mark.parametrize("name", ["dnsmos", "dnsmos_p808"])
def test_dnsmos_is_that_of_its_package(name: str, clip: str, demo_folder: Path) -> None:
    """Of the reconstruction alone, with what librosa computes around the networks computed here."""
    real, fake = reference_pair(demo_folder, clip)
    assert METRICS[name](real, fake, sampling_rate=RATE).total == pytest.approx(REFERENCES[clip][name], abs=2e-4)
    assert METRICS[name](-real, fake, sampling_rate=RATE).total == METRICS[name](real, fake, sampling_rate=RATE).total


def test_pesq_and_stoi_are_those_of_their_packages(pair: tuple[Tensor, Tensor]) -> None:
    from pesq import pesq
    from pystoi import stoi

    real, fake = (audio.flatten().numpy() for audio in pair)
    found = {name: METRICS[name](*pair, sampling_rate=RATE).total for name in ("pesq", "stoi", "estoi")}
    assert found == {
        "pesq": pytest.approx(pesq(RATE, real, fake, "wb")),
        "stoi": pytest.approx(stoi(real, fake, RATE)),
        "estoi": pytest.approx(stoi(real, fake, RATE, extended=True)),
    }


@pytest.mark.parametrize("name", ["visqol", "visqol_speech"])
def test_visqol_is_that_of_its_package(name: str, pair: tuple[Tensor, Tensor]) -> None:
    assert METRICS[name](*pair, sampling_rate=RATE).total == pytest.approx(REFERENCES["en-0000.ogg"][name], abs=5e-3)


@pytest.mark.parametrize("name", ["pesq", "estoi", "visqol_speech", "f0_error_cents", "voicing_f1"])
def test_identical_audio_gives_the_best(name: str, pair: tuple[Tensor, Tensor]) -> None:
    metric, (real, fake) = METRICS[name], pair
    best = metric(real, real, sampling_rate=RATE).total
    if metric.ideal is not None:
        assert best == pytest.approx(metric.ideal, abs=0.01)
    noisy = metric(real, fake, sampling_rate=RATE).total
    assert noisy < best if metric.better == "higher" else noisy > best


def test_other_rates_are_resampled(pair: tuple[Tensor, Tensor]) -> None:
    upsampled = [resample(audio, RATE, 24000) for audio in pair]
    for name in ("pesq", "dnsmos"):
        expected = METRICS[name](*pair, sampling_rate=RATE).total
        assert METRICS[name](*upsampled, sampling_rate=24000).total == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("name", HEAVY)
def test_clips_that_cannot_be_measured_count_as_none(name: str, pair: tuple[Tensor, Tensor]) -> None:
    metric, (real, _) = METRICS[name], pair
    silence = torch.zeros_like(real)
    assert metric(silence, real, sampling_rate=RATE).num_clips == 0
    assert metric(silence, silence, sampling_rate=RATE).num_clips == 0
    broken = torch.full_like(real, math.nan)
    assert math.isnan(metric(real, broken, sampling_rate=RATE).mean())  # a model that diverged is not left out
    tick = 0.5 * torch.ones(1, 1, 3)
    assert metric(tick, tick, sampling_rate=RATE).num_clips in ((1,) if "dnsmos" in name else (0,))


@pytest.mark.parametrize(("name", "mark"), [("pesq", 1.0), ("stoi", 0.0), ("visqol", 1.0), ("dnsmos", 1.0), ("voicing_f1", 0.0)])
def test_a_silent_reconstruction_gets_the_lowest_mark(name: str, mark: float, pair: tuple[Tensor, Tensor]) -> None:
    real, _ = pair
    assert METRICS[name](real, torch.zeros_like(real), sampling_rate=RATE) == (mark, 1)


def test_pesq_survives_more_utterances_than_its_arrays_hold() -> None:
    """At the 51st the C code writes past their end: 60 bursts in one piece kill the process."""
    noise = np.random.default_rng(0)
    burst = np.concatenate([0.1 * noise.standard_normal(8000), np.zeros(12000)]).astype(np.float32)
    real = torch.from_numpy(np.tile(burst, 60))[None, None]
    fake = real + 0.001 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    found = METRICS["pesq"](real, fake, sampling_rate=RATE)
    assert found.num_clips == 1 and 2.5 < found.total < 3.5


def harmonics(hertz: Tensor) -> Tensor:
    """A voice-like tone (1, 1, T) of the fundamental frequencies (T,): ten harmonics, falling by 6 dB an octave."""
    phase = 2 * math.pi * torch.cumsum(hertz.double() / RATE, 0)
    return sum((torch.sin(n * phase) / n for n in range(1, 11)), torch.zeros(()))[None, None].float() * 0.2


@pytest.mark.parametrize("semitones", [0.0, 1.0, -3.0])
def test_the_pitch_error_of_a_known_shift(semitones: float) -> None:
    glide = torch.linspace(120, 240, 2 * RATE)
    found = METRICS["f0_error_cents"](harmonics(glide), harmonics(glide * 2 ** (semitones / 12)), sampling_rate=RATE)
    assert found.total == pytest.approx(100 * abs(semitones), abs=6)


def test_voicing_f1_of_a_voice_that_stops_halfway() -> None:
    """Half of the frames hit, half missed: 2 × ½ / (2 × ½ + ½)."""
    real = harmonics(torch.linspace(120, 240, 2 * RATE))
    fake = real.clone()
    fake[..., RATE:] = 0
    assert METRICS["voicing_f1"](real, fake, sampling_rate=RATE).total == pytest.approx(2 / 3, abs=0.03)
    assert METRICS["voicing_f1"](fake, real, sampling_rate=RATE).total == pytest.approx(2 / 3, abs=0.03)
