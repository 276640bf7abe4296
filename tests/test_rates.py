"""Bits, tokens and seconds: hand-computed, and the same for any split into batches and ranks."""

from __future__ import annotations

import math

import pytest
import torch

from snac_accel.codebook import perplexity
from snac_accel.metrics import Speed, entropy_bits, measure_rates, time_codec
from snac_accel.presets import create_snac_24khz_config, describe_model
from tiny import MODEL, make_generator

SHAPE = {"sampling_rate": 24000, "hop_length": 512, "vq_strides": (4, 2, 1)}  # of the published 24 kHz model


def test_uniform_codes_need_the_nominal_bits() -> None:
    rates = measure_rates(torch.full((3, 4096), 7), **SHAPE)
    assert [level.tokens_per_second for level in rates.levels] == [24000 / 2048, 24000 / 1024, 24000 / 512]
    assert rates.nominal == pytest.approx(12 * 24000 * 7 / 2048)  # the 0.98 kbit/s of the paper
    assert rates.empirical == pytest.approx(rates.nominal)
    facts = describe_model(create_snac_24khz_config())
    assert rates.nominal == pytest.approx(facts.bitrate)
    assert [level.tokens_per_second for level in rates.levels] == pytest.approx(facts.token_rates)


def test_entropy_of_known_counts() -> None:
    counts = torch.tensor([[1, 1, 2, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
    assert entropy_bits(counts).tolist() == pytest.approx([1.5, 0.0, 0.0])
    assert entropy_bits(counts)[0] == pytest.approx(math.log2(perplexity(counts)[0]))
    rates = measure_rates(counts, **SHAPE)
    assert rates.empirical == pytest.approx(1.5 * 24000 / 2048)
    assert rates.levels[0].efficiency == pytest.approx(0.75)
    assert rates.scalars()["rate/level_0/empirical_bits_per_second"] == pytest.approx(1.5 * 24000 / 2048)


def test_levels_and_strides_must_agree() -> None:
    with pytest.raises(ValueError, match="counts of 2 levels do not go with 3 strides"):
        measure_rates(torch.ones(2, 8), **SHAPE)


def test_a_codec_is_timed_and_times_add_up() -> None:
    generator = make_generator(noise=False).eval()
    audio = torch.randn(2, 1, 8192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        timed = time_codec(generator.encode, generator.decode, audio, sampling_rate=MODEL["sampling_rate"])
        expected = generator.encode(audio)
    assert all(torch.equal(one, other) for one, other in zip(timed.codes, expected, strict=True))
    assert timed.audio.shape[0] == 2 and timed.speed.encode_seconds > 0 and timed.speed.decode_seconds > 0
    assert timed.speed.audio_seconds == pytest.approx(2 * 8192 / MODEL["sampling_rate"])
    both = Speed(10, 2, 1).plus(Speed(30, 2, 3))
    assert (both.encode_factor, both.decode_factor) == (0.1, 0.1)
    assert math.isnan(Speed().encode_factor)
