"""Which window of a clip is taken and what is done to it: keyed, bounded, the same in any batch and layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from torch import Tensor

from snac_accel.audio import AudioError, AudioReader, Change, apply_gain, augment, loudness, rotate_phase
from snac_accel.config import DataSettings
from snac_accel.dataset import AudioDataset, make_loader
from snac_accel.dataset.clips import RawClip
from snac_accel.dataset.order import SampleKey, draw_sample, draw_windows
from snac_accel.dataset.samples import Failure
from snac_accel.dataset.windows import WindowReader
from snac_accel.errors import DataError

RATE, WINDOW = 24_000, 18_432
KEYS = [SampleKey(epoch, position, 0) for epoch in range(2) for position in range(20)]


@pytest.fixture(scope="module")
def clip(demo_folder: Path) -> RawClip:
    """Real speech, 16 kHz, longer than a few windows."""
    path = demo_folder / "validation" / "en-0113.flac"  # 6.6 s, nowhere silent
    return RawClip(path.name, str(path), None)


@pytest.fixture(scope="module")
def windows(demo_folder: Path) -> Tensor:
    """Windows of twelve speakers (12, 1, T) at 24 kHz."""
    rows = []
    for path in sorted((demo_folder / "validation").glob("*.flac"))[:12]:
        with AudioReader(path, RATE) as reader:
            rows.append(reader.read(reader.num_samples - WINDOW, WINDOW))
    return torch.stack(rows).unsqueeze(1)


@pytest.fixture
def half_silent(clip: RawClip, tmp_path: Path) -> RawClip:
    """Ten seconds, of which the first seven hold nothing."""
    speech, rate = soundfile.read(str(clip.source), dtype="float32")
    speech = np.resize(speech, 3 * rate)
    soundfile.write(tmp_path / "half.wav", np.concatenate([np.zeros(7 * rate, "float32"), speech]), rate)
    return RawClip("half.wav", str(tmp_path / "half.wav"), None)


def read(reader: WindowReader, clip: RawClip, key: SampleKey, attempt: int = 0) -> Tensor:
    return reader.read(clip, draw_sample(reader.seed, key, attempt), key, attempt)[0]


# --- choice of window


def test_the_defaults_are_those_of_the_settings_and_choose_uniformly(clip: RawClip) -> None:
    reader, settings = WindowReader(RATE, WINDOW, 7, (-6.0, 6.0), 0.1, True), DataSettings()
    for name in ("channels", "min_loudness", "window_tries", "loudness", "random_polarity", "random_phase"):
        assert getattr(reader, name) == getattr(settings, name)
    with AudioReader(str(clip.source), RATE) as file:
        num_starts = file.num_samples - WINDOW + 1
        for key in KEYS[:5]:
            draws = draw_sample(7, key, 0)
            expected = apply_gain(file.read(int(draws.window * num_starts), WINDOW), -6.0 + 12.0 * draws.gain)
            assert torch.equal(read(reader, clip, key), expected.unsqueeze(0))


def test_quiet_windows_are_passed_over(half_silent: RawClip) -> None:
    uniform = WindowReader(RATE, WINDOW)
    choosing = replace(uniform, min_loudness=-40.0, window_tries=30)
    levels = [loudness(read(uniform, half_silent, key), RATE) for key in KEYS]
    assert sum(level < -40 for level in levels) > 0.4 * len(KEYS)
    for key, level in zip(KEYS, levels, strict=True):
        chosen = read(choosing, half_silent, key)
        assert loudness(chosen, RATE) >= -40
        assert torch.equal(chosen, read(choosing, half_silent, key))  # keyed
        if level >= -40:  # loud enough at once: the window of the uniform choice
            assert torch.equal(chosen, read(uniform, half_silent, key))
    key = next(key for key, level in zip(KEYS, levels, strict=True) if level < -40)
    seeds = [read(replace(choosing, seed=seed), half_silent, key) for seed in range(3)]
    assert not torch.equal(seeds[0], seeds[1])
    assert not torch.equal(read(choosing, half_silent, key, 1), seeds[0])  # another attempt, other windows


def test_tries_are_bounded_and_the_loudest_is_taken(
    half_silent: RawClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Tensor] = []
    original = AudioReader.read

    def counted(self: AudioReader, *arguments: int) -> Tensor:
        tried.append(original(self, *arguments))
        return tried[-1]

    monkeypatch.setattr(AudioReader, "read", counted)
    for tries in (1, 5):
        reader = WindowReader(RATE, WINDOW, min_loudness=0.0, window_tries=tries)  # nothing is that loud
        for key in KEYS[:10]:
            tried.clear()
            chosen = read(reader, half_silent, key)
            assert len(tried) == tries
            levels = [loudness(audio.unsqueeze(0), RATE) for audio in tried]
            assert loudness(chosen, RATE) == max(levels)
        starts = [draw_sample(0, key, 0).window, *draw_windows(0, key, 0, tries - 1)]
        assert len(set(starts)) == tries


def test_a_clip_with_one_window_is_read_once(clip: RawClip, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    original = AudioReader.read
    monkeypatch.setattr(AudioReader, "read", lambda *given: calls.append(given) or original(*given))
    for long, settings in ((10**6, {}), (WINDOW, {"random_window": False})):
        reader = WindowReader(RATE, long, min_loudness=0.0, **settings)
        audio, num_padding = reader.read(clip, draw_sample(0, KEYS[0], 0), KEYS[0])
        assert audio.shape == (1, long)
        assert bool(num_padding) == (long == 10**6)
        assert audio[0, long - num_padding :].abs().sum() == 0
    assert len(calls) == 2


def test_stereo_by_the_stated_policy(clip: RawClip, tmp_path: Path) -> None:
    speech = soundfile.read(str(clip.source), dtype="float32")[0][:20_000]
    soundfile.write(tmp_path / "stereo.wav", np.stack([speech, -0.25 * speech[::-1]], axis=1), 16_000)
    stereo = RawClip("stereo", (tmp_path / "stereo.wav").read_bytes(), None)
    with AudioReader(stereo.source, RATE) as file:
        start = {key: int(draw_sample(0, key, 0).window * (file.num_samples - 8000 + 1)) for key in KEYS}
        mean, left, right = ({key: file.read(start[key], 8000, c) for key in KEYS} for c in (None, 0, 1))
        with pytest.raises(ValueError, match=r"channel must lie in 0\.\.1, not 2"):
            file.read(0, 8000, 2)
    drawn = []
    for key in KEYS:
        for policy, expected in (("mean", mean), ("left", left)):
            assert torch.equal(read(WindowReader(RATE, 8000, channels=policy), stereo, key)[0], expected[key])
        window = read(WindowReader(RATE, 8000, channels="random"), stereo, key)[0]
        drawn.append(torch.equal(window, left[key]))
        assert drawn[-1] or torch.equal(window, right[key])
    assert 0.2 < sum(drawn) / len(drawn) < 0.8
    torch.testing.assert_close(mean[KEYS[0]], (left[KEYS[0]] + right[KEYS[0]]) / 2, atol=1e-6, rtol=0)


def test_a_clip_that_cannot_be_had_is_replaced(clip: RawClip) -> None:
    reader = WindowReader(RATE, WINDOW)

    def candidate(attempt: int, draws: object) -> RawClip:
        if attempt == 0:
            raise AudioError("cannot be fetched: gone")
        return clip

    sample = reader.sample(KEYS[3], candidate)
    assert torch.equal(sample.audio, read(reader, clip, KEYS[3], attempt=1))
    assert sample.failures == [Failure("clip at position 3 of epoch 0", "cannot be fetched: gone", "bad")]


# --- opened files


class _Slow:
    """An opened file that gives 1000 bytes at a time, and may fail after some of them."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.content, self.place, self.error, self.num_reads, self.closed = content, 0, error, 0, False

    def read(self, count: int = -1) -> bytes:
        self.num_reads += 1
        if self.error is not None and self.num_reads > 12:
            raise self.error
        part = self.content[self.place : self.place + min(count, 1000)]
        self.place += len(part)
        return part

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, len(self.content))[whence]
        return self.place

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_opened_files_are_read_as_paths_are(kind: str, clip: RawClip, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{kind}"
    soundfile.write(path, soundfile.read(str(clip.source))[0], 16_000)
    slow = _Slow(path.read_bytes())
    with path.open("rb") as opened:
        for source in (path.read_bytes(), opened, slow):
            with AudioReader(path, RATE) as by_path, AudioReader(source, RATE) as reader:
                for start in (0, 5000, reader.num_samples - 3000):
                    assert torch.equal(reader.read(start, 4000), by_path.read(start, 4000))
        assert opened.closed
    assert slow.closed


def test_errors_of_an_opened_file_are_the_reason(clip: RawClip, capfd: pytest.CaptureFixture[str]) -> None:
    content = Path(str(clip.source)).read_bytes()
    for error, kind, reason in (
        (OSError(5, "connection\nlost"), AudioError, r"^cannot be read: \[Errno 5\] connection lost$"),
        (DataError("the source is gone"), DataError, "^the source is gone$"),
    ):
        slow = _Slow(content, error)
        with pytest.raises(kind, match=reason), AudioReader(slow, RATE) as reader:
            reader.read(reader.num_samples - WINDOW, WINDOW)
        assert slow.closed
    assert capfd.readouterr().err == ""  # libsndfile's callbacks would print a traceback


# --- augmentation


def changes(count: int) -> Iterator[Change]:
    for row in range(count):
        yield Change(row / 13, row % 3 == 0, -20.0 if row % 2 else None, 2.0 * row - 12.0)


def test_a_row_is_the_same_in_any_batch_and_with_any_number_of_threads(windows: Tensor) -> None:
    rows, threads, results = list(changes(12)), torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            for size in (1, 4, 12):
                parts = [augment(windows[i : i + size], rows[i : i + size], RATE) for i in range(0, 12, size)]
                results.append(torch.cat(parts))
    finally:
        torch.set_num_threads(threads)
    for result in results:
        assert torch.equal(result, results[0])
    turned = augment(windows.flip(0), rows[::-1], RATE)
    assert torch.equal(turned.flip(0), results[0])
    assert results[0].abs().max() <= 1
    with pytest.raises(ValueError, match="12 windows need as many changes, not 3"):
        augment(windows, rows[:3], RATE)


def test_no_change_changes_nothing(windows: Tensor) -> None:
    assert torch.equal(augment(windows, [Change()] * 12, RATE), windows)
    for turn, flip in ((0.5, False), (0.0, True), (1.0, True), (2.5, False)):  # half a turn is upside down
        assert torch.equal(augment(windows, [Change(turn, flip)] * 12, RATE), -windows)
    assert torch.equal(rotate_phase(windows, 3.0), windows)


@pytest.mark.parametrize("num_samples", [WINDOW, 17_777])
@pytest.mark.parametrize("turn", [0.1, 0.25, 0.4, 0.77])
def test_phase_rotation_keeps_energy_and_spectrum(turn: float, num_samples: int, windows: Tensor) -> None:
    audio = windows[..., :num_samples].double()
    audio = audio - audio.mean(-1, keepdim=True)  # what has no frequency has no phase
    turned = rotate_phase(audio, turn)
    before, after = torch.fft.rfft(audio), torch.fft.rfft(turned)
    torch.testing.assert_close(after.abs()[..., 1:-1], before.abs()[..., 1:-1])
    angle = (after / before)[..., 1:-1].angle()
    expected = torch.full_like(angle, math.remainder(2 * math.pi * turn, 2 * math.pi))
    torch.testing.assert_close(angle, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.square().sum(-1), audio.square().sum(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        rotate_phase(turned, 1 - turn), audio, atol=2e-5, rtol=0
    )  # half the rate is lost
    time = torch.arange(2000, dtype=torch.float64) / 2000
    cosine = torch.cos(2 * math.pi * 40 * time)
    expected = torch.cos(2 * math.pi * (40 * time + turn))
    torch.testing.assert_close(rotate_phase(cosine, turn), expected, atol=1e-9, rtol=0)


def test_loudness_is_that_of_the_recommendation(windows: Tensor) -> None:
    time = torch.arange(RATE) / RATE
    sine = torch.sin(2 * math.pi * 997 * time)
    assert loudness(sine[None], RATE) == pytest.approx(-3.01, abs=0.1)  # of BS.1770
    level = loudness(windows[0], RATE)
    assert loudness(windows[0] / 10, RATE) == pytest.approx(level - 20, abs=1e-3)
    assert loudness(torch.zeros(1, WINDOW), RATE) == -math.inf
    assert loudness(windows[0] * 1e-6, RATE) == -math.inf  # below the gate of -70
    for num_samples in (1, 100, 4000, 9599):  # shorter than a block of 0.4 s
        part = windows[0][:, 6000 : 6000 + num_samples]
        assert math.isfinite(loudness(part, RATE)) or num_samples < 100
        block = part.repeat(1, -(-9600 // num_samples))[:, :9600]
        assert loudness(part, RATE) == loudness(block, RATE)


def test_loudness_is_reached_unless_the_peak_forbids_it(windows: Tensor) -> None:
    quiet = augment(windows, [Change(loudness=-35.0)] * 12, RATE)
    for row in quiet:
        assert loudness(row, RATE) == pytest.approx(-35.0, abs=0.01)
    louder = augment(windows, [Change(loudness=-35.0, gain_db=3.0)] * 12, RATE)
    torch.testing.assert_close(louder, quiet * 10**0.15, rtol=1e-4, atol=1e-6)
    loud = augment(windows, [Change(loudness=0.0)] * 12, RATE)
    torch.testing.assert_close(loud.abs().amax(-1), torch.ones(12, 1))
    silence = torch.zeros(1, 1, WINDOW)
    assert torch.equal(augment(silence, [Change(0.3, True, -20.0, 6.0)], RATE), silence)


def test_the_drawn_changes_are_made(clip: RawClip) -> None:
    plain = WindowReader(RATE, WINDOW, seed=3)
    for settings in (
        {"random_polarity": True},
        {"random_phase": True},
        {"loudness": -30.0},
        {"random_polarity": True, "random_phase": True, "loudness": -30.0, "gain_db": (-12.0, 0.0)},
    ):
        reader = replace(plain, **settings)
        for key in KEYS[:8]:
            draws = draw_sample(3, key, 0)
            change = Change(
                turn=draws.phase if reader.random_phase else 0.0,
                flip=reader.random_polarity and draws.polarity < 0.5,
                loudness=reader.loudness,
                gain_db=reader.gain_db[0] * (1 - draws.gain),
            )
            audio = read(plain, clip, key).unsqueeze(0)
            torch.testing.assert_close(read(reader, clip, key).unsqueeze(0), augment(audio, [change], RATE))
    flips = [read(replace(plain, random_polarity=True), clip, key) for key in KEYS]
    signs = [torch.equal(flip, read(plain, clip, key)) for flip, key in zip(flips, KEYS, strict=True)]
    assert 0.2 < sum(signs) / len(signs) < 0.8


def test_resampled_windows_of_one_channel_equal_the_whole(clip: RawClip, tmp_path: Path) -> None:
    speech = soundfile.read(str(clip.source), dtype="float32")[0]
    soundfile.write(tmp_path / "s.wav", np.stack([speech, 0.5 * speech], axis=1), 44_100, subtype="FLOAT")
    whole = torchaudio.transforms.Resample(44_100, RATE)(torch.from_numpy(0.5 * speech))
    with AudioReader(tmp_path / "s.wav", RATE) as reader:
        torch.testing.assert_close(reader.read(1234, 8000, 1), whole[1234:9234], atol=1e-6, rtol=0)


def test_every_option_is_the_same_in_every_layout(demo_folder: Path) -> None:
    """One process, three, with and without workers: the same windows to the last bit."""
    dataset = AudioDataset(
        demo_folder, RATE, segment_samples=WINDOW, split="validation", seed=5, gain_db=(-6.0, 6.0),
        channels="random", min_loudness=-20.0, window_tries=3, loudness=-23.0, random_polarity=True, random_phase=True,
    )  # fmt: skip
    streams = []
    for num_processes, num_workers in ((1, 0), (1, 2), (3, 0), (3, 1)):
        layout = {
            "num_processes": num_processes,
            "num_workers": num_workers,
            "num_steps": 2,
            "pin_memory": False,
        }
        ranks = [
            [batch.audio for batch in make_loader(dataset, 12 // num_processes, rank=rank, **layout)]
            for rank in range(num_processes)
        ]
        streams.append(torch.cat([torch.cat(step) for step in zip(*ranks, strict=True)]))
        assert torch.equal(streams[-1], streams[0])
    assert streams[0].shape == (24, 1, WINDOW)
