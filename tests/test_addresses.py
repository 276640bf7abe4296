"""Sources at an address: the same names and clips as on the disk, and one line for what cannot be read there."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from snac_accel.dataset import AudioDataset, SampleKey, make_loader, network
from snac_accel.errors import DataError

from shards import write_parquet, write_tars


@pytest.fixture(scope="module")
def clips(demo_folder: Path) -> list[Path]:
    """Real speech, 24 clips."""
    return sorted((demo_folder / "validation").glob("*.flac"))


@pytest.fixture
def folder(clips: list[Path], tmp_path: Path) -> Path:
    """A folder of six of them."""
    (tmp_path / "sound").mkdir()
    for clip in clips[:6]:
        shutil.copy(clip, tmp_path / "sound")
    return tmp_path / "sound"


def in_memory(name: str, files: dict[str, bytes]) -> str:
    """Put files at an address in memory."""
    for path, content in files.items():
        with fsspec.open(f"memory://{name}/{path}", "wb") as file:
            file.write(content)
    return f"memory://{name}"


def test_names_do_not_depend_on_how_an_address_is_spelt(folder: Path) -> None:
    there = in_memory("spelt", {clip.name: clip.read_bytes() for clip in folder.iterdir()})
    names = AudioDataset(folder).clip_names()
    for address in (there, there.replace("://", ":///"), f"file://{folder}"):
        assert AudioDataset(address).clip_names() == names


def test_metadata_decide_which_clips_there_are(folder: Path) -> None:
    files = {clip.name: clip.read_bytes() for clip in folder.iterdir()}
    named = sorted(files)[:2]
    files["metadata.csv"] = "\n".join(["file_name,text", *(f"{name},…" for name in named)]).encode()
    assert AudioDataset(in_memory("metadata", files)).clip_names() == named


def test_common_voice_is_refused_rather_than_trained_on_whole(folder: Path) -> None:
    files = {f"clips/{clip.name}": clip.read_bytes() for clip in folder.iterdir()}
    address = in_memory("voices", {**files, "train.tsv": b"client_id\tpath\n"})
    with pytest.raises(DataError, match=r"laid out as Common Voice, which is read from the disk only"):
        AudioDataset(address)


def test_tars_need_no_name_of_their_column(clips: list[Path], tmp_path: Path) -> None:
    assert len(list(AudioDataset(write_tars(tmp_path / "tars", clips), 24_000, 0.2))) == 24


def test_a_cut_tar_ends_in_one_line(clips: list[Path], tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", clips, num_files=1)
    content = (tmp_path / "tars" / "train-00000.tar").read_bytes()
    dataset = AudioDataset(in_memory("cut", {"train-00000.tar": content[: len(content) // 2 + 100]}), 24_000, 0.2)
    with pytest.raises(DataError, match=r"reading 'memory://cut' failed") as caught:
        list(dataset)
    assert "\n" not in str(caught.value)


def test_a_dead_network_is_not_sixteen_bad_clips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another clip of the same source would fare no better, and would take as long."""
    dataset = AudioDataset(in_memory("dead", {clip.name: clip.read_bytes() for clip in folder.iterdir()}))
    asked: list[str] = []

    def fail(address: str, start: int, end: int) -> bytes:
        asked.append(address)
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(network, "fetch", fail)
    monkeypatch.setattr(network, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(network.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"memory:///?dead/.* cannot be read: reset by peer"):
        dataset[SampleKey(0, 0, 0)]
    assert len(set(asked)) == 1 and len(asked) > 1


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server that knows no ranges, as Python's own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_without_ranges_is_one_line_at_once(web: str, clips: list[Path], tmp_path: Path) -> None:
    """Its whole file would come for every part of it."""
    write_parquet(tmp_path / "set", clips, num_files=1)
    before = network.num_retries()
    with pytest.raises(DataError, match=r"this server gives whole files only, not parts of them: download it"):
        AudioDataset(f"{web}/set/data/train-00000-of-00001.parquet", cache_dir=tmp_path / "cache")
    assert network.num_retries() == before


def test_retries_between_two_batches_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched ahead has its retries while nobody waits for a batch."""
    batches = iter(make_loader(AudioDataset(folder, 24_000, 0.2), 2, num_steps=3, num_workers=0, pin_memory=False))
    assert next(batches).num_retries == 0
    for _ in range(2):
        network._retries.add()
    assert [batch.num_retries for batch in batches] == [2, 0]
