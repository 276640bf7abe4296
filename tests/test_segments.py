"""Parts of long files, as NeMo's manifests name them by `offset` and `duration`: each is a clip like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from snac_accel.audio import AudioError, AudioReader
from snac_accel.cli import main
from snac_accel.dataset import AudioDataset, SampleKey, ValidationClips

RATE = 16_000


@pytest.fixture(scope="module")
def folders(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of real speech: each as a file of its own, and all in one long file with a manifest."""
    root = tmp_path_factory.mktemp("segments")
    (root / "files").mkdir()
    sounds = [soundfile.read(clip, dtype="int16")[0] for clip in sorted((demo_folder / "validation").glob("*.flac"))[:6]]
    soundfile.write(root / "long.flac", np.concatenate(sounds), RATE)
    lines, start = [], 0
    for number, sound in enumerate(sounds):
        soundfile.write(root / "files" / f"{number}.flac", sound, RATE)
        place = {"offset": start / RATE, "duration": len(sound) / RATE}
        lines.append({"audio_filepath": "long.flac", **place, "speaker": f"s{number % 2}"})
        start += len(sound)
    write_manifest(root / "manifest.jsonl", lines)
    beyond = {"audio_filepath": "long.flac", "offset": 1e4, "duration": 2.0, "speaker": "x"}
    write_manifest(root / "beyond.jsonl", [*lines, beyond])
    return root


def write_manifest(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_a_segment_is_the_same_clip_as_a_file_of_its_own(folders: Path, rate: int) -> None:
    parts = AudioDataset(folders / "manifest.jsonl", rate, 0.3, seed=1)
    files = AudioDataset(folders / "files", rate, 0.3, seed=1)
    assert len(parts) == len(files) == 6
    for epoch in range(3):
        for index in range(6):
            key = SampleKey(epoch, index, index)
            assert torch.equal(parts[key].audio, files[key].audio)


def test_segments_of_one_file_are_clips_with_names_of_their_own(folders: Path) -> None:
    dataset = AudioDataset(folders / "manifest.jsonl", RATE, 0.3, speaker_column="speaker")
    names = dataset.clip_names()
    assert len(set(names)) == 6
    assert names[0] == "long.flac@0"
    assert names == [dataset.clip(index).name for index in range(6)]
    training, held_out = dataset.hold_out(0.4)
    assert {clip.name for clip in ValidationClips(held_out)} == set(held_out.clip_names())
    assert not set(training.clip_names()) & set(held_out.clip_names())


def test_a_segment_behind_the_end_is_a_bad_clip(folders: Path) -> None:
    dataset = AudioDataset(folders / "beyond.jsonl", RATE, 0.3)
    (failure,) = dataset[SampleKey(0, 0, 6)].failures
    assert failure.name == "long.flac@10000"
    assert failure.reason.startswith("has no segment of 2 s at 10000 s: it lasts ")
    with pytest.raises(AudioError, match="has no segment"), AudioReader(folders / "long.flac", RATE, (-1.0, 2.0)):
        pass


def test_prepare_cuts_segments_out(folders: Path, tmp_path: Path) -> None:
    words = f"prepare --dataset_path {folders / 'manifest.jsonl'} --output {tmp_path / 'out'} --workers 1"
    assert main([*words.split(), "--validation.enabled", "false"]) == 0
    prepared = AudioDataset(tmp_path / "out", RATE, 0.3)
    files = AudioDataset(folders / "files", RATE, 0.3)
    lengths = [probe_samples(prepared.clip(index).source) for index in range(6)]
    assert sorted(lengths) == sorted(probe_samples(files.clip(index).source) for index in range(6))


def probe_samples(source: str | bytes) -> int:
    with AudioReader(source, RATE) as reader:
        return reader.num_samples
