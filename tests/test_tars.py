"""Tar shards: every clip is the bytes that were packed, in whatever process; nothing leads out of the archive."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from snac_accel.audio import AudioError, probe
from snac_accel.dataset.folder import list_files
from snac_accel.dataset.tars import TarClips, open_tars
from snac_accel.errors import DataError


@pytest.fixture(scope="module")
def clips(demo_folder: Path) -> list[Path]:
    """Six clips of real speech."""
    return sorted((demo_folder / "validation").glob("*.flac"))[:6]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))


def pack(path: Path, clips: list[Path], format: int = tarfile.PAX_FORMAT) -> Path:
    """Write a shard as WebDataset does: audio and JSON of a sample beside each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for number, clip in enumerate(clips):
            add(archive, clip.name, clip.read_bytes())
            add(archive, f"{clip.stem}.json", json.dumps({"speaker": f"speaker-{number % 2}"}).encode())
    return path


def open_folder(
    folder: Path, split: str = "train", column: str = "audio", speaker: str | None = None
) -> TarClips:
    return open_tars(folder, list_files(folder), split, column, speaker)


def contents(tars: TarClips) -> list[str | bytes]:
    return [tars.clip(index).source for index in range(len(tars))]


def test_clips_are_the_bytes_that_were_packed(clips: list[Path], tmp_path: Path) -> None:
    pack(tmp_path / "00000.tar", clips[:4])
    pack(tmp_path / "00001.tar", clips[4:])
    tars = open_folder(tmp_path, speaker="speaker")
    assert contents(tars) == [clip.read_bytes() for clip in clips]
    names = [f"0000{number // 4}.tar/{clip.name}" for number, clip in enumerate(clips)]
    assert [name for name, _ in tars.names_and_speakers()] == names
    assert [tars.clip(index).name for index in range(6)] == names
    assert [speaker for _, speaker in tars.names_and_speakers()] == ["speaker-0", "speaker-1"] * 3
    assert tars.clip(3).speaker == "speaker-1"
    assert open_folder(tmp_path).clip(3).speaker is None
    assert tars.block_lengths is None
    with pytest.raises(IndexError):
        tars.clip(6)


def test_one_tar_is_a_dataset_of_its_own(clips: list[Path], tmp_path: Path) -> None:
    path = pack(tmp_path / "validation.tar", clips)
    assert len(open_tars(path, [])) == 6
    with pytest.raises(DataError, match="no split 'test'; there are: train"):
        open_tars(path, [], "test")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_folders(form: int, clips: list[Path], tmp_path: Path) -> None:
    """A key reaches to the first dot of the file name, not of the path; what follows it is the extension."""
    folder = "a" * 80 + ".v1.0/" + "b" * 60
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as archive:
        add(archive, f"./{folder}/one.mic1.FLAC", clips[0].read_bytes())
        add(archive, f"{folder}/one.mic2.flac", clips[1].read_bytes())
        add(archive, f"{folder}/.hidden.flac", b"resource fork")
        add(archive, f"{folder}/nodot", b"x")
    assert open_folder(tmp_path).names_and_speakers() == [(f"x.tar/{folder}/one.mic1.flac", "")]
    assert contents(open_folder(tmp_path, column="mic2.flac")) == [clips[1].read_bytes()]


def test_splits(clips: list[Path], tmp_path: Path) -> None:
    pack(tmp_path / "train-00000-of-00001.tar", clips[:3])
    pack(tmp_path / "dev" / "00000.tar", clips[3:])
    assert len(open_folder(tmp_path)) == len(open_folder(tmp_path, "validation")) == 3
    with pytest.raises(DataError, match="no split 'test'; there are: train, validation"):
        open_folder(tmp_path, "test")


def test_links_devices_and_outside_names_are_passed_over(clips: list[Path], tmp_path: Path) -> None:
    """Were they followed, `secret` would be a clip; were they extracted, it would be overwritten."""
    secret = tmp_path / "secret.flac"
    secret.write_bytes(clips[0].read_bytes())
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "x.tar", "w") as archive:
        for number, (kind, name) in enumerate([
            (tarfile.SYMTYPE, "link.flac"), (tarfile.LNKTYPE, "hard.flac"), (tarfile.CHRTYPE, "device.flac"),
            (tarfile.FIFOTYPE, "pipe.flac"), (tarfile.DIRTYPE, "folder.flac"),
        ]):  # fmt: skip
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, str(secret) if number % 2 else "../secret.flac"
            archive.addfile(header)
        for name in ("../secret.flac", str(secret), "a/../../secret.flac", "//secret.flac"):
            add(archive, name, b"overwritten")
        add(archive, "good.flac", clips[1].read_bytes())
    assert contents(open_folder(tmp_path / "shards")) == [clips[1].read_bytes()]
    assert secret.read_bytes() == clips[0].read_bytes()


def test_equal_names_are_told_apart_and_stay_so(clips: list[Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for clip in clips[:3]:
            add(archive, "same.flac", clip.read_bytes())
            if clip is clips[1]:
                add(archive, "other.json", b"{}")
    first, second = open_folder(tmp_path), open_folder(tmp_path)
    names = [name for name, _ in first.names_and_speakers()]
    assert names == ["x.tar/same.flac", "x.tar/same.flac#2", "x.tar/same.flac#3"]
    assert second.names_and_speakers() == first.names_and_speakers()
    assert contents(first) == [clip.read_bytes() for clip in clips[:3]]


@pytest.mark.parametrize("damage", ["cut in a clip", "cut in a header", "header", "no end mark", "size"])
def test_what_lies_before_the_damage_is_used(
    damage: str, clips: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pack(tmp_path / "shard.tar", clips, tarfile.USTAR_FORMAT)
    with tarfile.open(path) as archive:
        member = archive.getmember(clips[3].name)
    content = bytearray(path.read_bytes())
    if damage == "cut in a clip":
        content = content[: member.offset_data + 1000]
    elif damage == "cut in a header":
        content = content[: member.offset + 100]
    elif damage == "header":
        content[member.offset : member.offset + 512] = os.urandom(512)
    elif damage == "no end mark":
        content = content[: member.offset]
    else:  # a name of half the universe's length
        content[member.offset : member.offset + 512] = _absurd_header()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        tars = open_folder(tmp_path)
    assert contents(tars) == [clip.read_bytes() for clip in clips[:3]]
    assert len(caplog.messages) == 1
    assert "shard.tar is damaged or cut off" in caplog.messages[0]
    assert "the 3 clips before that are used" in caplog.messages[0]


def _absurd_header() -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**40
    return header.tobuf(tarfile.GNU_FORMAT)


def test_a_file_cut_off_later_is_one_bad_clip(clips: list[Path], tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", clips)
    tars = open_folder(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    assert tars.clip(0).source == clips[0].read_bytes()
    with pytest.raises(AudioError, match="x.tar was cut off after it was opened"):
        tars.clip(5)


def test_processes_read_for_themselves(clips: list[Path], tmp_path: Path) -> None:
    """Forked while files are open, or rebuilt from a pickle, each process gives the same bytes."""
    pack(tmp_path / "x.tar", clips)
    tars = open_folder(tmp_path)
    before = contents(tars)
    light = pickle.dumps(tars)
    assert len(light) < 5000
    assert contents(pickle.loads(light)) == before
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_sources, [tars, tars]).get(60) == [before, before]
    assert contents(tars) == before


def _sources(tars: TarClips) -> list[str | bytes]:
    return contents(tars)


def test_the_digest_knows_the_clips(clips: list[Path], tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", clips)
    first = open_folder(tmp_path).digest()
    assert first == open_folder(tmp_path).digest()
    pack(path, clips[:5])
    assert open_folder(tmp_path).digest() != first


@pytest.mark.parametrize(
    ("column", "speaker", "message"),
    [
        ("wav", None, r"x.tar holds no members .wav; there are: flac, json$"),
        ("audio", "voice", r"no column 'voice': neither members .voice nor a field of members .json"),
    ],
)
def test_missing_columns_get_one_line(
    column: str, speaker: str | None, message: str, clips: list[Path], tmp_path: Path
) -> None:
    pack(tmp_path / "x.tar", clips)
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, "train", column, speaker)


def test_compressed_shards_are_refused(clips: list[Path], tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", clips)
    (tmp_path / "y.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match="y.tar.gz' is compressed, .*unpack it to a plain .tar"):
        open_folder(tmp_path)
    (tmp_path / "y.tar.gz").unlink()
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match="the tar x.tar is compressed"):
        open_folder(tmp_path)


def test_text_members_name_the_speaker(clips: list[Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number, clip in enumerate(clips[:2]):
            add(archive, clip.name, clip.read_bytes())
            add(archive, f"{clip.stem}.speaker.txt", f"anna-{number}\n".encode())
    assert [speaker for _, speaker in open_folder(tmp_path, speaker="speaker").names_and_speakers()] == [
        "anna-0",
        "anna-1",
    ]
    assert probe(contents(open_folder(tmp_path))[0]).sampling_rate == 16000
