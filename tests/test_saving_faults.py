"""A save that breaks off at any file operation: killed, refused, torn. What was acknowledged before is always there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_files import FORBIDDEN, FULL_DISK, QUOTA, READ_ONLY, Dead, Disk, Operation, watched

from snac_accel import checkpoint, files
from snac_accel.checkpoint import Snapshot, write_snapshot
from snac_accel.errors import CheckpointError
from snac_accel.retention import Retention
from snac_accel.stored import MANIFEST, list_checkpoints, newest_checkpoint, place_of, read_json, verify_checkpoint

FILES = ["config.json", "generator.safetensors", "optimizer.generator.safetensors", "progress.json"]


def save(folder: Path, step: int, content: str = "first", keep_last: int | None = 1) -> Path:
    """A checkpoint of two tensors, written by the code that writes all of them."""
    tensors = {
        "generator.safetensors": {"weight": torch.full((40,), float(step))},
        "optimizer.generator.safetensors": {"0.exp_avg": torch.zeros(7), "0.step": torch.tensor(3.0)},
    }
    taken = Snapshot(step, tensors, {"progress.json": f'"{content}"'.encode()})
    facts = {"config_hash": "", "world_size": 1, "global_batch_size": 2}
    return write_snapshot(folder, taken, {"model": {}}, facts, Retention(keep_last))


def newest(folder: Path) -> tuple[int, str]:
    """Step and content of the newest loadable checkpoint."""
    path = newest_checkpoint(folder)
    assert path is not None
    place = place_of(path)
    assert place is not None
    return place.step, read_json(path / "progress.json")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith("step_")]


def operations(root: Path, save_it: Callable[[Path], object], **store: bool) -> list[Operation]:
    with watched(root, **store) as disk:
        save_it(root)
    return disk.done


# The order


def test_the_order_of_writes_syncs_and_renames(tmp_path: Path) -> None:
    """Everything is on the disk before the name is, and the name before anything older goes."""
    save(tmp_path, 1)
    done = operations(tmp_path, lambda folder: save(folder, 2))
    draft = ".incomplete-step_00000002"
    for name in [*FILES, MANIFEST]:
        own = [operation.name for operation in done if operation.path == f"{draft}/{name}"]
        assert own[:1] + own[-1:] == ["open", "fsync"] and set(own[1:-1]) == {"write"}, name
    opened = [operation.path for operation in done if operation.name == "open"]
    assert sorted(opened[:-1]) == [f"{draft}/{name}" for name in FILES] and opened[-1] == f"{draft}/{MANIFEST}"
    rest = [operation for operation in done if operation.name not in ("open", "write") and "/" not in operation.path]
    trial = [".incomplete-exchange-1", ".incomplete-exchange-2"]
    assert [operation for operation in rest if operation.path in trial][:2] == [Operation("mkdir", name) for name in trial]
    rest = [operation for operation in rest if operation.path not in trial]
    assert rest[:4] == [
        Operation("mkdir", draft),
        Operation("fsync", draft),
        Operation("rename", draft, "step_00000002"),
        Operation("fsync", "."),
    ]
    assert rest[4] == Operation("rename", "step_00000001", ".incomplete-removed-step_00000001")
    assert rest[-1] == Operation("fsync", ".")
    manifest_synced = done.index(Operation("fsync", f"{draft}/{MANIFEST}"))
    assert manifest_synced < done.index(Operation("fsync", draft)) < done.index(rest[2])
    removals = [number for number, operation in enumerate(done) if operation.name in ("unlink", "rmdir")]
    assert all(number > done.index(rest[4]) or done[number].path in trial for number in removals)


def test_where_folders_may_move_file_by_file_the_manifest_is_the_mark(tmp_path: Path) -> None:
    """It gets its name when all else is on the disk, and loses it before anything else goes."""
    save(tmp_path, 1)
    done = operations(tmp_path, lambda folder: save(folder, 2), exchange=False, atomic=False)
    commit = done.index(Operation("rename", f"step_00000002/.incomplete-{MANIFEST}", f"step_00000002/{MANIFEST}"))
    arrived = [number for number, operation in enumerate(done) if operation.target.startswith("step_00000002/")]
    assert max(arrived) == commit and Operation("fsync", "step_00000002") in done[max(arrived[:-1]) : commit]
    assert done[commit + 1] == Operation("fsync", "step_00000002")
    removed = [o for o in done[commit:] if o.name in ("unlink", "rmdir") and "exchange" not in o.path]
    assert removed[0] == Operation("unlink", f"step_00000001/{MANIFEST}")


def test_a_step_that_is_saved_again_changes_places_in_one_move(tmp_path: Path) -> None:
    save(tmp_path, 5)
    names = [o.name for o in operations(tmp_path, lambda folder: save(folder, 5, "second")) if o.name in ("rename", "exchange")]
    assert names == ["exchange"] * 2  # the first tries whether it can be done here
    assert newest(tmp_path) == (5, "second") and leftovers(tmp_path) == []


# Killed, at every operation

STORES = {"local": {}, "no exchange": {"exchange": False}, "bucket": {"exchange": False, "atomic": False}}


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("step", [4, 3])
@pytest.mark.parametrize("keep_last", [1, 2])
@pytest.mark.parametrize("store", STORES)
def test_killed_at_any_operation(store: str, keep_last: int, step: int, torn: bool, tmp_path: Path) -> None:
    """Step 3 is saved again, or step 4 after it: what was acknowledged is there, and the next save finds room."""
    at, dead = 0, True
    while dead:
        folder = tmp_path / str(at)
        for earlier in (1, 2, 3):
            save(folder, earlier, keep_last=keep_last)
        with watched(folder, **STORES[store]) as disk:
            disk.breaks_at, disk.torn = at, torn
            try:
                save(folder, step, "second", keep_last)
            except Dead:
                pass
            dead = disk.dead
        found = newest(folder)
        assert found in ((3, "first"), (step, "second")), f"killed at {disk.done[-1]}"
        assert dead or found == (step, "second")
        with watched(folder, **STORES[store]):
            save(folder, 9, "third", keep_last)
        assert newest(folder) == (9, "third") and leftovers(folder) == []
        kept = [verify_checkpoint(path) for path in list_checkpoints(folder) if (path / MANIFEST).exists()]
        assert len(kept) == keep_last
        at += 1
    assert at > 25


# Refused, at every operation


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", [FULL_DISK, QUOTA, READ_ONLY, FORBIDDEN])
def test_refused_at_any_operation(code: int, lasting: bool, tmp_path: Path) -> None:
    """One line with the path and the free bytes; the old checkpoint stays, temporary files do not."""
    at, failures = 0, 0
    while True:
        folder = tmp_path / str(at)
        save(folder, 1)
        with watched(folder) as disk:
            disk.breaks_at, disk.error, disk.lasting = at, code, lasting
            problem = _problem(lambda: save(folder, 2))  # noqa: B023
        if at >= len(disk.done):
            break
        if problem is None:
            assert newest(folder) == (2, "first"), "an error after the commit is no failed save"
        else:
            failures += 1
            assert "\n" not in problem and str(folder) in problem and os.strerror(code) in problem
            assert "bytes free" in problem
            assert newest(folder)[0] in (1, 2) and leftovers(folder) == []
        save(folder, 3)
        assert newest(folder) == (3, "first") and leftovers(folder) == []
        at += 1
    assert failures > 12


def _problem(action: Callable[[], object]) -> str | None:
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return None


def test_room_is_looked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: 1000)
    with watched(tmp_path) as disk, pytest.raises(CheckpointError) as error:
        save(tmp_path, 2)
    assert disk.done == []
    assert f"{tmp_path} cannot be written: 1000 bytes free, a checkpoint needs 65" in str(error.value)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: None)  # a bucket has no size
    save(tmp_path, 2)


def test_leftovers_of_a_kill_make_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    (tmp_path / ".incomplete-step_00000007").mkdir()
    seen: list[list[str]] = []
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: seen.append(leftovers(path)))
    save(tmp_path, 2)
    assert seen == [[]]


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    save(tmp_path, 1)
    assert newest(tmp_path) == (1, "first")


def test_the_harness_sees_what_it_should(tmp_path: Path) -> None:
    """A save without the flush of the draft, or that removes first, would be found: the record holds what was done."""
    with watched(tmp_path) as disk:
        files.write_bytes(tmp_path / "a", b"12345678")
        os.rename(tmp_path / "a", tmp_path / "b")
        os.unlink(tmp_path / "b")
    assert [operation.name for operation in disk.done] == ["open", "write", "fsync", "rename", "unlink"]
    _torn(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"1234"


def _torn(folder: Path) -> Any:
    with watched(folder) as disk:
        disk.breaks_at, disk.torn = 1, True
        with pytest.raises(Dead):
            files.write_bytes(folder / "a", b"12345678")
        with pytest.raises(Dead):
            os.unlink(folder / "a")
    assert isinstance(disk, Disk)
