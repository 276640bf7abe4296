"""Manifests: whatever their form, they give the same files; what is wrong in them is named with its line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from snac_accel.audio import probe
from snac_accel.dataset.manifests import open_manifest
from snac_accel.errors import DataError

Rows = list[dict[str, Any]]


@pytest.fixture
def rows(demo_folder: Path, tmp_path: Path) -> Rows:
    """A manifest's rows, and four clips of real speech beside it."""
    (tmp_path / "sound").mkdir()
    found: Rows = []
    for number, clip in enumerate(sorted((demo_folder / "validation").glob("*.flac"))[:4]):
        shutil.copy(clip, tmp_path / "sound")
        found.append(
            {
                "audio_filepath": f"sound/{clip.name}",
                "duration": 1.5,
                "text": 'said, "so"',
                "speaker": f"00{number}",
            }
        )
    return found


def as_lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows: Rows, delimiter: str = ",") -> str:
    quoted = [[str(value).replace('"', '""') for value in row.values()] for row in rows]
    lines = [delimiter.join(f'"{value}"' for value in row) for row in quoted]
    return "\r\n".join([delimiter.join(rows[0]), *lines]) + "\r\n"


FORMS: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "lines": ("m.jsonl", as_lines),
    "lines without an end": ("m.ndjson", lambda rows: "\n\n" + as_lines(rows).rstrip()),
    "lines called json": ("m.json", as_lines),
    "byte order mark": ("m.jsonl", lambda rows: "\ufeff" + as_lines(rows)),
    "list": ("m.json", lambda rows: json.dumps(rows, indent=1)),
    "list on a line": ("m.json", json.dumps),
    "object with a list": ("m.json", lambda rows: json.dumps({"version": "1", "data": rows})),
    "columns": ("m.json", lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]})),
    "by id": ("m.json", lambda rows: json.dumps({f"clip {n}": row for n, row in enumerate(rows)}, indent=2)),
    "commas": ("m.csv", as_csv),
    "semicolons": ("m.csv", lambda rows: as_csv(rows, ";")),
    "tabs": ("m.tsv", lambda rows: "\n".join("\t".join(map(str, row)) for row in [rows[0], *(row.values() for row in rows)])),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str, rows: Rows, tmp_path: Path) -> None:
    name, write = FORMS[form]
    (tmp_path / name).write_text(write(rows), encoding="utf-8", newline="")
    table = open_manifest(str(tmp_path / name))
    assert table["audio"][:] == [row["audio_filepath"] for row in rows]
    assert table["text"][:] == ['said, "so"'] * 4
    assert table["speaker"][:] == ["000", "001", "002", "003"]
    assert [float(value) for value in table["duration"][:]] == [1.5] * 4
    assert all(probe(tmp_path / path).num_frames for path in table["audio"])


@pytest.mark.parametrize("column", ["audio_filepath", "path", "file_name", "wav", "audio_path", "file"])
def test_usual_columns_are_found(column: str, rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(as_lines([{"text": "x", column: row["audio_filepath"]} for row in rows]))
    assert open_manifest(str(path))["audio"][:] == [row["audio_filepath"] for row in rows]
    assert open_manifest(str(path), audio_column=column)[column][:] == [row["audio_filepath"] for row in rows]


def test_the_column_asked_for_wins(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(as_lines([{"path": "a.wav", "audio": "b.wav", "mine": "c.wav"}]))
    assert open_manifest(str(path))["audio"][:] == ["b.wav"]
    assert open_manifest(str(path), audio_column="mine")["mine"][:] == ["c.wav"]


def test_columns_that_agree_are_not_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(as_lines([{"path": "a.wav", "file": "a.wav"}]))
    assert open_manifest(str(path))["audio"][:] == ["a.wav"]


def test_addresses_paths_and_objects(tmp_path: Path) -> None:
    """Addresses and absolute paths stay; below a manifest at an address, relative ones become addresses."""
    names = ["s3://bucket/a.wav", "https://example.org/b.wav", "/data/c.wav", "../d.wav", "./e.wav"]
    content = as_lines([{"audio": {"path": name, "bytes": None}} for name in names])
    (tmp_path / "m.jsonl").write_text(content)
    assert open_manifest(str(tmp_path / "m.jsonl"))["audio"][:] == names
    with fsspec.open("memory://corpus/lists/m.jsonl", "wt") as file:
        file.write(content)
    there = open_manifest("memory://corpus/lists/m.jsonl")["audio"][:]
    assert there == [*names[:3], "memory://corpus/d.wav", "memory://corpus/lists/e.wav"]


def test_mixed_types_and_missing_fields_are_no_hindrance(tmp_path: Path) -> None:
    rows: Rows = [
        {"audio": "a.wav", "age": 3, "tags": ["x"], "offset": 0},
        {"audio": "b.wav", "age": "three", "more": "\ud800", "offset": 1.5},
    ]
    (tmp_path / "m.jsonl").write_text(as_lines(rows))
    table = open_manifest(str(tmp_path / "m.jsonl"))
    assert table["age"][:] == ["3", "three"]
    assert table["offset"][:] == [0.0, 1.5]
    assert table["tags"][:] == ['["x"]', None]
    assert table["more"][:] == [None, "\\ud800"]


def test_many_rows_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snac_accel.dataset.manifests.ROWS_AT_A_TIME", 3)
    rows: Rows = [
        {"audio": f"{number}.wav", "speaker": number if number < 7 else "anna"} for number in range(10)
    ]
    (tmp_path / "m.jsonl").write_text(as_lines(rows))
    table = open_manifest(str(tmp_path / "m.jsonl"))
    assert table["audio"][:] == [f"{number}.wav" for number in range(10)]
    assert table["speaker"][9] == "anna"


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("m.jsonl", '{"audio": "a.wav"}\n\n{"audio": ""}\n', "audio", "m.jsonl' line 3 names no file in column 'audio': ''"),
        ("m.jsonl", '{"audio": "a.wav"}\n{"text": "x"}\n', "audio", "line 2 names no file in column 'audio': nothing"),
        ("m.jsonl", '{"audio": 7}\n', "audio", "line 1 names no file in column 'audio': 7"),
        ("m.jsonl", '{"audio": "a.wav"}\n{"audio": "b.w', "audio", "line 2 is no JSON: Unterminated string"),
        ("m.jsonl", "[1]\n", "audio", "line 1 is no JSON object"),
        ("m.json", '[{"audio": "a"}, 3]', "audio", "row 2 is no JSON object: '3'"),
        ("m.json", '[{"audio": "a"}', "audio", "cannot be read: Expecting"),
        ("m.csv", "audio,text\na.wav,x\n,y\n", "audio", "line 3 names no file in column 'audio'"),
        ("m.csv", "audio,text\na.wav,x,y\n", "audio", "line 2 has more fields than the header: ',' parts them"),
        ("m.csv", "", "audio", "holds no rows"),
        ("m.jsonl", '{"sound": "a", "text": "b"}', "audio", "no column 'audio'; there are: sound, text; set data.audio_column"),
        ("m.jsonl", '{"audio": "a", "text": "b"}', "speech", "no column 'speech'; there are: audio, text$"),
        ("m.jsonl", '{"path": "a", "wav": "b"}', "audio", "several columns that may name the files: .* one of path, wav"),
        ("m.jsonl", b"\xff\xfe\x00", "audio", "cannot be read: 'utf-8' codec"),
        ("nowhere.jsonl", None, "audio", "cannot be read: .*No such file"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(
    name: str, content: str | bytes | None, column: str, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        open_manifest(str(tmp_path / name), audio_column=column)
    assert "\n" not in str(caught.value)


def test_a_manifest_is_the_split_train(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(as_lines(rows))
    with pytest.raises(DataError, match="has no split 'validation'; there are: train"):
        open_manifest(str(tmp_path / "m.jsonl"), "validation")
    (tmp_path / "dev_clean.jsonl").write_text(as_lines(rows))
    for split in ("train", "validation"):
        assert len(open_manifest(str(tmp_path / "dev_clean.jsonl"), split)) == 4


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    """A speaker 3 is not 3.0: its name decides what is held out."""
    (tmp_path / "m.jsonl").write_text(as_lines([{"audio": "a.wav", "speaker": 3, "id": 2**70}]))
    assert open_manifest(str(tmp_path / "m.jsonl"))[0] == {"audio": "a.wav", "speaker": 3, "id": str(2**70)}


def test_quoted_line_breaks(tmp_path: Path) -> None:
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "text"], ["a.wav", "two\nlines"], ["b.wav", "one"]])
    assert open_manifest(str(tmp_path / "m.csv"))["text"][:] == ["two\nlines", "one"]
