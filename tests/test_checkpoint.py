"""Checkpoints: bitwise continuation, damage that is named, nothing to unpickle. Saves that break off: `test_saving_faults`."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from torch import Tensor

from snac_accel import checkpoint, stored
from snac_accel.averages import WeightAverage, exponential
from snac_accel.checkpoint import (
    export_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from snac_accel.discriminators import MultiPeriodDiscriminator
from snac_accel.errors import CheckpointError
from snac_accel.export import check_export
from snac_accel.state import TrainState
from snac_accel.step import train_step
from snac_accel.tensor_files import tensor_pieces
from tiny import MODEL, WINDOW, differences, make_discriminators, make_state, snapshot, step_settings

MakeAccelerator = Callable[..., Accelerator]
FILES = [
    "codebook_usage.safetensors",
    "config.json",
    "discriminator.mpd.safetensors",
    "discriminator.msstftd.safetensors",
    "generator.safetensors",
    "optimizer.discriminator.json",
    "optimizer.discriminator.safetensors",
    "optimizer.generator.json",
    "optimizer.generator.safetensors",
    "progress.json",
    "schedule.discriminator.json",
    "schedule.generator.json",
]
CONFIG = {"model": MODEL, "training": {"seed": 0}}


def save(folder: Path, state: TrainState, **options: Any) -> Path:
    facts = {"config": CONFIG, "config_hash": "0" * 64, "world_size": 1, "global_batch_size": 4}
    return save_checkpoint(folder, state, **{**facts, **options})


def save_at(folder: Path, state: TrainState, *steps: int, **options: Any) -> None:
    for step in steps:
        state.step = step
        save(folder, state, **options)


@pytest.fixture
def accelerator(make_accelerator: MakeAccelerator) -> Accelerator:
    return make_accelerator()


@pytest.fixture
def state(accelerator: Accelerator) -> TrainState:
    """A fresh state."""
    return make_state(accelerator)


@pytest.fixture
def batches(speech: Tensor) -> list[Tensor]:
    """Five batches (2, 1, WINDOW)."""
    return list(speech[:10, :, :WINDOW].split(2))


@pytest.fixture
def trained(accelerator: Accelerator, state: TrainState, batches: list[Tensor]) -> TrainState:
    """A state after three steps, one of them skipped."""
    advance(state, accelerator, [*batches[:2], batches[2] * float("nan")])
    state.count("audio_samples", 6)
    return state


def advance(state: TrainState, accelerator: Accelerator, batches: list[Tensor]) -> None:
    for batch in batches:
        train_step([batch], state, accelerator, step_settings(restart_after=1.0))


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Continuation


def test_a_loaded_state_is_bitwise_the_saved_one_and_goes_on_as_it(
    trained: TrainState, accelerator: Accelerator, batches: list[Tensor], tmp_path: Path
) -> None:
    path = save(tmp_path, trained)
    saved = snapshot(trained)
    fresh = make_state(accelerator, seed=7)
    assert differences(saved, snapshot(fresh))
    torch.manual_seed(123)  # the process that resumes has drawn other numbers
    manifest = load_checkpoint(path, fresh)
    assert differences(saved, snapshot(fresh)) == []
    assert (manifest["step"], manifest["world_size"], manifest["global_batch_size"]) == (3, 1, 4)
    assert fresh.counters == {**trained.counters, "skipped_updates": 1, "audio_samples": 6}
    advance(trained, accelerator, batches[3:])
    advance(fresh, accelerator, batches[3:])
    assert differences(snapshot(trained), snapshot(fresh)) == []
    assert differences(saved, snapshot(fresh))


def test_schedules_go_on_with_their_own_function(
    trained: TrainState, accelerator: Accelerator, tmp_path: Path
) -> None:
    """The function belongs to the config, and is that of the state that is loaded into."""
    path = save(tmp_path, trained)
    fresh = make_state(accelerator)
    load_checkpoint(path, fresh)
    for name, schedule in fresh.schedules.items():
        assert schedule.last_epoch == 3
        fresh.optimizers[name].step()
        schedule.step()
        rates = [group["lr"] for group in fresh.optimizers[name].param_groups]
        assert rates == pytest.approx([1e-3 * 0.8**4, 1e-3 * 0.9**4][: len(rates)])


def test_loading_leaves_the_saved_files_alone(
    trained: TrainState, accelerator: Accelerator, tmp_path: Path
) -> None:
    path = save(tmp_path, trained)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    fresh = make_state(accelerator)
    load_checkpoint(path, fresh)
    assert save(tmp_path / "again", fresh).name == path.name
    after = {file.name: file.read_bytes() for file in (tmp_path / "again" / path.name).iterdir()}
    assert before.keys() == after.keys() == {*FILES, "manifest.json"}
    assert [name for name in before if before[name] != after[name]] == []


def test_a_state_without_moments_is_saved_too(
    state: TrainState, accelerator: Accelerator, tmp_path: Path
) -> None:
    """Before the first step, AdamW has none."""
    fresh = make_state(accelerator, seed=3)
    load_checkpoint(save(tmp_path, state), fresh)
    assert differences(snapshot(state), snapshot(fresh)) == []


def test_generator_weights_bear_the_names_of_snac(trained: TrainState, tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(save(tmp_path, trained) / "generator.safetensors")
    assert sorted(weights) == sorted(trained.generator.state_dict())


def test_nothing_in_a_checkpoint_is_a_pickle(trained: TrainState, tmp_path: Path) -> None:
    path = save(tmp_path, trained)
    for file in path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors"
            safetensors.torch.load(file.read_bytes())


# Damage


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "append"])
def test_damage_is_named(damage: str, state: TrainState, tmp_path: Path) -> None:
    path = save(tmp_path, state)
    before = snapshot(state)
    for name in FILES:
        original = (path / name).read_bytes()
        content = bytearray(original)
        content[len(content) // 2] ^= 1
        (path / name).unlink()
        if damage != "remove":
            changed = {"flip": bytes(content), "cut": original[:-3], "append": original + b" "}[damage]
            (path / name).write_bytes(changed)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path, state)
        assert name in one_line(error)
        assert newest_checkpoint(tmp_path) is None
        (path / name).write_bytes(original)
    assert differences(before, snapshot(state)) == []
    assert newest_checkpoint(tmp_path) == path


def test_a_damaged_manifest_is_never_a_traceback(state: TrainState, tmp_path: Path) -> None:
    """Whatever byte of it changes: one line; and the fallback keeps working."""
    path = save(tmp_path, state)
    manifest = path / "manifest.json"
    content = manifest.read_bytes()
    choose = random.Random(0)
    for _ in range(150):
        changed = bytearray(content)
        changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
        manifest.write_bytes(changed)
        with pytest.raises(CheckpointError) as error:
            verify_checkpoint(path)
        assert str(path) in one_line(error)
    short = ['{"format": 2}', '{"format": 2, "files": 3}', '{"format": 2, "files": {"a": 1}}']
    for text in ("", "[]", "{}", "null", *short):
        manifest.write_text(text)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)
        assert newest_checkpoint(tmp_path) is None


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path, state: TrainState) -> None:
    path = save(tmp_path, state)
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint: it has no manifest.json"):
        load_checkpoint(path, state)


def test_another_format_is_refused(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    path = save(tmp_path, state)
    monkeypatch.undo()
    with pytest.raises(
        CheckpointError, match=f"has checkpoint format 99, this version reads 2 and {stored.FORMAT}: start a new run from"
    ):
        load_checkpoint(path, state)


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"encoder_dim": 8}, "generator.safetensors"),
        ({"codebook_size": 16}, "generator.safetensors"),
        ({"vq_strides": [4, 1]}, "generator.safetensors"),
        ({"vq_strides": [8, 4, 2, 1]}, "generator.safetensors"),
        (
            {"discriminators": {"mpd": MultiPeriodDiscriminator((2, 3), (4, 16))}},
            "discriminator.mpd.safetensors",
        ),
        (
            {"discriminators": {"other": MultiPeriodDiscriminator((2,), (4,))}},
            "discriminator.other.safetensors",
        ),
        ({"discriminators": {"mpd": make_discriminators()["mpd"]}}, "optimizer.discriminator.json"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    changes: dict[str, Any], file: str, state: TrainState, accelerator: Accelerator, tmp_path: Path
) -> None:
    path = save(tmp_path, state)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, make_state(accelerator, **changes))
    assert file in one_line(error)


# Which is the newest, and which may go


def test_the_newest_intact_checkpoint_is_found(
    state: TrainState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    save_at(tmp_path, state, 900, 1000, 99)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00001000"
    (tmp_path / "step_00001000" / "generator.safetensors").write_bytes(b"")
    (tmp_path / ".incomplete-step_00002000").mkdir()
    (tmp_path / "step_00003000").write_text("a file, not a folder")
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == tmp_path / "step_00000900"
    assert "generator.safetensors is damaged" in caplog.text


def test_rotation_keeps_the_newest(state: TrainState, tmp_path: Path) -> None:
    save_at(tmp_path, state, 1, 2)
    save_at(tmp_path, state, 10, 100, keep_last=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_00000002",
        "step_00000010",
        "step_00000100",
    ]
    save_at(tmp_path, state, 101, keep_last=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000101"]


def test_rotation_never_removes_what_was_just_saved(state: TrainState, tmp_path: Path) -> None:
    """A run that goes on from an older checkpoint has newer ones beside it."""
    save_at(tmp_path, state, 10, 20, 30)
    save_at(tmp_path, state, 15, keep_last=1)
    assert (tmp_path / "step_00000015").is_dir()


def test_the_same_step_can_be_saved_again(state: TrainState, tmp_path: Path) -> None:
    save_at(tmp_path, state, 5)
    state.count("bad_clips")
    save_at(tmp_path, state, 5, keep_last=1)
    assert json.loads((tmp_path / "step_00000005" / "progress.json").read_text())["counters"]["bad_clips"] == 1
    verify_checkpoint(tmp_path / "step_00000005")


# Export of a checkpoint


@pytest.mark.parametrize("what", ["checkpoint", "run", "checkpoints"])
def test_the_export_of_a_checkpoint_is_a_snac_folder(
    what: str, trained: TrainState, tmp_path: Path, speech: Tensor
) -> None:
    path = save(tmp_path / "run" / "checkpoints", trained)
    source = {"checkpoint": path, "run": tmp_path / "run", "checkpoints": path.parent}[what]
    assert export_checkpoint(source, tmp_path / "export") == path
    check_export(tmp_path / "export", trained.generator, speech[:1])
    before = (tmp_path / "export" / "config.json").stat().st_mtime_ns
    with pytest.raises(CheckpointError, match="export exists already"):
        export_checkpoint(source, tmp_path / "export")
    assert (tmp_path / "export" / "config.json").stat().st_mtime_ns == before


def test_a_damaged_checkpoint_is_not_exported(state: TrainState, tmp_path: Path) -> None:
    path = save(tmp_path, state)
    (path / "generator.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="generator.safetensors is damaged"):
        export_checkpoint(path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


# What training does meanwhile, and what is not always there


def test_a_snapshot_shares_nothing_with_what_is_trained(
    trained: TrainState, accelerator: Accelerator, batches: list[Tensor], tmp_path: Path
) -> None:
    trained.average = WeightAverage(trained.generator, exponential(0.9))
    before = snapshot(trained)
    taken = checkpoint.snapshot(trained)
    advance(trained, accelerator, batches[3:])
    assert differences(before, snapshot(trained))
    facts = {"config_hash": "", "world_size": 1, "global_batch_size": 4}
    path = checkpoint.write_snapshot(tmp_path, taken, CONFIG, facts, checkpoint.Retention())
    fresh = make_state(accelerator, seed=7)
    load_checkpoint(path, fresh)
    assert differences(before, snapshot(fresh)) == []


def test_the_average_is_saved_loaded_and_exported(
    trained: TrainState, accelerator: Accelerator, batches: list[Tensor], tmp_path: Path
) -> None:
    trained.average = WeightAverage(trained.generator, exponential(0.5))
    advance(trained, accelerator, batches[3:])
    path = save(tmp_path, trained)
    fresh = make_state(accelerator, seed=7)
    fresh.average = WeightAverage(fresh.generator, exponential(0.5))
    load_checkpoint(path, fresh)
    saved, loaded = trained.average.state_dict(), fresh.average.state_dict()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved) and saved.keys() == loaded.keys()
    export_checkpoint(path, tmp_path / "export")
    exported = safetensors.torch.load_file(tmp_path / "export" / "model.safetensors")
    assert exported.keys() == trained.generator.state_dict().keys()
    assert all(torch.equal(exported[name], trained.average.tensors[name]) for name in exported)
    assert any(not torch.equal(exported[name], tensor) for name, tensor in trained.generator.state_dict().items())


def test_an_average_may_begin_or_end_with_a_checkpoint(trained: TrainState, accelerator: Accelerator, tmp_path: Path) -> None:
    without = save(tmp_path / "without", trained)
    fresh = make_state(accelerator, seed=7)
    fresh.average = WeightAverage(fresh.generator, exponential(0.5))
    load_checkpoint(without, fresh)
    weights = trained.generator.state_dict()
    assert all(torch.equal(fresh.average.tensors[name], weights[name]) for name in weights)
    with_it = save(tmp_path / "with", fresh)
    load_checkpoint(with_it, make_state(accelerator, seed=8))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_manifest_does_not_name_is_not_read(
    name: str, state: TrainState, accelerator: Accelerator, tmp_path: Path
) -> None:
    path = save(tmp_path, state)
    facts = json.loads((path / "manifest.json").read_text())
    del facts["files"][name], facts["seal"]
    (path / "manifest.json").write_bytes(stored.sealed(facts))
    if name == "config.json":
        load_checkpoint(path, state)  # it is for people, and for the export
        with pytest.raises(CheckpointError, match=name):
            export_checkpoint(path, tmp_path / "export")
        return
    with pytest.raises(CheckpointError, match=f"{name} is missing from the checkpoint"):
        load_checkpoint(path, make_state(accelerator))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", []), ("progress.json", {}), ("progress.json", {"step": "x", "position": 0}),
        ("progress.json", {"step": 3, "position": 0, "counters": 5, "scaler": {}}),
        ("schedule.generator.json", {"step": "instead of the method"}), ("schedule.generator.json", []),
        ("optimizer.generator.json", {}), ("optimizer.generator.json", [5]), ("optimizer.generator.json", [{"params": 1}]),
    ],
)  # fmt: skip
def test_json_of_another_kind_is_one_line(
    name: str, content: Any, trained: TrainState, accelerator: Accelerator, tmp_path: Path
) -> None:
    path = save(tmp_path, trained)
    _replace(path, name, json.dumps(content).encode())
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, make_state(accelerator))
    assert str(path) in one_line(error)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
def test_tensors_of_another_kind_are_one_line(
    name: str, trained: TrainState, accelerator: Accelerator, tmp_path: Path
) -> None:
    path = save(tmp_path, trained)
    other = [{}, {"a": torch.zeros(2)}, {"0.exp_avg.x": torch.zeros(1), "counts": torch.zeros(3, 9)}]
    for tensors in other:
        _replace(path, name, safetensors.torch.save(tensors))
        if name.startswith("optimizer.") and not tensors:
            continue  # before the first step there are no moments
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path, make_state(accelerator))
        assert str(path) in one_line(error)


def _replace(path: Path, name: str, content: bytes) -> None:
    """Put another content into a checkpoint, with a manifest that says it is right."""
    (path / name).write_bytes(content)
    facts = json.loads((path / "manifest.json").read_text())
    facts["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del facts["seal"]
    (path / "manifest.json").write_bytes(stored.sealed(facts))


def test_tensor_files_are_what_safetensors_reads() -> None:
    tensors = {
        "float64": torch.arange(3, dtype=torch.float64), "float32": torch.randn(2, 3), "float16": torch.randn(5).half(),
        "bfloat16": torch.randn(3).bfloat16(), "int64": torch.tensor(7), "int32": torch.arange(3, dtype=torch.int32),
        "int16": torch.arange(3, dtype=torch.int16), "int8": torch.arange(3, dtype=torch.int8),
        "uint8": torch.arange(3, dtype=torch.uint8), "bool": torch.tensor([True, False, True]), "empty": torch.zeros(0, 4),
        "ä": torch.zeros(1),
    }  # fmt: skip
    read = safetensors.torch.load(b"".join(bytes(piece) for piece in tensor_pieces(tensors)))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape) and torch.equal(read[name], tensor)
    assert safetensors.torch.load(b"".join(bytes(piece) for piece in tensor_pieces({}))) == {}
