"""Whose turn it is: the schedule by itself, and that nobody moves out of turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import WINDOW, make_state, snapshot, step_settings
from torch import Tensor

from snac_accel.config import validate
from snac_accel.errors import ConfigError
from snac_accel.guards import Guards
from snac_accel.step import train_step
from snac_accel.train import turns_of
from snac_accel.turns import Turn, Turns

MakeAccelerator = Callable[..., Accelerator]


def learners(turns: Turns, steps: int) -> str:
    """Who learns in each step: b both, g generator, d discriminators."""
    letters = {(True, True): "b", (True, False): "g", (False, True): "d"}
    return "".join(letters[turns.of(step).generator, turns.of(step).discriminators] for step in range(steps))


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (Turns(), "bbbbbbbb"),
        (Turns(start_step=3), "gggbbbbb"),
        (Turns(generator_wait_steps=3), "dddbbbbb"),
        (Turns(start_step=2, generator_wait_steps=2), "ggddbbbb"),
        (Turns(discriminator_every=3), "bggbggbg"),
        (Turns(start_step=1, discriminator_every=2), "gbgbgbgb"),
        (Turns(generator_every=2), "bdbdbdbd"),
        (Turns(pauses=((1, 3), (5, 6))), "bggbbgbb"),
        (Turns(generator_every=2, pauses=((0, 4),)), "ggggbdbd"),  # somebody learns in every step
    ],
)
def test_who_learns_when(turns: Turns, expected: str) -> None:
    assert learners(turns, 8) == expected


def test_the_weight_rises_once_the_generator_listens() -> None:
    turns = Turns(start_step=2, generator_wait_steps=1, ramp_steps=3)
    assert [turns.of(step).weight for step in range(8)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [turns.of(step).judged for step in range(4)] == [False, False, True, True]
    assert [step for step in range(8) if turns.changes_at(step)] == [2]


@pytest.fixture
def batch(speech: Tensor) -> Tensor:
    return speech[:4, :, 2000 : 2000 + WINDOW]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "turns", [Turns(start_step=1), Turns(generator_wait_steps=1), Turns(pauses=((0, 1),))], ids=["start", "wait", "pause"]
)
def test_only_those_whose_turn_it_is_move(
    turns: Turns, accumulation: int, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    """Weights, moments, and what follows the codebooks; in the next step both sides move."""
    accelerator = make_accelerator(accumulation)
    state = make_state(accelerator)
    batches = list(batch.chunk(accumulation))
    before = snapshot(state)
    report = train_step(batches, state, accelerator, step_settings(turns=turns))
    assert not report.skipped and report.losses
    turn, after = turns.of(0), snapshot(state)
    assert moved(before, after, "model.0") is turn.generator
    assert moved(before, after, "usage") is turn.generator
    assert moved(before, after, "model.1") is turn.discriminators
    learned = {"generator": turn.generator, "discriminator": turn.discriminators}
    assert set(report.grad_norms) == {side for side, learns in learned.items() if learns}
    assert ("discriminator/mpd" in report.losses) is turn.judged
    train_step(batches, state, accelerator, step_settings(turns=turns))
    last = snapshot(state)
    assert moved(after, last, "model.0") and moved(after, last, "model.1")


def moved(before: dict[str, Any], after: dict[str, Any], part: str) -> bool:
    names = before.keys() & after.keys()
    return any(not torch.equal(before[name], after[name]) for name in names if name.startswith(part))


def test_a_paused_discriminator_says_the_same_to_the_generator(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator = make_accelerator()
    weights = []
    for turns in (Turns(), Turns(pauses=((0, 1),))):
        state = make_state(accelerator)
        train_step([batch], state, accelerator, step_settings(turns=turns))
        weights.append(state.generator.state_dict())
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def test_before_the_start_the_generator_learns_as_if_there_were_none(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator = make_accelerator()
    early, alone = make_state(accelerator), make_state(accelerator, discriminators={})
    train_step([batch], early, accelerator, step_settings(turns=Turns(start_step=5)))
    train_step([batch], alone, accelerator, step_settings())
    theirs = alone.generator.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in early.generator.state_dict().items())


def test_a_loss_that_begins_is_no_jump(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    """Discriminators add to the generator's loss; from there the usual loss is another."""
    accelerator = make_accelerator()
    state, guards = make_state(accelerator), Guards(spikes="skip", spike_factor=1.01, spike_window=2)
    state.step, state.recent_losses = 3, [1e-3] * 2
    assert train_step([batch], state, accelerator, step_settings(turns=Turns(start_step=3), guards=guards)).trouble is None
    assert state.recent_losses[0] > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": {"pauses": [[5, 5]]}}, "pauses"),
        ({"training": {"generator_wait_steps": 10}, "turns": {"pauses": [[5, 20]]}}, "should begin at 10 or later"),
        ({"training": {"generator_wait_steps": 10}, "turns": {"start_step": 3}}, "should be 0 with training.generator"),
        ({"turns": {"discriminator_every": 2, "generator_every": 2}}, "one side learns in every step"),
        ({"turns": {"start_step": 5}, "losses": {"multi_scale_mel": 0.0}}, "nothing would train the generator"),
    ],
)
def test_turns_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(changes)


def test_the_settings_are_the_schedules() -> None:
    config = validate({"turns": {"start_step": 4, "pauses": [[6, 8]], "discriminator_every": 2}})
    assert turns_of(config) == Turns(start_step=4, pauses=((6, 8),), discriminator_every=2)
    assert turns_of(validate({})).of(0) == Turn()
