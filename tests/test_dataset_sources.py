"""Sources: every layout gives the same clips, map-style and streaming; every mistake gets one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from snac_accel.audio import AudioReader
from snac_accel.dataset import AudioDataset, SampleKey
from snac_accel.dataset.clips import clip_name
from snac_accel.dataset.tables import StoredAudio
from snac_accel.errors import DataError

LAYOUTS = [
    "plain folder", "metadata.csv", "metadata.jsonl", "other metadata", "class folders", "split folders",
    "parquet file", "parquet folder", "arrow file", "manifest", "saved", "saved splits",
]  # fmt: skip


@pytest.fixture(scope="module")
def clips(demo_folder: Path) -> list[Path]:
    """Six clips of real speech."""
    return sorted((demo_folder / "validation").glob("*.flac"))[:6]


def table_of(clips: list[Path]) -> datasets.Dataset:
    """The clips as a dataset with embedded bytes, as `push_to_hub` stores them."""
    features = datasets.Features({"audio": StoredAudio(decode=False), "speaker": datasets.Value("string")})
    rows = {
        "audio": [{"bytes": clip.read_bytes(), "path": clip.name} for clip in clips],
        "speaker": [f"speaker-{number % 2}" for number in range(len(clips))],
    }
    return datasets.Dataset.from_dict(rows, features=features).cast_column("audio", datasets.Audio())


def copy_clips(clips: list[Path], folder: Path, *subfolders: str) -> None:
    for number, clip in enumerate(clips):
        target = folder / subfolders[number % len(subfolders)] if subfolders else folder
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)


def lay_out(layout: str, clips: list[Path], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write the clips in a layout; return the path to open and options for it."""
    names = [clip.name for clip in clips]
    if layout in ("plain folder", "metadata.csv", "metadata.jsonl", "other metadata"):
        copy_clips(clips, folder)
        if layout == "metadata.csv":
            (folder / layout).write_text(
                "file_name,text\n" + "".join(f'{name},"said, so"\n' for name in names)
            )
        elif layout == "metadata.jsonl":
            (folder / layout).write_text("".join(json.dumps({"file_name": name}) + "\n" for name in names))
        elif layout == "other metadata":
            (folder / "metadata.csv").write_text("".join(f"{name}|said so|said, so\n" for name in names))
    elif layout == "class folders":
        copy_clips(clips, folder, "anna/one", "bert/two")
    elif layout == "split folders":
        copy_clips(clips, folder, "train-clean-100/1")
        copy_clips(clips[:1], folder, "dev-clean/2")
    elif layout == "manifest":
        copy_clips(clips, folder, "sound")
        lines = [json.dumps({"audio_filepath": f"sound/{name}", "duration": 1.0}) + "\n" for name in names]
        (folder / "manifest.jsonl").write_text("".join(lines))
        return folder / "manifest.jsonl", {"audio_column": "audio_filepath"}
    elif layout.startswith("saved"):
        table = table_of(clips)
        saved = datasets.DatasetDict({"train": table, "validation": table.select([0])})
        (saved if layout == "saved splits" else table).save_to_disk(str(folder / "saved"))
        return folder / "saved", {}
    elif layout == "arrow file":
        table_of(clips).save_to_disk(str(folder / "saved"))
        return next((folder / "saved").glob("*.arrow")), {}
    elif layout == "parquet file":
        table_of(clips).to_parquet(str(folder / "clips.parquet"))
        return folder / "clips.parquet", {}
    else:
        (folder / "data").mkdir()
        table_of(clips[:3]).to_parquet(str(folder / "data" / "train-00000-of-00002.parquet"))
        table_of(clips[3:]).to_parquet(str(folder / "data" / "train-00001-of-00002.parquet"))
    return folder, {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_clips(layout: str, clips: list[Path], tmp_path: Path) -> None:
    path, options = lay_out(layout, clips, tmp_path)
    dataset = AudioDataset(path, random_window=False, **options)
    stream = AudioDataset(path, random_window=False, streaming=True, **options)
    names = dataset.clip_names()
    assert sorted(Path(name).name for name in names) == [clip.name for clip in clips]
    assert names == [dataset.clip(index).name for index in range(len(dataset))]
    assert sorted(names) == sorted(clip.name for clip in stream.stream_clips(None))
    assert not any(name.startswith("/") for name in names)
    index = [Path(name).name for name in names].index(clips[0].name)
    with AudioReader(clips[0], 24_000) as reader:
        assert torch.equal(dataset[index], reader.read(0, 19_200))
    assert {tuple(window[:50].tolist()) for window in stream} == {
        tuple(dataset[index][:50].tolist()) for index in range(len(dataset))
    }


def test_splits_and_speakers(clips: list[Path], tmp_path: Path) -> None:
    path, _ = lay_out("saved splits", clips, tmp_path)
    assert len(AudioDataset(path, split="validation")) == 1
    dataset = AudioDataset(path, speaker_column="speaker")
    assert dataset.clip(1).speaker == "speaker-1"
    folder, _ = lay_out("split folders", clips, tmp_path / "folders")
    assert len(AudioDataset(folder, split="validation")) == 1


def test_rows_without_a_file_name_are_named_by_their_number(clips: list[Path], tmp_path: Path) -> None:
    rows = {"audio": [{"bytes": clip.read_bytes(), "path": None} for clip in clips]}
    features = datasets.Features({"audio": StoredAudio(decode=False)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "clips.parquet"))
    dataset = AudioDataset(tmp_path / "clips.parquet")
    assert dataset.clip_names() == [f"train/{number}" for number in range(6)]
    assert dataset.clip(4).name == "train/4"
    streamed = [
        clip.name for clip in AudioDataset(tmp_path / "clips.parquet", streaming=True).stream_clips(None)
    ]
    assert len(set(streamed)) == 6


def test_names_do_not_depend_on_where_the_data_lie() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    inside = "train/anna/one.flac"
    for path in (
        f"/home/x/.cache/hub/datasets--a--b/snapshots/{commit}/{inside}",
        f"/cache/downloads/extracted/{commit}{commit[:24]}/{inside}",
        f"hf://datasets/owner/name@{commit}/{inside}",
        f"zip://{inside}::hf://datasets/owner/name@{commit}/all.zip",
        f"/data/corpus/{inside}",
    ):
        assert clip_name(path, Path("/data/corpus")) == inside


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("/nowhere/at/all", {}, "no such folder or file: '/nowhere/at/all'"),
        ("./nowhere", {}, "no such folder or file: './nowhere'"),
        ("clips.parquet", {}, "no such folder or file: 'clips.parquet'"),
        ("DEMO", {"split": "test"}, "has no split 'test'; there are: train, validation"),
        ("DEMO", {"audio_column": "speech"}, "has no column 'speech'; there are: audio, speaker, language"),
        ("DEMO", {"audio_column": "language"}, "holds no audio: its first value is 'en'"),
        ("DEMO", {"speaker_column": "voice"}, "has no column 'voice'"),
        ("DEMO/README.md", {}, "is a file, but none of .parquet"),
        ("EMPTY", {}, "holds no audio files"),
        ("PARQUET", {"split": "nope"}, "has no split 'nope'; there are: train"),
        ("PARQUET", {"split": "nope", "streaming": True}, "has no split 'nope'; there are: train"),
        ("PARQUET", {"audio_column": "speaker"}, "holds no audio: its first value is 'speaker-0'"),
        (
            "PARQUET",
            {"audio_column": "nope", "streaming": True},
            "no column 'nope'; there are: audio, speaker",
        ),
        ("BROKEN", {}, "cannot be read"),
        ("SCRIPT", {}, "is a dataset script, which is never run"),
        ("owner/name", {}, "cannot be reached on the Hub"),
        ("DEMO", {"segment_samples": 0}, "a window needs a positive rate and length"),
    ],
)
def test_mistakes_get_one_line(
    path: str, options: dict[str, Any], message: str, clips: list[Path], demo_folder: Path, tmp_path: Path
) -> None:
    if path == "PARQUET":
        path = str(lay_out("parquet file", clips, tmp_path)[0])
    elif path == "BROKEN":
        path = str(tmp_path / "broken.parquet")
        Path(path).write_bytes(b"PAR1 is not enough")
    elif path == "SCRIPT":
        path = str(tmp_path / "corpus")
        Path(path).mkdir()
        Path(path, "corpus.py").write_text("raise SystemExit('must never run')")
        Path(path, "clips.jsonl").write_text('{"audio": "a.wav"}\n')
    path = path.replace("DEMO", str(demo_folder)).replace("EMPTY", str(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        AudioDataset(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' is a gated dataset on the Hub."),
            "hf auth login",
        ),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' doesn't exist"), "renamed or withdrawn"),
        (
            datasets.exceptions.DatasetNotFoundError("Revision 'x' doesn't exist for dataset 'o/n'"),
            "data.revision",
        ),
        (ConnectionError("Couldn't reach 'o/n'"), "cannot be reached on the Hub"),
        (RuntimeError("Dataset scripts are no longer supported, but found n.py"), "never run"),
        (ValueError("BuilderConfig 'x' not found. Available: ['clean', 'other']"), "there are: clean, other"),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'de']"),
            "set data.configuration to one of en, de",
        ),
        (KeyError("strange"), "cannot be read from the Hub"),
    ],
)
def test_errors_of_the_hub_name_the_way_out(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(DataError, match=message) as caught:
        AudioDataset("o/n", configuration="x")
    assert "\n" not in str(caught.value)
    assert "o/n" in str(caught.value)


def test_a_folder_of_audio_on_the_hub_needs_no_torchcodec(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` opens it with its own folder builder, whose audio feature asks for torchcodec."""
    folder, _ = lay_out("metadata.csv", clips, tmp_path)
    builder = datasets.load_dataset_builder(str(folder))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, **options: builder)
    for streaming in (False, True):
        dataset = AudioDataset("owner/name", streaming=streaming)
        assert sum(window.abs().max() > 0.01 for window in dataset) == len(clips)


def test_metadata_outside_the_folder_is_refused(clips: list[Path], tmp_path: Path) -> None:
    copy_clips(clips[:1], tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name\n../../etc/passwd\n")
    with pytest.raises(DataError, match="lies outside the folder"):
        AudioDataset(tmp_path)


def test_odd_folders(clips: list[Path], tmp_path: Path) -> None:
    """Loops of links end, hidden files are left out, names not in UTF-8 are read, missing clips are reported."""
    copy_clips(clips[:2], tmp_path, "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "._hidden.wav").write_bytes(b"resource fork")
    shutil.copy(clips[0], str(tmp_path / "a") + "/\udcff\u00e9.flac")
    (tmp_path / "a" / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    dataset = AudioDataset(tmp_path)
    odd = {"a/\\xffé.flac", "a/dangling.wav"}
    assert set(dataset.clip_names()) == odd | {f"a/{clip.name}" for clip in clips[:2]}
    assert all(dataset[index].abs().max() > 0.01 for index in range(4))
    key = SampleKey(0, 0, dataset.clip_names().index("a/\\xffé.flac"))
    assert dataset[key].failures == []
