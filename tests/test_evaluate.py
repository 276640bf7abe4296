"""Evaluation: the same weights give the same numbers, whatever the rank, the order and the random state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
import torch
from torch import Tensor

from snac_accel.codebook import initialize_codebooks, levels
from snac_accel.evaluate import (
    SamplePair,
    evaluate,
    evaluation_mode,
    level_information,
    safe_stem,
    sample_pairs,
    spectrogram_figure,
    write_samples,
)
from snac_accel.generator import TrainableSNAC, zero_encoding_biases
from snac_accel.metrics import VALIDATION_METRICS
from snac_accel.report import results_table
from tiny import MODEL, make_generator


class Clip(NamedTuple):
    name: str
    audio: Tensor  # (1, T)


@pytest.fixture
def generator() -> TrainableSNAC:
    """In training mode, as it is when it is validated between two steps."""
    return make_generator().train()


@pytest.fixture
def clips(speech: Tensor) -> list[Clip]:
    """Five clips of different lengths."""
    lengths = (2000, 3001, 4096, 8000, 2500)
    return [Clip(f"clips/{i}.ogg", speech[i, :, :length]) for i, length in enumerate(lengths)]


def test_means_are_over_clips_and_codebooks_over_frames(generator: TrainableSNAC, clips: list[Clip]) -> None:
    whole = evaluate(generator, clips, seed=3)
    alone = [evaluate(generator, [clip], seed=3) for clip in clips]
    assert whole.num_clips == 5
    assert whole.audio_seconds == pytest.approx(
        sum(clip.audio.shape[1] for clip in clips) / MODEL["sampling_rate"]
    )
    for name in VALIDATION_METRICS:
        mean = sum(result.metrics[name] for result in alone) / 5
        assert whole.metrics[name] == pytest.approx(mean, rel=1e-12)
    for level in range(3):
        assert whole.share_used[level] >= max(result.share_used[level] for result in alone)
        assert 1 <= whole.perplexity[level] <= whole.share_used[level] * MODEL["codebook_size"] + 1e-9


def test_evaluation_is_repeatable(generator: TrainableSNAC, clips: list[Clip]) -> None:
    first = evaluate(generator, clips)
    torch.manual_seed(77)
    again = evaluate(generator, clips[::-1])  # noise is of the clip, not of its place
    assert again.metrics == pytest.approx(first.metrics, rel=1e-12)
    assert (again.perplexity, again.num_clips) == (first.perplexity, first.num_clips)
    assert evaluate(generator, clips, seed=1).metrics != first.metrics


def test_ranks_add_up_to_the_whole(generator: TrainableSNAC, clips: list[Clip]) -> None:
    """Shares of 2, 2, 1 and no clips; each rank's sums are collected, then handed out."""
    whole = evaluate(generator, clips)
    sums: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        kind = len(seen)
        seen.append(tensor)
        if kind == len(sums):
            sums.append(torch.zeros_like(tensor))
        sums[kind] += tensor
        return tensor

    shares = [clips[:2], clips[2:4], clips[4:], []]
    for share in shares:
        seen: list[Tensor] = []
        evaluate(generator, share, reduce=collect)
    for share in shares:
        totals = iter(sums)
        result = evaluate(generator, share, reduce=lambda tensor, totals=totals: next(totals))  # type: ignore[misc]
        assert result.metrics == pytest.approx(whole.metrics, rel=1e-12)
        assert result[1:] == whole[1:]


def test_evaluation_leaves_mode_and_random_state(generator: TrainableSNAC, clips: list[Clip]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate(generator, clips[:1])
    level_information(generator, clips[:1])
    sample_pairs(generator, clips[:1])
    assert torch.equal(torch.rand(3), expected)
    assert generator.training
    with pytest.raises(KeyboardInterrupt), evaluation_mode(generator):
        assert not generator.training
        raise KeyboardInterrupt
    assert generator.training
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_scalars_are_named_as_paths(generator: TrainableSNAC, clips: list[Clip]) -> None:
    scalars = evaluate(generator, clips[:1]).scalars()
    assert set(scalars) == {f"validation/{name}" for name in VALIDATION_METRICS} | {
        f"validation/level_{level}/{name}" for level in range(3) for name in ("perplexity", "share_used")
    }
    assert all(math.isfinite(value) for value in scalars.values())


def test_no_clips_give_no_numbers(generator: TrainableSNAC) -> None:
    nothing = evaluate(generator, [])
    assert all(math.isnan(nothing.metrics[name]) for name in VALIDATION_METRICS)
    assert nothing[1:5] == ([0.0] * 3, [0.0] * 3, 0, 0.0) and not any(map(sum, nothing.counts))


# What levels carry


def test_a_level_that_is_not_heard_carries_nothing(generator: TrainableSNAC, clips: list[Clip]) -> None:
    """Level 1's way out is cut; the noise is the same, so that nothing but rounding is left."""
    zero_encoding_biases(generator)
    initialize_codebooks(generator, [clip.audio[None] for clip in clips])
    with torch.no_grad():
        for level, gain in zip(levels(generator), (30, 0, 30), strict=True):
            level.out_proj.parametrizations.weight.original0.mul_(gain)
        levels(generator)[1].out_proj.bias.zero_()
    first, silent, last = level_information(generator, clips)
    assert silent == pytest.approx(0, abs=1e-6)
    assert abs(first) > 1e-5 and abs(last) > 1e-5


def test_a_level_of_one_code_carries_nothing(generator: TrainableSNAC, clips: list[Clip]) -> None:
    with torch.no_grad():
        levels(generator)[0].codebook.weight.copy_(levels(generator)[0].codebook.weight[:1].expand(32, -1))
    assert level_information(generator, clips)[0] == pytest.approx(0, abs=1e-6)


# Samples


def test_samples_are_the_clips_and_their_reconstructions(
    generator: TrainableSNAC, clips: list[Clip], tmp_path: Path
) -> None:
    pairs = sample_pairs(generator, clips[:2])
    assert [pair.name for pair in pairs] == ["clips/0.ogg", "clips/1.ogg"]
    assert all(
        pair.real.shape == pair.fake.shape == clip.audio[0].shape
        for pair, clip in zip(pairs, clips[:2], strict=True)
    )
    write_samples(tmp_path / "samples", pairs, 16000)
    kinds = ("original.wav", "png", "reconstruction.wav")
    names = [f"clips_{i}.{kind}" for i in range(2) for kind in kinds]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
    for pair, stem in zip(pairs, ("clips_0", "clips_1"), strict=True):
        for kind, audio in (("original", pair.real), ("reconstruction", pair.fake)):
            written, rate = soundfile.read(tmp_path / "samples" / f"{stem}.{kind}.wav", dtype="float32")
            assert rate == 16000
            assert (torch.from_numpy(written) - audio.clamp(-1, 1)).abs().max() < 1.01 / 32767


def test_too_loud_audio_is_clipped_and_not_wrapped(tmp_path: Path) -> None:
    loud = torch.linspace(-2, 2, 2000)
    write_samples(tmp_path, [SamplePair("loud", loud, loud)], 16000)
    written, _ = soundfile.read(tmp_path / "loud.original.wav", dtype="float32")
    assert (torch.from_numpy(written).diff() >= 0).all()


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("en/clip-1.flac", "en_clip-1"),
        ("../../etc/passwd", "etc_passwd"),
        ("/absolute/clip.wav", "absolute_clip"),
        ("a b\n?.mp3", "a_b"),
        ("слово.ogg", "слово"),
        ("...", "clip"),
    ],
)
def test_names_of_clips_become_names_of_files(name: str, stem: str) -> None:
    assert safe_stem(name) == stem


def test_pictures_take_short_and_silent_clips() -> None:
    figure = spectrogram_figure(SamplePair("silence", torch.zeros(600), torch.zeros(600)), 16000)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["silence: original", "silence: reconstruction"]


def test_the_table_shows_what_was_measured(generator: TrainableSNAC, clips: list[Clip]) -> None:
    result = evaluate(generator, clips[:2])
    first, last = (
        result.scalars(),
        {**result.scalars(), "validation/mel_distance": 0.25 * result.metrics["mel_distance"]},
    )
    table = results_table({**first, "step": 0}, {**last, "step": 600}, [0.5, 0.125, -0.01])
    assert "step 600" in table
    mel_row = next(line for line in table.splitlines() if "log-mel distance" in line)
    assert mel_row.split()[-1] == "0.25"
    assert f"{result.metrics['mel_distance']:.2f}" in mel_row
    assert all(growth in table for growth in ("+50.0%", "+12.5%", "-1.0%"))
