"""The discriminator family: one contract, gradients everywhere, any length, and options that the config declares."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snac_accel.config import DiscriminatorSettings
from snac_accel.discriminators import (
    DISCRIMINATORS,
    MultiPeriodDiscriminator,
    MultiScaleSTFTDiscriminator,
    PeriodDiscriminator,
    STFTDiscriminator,
)

DAC_BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
SMALL = (4, 6, 8)
FAMILIES: dict[
    str, tuple[nn.Module, int, int]
] = {  # with the number of sub-discriminators and the shortest window
    "mpd": (MultiPeriodDiscriminator((2, 3, 11), SMALL), 3, 11),
    "msstftd": (MultiScaleSTFTDiscriminator((64, 128), (16, 30), (48, 96), SMALL), 2, 65),
    "banded msstftd": (MultiScaleSTFTDiscriminator((64, 128), (16, 30), (48, 96), SMALL, DAC_BANDS), 2, 65),
}
each_family = pytest.mark.parametrize(
    ("family", "number", "shortest"), FAMILIES.values(), ids=[name.replace(" ", "_") for name in FAMILIES]
)


@each_family
def test_contract(family: nn.Module, number: int, shortest: int) -> None:
    logits, features = family(torch.randn(3, 1, 500))
    assert isinstance(logits, list) and isinstance(features, list)
    assert len(logits) == len(features) == number
    for verdict, maps in zip(logits, features, strict=True):
        assert verdict.ndim == 4 and verdict.shape[:2] == (3, 1)
        assert isinstance(maps, list) and len(maps) >= len(SMALL)
        assert all(part.shape[0] == 3 and part.shape[1] in SMALL for part in maps)
        assert all(part is not verdict for part in maps)


@each_family
def test_gradient_reaches_every_parameter_and_sample(family: nn.Module, number: int, shortest: int) -> None:
    family.zero_grad()
    audio = torch.randn(2, 1, 397, requires_grad=True)
    logits, features = family(audio)
    sum(verdict.square().mean() for verdict in logits).backward()
    assert [name for name, p in family.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert audio.grad is not None and (audio.grad[..., 1:-1] != 0).all()  # a Hann window is 0 at its edge


@each_family
def test_rows_of_a_batch_do_not_meet(family: nn.Module, number: int, shortest: int) -> None:
    audio = torch.randn(2, 1, 300)
    together = family(audio)[0]
    apart = [family(row)[0] for row in audio.split(1)]
    for verdict, *rows in zip(together, *apart, strict=True):
        torch.testing.assert_close(verdict, torch.cat(rows), rtol=1e-4, atol=1e-5)


@each_family
def test_any_length_above_the_shortest(family: nn.Module, number: int, shortest: int) -> None:
    for length in (*range(shortest, shortest + 14), 257, 1001):
        logits, _ = family(torch.randn(1, 1, length))
        assert all(verdict.numel() > 0 and verdict.isfinite().all() for verdict in logits)


@each_family
def test_shorter_audio_is_refused_with_both_numbers(family: nn.Module, number: int, shortest: int) -> None:
    with pytest.raises(ValueError, match=f"got {shortest - 1} samples, needs at least {shortest}"):
        family(torch.randn(1, 1, shortest - 1))


def test_a_period_discriminator_compares_samples_a_period_apart() -> None:
    """Moving one sample changes the verdicts of its own column alone."""
    critic = PeriodDiscriminator(5, SMALL)
    audio = torch.randn(1, 1, 100)
    moved = audio.clone()
    moved[..., 52] += 1
    changed = (critic(audio)[0] != critic(moved)[0]).any(dim=2).flatten()
    assert changed.tolist() == [False, False, True, False, False]


def test_folding_keeps_the_samples_in_order() -> None:
    audio = torch.arange(23.0).view(1, 1, 23)
    folded = PeriodDiscriminator(5, SMALL).fold(audio).flatten()
    assert folded[:23].tolist() == list(range(23))
    assert folded[23:].tolist() == [21, 20]  # the end reflected


def test_stft_discriminator_sees_phase() -> None:
    """Audio and its negative have the same magnitudes; a complex discriminator tells them apart."""
    critic = STFTDiscriminator(64, 16, 48, SMALL)
    audio = torch.randn(1, 1, 300)
    assert not torch.allclose(critic(audio)[0], critic(-audio)[0])


@pytest.mark.parametrize("fft_size", [64, 128, 1024, 2048])
def test_bands_cover_the_spectrum_once(fft_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    critic = STFTDiscriminator(fft_size, fft_size // 4, fft_size, (2, 2), DAC_BANDS)
    spectrogram = torch.randn(1, 2, fft_size // 2 + 1, 9, requires_grad=True)
    monkeypatch.setattr(critic, "spectrogram", lambda audio: spectrogram)
    critic(torch.zeros(1))[0].sum().backward()
    assert spectrogram.grad is not None and (spectrogram.grad != 0).all()
    assert sum(high - low for low, high in critic.bands) == fft_size // 2 + 1


def test_spectrogram_stays_in_float32_under_autocast() -> None:
    critic = STFTDiscriminator(64, 16, 48, SMALL)
    audio = torch.randn(1, 1, 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(critic.spectrogram(audio), critic.spectrogram(audio.float()))
        assert critic.spectrogram(audio).dtype == torch.float32
        assert critic(audio)[1][0].dtype == torch.bfloat16  # the convolutions do use it


def test_a_period_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="period is 0, should be at least 1"):
        PeriodDiscriminator(0)


# The config declares what there is to choose; floor 3 never sees it, so a test holds the two together.


def test_config_names_the_families() -> None:
    assert (
        set(DiscriminatorSettings.model_fields) == set(DISCRIMINATORS) == set(DiscriminatorSettings().chosen)
    )


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_config_declares_the_options_and_defaults(name: str) -> None:
    parameters = inspect.signature(DISCRIMINATORS[name]).parameters
    settings = DiscriminatorSettings().chosen[name]
    assert {key: parameter.default for key, parameter in parameters.items()} == settings.model_dump()


@pytest.mark.parametrize(
    "options",
    [
        {"mpd": {"periods": (2, 13), "channels": SMALL}},
        {
            "msstftd": {
                "fft_sizes": (64, 256),
                "hop_lengths": (16, 60),
                "win_lengths": (48, 240),
                "channels": SMALL,
            }
        },
    ],
)
def test_config_knows_the_shortest_window(options: dict[str, Any]) -> None:
    settings = DiscriminatorSettings.model_validate(options)
    (name,) = options
    chosen = settings.chosen[name]
    family = DISCRIMINATORS[name](**chosen.model_dump())

    def verdicts(length: int) -> list[Tensor]:
        return family(torch.randn(1, 1, length))[0]

    assert len(verdicts(chosen.min_samples)) == 2
    with pytest.raises(ValueError, match=f"needs at least {chosen.min_samples}"):
        verdicts(chosen.min_samples - 1)


@pytest.mark.parametrize(("name", "millions"), [("mpd", 41.1), ("msstftd", 44.6)])
def test_defaults_are_the_original_modules(name: str, millions: float) -> None:
    """By their number of parameters."""
    assert sum(p.numel() for p in DISCRIMINATORS[name]().parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05
    )
