"""Data that nobody checked: manifests, tables, archives and saved data sets that lie, lead out, or are far too large."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from planted import Payload, bounded, grow, pickles

from snac_accel.audio import AudioError
from snac_accel.dataset.block_cache import BlockCache
from snac_accel.dataset.manifests import open_manifest
from snac_accel.dataset.parquet import ParquetClips
from snac_accel.dataset.sources import Request, open_source
from snac_accel.dataset.tables import RowReader
from snac_accel.dataset.tars import TarClips
from snac_accel.errors import DataError


@pytest.fixture(scope="module")
def clip(demo_folder: Path) -> bytes:
    """A recording."""
    return sorted((demo_folder / "validation").glob("*.flac"))[0].read_bytes()


@pytest.fixture
def corpus(tmp_path: Path, clip: bytes) -> Path:
    """A folder with a recording in it, and a secret one beside it."""
    (tmp_path / "secret.flac").write_bytes(clip)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.flac").write_bytes(clip)
    return folder


def refused(call: Callable[[], object]) -> str:
    """The one line with which it is refused, quickly and in little memory."""
    with bounded(), pytest.raises((DataError, AudioError)) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# Manifests


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.tsv"])
def test_a_line_without_an_end(name: str, tmp_path: Path) -> None:
    """Twenty gigabytes, which take no room on the disk."""
    (tmp_path / name).write_text("audio,text\n" if name.endswith("csv") else "audio\ttext\n" if name.endswith("tsv") else "")
    grow(tmp_path / name, 20 * 2**30)
    assert "more than" in refused(lambda: open_manifest(str(tmp_path / name)))


def test_a_giant_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snac_accel.dataset.manifest_rows.MAX_JSON", 2**20)
    (tmp_path / "m.json").write_text("[\n" * 2)
    grow(tmp_path / "m.json", 20 * 2**30)
    assert "JSON lines" in refused(lambda: open_manifest(str(tmp_path / "m.json")))


@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"audio":' * 100_000, '{"audio": ' + "9" * 5000 + "}"])
def test_json_nested_deeply(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    refused(lambda: open_manifest(str(tmp_path / name)))


@pytest.mark.parametrize(
    "name",
    ["../../../other/repo/x.wav", "/etc/hostname", "file:///etc/hostname", "local:///etc/hostname", "zip://a::file:///x"],
)
def test_a_manifest_of_the_hub_names_nothing_of_this_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"audio": name}).encode()
    monkeypatch.setattr("snac_accel.dataset.manifest_rows.open_address", lambda path: io.BytesIO(content))
    assert "outside" in refused(lambda: open_manifest("hf://datasets/somebody/speech/data/train.jsonl"))


@pytest.mark.parametrize(
    ("name", "target"),
    [("b/x.wav", "hf://datasets/somebody/speech/data/b/x.wav"), ("../x.wav", "hf://datasets/somebody/speech/x.wav")],
)
def test_a_manifest_of_the_hub_names_its_own_files(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"audio": name}).encode()
    monkeypatch.setattr("snac_accel.dataset.manifest_rows.open_address", lambda path: io.BytesIO(content))
    assert open_manifest("hf://datasets/somebody/speech/data/train.jsonl")["audio"][:] == [target]


def test_a_manifest_in_a_bucket_stays_in_it() -> None:
    with fsspec.open("memory://mine/m.jsonl", "wt") as file:
        file.write(json.dumps({"audio": "../yours/x.wav"}))
    assert "outside" in refused(lambda: open_manifest("memory://mine/m.jsonl"))


@pytest.mark.parametrize("name", ["../secret.flac", "/etc/hostname", "a/../../secret.flac"])
@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl"])
def test_metadata_of_a_folder_stay_in_it(metadata: str, name: str, corpus: Path) -> None:
    rows = {"metadata.csv": f"file_name\n{name}\n", "metadata.jsonl": json.dumps({"file_name": name})}
    (corpus / metadata).write_text(rows[metadata])
    assert "outside" in refused(lambda: open_source(Request(str(corpus))))


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "3", '{"file_name":' * 50_000])
def test_metadata_that_are_no_rows(text: str, corpus: Path) -> None:
    (corpus / "metadata.jsonl").write_text(text)
    assert "metadata.jsonl" in refused(lambda: open_source(Request(str(corpus))))


def test_giant_metadata(corpus: Path) -> None:
    grow(corpus / "metadata.jsonl", 20 * 2**30)
    assert "metadata.jsonl" in refused(lambda: open_source(Request(str(corpus))))


# Archives


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **header: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in header.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def test_members_that_lead_out_of_a_tar(corpus: Path, clip: bytes) -> None:
    """Only what is a plain file inside counts; nothing is ever unpacked."""
    before = set(corpus.parent.rglob("*"))
    with tarfile.open(corpus / "x.tar", "w") as archive:
        for name in ("../out.flac", "/tmp/out.flac", "a/../../out.flac", "..\\out.flac/../../b.flac"):
            add(archive, name, clip)
        add(archive, "link.flac", type=tarfile.SYMTYPE, linkname="../secret.flac")
        add(archive, "absolute.flac", type=tarfile.SYMTYPE, linkname="/etc/hostname")
        add(archive, "hard.flac", type=tarfile.LNKTYPE, linkname="../secret.flac")
        add(archive, "device.flac", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(archive, "pipe.flac", type=tarfile.FIFOTYPE)
        add(archive, "folder.flac", type=tarfile.DIRTYPE)
        add(archive, "good.flac", clip)
    clips = TarClips(corpus, ["x.tar"])
    assert [name for name, _ in clips.names_and_speakers()] == ["x.tar/good.flac"]
    assert clips.clip(0).source == clip
    assert set(corpus.parent.rglob("*")) - before == {corpus / "x.tar"}


def test_a_giant_member(corpus: Path, clip: bytes) -> None:
    header = tarfile.TarInfo("giant.flac")
    header.size = 40 * 2**30
    with open(corpus / "x.tar", "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            add(archive, "good.flac", clip)
        file.seek(512 + -(-len(clip) // 512) * 512)  # over the end mark
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(file.tell() + header.size + 10240)
    clips = TarClips(corpus, ["x.tar"])
    assert len(clips) == 2 and clips.clip(0).source == clip
    assert "at most 2 are read" in refused(lambda: clips.clip(1))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"speaker":' * 100_000, '{"speaker": ["x"]}', "\x00" * 2**21, "null"])
def test_json_beside_a_clip_of_a_tar(text: str, corpus: Path, clip: bytes) -> None:
    with tarfile.open(corpus / "x.tar", "w") as archive:
        add(archive, "a.flac", clip)
        add(archive, "a.json", text.encode())
        add(archive, "b.flac", clip)
        add(archive, "b.json", b'{"speaker": "somebody"}')
    with bounded():
        clips = TarClips(corpus, ["x.tar"], speaker_column="speaker")
    assert [speaker for _, speaker in clips.names_and_speakers()][1] == "somebody"


def test_pickles_in_a_tar_stay_bytes(corpus: Path, clip: bytes, tmp_path: Path) -> None:
    with tarfile.open(corpus / "x.tar", "w") as archive:
        for suffix in ("pickle", "pkl", "pyd", "pth", "npy", "json", "pt"):
            for number, content in enumerate(pickles(tmp_path / "trace").values()):
                add(archive, f"{number}.flac", clip)
                add(archive, f"{number}.{suffix}", content)
                add(archive, f"{number}.speaker", content)
    assert len(TarClips(corpus, ["x.tar"], speaker_column="speaker")) > 20
    assert not (tmp_path / "trace").exists()


# Tables


def extension(trace: Path) -> pyarrow.Field:
    """A column of the kind whose type older versions of pyarrow unpickled."""
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Payload(trace))}
    return pyarrow.field("audio", pyarrow.binary(), metadata=kind)


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_types_of_tables_are_not_unpickled(suffix: str, streaming: bool, clip: bytes, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    table = pyarrow.table({"audio": [clip]}, schema=pyarrow.schema([extension(trace)]))
    folder = tmp_path / "set"
    folder.mkdir()
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, folder / "x.parquet")
    else:
        with pyarrow.ipc.new_stream(folder / "x.arrow", table.schema) as writer:
            writer.write_table(table)
    try:
        open_source(Request(str(folder), streaming=streaming))
    except DataError as error:
        assert "\n" not in str(error)
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["a footer of 2 GB", "no footer", "numbers in the footer", "a pickle"])
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_that_lies(damage: str, streaming: bool, clip: bytes, tmp_path: Path) -> None:
    table = pyarrow.table({"audio": [{"bytes": clip, "path": "a.flac"}] * 4})
    path = tmp_path / "set" / "x.parquet"
    path.parent.mkdir()
    pyarrow.parquet.write_table(table, path)
    content = bytearray(path.read_bytes())
    if damage == "a footer of 2 GB":
        content[-8:-4] = (2**31 - 1).to_bytes(4, "little")
    elif damage == "no footer":
        del content[-100:]
    elif damage == "numbers in the footer":
        content[-200:-8] = b"\xff" * 192
    else:
        content[:] = pickles(tmp_path / "trace")["pickle"]
    path.write_bytes(content)
    refused(lambda: open_source(Request(str(path.parent), streaming=streaming)))
    assert not (tmp_path / "trace").exists()


def test_parquet_of_the_hub_is_foreign(tmp_path: Path, clip: bytes) -> None:
    (tmp_path / "secret.flac").write_bytes(clip)
    table = pyarrow.table({"audio": [{"bytes": None, "path": str(tmp_path / "secret.flac")}]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    clips = ParquetClips([str(tmp_path / "x.parquet")], "train", "audio", cache=BlockCache(tmp_path / "cache"))
    assert "of this machine" in refused(lambda: clips.clip(0))
    own = ParquetClips([str(tmp_path / "x.parquet")], "train", "audio", root=str(tmp_path), cache=BlockCache(tmp_path / "cache"))
    assert own.clip(0).source == str(tmp_path / "secret.flac")


@pytest.mark.parametrize("path", ["/etc/hostname", "secret.flac", "../secret.flac", "~/secret.flac"])
def test_tables_of_the_hub_name_no_file_of_this_machine(path: str) -> None:
    reader = RowReader("audio", None, root=None, split="train", is_foreign=True)
    for value in (path, {"path": path, "bytes": None}):
        assert "of this machine" in refused(lambda value=value: reader.clip({"audio": value}, 0))  # type: ignore[misc]
    assert reader.clip({"audio": {"path": path, "bytes": b"x"}}, 0).source == b"x"
    downloaded = str(Path(datasets.config.HF_DATASETS_CACHE) / "downloads" / "a.flac")
    assert reader.clip({"audio": downloaded}, 0).source == downloaded


# Data sets as `datasets` writes them


@pytest.mark.parametrize("name", ["../secret/data.arrow", "/etc/hostname", "a/../../b.arrow"])
def test_a_saved_data_set_stays_in_its_folder(name: str, clip: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"audio": [{"bytes": clip, "path": "a.flac"}]}).save_to_disk(folder)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    assert "outside" in refused(lambda: open_source(Request(str(folder))))
    (folder / "state.json").write_text("[" * 100_000)
    refused(lambda: open_source(Request(str(folder))))
    (folder / "state.json").unlink()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../elsewhere"]}))
    assert "outside" in refused(lambda: open_source(Request(str(folder))))


def test_a_saved_data_set_opens(clip: bytes, tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"audio": [{"bytes": clip, "path": "a.flac"}]})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        assert len(open_source(Request(str(tmp_path / name)))) == 1  # type: ignore[arg-type]


def test_a_script_in_a_folder_is_not_run(corpus: Path, tmp_path: Path, clip: bytes) -> None:
    """A loading script, called as those of `datasets` are, and whatever else Python or a shell might pick up."""
    code = f"open({str(tmp_path / 'trace')!r}, 'w').write('executed')\n"
    for name in ("corpus.py", "dataset.py", "__init__.py", "conftest.py", "setup.py", "sitecustomize.py", "run.sh"):
        (corpus / name).write_text(code)
    for name in ("dataset_infos.json", "dataset_info.json"):
        (corpus / name).write_text(json.dumps({"default": {"builder_name": "corpus", "trust_remote_code": True}}))
    assert len(open_source(Request(str(corpus)))) == 1  # type: ignore[arg-type]
    table = pyarrow.table({"audio": [{"bytes": clip, "path": "a.flac"}]})
    for number in range(3):
        pyarrow.parquet.write_table(table, corpus / f"{number}.parquet")
    for streaming in (False, True):
        assert "never run" in refused(lambda: open_source(Request(str(corpus), streaming=streaming)))  # noqa: B023
    (corpus / "corpus.py").unlink()
    assert len(open_source(Request(str(corpus)))) == 3  # type: ignore[arg-type]
    assert not (tmp_path / "trace").exists()


CARDS = {
    "tags": "configs: !!python/object/apply:pathlib.Path.write_text [TRACE, executed]\n",
    "files outside": "configs:\n- config_name: default\n  data_files: ../secret/*.parquet\n",
    "a file outside": "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: /SECRET\n",
}


@pytest.mark.parametrize("case", CARDS)
def test_the_card_of_a_folder(case: str, clip: bytes, tmp_path: Path) -> None:
    folder, secret = tmp_path / "corpus", tmp_path / "secret"
    table = pyarrow.table({"audio": [{"bytes": clip, "path": "a.flac"}]})
    for place in (folder, secret):
        place.mkdir()
        pyarrow.parquet.write_table(table, place / "x.parquet")
    card = CARDS[case].replace("TRACE", str(tmp_path / "trace")).replace("/SECRET", str(secret / "x.parquet"))
    (folder / "README.md").write_text(f"---\n{card}---\n")
    line = refused(lambda: open_source(Request(str(folder))))
    assert not (tmp_path / "trace").exists()
    if case != "tags":
        assert "outside" in line
