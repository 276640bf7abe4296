"""Checkpoints as folders: found, verified, refused by name; and whatever a manifest says, nothing outside is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snac_accel import stored
from snac_accel.errors import CheckpointError
from snac_accel.stored import (
    MANIFEST,
    MAX_JSON_BYTES,
    list_checkpoints,
    looks_complete,
    newest_checkpoint,
    path_for,
    read_manifest,
    sealed,
    verify_checkpoint,
)


def checkpoint(
    folder: Path, step: int, /, content: bytes = b"weights", name: str | None = None, **facts: Any
) -> Path:
    """A checkpoint with one file and a right seal; `facts` replace those of the manifest."""
    path = folder / (name or f"step_{step:08d}")
    path.mkdir(parents=True)
    (path / "generator.safetensors").write_bytes(content)
    listed = {"generator.safetensors": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    own = {"format": 3, "step": step, "config_hash": "", "world_size": 1, "global_batch_size": 1, "files": listed}
    (path / MANIFEST).write_bytes(sealed({**own, **facts}))
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        verify_checkpoint(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


def test_nothing_heavy_is_loaded_to_look_for_checkpoints(tmp_path: Path) -> None:
    checkpoint(tmp_path, 7)
    code = (
        "import sys; from pathlib import Path; from snac_accel.stored import newest_checkpoint; "
        "import snac_accel.retention; print(newest_checkpoint(Path(sys.argv[1])).name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["step_00000007", "False"]


@pytest.mark.parametrize("rounds", [150, pytest.param(0, marks=pytest.mark.torture)])
def test_every_byte_of_a_manifest_is_sealed(rounds: int, tmp_path: Path) -> None:
    """0: each byte, each bit."""
    path = checkpoint(tmp_path, 5, data={"train": "abc"}, score={"metric": "mel_distance", "value": 1.25})
    content = (path / MANIFEST).read_bytes()
    draw = random.Random(0)
    every = [(place, bit) for place in range(len(content)) for bit in range(8)]
    for place, bit in draw.sample(every, rounds) if rounds else every:
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        (path / MANIFEST).write_bytes(changed)
        refused(path)
    for cut in (0, 1, len(content) // 2, len(content) - 1):
        (path / MANIFEST).write_bytes(content[:cut])
        refused(path)
    (path / MANIFEST).write_bytes(content + b"\n")
    refused(path)
    (path / MANIFEST).write_bytes(content)
    assert verify_checkpoint(path)["score"] == {"metric": "mel_distance", "value": 1.25}


def test_exchanged_folders_files_and_manifests_are_found_out(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path, 1, b"one"), checkpoint(tmp_path, 2, b"two")
    for name in (MANIFEST, "generator.safetensors"):
        _swap(one / name, two / name)
        assert {name, "step_00000001"} <= set(refused(one).replace("/", " ").split())
        refused(two)
        assert newest_checkpoint(tmp_path) is None
        _swap(one / name, two / name)
    _swap(one, two)
    assert "not of the step that the folder is named after" in refused(one)
    _swap(one, two)
    verify_checkpoint(one)
    elsewhere = tmp_path / "best"
    os.rename(one, elsewhere)
    assert verify_checkpoint(elsewhere)["step"] == 1  # a copy may bear any other name


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    for source, target in ((one, aside), (other, one), (aside, other)):
        os.rename(source, target)


HOSTILE_NAMES = ["../secret", "/etc/hostname", "a/b", "..", ".", "", ".hidden", "a\x00b", "a\\b", "manifest.json", "-rf"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    facts = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    path = checkpoint(tmp_path, 1, files={name: facts})
    assert "manifest.json is damaged" in refused(path)


@pytest.mark.parametrize("target", ["generator.safetensors", MANIFEST])
def test_links_are_refused(target: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "run", 1)
    os.rename(path / target, tmp_path / "outside")
    (path / target).symlink_to(tmp_path / "outside")
    refused(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "huge", "deep", "not UTF-8"])
def test_manifests_that_are_none_take_no_time_and_no_memory(kind: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    manifest = path / MANIFEST
    manifest.unlink()
    if kind == "folder":
        manifest.mkdir()
    elif kind == "pipe":
        os.mkfifo(manifest)
    elif kind == "huge":
        manifest.touch()
        os.truncate(manifest, 2**40)  # a hole: no room on the disk
    else:
        manifest.write_bytes(b"[" * 100_000 if kind == "deep" else b"\xff\xfe{}")
    message = refused(path)
    if kind == "huge":
        assert f"more than {MAX_JSON_BYTES} bytes" in message


def test_a_lying_size_is_found_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, 1)
    os.truncate(path / "generator.safetensors", 2**40)
    monkeypatch.setattr(stored, "sha256", lambda file: pytest.fail("it was read"))
    assert "generator.safetensors is damaged" in refused(path)
    assert not looks_complete(path)


@pytest.mark.parametrize(
    "facts",
    [
        {"files": []}, {"files": {"a": 1}}, {"files": {"a": {"bytes": True, "sha256": ""}}}, {"files": None},
        {"files": {"a": {"bytes": 1}}}, {"files": {str(n): {"bytes": 0, "sha256": ""} for n in range(2000)}},
        {"format": True}, {"format": "3"}, {"format": None}, {"step": "1"}, {"step": 2},
    ],
)  # fmt: skip
def test_facts_of_the_wrong_kind_are_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    refused(checkpoint(tmp_path, 1, **facts))


def test_a_manifest_of_the_format_before_needs_no_seal(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1, format=2)
    facts = json.loads((path / MANIFEST).read_text())
    del facts["seal"]
    (path / MANIFEST).write_text(json.dumps(facts))
    assert verify_checkpoint(path)["format"] == 2
    (path / MANIFEST).write_text(json.dumps({**facts, "format": 3}))
    assert "manifest.json is damaged" in refused(path)


def test_a_newer_format_is_refused_with_its_writer_and_the_way_out(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1, format=99, program="snac_accel 7.0")
    message = refused(path)
    for part in ("has checkpoint format 99, this version reads 2 and 3", f"--init_from {path}", "snac_accel 7.0"):
        assert part in message


def test_the_newest_intact_one_by_number_not_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (99, 99_999_999, 100_000_000):
        checkpoint(tmp_path, step)
    (tmp_path / "step_notes").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000099", "step_99999999", "step_100000000"]
    newest = tmp_path / "step_100000000"
    assert newest_checkpoint(tmp_path) == newest
    (newest / "generator.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == tmp_path / "step_99999999"
    assert "generator.safetensors is missing" in caplog.text and "falling back" in caplog.text


def test_one_that_vanishes_while_it_is_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2)

    def gone(file: Path) -> str:
        if "step_00000002" in str(file):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr(stored, "sha256", gone)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000001"


def test_where_no_folder_can_be_replaced_a_step_gets_another_name(tmp_path: Path) -> None:
    first = checkpoint(tmp_path, 5, b"one")
    assert path_for(tmp_path, 5, replaceable=True) == first
    assert path_for(tmp_path, 4, replaceable=False) == tmp_path / "step_00000004"
    again = path_for(tmp_path, 5, replaceable=False)
    assert again.name == "step_00000005.2"
    checkpoint(tmp_path, 5, b"two", name=again.name)
    assert list_checkpoints(tmp_path) == [first, again] and newest_checkpoint(tmp_path) == again
    assert path_for(tmp_path, 5, replaceable=False).name == "step_00000005.3"
    assert read_manifest(again)["step"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, again.name]
