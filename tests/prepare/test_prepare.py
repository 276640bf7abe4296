"""Prepared shards: the same clips for everyone who reads them, in equal shards, whatever interrupted the writing."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet
import pytest
import soundfile

from snac_accel.audio import AudioReader
from snac_accel.cli.prepare import prepare as command
from snac_accel.config.data import SourceSettings
from snac_accel.dataset.clips import RawClip
from snac_accel.dataset.sources import Request, open_source
from snac_accel.dataset.streams import StreamedClips
from snac_accel.dataset.tars import open_tars
from snac_accel.errors import ConfigError, DataError, UserError
from snac_accel.prepare import (
    Summary,
    prepare,
)
from snac_accel.prepare.conversion import convert

from preparations import left_out, read, settings, sums


# --- what comes out


def test_parquet_holds_the_same_files_for_all_readers(clips: dict[str, bytes], tmp_path: Path) -> None:
    """Bit for bit, by plain `datasets` whole and streamed, and by the trainer's own reader."""
    summary = prepare(settings(tmp_path))
    rows = read(tmp_path / "out")
    assert {row["audio"]["path"]: row["audio"]["bytes"] for row in rows} == clips
    assert read(tmp_path / "out", streaming=True) == rows
    assert {row["name"] for row in rows} == set(clips)
    assert {row["source"] for row in rows} == {"sound"}
    assert {row["sampling_rate"] for row in rows} == {16_000}
    assert sum(row["seconds"] for row in rows) == pytest.approx(summary.splits["train"]["seconds"])
    for streaming in (False, True):
        own = open_source(Request(str(tmp_path / "out"), streaming=streaming))
        assert not isinstance(own, StreamedClips)
        assert {own.clip(index).name: own.clip(index).source for index in range(len(own))} == clips
    assert not (tmp_path / "out" / ".work").exists()
    assert left_out(tmp_path / "out") == {}


def test_webdataset_holds_the_same_files_for_all_readers(clips: dict[str, bytes], tmp_path: Path) -> None:
    prepare(settings(tmp_path, format="webdataset"))
    rows = read(tmp_path / "out")
    assert {row["json"]["name"]: row["audio"]["bytes"] for row in rows} == clips
    assert read(tmp_path / "out", streaming=True) == rows
    files = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.tar")
    )
    tars = open_tars(tmp_path / "out", files, speaker_column="name")
    assert {tars.clip(index).speaker: tars.clip(index).source for index in range(len(tars))} == clips
    with tarfile.open(tmp_path / "out" / files[0]) as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}


def test_shards_are_equal_named_and_cut_into_small_groups(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snac_accel.prepare.shard_files.ROW_GROUP_CLIPS", 3)
    monkeypatch.setattr("snac_accel.prepare.shard_files.ROW_GROUP_BYTES", 150_000)
    prepare(settings(tmp_path))
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [file.name for file in files] == [f"train-{shard:05d}-of-00004.parquet" for shard in range(4)]
    parts = [pyarrow.parquet.ParquetFile(file) for file in files]
    assert sorted(part.metadata.num_rows for part in parts) == [5, 6, 6, 6]
    for part in parts:
        column = part.metadata.row_group(0).column(0)
        assert column.path_in_schema == "audio.bytes"
        assert (column.compression, column.has_offset_index, column.statistics) == (
            "UNCOMPRESSED",
            True,
            None,
        )
        for group in range(part.num_row_groups):
            rows = part.read_row_group(group).column("audio").to_pylist()
            assert len(rows) == 1 or (len(rows) <= 3 and sum(len(row["bytes"]) for row in rows) <= 150_000)


def test_clips_per_shard_is_a_limit(clips: dict[str, bytes], tmp_path: Path) -> None:
    summary = prepare(settings(tmp_path, num_shards=None, clips_per_shard=10))
    assert [shard["clips"] for shard in summary.splits["train"]["shards"]] == [7, 8, 8]
    assert len(prepare(settings(tmp_path, "more", num_shards=100)).splits["train"]["shards"]) == 23


def test_the_order_is_that_of_the_seed(clips: dict[str, bytes], tmp_path: Path) -> None:
    """The number of workers does not matter; neighbours of the folder are not neighbours in the shards."""
    orders = []
    choices: dict[str, dict[str, Any]] = {
        "a/out": {"workers": 1},
        "b/out": {"workers": 3},
        "c/out": {"seed": 1},
    }
    for output, options in choices.items():
        prepare(settings(tmp_path, output, **options))
        orders.append(
            [row["name"] for row in read(tmp_path / output)]
        )  # not what `datasets` had of another "out"
    assert sums(tmp_path / "a/out") == sums(tmp_path / "b/out") != sums(tmp_path / "c/out")
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(clips)
    assert orders[0] not in (orders[2], sorted(clips))


def test_the_command_keeps_the_splits(
    demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the shipped demo is trained and validated on; then one split by its name, from the prepared set."""
    assert (
        command(
            ["--preset", "demo", "--output", str(tmp_path / "out"), "--num_shards", "2", "--workers", "2"]
        )
        == 0
    )
    assert "train: 190 clips, 0.21 h, 6.0 MB in 2 shards; 0 left out" in capsys.readouterr().out
    assert {row["audio"]["bytes"] for row in read(tmp_path / "out", "validation")} == {
        path.read_bytes() for path in (demo_folder / "validation").glob("*.flac")
    }
    again = ["--dataset_path", str(tmp_path / "out"), "--output", str(tmp_path / "again"), "--workers", "1"]
    assert command([*again, "--splits", "validation"]) == 0
    assert [path.name for path in (tmp_path / "again" / "data").iterdir()] == [
        "validation-00000-of-00001.parquet"
    ]
    assert len(read(tmp_path / "again", "validation")) == 24
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| train      |     190 |" in card
    assert str(demo_folder) not in card


def test_a_mixture_is_one_set(clips: dict[str, bytes], tmp_path: Path) -> None:
    """Clips of the same name are told apart by their source; a streamed source is read like another."""
    shutil.copytree(tmp_path / "sound", tmp_path / "more")
    prepare(settings(tmp_path, "parquet"))
    sources = [
        SourceSettings(
            dataset_path=str(tmp_path / name), split="train", audio_column="audio", streaming=streaming
        )
        for name, streaming in (("sound", False), ("more", False), ("parquet", True))
    ]
    prepare(settings(tmp_path, splits={"train": sources}))
    rows = read(tmp_path / "out")
    expected = {
        f"{source}/{name}": content
        for source in ("sound", "more", "parquet")
        for name, content in clips.items()
    }
    assert {row["audio"]["path"]: row["audio"]["bytes"] for row in rows} == expected


def test_speakers_are_kept(demo_folder: Path, tmp_path: Path) -> None:
    source = SourceSettings(
        dataset_path=str(demo_folder),
        split="validation",
        audio_column="audio",
        speaker_column="speaker",
        streaming=False,
    )
    prepare(settings(tmp_path, splits={"validation": [source]}))
    assert all(row["speaker"] for row in read(tmp_path / "out", "validation"))


# --- what is converted


def test_encoded_clips_are_mono_at_the_rate_asked_for(clips: dict[str, bytes], tmp_path: Path) -> None:
    """What the trainer would have read, to half a step of 16 bits."""
    prepare(settings(tmp_path, encode="flac", sampling_rate=24_000))
    rows = read(tmp_path / "out")
    assert len(rows) == 23
    for row in rows[:5]:
        with (
            AudioReader(row["audio"]["bytes"], 24_000) as own,
            AudioReader(clips[row["name"]], 24_000) as reference,
        ):
            assert own.info.sampling_rate == row["sampling_rate"] == 24_000
            assert own.num_samples == reference.num_samples
            assert (own.read() - reference.read()).abs().max() <= 0.5 / 32768 + 1e-7


@pytest.mark.parametrize(("subtype", "channels"), [("PCM_16", 2), ("PCM_24", 1), ("PCM_16", 1)])
def test_cutting_loses_nothing(subtype: str, channels: int, demo_folder: Path, tmp_path: Path) -> None:
    """The parts of a recording, put together, are the recording to the bit: its rate, its channels, its 24 bits."""
    clip = sorted((demo_folder / "validation").glob("*.flac"))[0]
    speech, rate = soundfile.read(clip, dtype="int32")
    sound = np.stack([speech, np.roll(speech, 1000)], axis=1)[:, :channels] + (
        1 << 8 if subtype == "PCM_24" else 0
    )
    long = np.concatenate([sound] * 4)
    (tmp_path / "sound").mkdir()
    soundfile.write(tmp_path / "sound" / "long.wav", long, rate, subtype=subtype)
    shutil.copy(clip, tmp_path / "sound" / "a short one.flac")
    limit = len(speech) / rate + 0.01
    prepare(settings(tmp_path, max_clip_seconds=limit))
    rows = sorted(read(tmp_path / "out"), key=lambda row: row["name"])
    assert [row["audio"]["path"] for row in rows] == [
        "a short one.flac",
        *(f"long.wav#{n:04d}.flac" for n in range(4)),
    ]
    assert rows[0]["audio"]["bytes"] == clip.read_bytes()
    (tmp_path / "part.flac").write_bytes(rows[1]["audio"]["bytes"])
    assert soundfile.info(tmp_path / "part.flac").subtype == subtype
    parts = [AudioReaderInt(row["audio"]["bytes"], tmp_path) for row in rows[1:]]
    assert max(map(len, parts)) <= limit * rate
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    expected = soundfile.read(tmp_path / "sound" / "long.wav", dtype="int32", always_2d=True)[0]
    assert np.array_equal(np.concatenate(parts), expected)


def AudioReaderInt(content: bytes, folder: Path) -> Any:
    (folder / "read.flac").write_bytes(content)
    return soundfile.read(folder / "read.flac", dtype="int32", always_2d=True)[0]


@pytest.mark.parametrize("form", ["mp3", "ogg", "wav", "flac"])
def test_every_format_is_checked_to_its_end(form: str, demo_folder: Path, tmp_path: Path) -> None:
    """Blocks of a long clip are decoded as one; no end is mistaken for damage."""
    speech = np.concatenate(
        [soundfile.read(path)[0] for path in sorted((demo_folder / "validation").glob("*.flac"))]
    )
    for seconds in (30.0, 30.2, 31.9, 32.1, 60.01):
        path = tmp_path / f"{seconds}.{form}"
        soundfile.write(path, np.resize(speech, round(seconds * 16_000)), 16_000)
        (whole,) = convert(str(path))
        assert (whole.suffix, whole.content, whole.number) == (form, None, None)
        assert whole.seconds == pytest.approx(seconds, abs=0.3)
        (encoded,) = convert(path.read_bytes(), 24_000)
        assert len(AudioReaderInt(encoded.content or b"", tmp_path)) == pytest.approx(
            seconds * 24_000, abs=7200
        )


# --- what is left out


def test_bad_clips_are_listed_and_the_shards_stay_equal(clips: dict[str, bytes], tmp_path: Path) -> None:
    good = next(iter(clips.values()))
    bad = {
        "cut.flac": good[: len(good) // 2],
        "empty.wav": b"",
        "page.mp3": b"<!DOCTYPE html><title>404</title>",
    }
    for name, content in bad.items():
        (tmp_path / "sound" / name).write_bytes(content)
    (tmp_path / "sound" / "gone.flac").symlink_to(tmp_path / "nowhere")
    choices: list[dict[str, Any]] = [{}, {"encode": "flac"}, {"max_clip_seconds": 1.0}]
    for number, options in enumerate(choices):
        output = f"out-{number}"
        summary = prepare(settings(tmp_path, output, **options))
        counts = [shard["clips"] for shard in summary.splits["train"]["shards"]]
        assert max(counts) - min(counts) <= 1
        reasons = left_out(tmp_path / output)
        assert set(reasons) == {*bad, "gone.flac"}
        assert reasons["empty.wav"] == "is empty (0 bytes)"
        assert summary.splits["train"]["left_out"] == 4
        names = {row["name"].split("#")[0] for row in read(tmp_path / output)}
        assert names == set(clips)


def test_nothing_good_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "a.wav").write_bytes(b"x")
    with pytest.raises(
        DataError, match="none of the 1 clips of train can be used, the first one a.wav: cannot be opened"
    ):
        prepare(settings(tmp_path))


# --- streams


def write_tars_at_an_address(clips: dict[str, bytes], tmp_path: Path) -> str:
    """Put clips into tars at an address: they can only be read one after the other."""
    prepare(settings(tmp_path, "tars", format="webdataset"))
    for path in (tmp_path / "tars" / "data").iterdir():
        with fsspec.open(f"memory://corpus-{abs(hash(tmp_path))}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    return f"memory://corpus-{abs(hash(tmp_path))}"


def test_a_stream_without_an_index_gives_the_same_shards(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal ones in a shuffled order, as from any other source; a stream that breaks off is gone on with."""
    monkeypatch.setattr("snac_accel.prepare.collecting.CLIPS_PER_STEP", 4)
    address = write_tars_at_an_address(clips, tmp_path)
    source = SourceSettings(dataset_path=address, split="train", audio_column="flac", streaming=True)
    assert isinstance(open_source(Request(address, audio_column="flac")), StreamedClips)
    for output in ("straight", "broken"):
        here = settings(tmp_path, output, splits={"train": [source]})
        if output == "broken":
            with monkeypatch.context() as patch:
                patch.setattr(StreamedClips, "read", _breaking_off(StreamedClips.read))
                with pytest.raises(DataError, match="the line is dead"):
                    prepare(here)
                assert len(list((tmp_path / output / ".work" / "steps").glob("[!.]*.parquet"))) == 3
        summary = prepare(here)
        assert [shard["clips"] for shard in summary.splits["train"]["shards"]] == [5, 6, 6, 6]
        assert sorted(row["audio"]["bytes"] for row in read(tmp_path / output)) == sorted(clips.values())
    assert sums(tmp_path / "straight") == sums(tmp_path / "broken")


def _breaking_off(read_all: Any) -> Any:
    def read(self: StreamedClips, *arguments: Any) -> Any:
        for number, clip in enumerate(read_all(self, *arguments)):
            if number == 14:
                raise DataError("the line is dead")
            yield clip

    return read


# --- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "x", "--num_shards", "2", "--clips_per_shard", "2"], "give one of them"),
        (["--output", "x", "--num_shards", "0"], "--num_shards = 0: should lie in 1..99999"),
        (["--output", "x", "--workers", "0"], "--workers = 0: should lie in"),
        (["--output", "x", "--sampling_rate", "24000"], "files that are copied keep their rate; add --encode flac"),
        (["--output", "x", "--encode", "flac", "--sampling_rate", "7"], "--sampling_rate = 7: should lie in 4000"),
        (["--output", "x", "--max_clip_seconds", "0.1"], "--max_clip_seconds = 0.1: should be 1 or more"),
        (["--output", "x", "--splits", "train[:10%]"], "cannot be the name of a split"),
        (["--output", "x", "--format", "zip"], "invalid choice: 'zip'"),
        (["--output", "x", "--clips_per_shards", "5"], "did you mean --clips_per_shard"),
        ([], "required: --output"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        command(flags)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_source_and_output_lie_apart(clips: dict[str, bytes], tmp_path: Path) -> None:
    """Shards inside the source would be clips of it the next time."""
    for output in ("sound", "sound/prepared", "."):
        with pytest.raises(ConfigError, match="lies in the other"):
            settings(tmp_path, output)


def test_tars_of_several_kinds_are_refused(
    clips: dict[str, bytes], demo_folder: Path, tmp_path: Path
) -> None:
    """`datasets` would not read them."""
    shutil.copy(next((demo_folder / "train").glob("*.ogg")), tmp_path / "sound")
    with pytest.raises(UserError, match="the clips are flac and ogg files, .* add --encode flac"):
        prepare(settings(tmp_path, format="webdataset"))
    summary = prepare(settings(tmp_path, "encoded", format="webdataset", encode="flac"))
    assert isinstance(summary, Summary)
    assert len(read(tmp_path / "encoded")) == 24


def test_the_first_pass_reads_each_clip_once(
    clips: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is streamed by row groups is laid down on the way, since the second pass would jump about in it."""
    prepare(settings(tmp_path, "parquet"))
    source = SourceSettings(
        dataset_path=str(tmp_path / "parquet"), split="train", audio_column="audio", streaming=True
    )

    def refuse(self: Any, index: int) -> RawClip:
        raise AssertionError("read again")

    from snac_accel.dataset.parquet import ParquetClips

    def patch(*_: object) -> int:
        monkeypatch.setattr(ParquetClips, "clip", refuse)
        return 0

    monkeypatch.setattr("snac_accel.prepare.running._bytes_left", patch)
    prepare(settings(tmp_path, splits={"train": [source]}))
    found: Mapping[str, bytes] = {row["name"]: row["audio"]["bytes"] for row in read(tmp_path / "out")}
    assert found == clips
