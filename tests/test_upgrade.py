"""Checkpoints of every released format: they load and go on as they did then, or are refused with the way out."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator

from snac_accel.checkpoint import load_checkpoint, save_checkpoint
from snac_accel.errors import CheckpointError
from snac_accel.export import read_weights
from snac_accel.generator import TrainableSNAC
from snac_accel.stored import FORMAT, READABLE, list_checkpoints, newest_checkpoint

FORMATS = Path(__file__).parent / "checkpoints"
REFUSED = [number for number in range(1, FORMAT + 1) if number not in READABLE]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """The script that wrote them."""
    spec = importlib.util.spec_from_file_location("make_checkpoints", FORMATS / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def checkpoint_of(number: int) -> Path:
    (path,) = list_checkpoints(FORMATS / f"format_{number}")
    return path


def test_every_format_up_to_the_present_one_is_kept_and_small() -> None:
    assert sorted(path.name for path in FORMATS.glob("format_*")) == [f"format_{n}" for n in range(1, FORMAT + 1)]
    for number in range(1, FORMAT + 1):
        assert sum(file.stat().st_size for file in checkpoint_of(number).iterdir()) < 200_000


@pytest.mark.parametrize("number", READABLE)
def test_a_run_goes_on_with_equal_losses(
    number: int, make: ModuleType, make_accelerator: Callable[..., Accelerator], tmp_path: Path
) -> None:
    """To the rounding of another machine; what it saves is of the present format."""
    accelerator = make_accelerator()
    state = make.build(accelerator, seed=9)
    assert load_checkpoint(checkpoint_of(number), state)["format"] == number
    assert (state.step, state.position, state.counters["audio_samples"]) == (3, 6, 1234)
    again = save_checkpoint(tmp_path, state, config={}, config_hash="")
    expected = json.loads((FORMATS / f"format_{number}" / "losses.json").read_text())
    for row, found in zip(expected, make.advance(state, accelerator, len(expected)), strict=True):
        assert found == pytest.approx(row, rel=1e-4)
    twin = make.build(accelerator, seed=10)
    assert load_checkpoint(again, twin)["format"] == FORMAT
    for row, found in zip(expected, make.advance(twin, accelerator, len(expected)), strict=True):
        assert found == pytest.approx(row, rel=1e-4)


@pytest.mark.parametrize("number", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_version_and_the_way(
    number: int, make: ModuleType, make_accelerator: Callable[..., Accelerator]
) -> None:
    path = checkpoint_of(number)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, make.build(make_accelerator()))
    message = str(error.value)
    assert f"has checkpoint format {number}, this version reads {' and '.join(map(str, READABLE))}" in message
    assert f"--init_from {path}" in message and "\n" not in message
    assert newest_checkpoint(path.parent) is None


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_the_way_that_is_named_leads_on(number: int) -> None:
    """Weights of any format start a new run."""
    path = checkpoint_of(number)
    model = json.loads((path / "config.json").read_text())["model"]
    generator = TrainableSNAC(**model)
    generator.load_state_dict(read_weights(str(path), model))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in generator.state_dict().values())
