"""Averages that are saved during a run and combined after it, by the files and by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from snac import SNAC
from test_train import tiny_config
from tiny import make_generator
from torch import nn

from snac_accel.averages import WeightAverage, power
from snac_accel.cli import main as command
from snac_accel.errors import CheckpointError
from snac_accel.post_hoc import combine_averages, save_averages, saved_averages
from snac_accel.train import main

WIDTHS = (0.05, 0.1)


@pytest.fixture(scope="module")
def wandered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, WeightAverage]]:
    """A folder with averages of 60 updates of weights that wander, saved each 10, and averages that were kept all along."""
    folder, module = tmp_path_factory.mktemp("wandered") / "averages", make_generator()
    kept = {width: WeightAverage(module, power(width)) for width in (*WIDTHS, 0.07)}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 61):
        wander(module, generator)
        for average in kept.values():
            average.update(module)
        if step % 10 == 0:
            save_averages(folder, 100 + step, [(width, kept[width]) for width in WIDTHS])
    return folder, kept


def wander(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))


def test_any_width_comes_from_two_saved_ones(wandered: tuple[Path, dict[float, WeightAverage]]) -> None:
    folder, kept = wandered
    combined = combine_averages(folder, 0.07)
    name, exact = "encoder.block.0.bias", kept[0.07].tensors
    assert combined.step == 160 and combined.profile.updates == 60 and len(combined.shares) == 12
    error = (combined.weights[name] - exact[name]).abs().max()
    assert error < 0.05 * (kept[0.05].tensors[name] - kept[0.1].tensors[name]).abs().max()
    assert combined.weights.keys() == make_generator().state_dict().keys()
    make_generator(3).load_state_dict(combined.weights)


def test_a_step_before_the_last_and_one_that_is_not_there(wandered: tuple[Path, dict[float, WeightAverage]]) -> None:
    folder, _ = wandered
    early = combine_averages(folder, 0.1, step=120)
    assert early.step == 120 and len(early.shares) == 4
    assert early.shares["step_00000120.width_0.1.safetensors"] == pytest.approx(1)
    with pytest.raises(CheckpointError, match="no average of step 125; there are 110, 120, 130"):
        combine_averages(folder, 0.1, step=125)


def test_codebooks_are_not_mixed(wandered: tuple[Path, dict[float, WeightAverage]]) -> None:
    """A code that was restarted has jumped; those of the nearest width, of the last step, are taken as they are."""
    folder, kept = wandered
    name = "quantizer.quantizers.0.codebook.weight"
    assert torch.equal(combine_averages(folder, 0.09).weights[name], kept[0.1].tensors[name])


@pytest.mark.parametrize("fault", ["cut", "other", "none"])
def test_files_that_do_not_fit_are_named(fault: str, tmp_path: Path) -> None:
    averages = [(width, WeightAverage(make_generator(), power(width))) for width in WIDTHS]
    for _, average in averages:
        average.updates = 5
    if fault != "none":
        first, _ = save_averages(tmp_path, 10, averages)
    if fault == "cut":
        first.write_bytes(first.read_bytes()[:-10])
    if fault == "other":
        odd = WeightAverage(make_generator(decoder_dim=16), power(0.05))
        odd.updates = 4
        save_averages(tmp_path, 9, [(0.05, odd)])
    message = {"cut": "cannot be read", "other": "is of another model", "none": "no average is saved"}[fault]
    with pytest.raises(CheckpointError, match=message):
        combine_averages(tmp_path, 0.07)


def test_a_run_saves_them_goes_on_with_them_and_the_command_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in between or not, the same files; what is exported loads in the stock package."""
    options = {"averaging": {"snapshot_steps": 2}, "validation": {"enabled": False}}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert main(tiny_config(straight, **options)) == 0
    assert main(tiny_config(resumed, training={"num_iterations": 3, "save_interval": 3}, **options)) == 0
    assert main(tiny_config(resumed, **options)) == 0
    found = [saved_averages(folder / "averages") for folder in (straight, resumed)]
    assert [(one.step, *one.profile) for one in found[0]] == [(step, step, width) for step in (2, 4) for width in WIDTHS]
    for one, other in zip(*found, strict=True):
        assert one.path.name == other.path.name and one.path.read_bytes() == other.path.read_bytes()
    capsys.readouterr()
    assert command(["average", str(straight), str(tmp_path / "export"), "--relative_width", "0.08"]) == 0
    assert "width 0.08 of step 4, from 4 files" in capsys.readouterr().out
    SNAC.from_pretrained(str(tmp_path / "export"))
    assert command(["average", str(straight), str(tmp_path / "other"), "--relative_width", "0.3"]) == 2
    assert command(["average", str(straight), str(tmp_path / "export"), "--relative_width", "0.08"]) != 0
