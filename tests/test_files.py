"""Files and folders are whole or absent, whatever happens in the middle."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from snac_accel.files import new_folder, replace_json, sha256, write_bytes, write_json


class Killed(BaseException):
    """Stands for whatever ends a process: not an Exception."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as draft:
        write_bytes(draft / "one", b"1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["one"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
def test_a_failure_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as draft:
        write_bytes(draft / "old", b"old")
    with pytest.raises(error), new_folder(tmp_path / "out") as draft:
        write_bytes(draft / "new", b"new")
        raise error
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "old").read_bytes() == b"old"


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "out") as draft:
            write_bytes(draft / name, name.encode())
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_leftovers_of_a_killed_process_are_in_nobodys_way(tmp_path: Path) -> None:
    for leftover in (".incomplete-out", ".incomplete-old-out"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half").write_bytes(b"half")
    for _ in range(2):
        with new_folder(tmp_path / "out") as draft:
            write_bytes(draft / "new", b"new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_replacing_json_never_shows_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    replace_json(path, {"value": 1})

    def killed(source: object, target: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            replace_json(path, {"value": 2})
    assert path.read_text() == '{\n  "value": 1\n}\n'
    replace_json(path, {"value": 3})
    assert names(tmp_path) == ["value.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_no_one_else_can_read_is_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        write_json(tmp_path / "value.json", {"value": value})
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1])
def test_sha256_of_any_size(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    write_bytes(tmp_path / "file", content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
