"""Metrics: best values, known values, and sums over clips that add up in whatever way they are cut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from references import reference_pair
from snac_accel.losses import multi_scale_mel_loss
from snac_accel.metrics import (
    METRICS,
    VALIDATION_METRICS,
    MetricSum,
    log_spectral_distance_db,
    mel_distance,
    mel_distance_two_scale,
    si_sdr_db,
    stft_distance,
)

RATE = 16000


@pytest.fixture
def real(speech: Tensor) -> Tensor:
    """(4, 1, 4000)."""
    return speech[:4, :, :4000]


@pytest.fixture
def fake(real: Tensor) -> Tensor:
    """Each row with more noise than the one before."""
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    return real + noise * torch.tensor([0.001, 0.01, 0.03, 0.1]).view(4, 1, 1)


@pytest.mark.parametrize("name", VALIDATION_METRICS)
def test_clips_add_up_exactly(name: str, real: Tensor, fake: Tensor) -> None:
    metric = METRICS[name]
    whole = metric(real, fake, sampling_rate=RATE)
    assert whole.num_clips == 4
    for split in ([1, 1, 1, 1], [3, 1]):
        parts = [
            metric(r, f, sampling_rate=RATE)
            for r, f in zip(real.split(split), fake.split(split), strict=True)
        ]
        assert sum(part.num_clips for part in parts) == 4
        assert sum(part.total for part in parts) == pytest.approx(whole.total, rel=1e-12)


@pytest.mark.parametrize("name", VALIDATION_METRICS)
def test_worse_clips_score_worse(name: str, real: Tensor, fake: Tensor) -> None:
    clip = real[:1].expand(4, -1, -1)
    noisy = clip + (fake - real)
    scores = [
        METRICS[name](r, f, sampling_rate=RATE).total
        for r, f in zip(clip.split(1), noisy.split(1), strict=True)
    ]
    assert scores == sorted(scores, reverse=name == "si_sdr_db")


@pytest.mark.parametrize("metric", [mel_distance, mel_distance_two_scale, stft_distance, log_spectral_distance_db])
def test_distances_are_zero_for_identical_audio(metric: Callable[..., MetricSum], real: Tensor) -> None:
    assert metric(real, real, sampling_rate=RATE) == (0.0, 4)


def test_mel_distance_is_the_training_loss_clip_by_clip(real: Tensor, fake: Tensor) -> None:
    expected = sum(
        float(multi_scale_mel_loss(r, f, sampling_rate=RATE))
        for r, f in zip(real.split(1), fake.split(1), strict=True)
    )
    assert mel_distance(real, fake, sampling_rate=RATE).total == pytest.approx(expected)


def test_stft_distance_of_a_gain_is_known() -> None:
    """Ten times louder: log10 of powers differs by 2 on both scales, magnitudes by nine times the real ones."""
    noise = torch.randn(1, 1, 20000, generator=torch.Generator().manual_seed(0))
    magnitudes = sum(
        torch.stft(noise[0], n, n // 4, window=torch.hann_window(n), return_complex=True).abs().mean()
        for n in (2048, 512)
    )
    expected = 9 * float(magnitudes) + 2 * 2
    assert stft_distance(noise, 10 * noise, sampling_rate=RATE).total == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 20.0, 40.0])
def test_si_sdr_of_a_known_ratio(decibels: float, real: Tensor) -> None:
    """Noise made orthogonal to the clip, scaled to the ratio."""
    clip = (real[0, 0] - real[0, 0].mean()).double()
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean()
    noise -= (noise @ clip) / (clip @ clip) * clip
    noise *= clip.norm() / noise.norm() * 10 ** (-decibels / 20)
    score = si_sdr_db(clip.view(1, 1, -1), (clip + noise).view(1, 1, -1), sampling_rate=RATE)
    assert score.total == pytest.approx(decibels, abs=1e-3)


def test_si_sdr_does_not_see_gain_and_offset(real: Tensor, fake: Tensor) -> None:
    plain = si_sdr_db(real, fake, sampling_rate=RATE).total
    assert si_sdr_db(real, 0.3 * fake + 0.05, sampling_rate=RATE).total == pytest.approx(plain, abs=0.01)


def test_distances_of_silence_are_numbers(real: Tensor) -> None:
    silence = torch.zeros_like(real)
    for name in VALIDATION_METRICS:
        assert math.isfinite(METRICS[name](real, silence, sampling_rate=RATE).mean())
    for name in set(VALIDATION_METRICS) - {"si_sdr_db"}:
        assert METRICS[name](silence, silence, sampling_rate=RATE) == (0.0, 4)
    assert si_sdr_db(silence, real, sampling_rate=RATE).num_clips == 0
    assert si_sdr_db(real, silence, sampling_rate=RATE) == (4 * -80.0, 4)  # not the 0 dB of a good codec


@pytest.mark.parametrize("name", VALIDATION_METRICS)
def test_clips_too_short_for_a_window_count_as_none(name: str, real: Tensor) -> None:
    assert METRICS[name](real[..., :1025], real[..., :1025], sampling_rate=RATE).num_clips == 4
    assert mel_distance(real[..., :1024], real[..., :1024], sampling_rate=RATE).num_clips == 0


REFERENCES = json.loads((Path(__file__).parent / "metric_references.json").read_text())


@pytest.mark.parametrize("clip", REFERENCES["clips"])
@pytest.mark.parametrize("name", VALIDATION_METRICS)
def test_published_implementations_give_the_same(name: str, clip: str, demo_folder: Path) -> None:
    """Their numbers are kept: see the file's own words on how they came about."""
    real, fake = reference_pair(demo_folder, clip)
    expected = REFERENCES["clips"][clip][name]
    assert METRICS[name](real, fake, sampling_rate=RATE).total == pytest.approx(expected, rel=2e-4)
