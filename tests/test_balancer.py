"""The gradient balancer: its formula, and that scale, layout and interruption change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from tiny import WEIGHTS, WINDOW, make_state, step_settings
from torch import Tensor
from torch.optim import SGD

from snac_accel.balancer import TERMS, Balancer, mean_norms, row_norms
from snac_accel.state import TrainState
from snac_accel.step import train_step
from snac_accel.turns import Turns

MakeAccelerator = Callable[..., Accelerator]


@pytest.fixture
def batch(speech: Tensor) -> Tensor:
    return speech[:4, :, 2000 : 2000 + WINDOW]


def test_every_loss_is_known() -> None:
    assert set(TERMS) == set(WEIGHTS) - {"commitment", "codebook"}


def test_each_loss_pulls_with_its_share() -> None:
    """Σ R λᵢ / Σλ gᵢ / ‖gᵢ‖ by hand, for one clip: gradients of any scale have norms R λᵢ / Σλ."""
    balancer = Balancer(total_norm=2.0)
    gradients = {"mel": torch.tensor([[[3.0, 4.0]]]), "stft": torch.tensor([[[0.0, 1e-6]]])}
    balancer.observe(mean_norms(row_norms(gradients).tolist()))
    combined = balancer.combine(gradients, {"mel": 3.0, "stft": 1.0})
    expected = 2 * (0.75 * torch.tensor([0.6, 0.8]) + 0.25 * torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(combined, expected[None, None])


def test_the_average_is_that_of_all_steps_weighted_by_age() -> None:
    """Against the sums written out, and EnCodec's correction of the beginning: Σ βᵏ n / Σ βᵏ."""
    balancer, norms = Balancer(decay=0.9), [4.0, 1.0, 2.0]
    for norm in norms:
        balancer.observe({"mel": norm, "stft": float("nan")})
    weights = [0.81, 0.9, 1.0]
    expected = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    assert balancer.usual("mel") == pytest.approx(expected) and balancer.usual("stft") is None
    other = Balancer(decay=0.9)
    other.load_progress(balancer.progress())
    assert other.usual("mel") == balancer.usual("mel")


def test_norms_are_those_of_single_clips() -> None:
    """The mean over a batch divides each clip's gradient by their number; so does the loss scale multiply."""
    rows = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    whole = mean_norms(row_norms({"mel": rows / 2 * 8}, loss_scale=8.0).tolist())
    parts = sum(row_norms({"mel": row[None]}) for row in rows)
    assert isinstance(parts, Tensor)
    assert whole == pytest.approx({"mel": 3.0}) and mean_norms(parts.tolist()) == pytest.approx({"mel": 3.0})


def balanced_state(accelerator: Accelerator, **options: object) -> TrainState:
    state = make_state(accelerator, dtype=torch.float64, optimizer=SGD, noise=False, **options)  # type: ignore[arg-type]
    state.balancer = Balancer()
    return state


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_scale_of_all_weights_changes_nothing_of_the_pull(
    factor: float, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    """λᵢ / Σλ: where the quantizer losses weigh nothing, all weights times a factor train the same model."""
    accelerator, states = make_accelerator(), []
    for scale in (1.0, factor):
        state = balanced_state(accelerator)
        weights = {name: weight * scale for name, weight in WEIGHTS.items()} | {"commitment": 0.0, "codebook": 0.0}
        for _ in range(2):
            train_step([batch.double()], state, accelerator, step_settings(weights))
        states.append(state.generator.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-6, atol=1e-9)


def test_accumulation_equals_one_big_batch(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    """Also in the first step, whose norms are measured beforehand, and where the discriminators begin later."""
    results = []
    for micro_batches in (1, 4):
        accelerator = make_accelerator(micro_batches)
        state = balanced_state(accelerator)
        for step in range(3):
            batches = list(batch.double().roll(step, 0).chunk(micro_batches))
            train_step(batches, state, accelerator, step_settings(turns=Turns(start_step=1)))
            assert state.balancer is not None
            known = {name for name in TERMS if state.balancer.usual(name) is not None}
            judged = {"adversarial", "feature_matching"} if step else set()
            assert known == judged | {"multi_scale_mel", "stft"}
        results.append(state)
    one, four = results
    for first, second in zip(one.models(), four.models(), strict=True):
        for name, tensor in first.state_dict().items():
            torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-7, atol=1e-9)
    assert one.balancer is not None and four.balancer is not None
    for name, pair in one.balancer.progress().items():
        assert four.balancer.progress()[name] == pytest.approx(pair, rel=1e-5)


def test_a_step_with_trouble_is_not_remembered(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator = make_accelerator()
    state = balanced_state(accelerator)
    train_step([batch.double()], state, accelerator, step_settings())
    assert state.balancer is not None
    before = state.balancer.progress()
    bad = batch.double().clone()
    bad[0, 0, 0] = float("nan")
    assert train_step([bad], state, accelerator, step_settings()).skipped
    assert state.balancer.progress() == before


def test_the_discriminators_learn_as_without_it(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator, states = make_accelerator(), []
    for balancer in (Balancer(), None):
        state = make_state(accelerator, optimizer=SGD)
        state.balancer = balancer
        train_step([batch], state, accelerator, step_settings())
        states.append(state)
    balanced, plain = states
    for name, module in plain.discriminators.items():
        theirs = balanced.discriminators[name].state_dict()
        assert all(torch.equal(theirs[key], tensor) for key, tensor in module.state_dict().items())
    moved = balanced.generator.state_dict()
    assert not all(torch.equal(moved[key], tensor) for key, tensor in plain.generator.state_dict().items())
