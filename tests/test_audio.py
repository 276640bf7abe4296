"""Signal functions: windows against the whole clip, spectra against their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from snac_accel.audio import (
    AudioError,
    AudioReader,
    apply_gain,
    as_batch,
    mel_filter_bank,
    mel_spectrogram,
    probe,
    stft,
    stft_magnitude,
)

FORMATS = {"wav": 0.0, "flac": 0.0, "ogg": 0.0, "mp3": 1e-6, "aiff": 0.0, "au": 0.0, "caf": 0.0, "w64": 0.0}
# largest difference allowed
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def speech(demo_folder: Path) -> np.ndarray:
    """Three seconds and a bit of real speech, 16 kHz."""
    clips = sorted((demo_folder / "validation").glob("*.flac"))
    return np.concatenate([soundfile.read(clip, dtype="float32")[0] for clip in clips[:3]])[:50_001]


@pytest.mark.parametrize("kind", FORMATS)
def test_window_equals_slice_of_whole_decode(kind: str, speech: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{kind}"
    soundfile.write(path, speech, 16_000)
    whole = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    for start, count in [(0, 4000), (12_345, 12_800), (len(whole) - 777, 5000), (1, 1)]:
        for source in (path, path.read_bytes()):
            with AudioReader(source, 16_000) as reader:
                window = reader.read(start, count)
            expected = whole[start : start + count]
            assert window.shape == expected.shape
            assert (window - expected).abs().max() <= FORMATS[kind]
    assert probe(path) == (len(whole), 16_000, 1)


@pytest.mark.parametrize(
    ("from_rate", "to_rate"),
    [
        (44_100, 24_000),
        (48_000, 24_000),
        (22_050, 24_000),
        (16_000, 24_000),
        (24_000, 44_100),
        (11_025, 32_000),
    ],
)
def test_windowed_resampling_equals_whole_clip(
    from_rate: int, to_rate: int, speech: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, speech, from_rate, subtype="FLOAT")
    whole = torchaudio.transforms.Resample(from_rate, to_rate)(torch.from_numpy(speech))
    with AudioReader(path, to_rate) as reader:
        assert reader.num_samples == len(whole)
        for start in (0, 1, 7, 1000, 12_345, len(whole) // 2, len(whole) - 600):
            torch.testing.assert_close(
                reader.read(start, 6000), whole[start : start + 6000], atol=1e-6, rtol=0
            )
        torch.testing.assert_close(reader.read(), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("container", "settings", "allowed"),
    [
        (
            "MP3",
            {"bitrate_mode": "CONSTANT", "compression_level": 0.99},
            1e-6,
        ),  # 32 kbit/s: data 9 frames back
        ("MP3", {"bitrate_mode": "VARIABLE", "compression_level": 0.99}, 1e-6),
        ("MP3", {"bitrate_mode": "VARIABLE", "compression_level": 0.5}, 1e-6),
        ("FLAC", {"compression_level": 1.0}, 0.0),
        ("OGG", {"subtype": "VORBIS", "compression_level": 1.0}, 0.0),
        ("OGG", {"subtype": "VORBIS", "compression_level": 0.1}, 0.0),
        ("OGG", {"subtype": "OPUS"}, 1e-6),
        ("OGG", {"subtype": "OPUS", "compression_level": 0.95}, 1e-2),  # 18 kbit/s: its mode for speech
    ],
)
def test_windows_of_one_reader_in_any_order(
    container: str, settings: dict[str, Any], allowed: float, demo_folder: Path, tmp_path: Path
) -> None:
    clips = sorted((demo_folder / "validation").glob("*.flac"))[:8]
    speech = np.concatenate([soundfile.read(clip, dtype="float32")[0] for clip in clips])
    places = np.random.default_rng(0).integers(len(speech) - 9000, size=40)
    for rate in (16_000, 48_000):
        path = tmp_path / f"{rate}.audio"
        soundfile.write(path, speech, rate, format=container, **settings)
        whole = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        tolerance = 1e-2 if settings.get("subtype") == "OPUS" and rate < 48_000 else allowed
        with AudioReader(path, rate) as reader:
            for start in [*places.tolist(), len(whole) - 9000, 0]:
                difference = reader.read(start, 9000) - whole[start : start + 9000]
                assert difference.abs().max() <= tolerance


def test_windows_in_the_last_page_of_ogg_files(demo_folder: Path) -> None:
    for path in sorted((demo_folder / "train").glob("*.ogg"))[:6]:
        whole = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        for before_end in (1, 90, 250, 2000, 5500, 12_000):
            start = max(0, len(whole) - before_end)
            with AudioReader(path, 16_000) as reader:
                assert torch.equal(reader.read(start, 3000), whole[start : start + 3000])


def test_seeking_in_mp3_is_silent(
    speech: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "clip.mp3", speech, 16_000)
    with AudioReader(tmp_path / "clip.mp3", 24_000) as reader:
        for start in range(1, reader.num_samples - 2000, 2000):
            reader.read(start, 2000)
    assert capfd.readouterr().err == ""


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([np.full(8000, 0.5), np.full(8000, -0.25)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 8000, subtype="FLOAT")
    with AudioReader(tmp_path / "stereo.wav", 8000) as reader:
        assert torch.allclose(reader.read(10, 5), torch.full((5,), 0.125))


def _write(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def _broken(kind: str, folder: Path, speech: np.ndarray) -> Path:
    """Write a broken file of the named kind."""
    path = folder / "clip.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        soundfile.write(folder / "clip.flac", speech, 16_000)
        path = folder / "clip.flac"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    elif kind in ("zero bytes", "html", "pointer"):
        page = b"<html><body>404 Not Found</body></html>"
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        path.write_bytes({"zero bytes": b"", "html": page, "pointer": pointer}[kind])
    elif kind in ("rate", "channels", "no samples"):
        shape = {"rate": (4000,), "channels": (400, 12), "no samples": (0,)}[kind]
        _write(path, np.zeros(shape, dtype="float32"), 800_000 if kind == "rate" else 16_000)
    elif kind != "missing":
        value = {"nan": math.nan, "infinity": math.inf, "level": 1e30}[kind]
        _write(path, np.full(16_000, value, dtype="float32"))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "cannot be opened: No such file"),
        ("folder", "not a regular file"),
        ("zero bytes", "is empty"),
        ("html", "cannot be opened"),
        ("pointer", "cannot be opened"),
        ("truncated", "cannot be decoded|ends after"),
        ("nan", "not finite"),
        ("infinity", "not finite"),
        ("level", "has a level of 1e"),
        ("rate", "sampling rate of 800000 Hz"),
        ("channels", "has 12 channels"),
        ("no samples", "holds no samples"),
    ],
)
def test_broken_clips_give_a_reason(kind: str, reason: str, speech: np.ndarray, tmp_path: Path) -> None:
    path = _broken(kind, tmp_path, speech)
    with pytest.raises(AudioError, match=reason) as caught, AudioReader(path, 24_000) as reader:
        reader.read(reader.num_samples - 2000, 2000)
    assert "\n" not in str(caught.value)


def test_rates_without_a_small_ratio_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "clip.wav", np.zeros(1000, dtype="float32"), 22_051)
    with pytest.raises(AudioError, match="no small ratio to 24000 Hz"):
        AudioReader(path, 24_000)


def test_gain_is_exact_until_the_peak_reaches_one() -> None:
    audio = torch.tensor([0.1, -0.4, 0.2])
    assert torch.allclose(apply_gain(audio, 6.0), audio * 10**0.3)
    assert apply_gain(audio, 20.0).abs().max() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(apply_gain(audio), audio)  # quiet audio is not raised
    loud = apply_gain(torch.tensor([1.7, -0.5]))
    assert loud.abs().max() <= 1.0
    assert torch.allclose(loud, torch.tensor([1.0, -0.5 / 1.7]))


def test_as_batch_names_the_shape() -> None:
    assert as_batch(torch.zeros(2, 5)).shape == (2, 1, 5)
    assert as_batch(torch.zeros(2, 1, 5)).shape == (2, 1, 5)
    for shape in [(5,), (2, 2, 5), (1, 1, 1, 5)]:
        with pytest.raises(ValueError, match=str(shape)[1:-1].replace("(", "").split(",")[0]):
            as_batch(torch.zeros(shape))


def test_stft_is_the_definition() -> None:
    audio = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = stft(audio, 256, 64, 200)
    assert spectrum.shape == (2, 129, 3000 // 64 + 1)
    frame = 20  # around sample 20 * 64; the window of 200 samples lies in the middle of its 256
    window = torch.zeros(256, dtype=torch.float64)
    window[28:228] = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(200, dtype=torch.float64) / 200)
    expected = torch.fft.rfft(audio[:, frame * 64 - 128 : frame * 64 + 128] * window)
    assert torch.allclose(spectrum[:, :, frame], expected)
    assert torch.allclose(stft_magnitude(audio.unsqueeze(1), 256, 64, 200), spectrum.abs())


def test_stft_needs_enough_audio() -> None:
    with pytest.raises(ValueError, match="needs more than 1024 samples, not 1000"):
        stft(torch.zeros(1, 1000), 2048, 512)


def _slaney_filters(rate: int, fft_size: int, num_mels: int, f_max: float) -> np.ndarray:
    """The mel filter bank of librosa, written from its definition: (F, num_mels)."""

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    top = 15 + 27 * math.log(f_max / 1000) / math.log(6.4)
    edges = to_hz(np.linspace(0, top, num_mels + 2))
    bins = np.linspace(0, rate / 2, fft_size // 2 + 1)
    rising = (bins[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins[:, None]) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


@pytest.mark.parametrize(
    ("rate", "fft_size", "num_mels"), [(24_000, 2048, 80), (44_100, 512, 40), (24_000, 2048, 320)]
)
def test_mel_filters_are_those_of_librosa(rate: int, fft_size: int, num_mels: int) -> None:
    filters = mel_filter_bank(rate, fft_size, num_mels, CPU)
    assert filters.dtype == torch.float32
    np.testing.assert_allclose(
        filters.numpy(), _slaney_filters(rate, fft_size, num_mels, rate / 2), atol=1e-6
    )
    assert mel_filter_bank(rate, fft_size, num_mels, CPU) is filters


def test_mel_spectrogram_is_float32_and_usable_after_inference_mode() -> None:
    audio = torch.randn(1, 1, 4000, requires_grad=True)
    with torch.inference_mode():
        mel_spectrogram(audio.detach(), 24_000, 400, 100, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel = mel_spectrogram(audio.bfloat16(), 24_000, 400, 100, 20)
    assert mel.dtype == torch.float32
    assert mel.shape == (1, 20, 41)
    mel_spectrogram(audio, 24_000, 400, 100, 20, power=2.0).sum().backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()
