"""The loss scale of float16, on a CPU: applied once on every way, one for both optimisers."""

from __future__ import annotations

import pytest
import torch
from test_step import MakeAccelerator, batch, largest_difference
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD

from snac_accel.state import TrainState
from snac_accel.step import train_step
from tiny import WEIGHTS, differences, make_state, snapshot, step_settings

__all__ = ["batch"]  # the fixture


def scaled(state: TrainState, scale: float) -> TrainState:
    """The state with a loss scale, as float16 on a GPU has it."""
    state.scaler = GradScaler("cpu", init_scale=scale, growth_interval=3)
    return state


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_loss_scale_is_applied_exactly_once(
    micro_batches: int, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    """A power of two shifts exponents only: the update is bit for bit that without scale, on every way through the graphs."""
    settings, batches = step_settings(max_grad_norm=1.0), list(batch[:4].chunk(micro_batches))
    plain, other = (make_state(make_accelerator(micro_batches), optimizer=SGD) for _ in range(2))
    accelerator = make_accelerator(micro_batches)
    reports = [train_step(batches, state, accelerator, settings) for state in (plain, scaled(other, 2.0**10))]
    weights = [state.models() for state in (plain, other)]
    assert largest_difference(*weights) == 0
    assert all(torch.equal(reports[0].grad_norms[name], reports[1].grad_norms[name]) for name in reports[0].grad_norms)


@pytest.mark.parametrize("network", ["generator", "mpd"])
def test_an_overflow_in_either_network_skips_both_and_lowers_the_one_scale_once(
    network: str, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    accelerator = make_accelerator()
    state = scaled(make_state(accelerator), 1024.0)
    before = snapshot(state)
    module = state.generator if network == "generator" else state.discriminators[network]
    hook = next(module.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    assert train_step([batch[:2]], state, accelerator, step_settings()).skipped
    assert state.scaler.get_scale() == 512.0
    touched = [name for name in differences(before, snapshot(state)) if name.startswith(("model", "optimizer"))]
    assert set(touched) <= {"optimizer.generator.groups", "optimizer.discriminator.groups"}  # the schedule's rate
    hook.remove()
    for _ in range(3):
        assert not train_step([batch[:2]], state, accelerator, step_settings()).skipped
    assert state.scaler.get_scale() == 1024.0  # grown once after three steps, not once for each optimiser
    assert state.counters["skipped_updates"] == 1


def test_float16_autocast_trains_what_it_would_lose_without_the_scale(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    """Losses so small that their gradients vanish in float16 come through with the scale."""
    tiny_weights = {name: 1e-6 * value for name, value in WEIGHTS.items() if name not in ("commitment", "codebook")}
    settings = step_settings({**tiny_weights, "commitment": 0.0, "codebook": 0.0})
    norms = {}
    for name, scale in {"float32": None, "unscaled": None, "scaled": 2.0**10}.items():
        accelerator = make_accelerator()
        state = make_state(accelerator, noise=False)
        if scale:
            scaled(state, scale)
        with torch.autocast("cpu", torch.float16, enabled=name != "float32"):
            report = train_step([batch[:2]], state, accelerator, settings)
        assert not report.skipped
        norms[name] = float(report.grad_norms["generator"])
    assert norms["scaled"] == pytest.approx(norms["float32"], rel=0.05)
    assert abs(norms["unscaled"] / norms["float32"] - 1) > 0.2
