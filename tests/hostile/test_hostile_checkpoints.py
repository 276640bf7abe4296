"""Checkpoints that somebody prepared, with manifests that agree: nothing runs, nothing outside is read, and it costs little."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from planted import LYING_TENSORS, bounded, grow, pickles, reseal, rewrite
from tiny import MODEL, make_state

from snac_accel.checkpoint import export_checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from snac_accel.errors import CheckpointError
from snac_accel.export import read_weights
from snac_accel.state import TrainState
from snac_accel.stored import MANIFEST, list_checkpoints

Damage = Callable[[Path], object]
WRONG_JSON: dict[str, str] = {
    "null": "null", "a number": "3", "a text": '"x"', "a list": "[]", "an empty object": "{}", "a list of numbers": "[1, 2]",
    "infinity": '{"step": Infinity}', "a number of thousands of digits": f'{{"step": {"9" * 5000}}}',
    "nested deeply": "[" * 100_000, "objects nested deeply": '{"a":' * 100_000,
    "step as text": '{"step": "x", "position": 0, "counters": {}, "scaler": {}}',
    "counters as a number": '{"step": 1, "position": 0, "counters": 3, "scaler": {}}',
    "groups of texts": '["a", "b"]', "groups without parameters": "[{}, {}]",
    "methods in the place of numbers": '{"step": 1, "last_epoch": "x", "_step_count": [], "base_lrs": 3, "lr_lambdas": 7}',
}  # fmt: skip


@pytest.fixture
def state(make_accelerator: Callable[..., Accelerator]) -> TrainState:
    return make_state(make_accelerator())


@pytest.fixture
def path(state: TrainState, tmp_path: Path) -> Path:
    """A checkpoint."""
    facts = {"config": {"model": MODEL, "training": {}}, "config_hash": "0" * 64, "global_batch_size": 4}
    return save_checkpoint(tmp_path / "checkpoints", state, **facts)


def refused(path: Path, state: TrainState) -> str:
    """The one line with which loading is refused, quickly and in little memory."""
    with bounded(), pytest.raises(CheckpointError) as error:
        load_checkpoint(path, state)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def files(path: Path) -> list[Path]:
    found = sorted(file for file in path.iterdir() if file.name != MANIFEST)
    assert len(found) >= 12
    return found


def test_a_planted_pickle_in_any_file_runs_nothing(path: Path, state: TrainState, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    planted = pickles(trace)
    for file in files(path):
        original = file.read_bytes()
        for content in planted.values():
            file.write_bytes(content)
            reseal(path)
            if file.name != "config.json":  # which loading does not read
                assert file.name in refused(path, state)
            if file.name in ("config.json", "generator.safetensors"):
                for read in (lambda: export_checkpoint(path, tmp_path / "out"), lambda: read_weights(str(path), MODEL)):
                    with pytest.raises(CheckpointError):
                        read()
        file.write_bytes(original)
    reseal(path)
    load_checkpoint(path, state)
    assert not trace.exists()
    pickle.loads(planted["pickle"])
    assert trace.read_text() == "executed"  # the test can fail


def test_a_planted_manifest_runs_nothing(path: Path, state: TrainState, tmp_path: Path) -> None:
    for content in pickles(tmp_path / "trace").values():
        (path / MANIFEST).write_bytes(content)
        refused(path, state)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.bin", "random_states_0.pkl", "scaler.pt", "custom_checkpoint_0.pkl"]
)
def test_files_that_other_programs_unpickle_are_left_alone(
    name: str, path: Path, state: TrainState, tmp_path: Path
) -> None:
    """What Accelerate and others keep in such a folder; beside the rest, and listed in the manifest."""
    planted = pickles(tmp_path / "trace").values()
    for content in planted:
        (path / name).write_bytes(content)
        load_checkpoint(path, state)
    manifest = json.loads((path / MANIFEST).read_text())
    rewrite(path, manifest | {"files": manifest["files"] | {name: {}}})
    for content in planted:
        (path / name).write_bytes(content)
        reseal(path)
        load_checkpoint(path, state)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("case", LYING_TENSORS)
def test_tensors_that_lie(case: str, path: Path, state: TrainState) -> None:
    for name in ("generator.safetensors", "optimizer.generator.safetensors", "codebook_usage.safetensors"):
        original = (path / name).read_bytes()
        (path / name).write_bytes(LYING_TENSORS[case])
        reseal(path)
        refused(path, state)
        (path / name).write_bytes(original)


@pytest.mark.parametrize("case", WRONG_JSON)
def test_json_that_holds_something_else(case: str, path: Path, state: TrainState, tmp_path: Path) -> None:
    for name in ("progress.json", "optimizer.generator.json", "schedule.generator.json"):
        original = (path / name).read_bytes()
        (path / name).write_text(WRONG_JSON[case])
        reseal(path)
        refused(path, state)
        (path / name).write_bytes(original)
    (path / "config.json").write_text(WRONG_JSON[case])
    reseal(path)
    with bounded(), pytest.raises(CheckpointError) as error:
        export_checkpoint(path, tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["progress.json", "optimizer.generator.json", "schedule.generator.json", MANIFEST, "config.json"]
)
def test_giant_json(name: str, path: Path, state: TrainState, tmp_path: Path) -> None:
    """Twenty gigabytes, which take no room on the disk."""
    if name == MANIFEST:
        grow(path / name, 20 * 2**30)
        refused(path, state)
    else:  # as large as a checkpoint that agrees can have them within the time of a test
        (path / name).write_bytes(b"[" + b"[],[" * 5_000_000)
        reseal(path)
    if name == "config.json":
        for read in (lambda: export_checkpoint(path, tmp_path / "out"), lambda: read_weights(str(path), MODEL)):
            with bounded(), pytest.raises(CheckpointError):
                read()
    else:
        refused(path, state)


@pytest.mark.parametrize("victim", ["../outside", "/etc/hostname", "a/../../outside", "..", ".", "", "a\\..\\b", "x\n", "\x00"])
def test_names_in_the_manifest_stay_in_the_folder(victim: str, path: Path, state: TrainState) -> None:
    """Even where the file is there, and is what the manifest says."""
    (path.parent / "outside").write_bytes(b"")
    manifest = json.loads((path / MANIFEST).read_text())
    empty = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    rewrite(path, manifest | {"files": manifest["files"] | {victim: empty}})
    assert MANIFEST in refused(path, state)


def _link_to(target: Path) -> Damage:
    def damage(file: Path) -> None:
        file.rename(target)
        file.symlink_to(target)

    return damage


@pytest.mark.parametrize("name", ["generator.safetensors", "progress.json", MANIFEST])
def test_links_are_not_followed(name: str, path: Path, state: TrainState, tmp_path: Path) -> None:
    _link_to(tmp_path / "elsewhere")(path / name)
    refused(path, state)


def test_a_pipe_is_not_waited_for(path: Path, state: TrainState) -> None:
    for name in ("generator.safetensors", MANIFEST):
        (path / name).unlink()
        os.mkfifo(path / name)
        refused(path, state)


def test_rotation_removes_no_linked_folder(path: Path, state: TrainState, tmp_path: Path) -> None:
    """A link in the place of an old checkpoint: at most the link itself goes."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "thesis.txt").write_text("years of work")
    for step in (1, 2):
        (path.parent / f"step_0000000{step}").symlink_to(treasure)
    state.step = 9
    save_checkpoint(path.parent, state, config={}, config_hash="", keep_last=1)
    assert (treasure / "thesis.txt").read_text() == "years of work"
    assert (path.parent / "step_00000009") in list_checkpoints(path.parent)


def test_a_hostile_checkpoint_does_not_hide_the_one_before(path: Path, state: TrainState) -> None:
    state.step = 7
    newer = save_checkpoint(path.parent, state, config={}, config_hash="")
    for content in ("[" * 100_000, '{"format": 1e999}', f'{{"format": {"3" * 5000}}}', '{"format": 3, "files": {"../x": {}}}'):
        (newer / MANIFEST).write_text(content)
        assert newest_checkpoint(path.parent) == path


def test_json_does_not_replace_methods(path: Path, state: TrainState) -> None:
    """torch lets a schedule take over whatever attributes it is given."""
    file = path / "schedule.generator.json"
    others = {"step": 3, "get_lr": "x", "optimizer": None, "_get_closed_form_lr": 1}
    file.write_text(json.dumps(json.loads(file.read_text()) | others))
    reseal(path)
    load_checkpoint(path, state)
    schedule = state.schedules["generator"]
    assert schedule.optimizer is state.optimizers["generator"] and callable(schedule.step) and callable(schedule.get_lr)


def test_an_empty_group_of_tensors_is_no_state(path: Path, state: TrainState) -> None:
    """Loading what has nothing of a model in it must not pass for a start from this checkpoint."""
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    rewrite(path, manifest | {"files": {}})
    refused(path, state)
