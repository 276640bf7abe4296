"""Real clips for the tests of `prepare`, on a machine without torchcodec."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest

from snac_accel.dataset.tables import StoredAudio


@pytest.fixture
def clips(demo_folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """A folder `sound` of twenty-three clips of real speech, in folders and with spare names; the bytes by name."""
    found = {}
    for number, clip in enumerate(sorted((demo_folder / "validation").glob("*.flac"))[:23]):
        path = tmp_path / "sound" / f"speaker {number % 3}" / f"{number} é.{clip.name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, path)
        found[path.relative_to(tmp_path / "sound").as_posix()] = clip.read_bytes()
    return found


@pytest.fixture(autouse=True)
def no_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` asks for torchcodec, which is no dependency, even to pass on the bytes that it finds in a tar."""
    monkeypatch.setattr(datasets.Audio, "encode_example", StoredAudio.encode_example)
