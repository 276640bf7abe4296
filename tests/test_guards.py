"""The verdict on a step: what counts as trouble, and which samples may be to blame."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from test_step import batch
from torch import Tensor

from snac_accel import gathering
from snac_accel.guards import (
    NOT_FINITE,
    PLACES,
    SPIKE,
    Guards,
    Part,
    Trouble,
    findings,
    judge,
    look_at,
    suspects,
)
from snac_accel.step import train_step
from tiny import WEIGHTS, differences, make_state, snapshot, step_settings

__all__ = ["batch"]  # the fixture
NAN = float("nan")
FINE = [0.0] * len(PLACES)


def part(loss: float = 1.0, critic: float = 1.0, rows: int = 2) -> Part:
    return Part(torch.ones(rows, dtype=torch.bool), {"mel": torch.tensor(loss), "discriminator/mpd": torch.tensor(critic)})


@pytest.mark.parametrize(
    ("parts", "norms", "places"),
    [
        ([part(), part()], [1.0, 1.0], ()),
        ([part(), part(NAN)], [1.0, 1.0], ("generator loss",)),
        ([part(critic=math.inf), part()], [1.0, 1.0], ("discriminator loss",)),
        ([part()], [NAN, 1.0], ("generator gradient",)),
        ([part()], [1.0, math.inf], ("discriminator gradient",)),
        ([part()], [1.0], ()),
        ([Part(torch.tensor([True, False]), {})], [1.0, 1.0], ("input",)),
    ],
)
def test_every_place_is_looked_at(parts: list[Part], norms: list[float], places: tuple[str, ...]) -> None:
    *flags, _ = findings(parts, {"mel": 1.0}, [torch.tensor(norm) for norm in norms]).tolist()
    assert tuple(place for place, flag in zip(PLACES, flags, strict=True) if flag) == places


def test_a_loss_of_weight_zero_is_no_trouble() -> None:
    """It reaches no weight."""
    assert findings([part(NAN)], {"mel": 0.0}, [torch.ones(())] * 2).tolist() == [0.0] * 6


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_one_rank_of_many_is_enough(policy: str) -> None:
    flags = [0.0, 1.0, 0.0, 3.0, 0.0]
    trouble = judge([*flags, 4.0], 4, [], Guards(policy), scaled=False)
    assert trouble == Trouble(NOT_FINITE, ("generator loss", "generator gradient"), policy, 1.0)


def test_an_overflow_of_float16_is_left_to_the_loss_scale() -> None:
    overflow = judge([0, 0, 0, 2.0, 2.0, 1.0], 2, [], Guards("stop"), scaled=True)
    assert overflow is not None and overflow.is_overflow and overflow.policy == "skip"
    real = judge([0, 1.0, 0, 2.0, 2.0, NAN], 2, [], Guards("stop"), scaled=True)
    assert real is not None and not real.is_overflow and real.policy == "stop"


def losses(guards: Guards, values: list[float]) -> list[Trouble | None]:
    recent: list[float] = []
    return [judge([*FINE, value], 1, recent, guards, scaled=False) for value in values]


def test_a_jump_is_measured_by_the_median_of_a_moving_window() -> None:
    guards = Guards(spikes="skip", spike_factor=2.0, spike_window=10)
    found = losses(guards, [*[1.0] * 10, 1.9, 2.1, 50.0, *[1.0] * 3])
    assert [trouble.kind if trouble else None for trouble in found] == [*[None] * 11, SPIKE, SPIKE, *[None] * 3]
    assert found[11] is not None and (found[11].loss, found[11].usual) == (2.1, 1.0)
    assert str(found[12]) == "the loss jumped to 50, usual is 1"


def test_the_window_follows_losses_that_fall_and_rise_slowly() -> None:
    guards = Guards(spikes="stop", spike_factor=2.0, spike_window=10)
    assert not any(losses(guards, [100 * 0.95**step for step in range(100)]))
    assert not any(losses(guards, [1.05**step for step in range(100)]))
    assert any(losses(guards, [0.95**step for step in range(100)] + [0.05]))  # though the first were larger


def test_jumps_that_are_skipped_do_not_become_the_usual() -> None:
    guards = Guards(spikes="skip", spike_factor=2.0, spike_window=10)
    assert all(losses(guards, [1.0] * 10 + [5.0] * 30)[10:])


def test_nothing_is_a_jump_before_the_window_has_enough_and_where_it_is_off() -> None:
    assert not any(losses(Guards(spikes="skip"), [1.0] * 9 + [100.0]))
    assert not any(losses(Guards(), [1.0] * 20 + [1e9]))
    assert losses(Guards(spikes="skip"), [1.0] * 10 + [100.0])[-1]


def test_samples_are_named_as_closely_as_can_be() -> None:
    guards = Guards(spike_factor=2.0)
    good, poisoned = part(), Part(torch.tensor([True, False]), {"mel": torch.tensor(NAN)})
    of_input = Trouble(NOT_FINITE, ("input", "generator loss"), "skip", NAN)
    assert suspects(of_input, [good, poisoned], {"mel": 1.0}, guards) == [[], [1]]
    assert suspects(of_input, [good, part(NAN)], {"mel": 1.0}, guards) == [[], [0, 1]]
    of_gradient = Trouble(NOT_FINITE, ("generator gradient",), "skip", 1.0)
    assert suspects(of_gradient, [good, good], {"mel": 1.0}, guards) == [[0, 1], [0, 1]]
    spike = Trouble(SPIKE, ("generator loss",), "skip", 5.0, 1.0)
    assert suspects(spike, [part(9.0), good], {"mel": 1.0}, guards) == [[0, 1], []]


def test_a_window_of_audio_is_looked_at_row_by_row() -> None:
    audio = torch.zeros(3, 1, 5)
    audio[1, 0, 4] = math.inf
    assert look_at(audio).finite_rows.tolist() == [True, False, True]


# In a step


def guarded(**guards: object) -> object:
    return step_settings(guards=Guards(**guards))  # type: ignore[arg-type]


MakeAccelerator = Callable[..., Accelerator]


@pytest.mark.parametrize("where", ["input", "generator loss", "discriminator loss", "generator gradient"])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_no_weight_changes_whatever_is_not_finite(
    where: str, policy: str, make_accelerator: MakeAccelerator, batch: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = make_accelerator(2)
    state = make_state(accelerator)
    parts = [part.clone() for part in batch[:4].split(2)]
    before = snapshot(state)
    if where == "input":
        parts[1][0, 0, 3] = NAN
    elif where == "generator loss":  # the value alone: its gradient is finite
        real = gathering.SPECTRAL_LOSSES["multi_scale_mel"]
        spoiled = {**gathering.SPECTRAL_LOSSES, "multi_scale_mel": lambda *a, **o: real(*a, **o) + math.inf}
        monkeypatch.setattr(gathering, "SPECTRAL_LOSSES", spoiled)
    elif where == "discriminator loss":
        real_loss = gathering.discriminator_loss
        monkeypatch.setattr(gathering, "discriminator_loss", lambda *a: real_loss(*a) + math.inf)
    else:
        next(state.generator.parameters()).register_hook(lambda gradient: gradient * NAN)
    report = train_step(parts, state, accelerator, guarded(non_finite=policy))
    assert report.trouble is not None and where in report.trouble.places and report.trouble.policy == policy
    moved = [n for n in differences(before, snapshot(state)) if n.startswith(("model", "usage", "optimizer"))]
    assert all(name.endswith("groups") for name in moved)  # a skipped step has its learning rate
    if policy == "stop":
        assert not differences(before, snapshot(state))  # as if it had not been
        assert all(p.grad is None for module in state.models() for p in module.parameters())
    else:
        assert state.step == 1 and state.counters["skipped_updates"] == 1


def test_a_jump_changes_no_weight(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator = make_accelerator()
    state = make_state(accelerator)
    settings = guarded(spikes="skip", spike_factor=2.0, spike_window=3)
    for _ in range(3):
        assert not train_step([batch[:2]], state, accelerator, settings).skipped
    before = snapshot(state)
    assert len(state.recent_losses) == 3
    report = train_step([batch[:2] * 1e4], state, accelerator, settings)
    assert report.trouble is not None and report.trouble.kind == SPIKE
    assert state.counters["spikes"] == state.counters["skipped_updates"] == 1
    assert not [name for name in differences(before, snapshot(state)) if name.startswith(("model", "usage"))]
    assert not train_step([batch[:2]], state, accelerator, settings).skipped


def test_the_loss_that_is_judged_is_the_weighted_one(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator = make_accelerator(2)
    state = make_state(accelerator)
    report = train_step(list(batch[:4].split(2)), state, accelerator, guarded(spikes="skip"))
    expected = sum(WEIGHTS[name] * float(value) for name, value in report.losses.items() if name in WEIGHTS)
    assert state.recent_losses == [pytest.approx(expected, rel=1e-5)]
