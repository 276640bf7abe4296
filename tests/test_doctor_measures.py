"""What the doctor measures: true on sound whose answer is known, and plausible on recorded speech."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from torch import Tensor

from snac_accel.dataset.clips import RawClip
from snac_accel.doctor.clip import WindowRule, examine_clip, stretches
from snac_accel.doctor.measures import (
    band_powers,
    content_hash,
    count_clipped_runs,
    dc_offset,
    effective_bandwidth,
    mono_loss_db,
    silence_share,
)

RULE = WindowRule(sampling_rate=16_000, num_samples=8_000, min_clip_seconds=0.2)


def noise(num_samples: int, seed: int = 0) -> Tensor:
    """White noise (T,), 0.1 of full scale."""
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def sine(hertz: float, rate: int, seconds: float = 1.0, amplitude: float = 0.5) -> Tensor:
    """A tone (T,)."""
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * hertz * time)).float()


def low_passed(audio: Tensor, rate: int, hertz: float) -> Tensor:
    """`audio` (T,) with nothing above a frequency."""
    spectrum = torch.fft.rfft(audio)
    spectrum[torch.fft.rfftfreq(len(audio), 1 / rate) > hertz] = 0
    return torch.fft.irfft(spectrum, n=len(audio))


def recorded(folder: Path, number: int) -> list[tuple[Tensor, int]]:
    """The first clips of a folder of speech, mono."""
    clips = [soundfile.read(path, dtype="float32") for path in sorted(folder.glob("*.flac"))[:number]]
    return [(torch.from_numpy(samples), rate) for samples, rate in clips]


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("hertz", [4000.0, 6000.0])
def test_bandwidth_of_filtered_noise(rate: int, hertz: float) -> None:
    """Also where the quantisation to 16 bits fills what was cut, and 60 dB below the rest it is not sound."""
    audio = low_passed(noise(rate), rate, hertz)
    for sound in (audio, (audio * 32768).round() / 32768):
        bandwidth = effective_bandwidth(band_powers(sound, rate))
        assert bandwidth == pytest.approx(hertz, abs=250)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 96_000])
def test_bandwidth_of_white_noise_is_half_the_rate(rate: int) -> None:
    assert effective_bandwidth(band_powers(noise(rate), rate)) == pytest.approx(rate / 2, abs=125)


def test_bandwidth_of_a_cut_above_a_noise_floor() -> None:
    """Sound cut at 4 kHz in hiss only 40 dB below it: the cliff is found, the level alone would see none."""
    audio = low_passed(noise(32_000), 16_000, 4000) + 0.01 * noise(32_000, seed=1)
    assert effective_bandwidth(band_powers(audio, 16_000)) == pytest.approx(4000, abs=500)


def test_bandwidth_of_recorded_speech(demo_folder: Path) -> None:
    """Recorded at 16 kHz it fills the band; the same, upsampled, holds no more; cut to telephone rate, half of it."""
    for audio, rate in recorded(demo_folder / "validation", 6):
        upsampled = torchaudio.functional.resample(audio, rate, 3 * rate, lowpass_filter_width=64)
        telephone = torchaudio.functional.resample(
            torchaudio.functional.resample(audio, rate, 8000), 8000, rate
        )
        assert (effective_bandwidth(band_powers(audio, rate)) or 0) >= 7000
        assert 6500 <= (effective_bandwidth(band_powers(upsampled, 3 * rate)) or 0) <= 8700
        assert 3000 <= (effective_bandwidth(band_powers(telephone, rate)) or 0) <= 5500


def test_spectrum_sums_to_one_and_silence_has_none() -> None:
    powers = band_powers(sine(1000, 16_000), 16_000)
    assert float(powers.sum()) == pytest.approx(1)
    assert powers.argmax() in (7, 8)  # 1000 Hz is where band 7 ends and band 8 begins
    assert effective_bandwidth(band_powers(torch.zeros(16_000), 16_000)) is None
    assert len(band_powers(torch.ones(10), 16_000)) == 64  # shorter than one segment


def test_clipping_is_runs_at_full_scale() -> None:
    loud = sine(440, 16_000, amplitude=4.0)
    clipped = loud.clamp(-1, 1)
    assert count_clipped_runs(clipped[:, None]) == pytest.approx(880, abs=2)  # two for each period
    assert count_clipped_runs(torch.stack([clipped, clipped], 1)) == 2 * count_clipped_runs(clipped[:, None])
    assert count_clipped_runs((clipped * 32767).round()[:, None] / 32768) > 800  # as 16 bits hold it
    assert (
        count_clipped_runs(sine(440, 16_000, amplitude=1.0)[:, None]) == 0
    )  # touches full scale, is not cut
    assert count_clipped_runs(0.5 * clipped[:, None]) == 0


def test_clipping_of_recorded_speech(demo_folder: Path) -> None:
    for audio, _ in recorded(demo_folder / "validation", 6):
        assert count_clipped_runs(audio[:, None]) == 0
        assert count_clipped_runs((20 * audio).clamp(-1, 1)[:, None]) > 10


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_silence_share(share: float) -> None:
    audio = noise(32_000)
    audio[: round(share * 32_000)] = 0
    assert silence_share(audio, 16_000) == pytest.approx(share, abs=0.03)
    assert silence_share(audio + 2.0**-17, 16_000) == pytest.approx(
        share, abs=0.03
    )  # below one step of 16 bits


def test_dc_offset_is_that_of_the_worst_channel() -> None:
    tone = sine(100, 16_000)
    assert dc_offset(tone[:, None]) < 1e-6
    assert dc_offset(torch.stack([tone, tone - 0.125], 1)) == pytest.approx(0.125, abs=1e-6)


def test_loss_of_the_mean_of_channels() -> None:
    left, right = noise(16_000), noise(16_000, seed=1)
    assert mono_loss_db(torch.stack([left, left], 1)) == pytest.approx(0, abs=1e-6)
    assert mono_loss_db(torch.stack([left, right], 1)) == pytest.approx(3, abs=0.2)
    assert mono_loss_db(torch.stack([left, torch.zeros_like(left)], 1)) == pytest.approx(3.01, abs=0.01)
    assert mono_loss_db(torch.stack([left, -left], 1)) == pytest.approx(60)
    assert mono_loss_db(torch.zeros(100, 2)) == 0


def test_hash_sees_the_sound_and_not_the_file(demo_folder: Path, tmp_path: Path) -> None:
    audio, rate = recorded(demo_folder / "validation", 1)[0]
    contents = []
    for name in ("a.flac", "a.wav", "other.wav"):
        soundfile.write(tmp_path / name, (audio if name[0] == "a" else 0.9 * audio).numpy(), rate)
        report = examine_clip(lambda name=name: RawClip(name, str(tmp_path / name), None), "clip", RULE)
        assert report.sound
        contents.append(report.sound.content)
    assert contents[0] == contents[1] != contents[2]
    assert content_hash(audio[:, None]) != content_hash(audio[1:, None])


def test_a_clip_is_measured_as_it_was_made(tmp_path: Path) -> None:
    """Half a second of silence, then a clipped tone in one of two channels."""
    tone = np.concatenate([np.zeros(8000), np.clip(2 * sine(440, 16_000).numpy(), -0.5, 0.5)])
    frames = np.stack([tone, 2 * tone], 1)
    soundfile.write(tmp_path / "clip.wav", frames, 16_000)
    report = examine_clip(lambda: RawClip("clip.wav", str(tmp_path / "clip.wav"), None), "?", RULE)
    assert report.name == "clip.wav" and report.problem is None and report.sound is not None
    sound = report.sound
    assert (sound.seconds, sound.sampling_rate, sound.num_channels) == (1.5, 16_000, 2)
    assert sound.encoding == "WAV PCM_16"
    assert sound.silence_share == pytest.approx(1 / 3, abs=0.01)
    assert sound.clipped_runs > 800
    assert sound.is_silent == [True, False, False]
    assert sound.loudness[0] == -math.inf and all(-20 < level < 0 for level in sound.loudness[1:])


def test_a_long_clip_is_read_in_stretches() -> None:
    assert list(stretches(100, 10, 100)) == [(0, 100)]
    assert list(stretches(1000, 10, 30)) == [(0, 10), (495, 10), (990, 10)]  # beginning, middle and end
    assert list(stretches(1000, 50, 30)) == [(0, 30)]


@pytest.mark.parametrize("samples", [1, 7, 300])
def test_the_shortest_clips(samples: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", noise(samples).numpy(), 16_000)
    report = examine_clip(lambda: RawClip("clip.wav", str(tmp_path / "clip.wav"), None), "?", RULE)
    assert report.sound is not None and report.sound.seconds == samples / 16_000
