"""Losses: their best value, known values, an independent reference, and sums that add up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchaudio
from torch import Tensor

from snac_accel.config import LossSettings
from snac_accel.losses import (
    DISCRIMINATOR_LOSSES,
    SPECTRAL_LOSSES,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mel_spectrogram_loss,
    multi_scale_mel_loss,
    stft_loss,
)

each_spectral_loss = pytest.mark.parametrize("loss", SPECTRAL_LOSSES.values(), ids=SPECTRAL_LOSSES)
Loss = Callable[..., Tensor]


@pytest.fixture
def real(speech: Tensor) -> Tensor:
    """(4, 1, 3001)."""
    return speech[:4, :, :3001]


@pytest.fixture
def fake(real: Tensor) -> Tensor:
    """Real speech, quieter and noisy."""
    return 0.5 * real + 0.01 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))


def test_config_weighs_the_losses_that_there_are() -> None:
    computed = {*DISCRIMINATOR_LOSSES, *SPECTRAL_LOSSES, "commitment", "codebook"}
    assert set(LossSettings.model_fields) == computed


# Adversarial


def test_least_squares_of_known_verdicts() -> None:
    real = [torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0]])]
    fake = [torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[2.0]])]
    assert float(discriminator_loss(real, fake)) == pytest.approx((0 + 9 / 3) + (1 + 4))
    assert float(generator_loss(fake)) == pytest.approx((1 + 1 + 4) / 3 + 1)


def test_adversarial_losses_are_zero_for_the_perfect_verdict() -> None:
    ones, zeros = [torch.ones(2, 3)] * 2, [torch.zeros(2, 3)] * 2
    assert discriminator_loss(ones, zeros) == 0
    assert generator_loss(ones) == 0
    assert discriminator_loss(zeros, ones) > 0


def test_feature_matching_is_summed_over_all_layers() -> None:
    real = [[torch.zeros(2, 3), torch.ones(4)], [torch.zeros(5)]]
    fake = [[torch.full((2, 3), -1.0), torch.full((4,), 3.0)], [torch.full((5,), 0.5)]]
    assert float(feature_matching_loss(real, fake)) == pytest.approx(1 + 2 + 0.5)
    assert feature_matching_loss(real, real) == 0


def test_feature_matching_pulls_fake_alone() -> None:
    real, fake = (torch.randn(4, requires_grad=True) for _ in range(2))
    feature_matching_loss([[real]], [[fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None and torch.equal(fake.grad, (fake - real).sign() / 4)


def test_verdicts_of_different_discriminators_are_refused() -> None:
    one, two = [torch.zeros(1)], [torch.zeros(1)] * 2
    with pytest.raises(ValueError, match="real has 1 entries and fake 2"):
        discriminator_loss(one, two)
    with pytest.raises(ValueError, match="real has 2 entries and fake 1"):
        feature_matching_loss([two], [one])


def test_half_precision_verdicts_are_averaged_in_float32() -> None:
    logits = torch.randn(4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    full, zeros = logits.float(), torch.zeros(4096)
    assert generator_loss([logits]).dtype == torch.float32
    assert generator_loss([logits]) == generator_loss([full])
    assert discriminator_loss([logits], [logits]) == discriminator_loss([full], [full])
    assert feature_matching_loss([[zeros.bfloat16()]], [[logits]]) == feature_matching_loss(
        [[zeros]], [[full]]
    )
    assert generator_loss([logits]) != (1 - logits).square().mean()  # which would have lost digits


# Spectral


@each_spectral_loss
def test_identical_audio_gives_zero(loss: Loss, real: Tensor) -> None:
    assert loss(real, real, sampling_rate=16000) == 0


@each_spectral_loss
def test_worse_audio_gives_more(loss: Loss, real: Tensor, fake: Tensor) -> None:
    values = [
        float(loss(real, real + share * (fake - real), sampling_rate=16000)) for share in (0.1, 0.5, 1.0)
    ]
    assert 0 < values[0] < values[1] < values[2]


@each_spectral_loss
def test_gradient_pulls_fake_towards_real(loss: Loss, real: Tensor, fake: Tensor) -> None:
    leaf = fake.clone().requires_grad_()
    value = loss(real, leaf, sampling_rate=16000)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient.isfinite().all() and (gradient != 0).any(-1).all()
    step = 1e-6 * gradient / gradient.abs().max()
    assert loss(real, fake - step * 10, sampling_rate=16000) < value


@each_spectral_loss
def test_micro_batches_average_to_the_whole_batch(loss: Loss, real: Tensor, fake: Tensor) -> None:
    """Rows of very different level, so that a convergence taken over the whole batch would give another number."""
    scale = torch.tensor([1.0, 0.01, 0.3, 0.001]).view(4, 1, 1).double()
    real, fake = real * scale, fake * scale
    whole = loss(real, fake, sampling_rate=16000)
    parts = [loss(r, f, sampling_rate=16000) for r, f in zip(real.split(1), fake.split(1), strict=True)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-10, atol=0)


@each_spectral_loss
def test_both_shapes_of_audio(loss: Loss, real: Tensor, fake: Tensor) -> None:
    assert loss(real, fake, sampling_rate=16000) == loss(real[:, 0], fake[:, 0], sampling_rate=16000)
    with pytest.raises(ValueError, match=r"must have shape \(B, T\) or \(B, 1, T\)"):
        loss(real.expand(-1, 2, -1), fake.expand(-1, 2, -1), sampling_rate=16000)


@each_spectral_loss
def test_float32_whatever_autocast_says(loss: Loss, real: Tensor, fake: Tensor) -> None:
    expected = loss(real, fake, sampling_rate=16000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(real, fake, sampling_rate=16000)
        from_half = loss(real, fake.bfloat16(), sampling_rate=16000)
    assert value.dtype == from_half.dtype == torch.float32
    assert value == expected


@each_spectral_loss
@pytest.mark.parametrize("silent", ["real", "fake", "both"])
def test_gradient_is_finite_at_digital_silence(loss: Loss, silent: str, real: Tensor, fake: Tensor) -> None:
    real = torch.zeros_like(real) if silent in ("real", "both") else real
    leaf = (torch.zeros_like(fake) if silent in ("fake", "both") else fake).clone().requires_grad_()
    value = loss(real, leaf, sampling_rate=16000)
    value.backward()
    assert value.isfinite()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def reference_mel(audio: Tensor, rate: int, window: int, hop: int, mels: int) -> Tensor:
    """log10 mel spectrogram by torchaudio's own transform."""
    transform = torchaudio.transforms.MelSpectrogram(
        rate,
        n_fft=window,
        hop_length=hop,
        n_mels=mels,
        power=1.0,
        center=True,
        pad_mode="reflect",
        norm="slaney",
        mel_scale="slaney",
    )
    return transform(audio).clamp(min=1e-5).log10()


@pytest.mark.filterwarnings("ignore:.*mel filterbank has all zero values.*")
@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_mel_loss_is_80_bands_at_any_rate(rate: int, real: Tensor, fake: Tensor) -> None:
    value = mel_spectrogram_loss(real, fake, sampling_rate=rate)
    mels = [reference_mel(audio, rate, 1024, 256, 80) for audio in (real, fake)]
    assert mels[0].shape == (4, 1, 80, 3001 // 256 + 1)
    torch.testing.assert_close(value, (mels[0] - mels[1]).abs().mean())


@pytest.mark.filterwarnings("ignore:.*mel filterbank has all zero values.*")
@pytest.mark.parametrize("rate", [16000, 44100])
def test_multi_scale_mel_is_dacs(rate: int, real: Tensor, fake: Tensor) -> None:
    expected = torch.zeros(())
    for exponent, mels in zip(range(5, 12), (5, 10, 20, 40, 80, 160, 320), strict=True):
        window = 2**exponent
        spectra = [reference_mel(audio, rate, window, window // 4, mels) for audio in (real, fake)]
        expected = expected + (spectra[0] - spectra[1]).abs().mean()
    torch.testing.assert_close(multi_scale_mel_loss(real, fake, sampling_rate=rate), expected)


def test_mel_loss_of_a_gain_is_its_logarithm(real: Tensor) -> None:
    """Ten times louder is 1 everywhere above the clamp: white noise has no quiet band."""
    noise = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0))
    assert float(mel_spectrogram_loss(noise, 10 * noise)) == pytest.approx(1.0, abs=1e-5)


def test_stft_loss_of_a_gain_is_known() -> None:
    """Half as loud: convergence 1/2 and a log distance of ln 2 at every resolution."""
    noise = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0))
    assert float(stft_loss(noise, 0.5 * noise)) == pytest.approx(
        0.5 + torch.tensor(2.0).log().item(), abs=1e-4
    )
