"""`snac-accel doctor`: it finds what was put into the data, and nothing that was not; broken files never end it."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
import torch

from snac_accel.cli.doctor import PICTURE_FILE, TABLE_FILE, doctor
from snac_accel.config import TrainingConfig, load_config
from snac_accel.dataset import AudioDataset, Mixture
from snac_accel.doctor import Diagnosis, examine, quick_check, text_report
from snac_accel.doctor.clip import ClipReport, Sound, WindowRule
from snac_accel.doctor.findings import lower_bound
from snac_accel.doctor.sampling import Stock
from snac_accel.doctor.spread import quantiles
from snac_accel.doctor.summary import Examined, summarize, window_fates
from snac_accel.errors import ConfigError, DataError
from snac_accel.train import setup_dataset

RATE = 16_000
MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(demo_folder: Path, tmp_path: Path) -> MakeFolder:
    """A folder with the first clips of real speech, and wav files made of the arrays given by name."""

    def make(num_clips: int = 12, name: str = "clips", **more: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for clip in sorted((demo_folder / "validation").glob("*.flac"))[:num_clips]:
            shutil.copy(clip, folder)
        for stem, samples in more.items():
            soundfile.write(folder / f"{stem}.wav", samples, RATE)
        return folder

    return make


def config_of(folder: Path | str, **sections: Any) -> TrainingConfig:
    """A short run of the tiny model on a folder."""
    settings: dict[str, Any] = {
        "data": {"dataset_path": str(folder)},
        "training": {"num_iterations": 10, "batch_size": 2},
        "validation": {"enabled": False},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return load_config("tiny", None, settings)


def diagnose(config: TrainingConfig, **options: Any) -> Diagnosis:
    return examine(*setup_dataset(config), config, **options)


def codes(diagnosis: Diagnosis, *severities: str) -> set[str]:
    return {finding.code for finding in diagnosis.findings if finding.severity in severities}


def speech(demo_folder: Path, number: int = 20) -> np.ndarray[Any, Any]:
    """A clip of real speech that is not among the first."""
    return soundfile.read(sorted((demo_folder / "validation").glob("*.flac"))[number], dtype="float32")[0]


def sound_of(seconds: float = 1.0, **changes: Any) -> Sound:
    """A faultless clip."""
    values: dict[str, Any] = {
        "seconds": seconds, "sampling_rate": RATE, "num_channels": 1, "encoding": "WAV PCM_16", "silence_share": 0.0,
        "clipped_runs": 0, "dc_offset": 0.0, "mono_loss_db": 0.0, "loudness": [-20.0], "is_silent": [False],
        "powers": torch.ones(64) / 64, "bandwidth": 8000.0, "content": f"{seconds}",
    }  # fmt: skip
    return Sound(**{**values, **changes})


def test_recorded_speech_is_healthy(demo_folder: Path) -> None:
    config = load_config("demo")
    diagnosis = diagnose(config)
    assert not codes(diagnosis, "error", "warning")
    together = diagnosis.together
    true_hours = sum(soundfile.info(path).duration for path in (demo_folder / "train").glob("*.ogg")) / 3600
    assert together.hours == pytest.approx(true_hours, rel=1e-6) and together.hours_error == 0
    assert together.num_clips == together.num_read == len(list((demo_folder / "train").glob("*.ogg")))
    assert together.sampling_rates == {"16000": 1.0} and together.channels == {"1": 1.0}
    assert together.windows["good"] > 0.9 and sum(together.windows.values()) == pytest.approx(1)
    assert together.loudness is not None and -30 < together.loudness.median < -10
    assert diagnosis.plan.steps_per_epoch == pytest.approx(190 / 8)
    assert diagnosis.exit_code == 0


def test_every_fault_is_found(make_folder: MakeFolder, demo_folder: Path) -> None:
    """One clip of each kind among twelve good ones."""
    voice = speech(demo_folder)
    folder = make_folder(
        clipped=np.clip(20 * voice, -1, 1),
        dc=0.5 * voice + 0.1,
        cancelling=np.stack([voice, -voice], 1),
        silent=np.zeros(RATE),
        repeated=soundfile.read(sorted((demo_folder / "validation").glob("*.flac"))[0])[0],
        short=voice[:1000],
        padded=voice[RATE : RATE + 4000],
    )
    source = diagnose(config_of(folder)).sources[0]
    assert source.num_duplicates == 1 and source.num_bad == 0
    assert source.clipped_share == source.cancelled_share == pytest.approx(1 / 18)  # not of the short one
    assert source.dc_share == pytest.approx(2 / 18)  # what is clipped is no longer symmetric
    assert source.windows["short"] == source.windows["padded"] == pytest.approx(1 / 19)
    assert source.windows["silent"] == pytest.approx(2 / 19, abs=0.01)  # silence, and what cancels
    found = codes(diagnose(config_of(folder)), "warning")
    assert found >= {"clipping", "dc_offset", "channels_cancel", "duplicates", "short_clips"}
    left = diagnose(config_of(folder, data={"channels": "left"}))
    assert "channels_cancel" not in codes(left, "warning", "note")
    assert left.sources[0].windows["silent"] == pytest.approx(1 / 19, abs=0.01)


def test_low_rates_and_upsampled_speech(make_folder: MakeFolder, demo_folder: Path, tmp_path: Path) -> None:
    """16 kHz is low for the 24 kHz model; the same written at 24 kHz is upsampled; the 16 kHz model has no complaint."""
    import torchaudio

    folder = make_folder(num_clips=6)
    (tmp_path / "upsampled").mkdir()
    for path in folder.glob("*.flac"):
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        higher = torchaudio.functional.resample(samples, RATE, 24_000).clamp(-1, 1)
        soundfile.write(tmp_path / "upsampled" / path.name, higher.numpy(), 24_000)
    settings = {"validation": {"enabled": False}, "training": {"num_iterations": 10, "batch_size": 2}}
    for name, expected in (("clips", "low_rate"), ("upsampled", "narrow_band")):
        config = load_config("24khz", None, {"data": {"dataset_path": str(tmp_path / name)}, **settings})
        assert codes(diagnose(config), "warning") & {"low_rate", "narrow_band"} == {expected}
        assert not codes(diagnose(config_of(tmp_path / name)), "warning", "note") & {
            "low_rate",
            "narrow_band",
        }


def test_broken_files_are_findings_with_reasons(make_folder: MakeFolder) -> None:
    folder = make_folder()
    whole = sorted(folder.glob("*.flac"))[0].read_bytes()
    (folder / "page.wav").write_text("<html>404</html>")
    (folder / "empty.wav").touch()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "huge.wav", np.full(RATE, 1e30), RATE, subtype="FLOAT")
    os.mkfifo(folder / "pipe.wav")
    (folder / "link.wav").symlink_to(folder / "nowhere")
    diagnosis = diagnose(config_of(folder))
    source = diagnosis.sources[0]
    names = {problem.example.partition(":")[0] for problem in source.problems}
    assert names == {"page.wav", "empty.wav", "cut.flac", "nan.wav", "huge.wav", "pipe.wav", "link.wav"}
    assert source.num_bad == 7 and source.windows["bad"] == pytest.approx(7 / 19)
    assert "too_many_bad" in codes(diagnosis, "error") and diagnosis.exit_code == 1
    assert "1 more clips" not in text_report(
        diagnosis
    ) and "holds samples that are not finite" in text_report(diagnosis)
    allowed = diagnose(config_of(folder, data={"max_bad_fraction": 0.5}))
    assert "bad_clips" in codes(allowed, "warning") and allowed.exit_code == 0


def test_nothing_usable_is_an_error(make_folder: MakeFolder) -> None:
    folder = make_folder(num_clips=0, one=np.zeros(100), two=np.zeros(200))
    diagnosis = diagnose(config_of(folder))
    assert codes(diagnosis, "error") == {"nothing_usable"}
    assert "nothing_usable" in {finding.code for finding in quick_check(*_training(config_of(folder)))}


def _training(config: TrainingConfig) -> tuple[Mixture, TrainingConfig]:
    return setup_dataset(config)[0], config


def test_a_sample_estimates_the_hours(demo_folder: Path) -> None:
    config = load_config("demo")
    whole, part = diagnose(config, count=None).together, diagnose(config, count=60).together
    assert whole.hours and part.hours and not part.is_complete and part.num_read == 60
    assert abs(part.hours - whole.hours) < 1.5 * part.hours_error
    again = diagnose(config, count=60).together
    assert again.hours == part.hours and again.windows == part.windows  # keyed: the same clips


def test_mixture_weighs_its_sources(make_folder: MakeFolder) -> None:
    folders = [
        make_folder(num_clips=8, name="first"),
        make_folder(num_clips=0, name="second", silent=np.zeros(RATE), still=np.zeros(2 * RATE)),
    ]
    sources = [
        {"dataset_path": str(folder), "weight": weight}
        for folder, weight in zip(folders, (3, 1), strict=True)
    ]
    diagnosis = diagnose(config_of("unused", data={"sources": sources, "min_loudness": -60}), num_processes=5)
    assert [summary.name for summary in diagnosis.sources] == ["first", "second"]
    assert diagnosis.sources[1].windows["silent"] == pytest.approx(1)
    assert diagnosis.together.windows["silent"] == pytest.approx(0.25)
    assert diagnosis.together.num_clips == 10
    assert diagnosis.plan.windows_per_step == 10 and diagnosis.plan.passes["second"] == pytest.approx(
        100 / 4 / 2
    )


def test_the_same_clip_in_two_sources(make_folder: MakeFolder) -> None:
    folders = [make_folder(num_clips=3, name=name) for name in ("first", "second")]
    sources = [{"dataset_path": str(folder)} for folder in folders]
    diagnosis = diagnose(config_of("unused", data={"sources": sources}))
    assert "shared_clips" in codes(diagnosis, "warning")
    assert [summary.num_duplicates for summary in diagnosis.sources] == [0, 0]


def test_too_many_passes_are_an_error(make_folder: MakeFolder) -> None:
    source = {"dataset_path": str(make_folder(num_clips=4)), "max_passes": 2}
    diagnosis = diagnose(config_of("unused", data={"sources": [source]}))
    assert codes(diagnosis, "error") == {"too_many_passes"}
    assert not codes(diagnose(config_of("unused", data={"sources": [{**source, "max_passes": 6}]})), "error")


@pytest.fixture
def stream(make_folder: MakeFolder) -> Iterator[str]:
    """A tar file at an address: clips that can only be read one after the other."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for clip in sorted(make_folder(num_clips=8, name="shard").iterdir()):
            archive.add(clip, clip.name)
    files = fsspec.filesystem("memory")
    files.pipe("/doctor/00.tar", content.getvalue())
    yield "memory://doctor/00.tar"
    files.rm("/doctor", recursive=True)


def test_a_stream_without_an_index(stream: str) -> None:
    config = config_of(stream, data={"streaming": True, "audio_column": "flac"})
    part = diagnose(config, count=5)
    assert part.together.num_clips is part.together.hours is part.plan.epochs is None
    assert part.together.num_read == 5 and "weaker" in text_report(part)
    whole = diagnose(config, count=None)
    assert whole.together.num_clips == 8 and whole.together.hours and whole.together.is_complete
    assert not [f for f in quick_check(*_training(config)) if f.code != "fewer_clips_than_a_step"]


def test_row_groups(make_folder: MakeFolder, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    clips = [path.read_bytes() for path in sorted(make_folder(num_clips=6).iterdir())]
    table = pyarrow.table({"audio": [{"bytes": clip, "path": None} for clip in clips]})
    pyarrow.parquet.write_table(table, tmp_path / "clips.parquet", row_group_size=2)
    data = {"streaming": True, "cache_dir": str(tmp_path / "cache")}
    diagnosis = diagnose(config_of(tmp_path / "clips.parquet", data=data))
    assert diagnosis.stocks[0].num_blocks == 3 and diagnosis.together.is_complete
    assert "row groups" in text_report(diagnosis)


def test_a_lost_source_is_an_error(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before it was lost is still reported."""
    config = config_of(make_folder())
    training, _ = setup_dataset(config)
    clip, left = training.parts[0].clip, iter(range(5))

    def lose(self: AudioDataset, index: int) -> Any:
        if next(left, None) is None:
            raise DataError("the server is gone")
        return clip(index)

    monkeypatch.setattr(AudioDataset, "clip", lose)
    diagnosis = examine(training, None, config)
    assert codes(diagnosis, "error") == {"source_lost"} and diagnosis.together.num_read == 5
    assert [finding.code for finding in quick_check(training, config)][0] in ("source_lost", "nothing_usable")


def test_quick_check_says_what_the_doctor_says(make_folder: MakeFolder, demo_folder: Path) -> None:
    healthy = load_config("demo")
    assert quick_check(*_training(healthy)) == []
    folder = make_folder(clipped=np.clip(20 * speech(demo_folder), -1, 1), silent=np.zeros(RATE))
    config = config_of(folder)
    found = quick_check(*_training(config))
    assert {finding.code for finding in found} == codes(diagnose(config), "warning", "error") >= {"clipping"}
    assert all("\n" not in str(finding) for finding in found)
    again = quick_check(AudioDataset(folder, RATE, segment_samples=8192), config)
    assert {finding.code for finding in again} == {finding.code for finding in found}  # it takes as many clips as it has time for


def test_fates_of_windows() -> None:
    rule = WindowRule(RATE, RATE, min_clip_seconds=0.2)
    sounds = [
        sound_of(2.0, loudness=[-20.0, -60.0], is_silent=[False, False]),
        sound_of(0.5),
        sound_of(0.1),
        sound_of(1.0, loudness=[-math.inf], is_silent=[True]),
        None,
    ]
    clips = [(ClipReport("clip", sound, None if sound else "bad"), 0.2) for sound in sounds]
    expected = {"good": 0.1, "quiet": 0.1, "padded": 0.2, "short": 0.2, "silent": 0.2, "bad": 0.2}
    assert window_fates(clips, rule, quiet=-50) == pytest.approx(expected)


def test_sums_over_clips() -> None:
    reports = [
        ClipReport("a", sound_of(1.0)),
        ClipReport("b", sound_of(3.0)),
        ClipReport("c", None, "ends after 5 of 9"),
    ]
    reports += [ClipReport("d", None, "ends after 7 of 8")]
    part = Examined(Stock("source", 8, None, 1.0), reports, is_complete=False)
    summary = summarize("source", [part], WindowRule(RATE, 2 * RATE, 0.2))
    assert summary.hours == pytest.approx(8 * 4 / 4 / 3600)  # clips that cannot be decoded count as nothing
    assert summary.padding_share == pytest.approx(0.25)
    assert [(problem.reason, problem.num_clips) for problem in summary.problems] == [("ends after N of N", 2)]
    assert quantiles([(3.0, 1.0), (1.0, 2.0), (2.0, 1.0)]) == (1, 1, 1, 3, 3)
    assert quantiles([]) is None


def test_few_bad_clips_in_a_small_sample_are_no_certainty() -> None:
    assert lower_bound(2 / 32, 32) < 0.05 < lower_bound(6 / 32, 32)
    assert lower_bound(0.06, 100_000) > 0.05


def test_command_writes_table_and_picture(
    make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "tiny", "--dataset_path", str(make_folder()), "--num_iterations", "10"]
    output = tmp_path / "reports" / "first"
    assert doctor([*flags, "--output", str(output)]) == 0
    text, progress = capsys.readouterr()
    assert "bandwidth, median (kHz)" in text and str(output / PICTURE_FILE) in text
    assert "12/12" in progress or "11/11" in progress
    assert doctor([*flags, "--json", "--clips", "4"]) == 0
    report = json.loads(capsys.readouterr().out)  # one object and nothing else
    assert report["together"]["num_read"] == 4 and report["run"]["windows_per_step"] == 16
    stored = json.loads((output / TABLE_FILE).read_text())
    assert stored.keys() == report.keys() and stored["exit_code"] == 0
    picture = (output / PICTURE_FILE).read_bytes()
    assert picture.startswith(b"\x89PNG") and 20_000 < len(picture) < 200_000


def test_exit_codes(make_folder: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(make_folder(num_clips=6))
    with pytest.raises(DataError, match="no such folder"):
        doctor(["--preset", "tiny", "--dataset_path", str(tmp_path / "nowhere")])
    for flags in (["--clips", "0"], ["--processes", "0"], ["--clipz", "3"], ["--output", __file__]):
        with pytest.raises(ConfigError):
            doctor(["--preset", "tiny", "--dataset_path", folder, *flags])
    assert ConfigError.exit_code == DataError.exit_code == 2
    for flags, code in (
        (["--data.audio_column", "sound"], "no_audio"),
        (["--validation.split", "validation"], "no_validation_clips"),
    ):
        capsys.readouterr()
        assert doctor(["--preset", "tiny", "--dataset_path", folder, "--json", *flags]) == 1
        assert json.loads(capsys.readouterr().out)["findings"][0]["code"] == code
