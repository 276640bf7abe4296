"""The step against the plain way: both sides updated separately, from the same old weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from snac_accel.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mel_spectrogram_loss,
    multi_scale_mel_loss,
    stft_loss,
)
from snac_accel.state import TrainState
from snac_accel.step import seed_noise, train_step
from tiny import WEIGHTS, WINDOW, differences, make_discriminators, make_state, snapshot, step_settings

MakeAccelerator = Callable[..., Accelerator]
SPECTRAL = {"multi_scale_mel": multi_scale_mel_loss, "mel": mel_spectrogram_loss, "stft": stft_loss}
NOTHING = dict.fromkeys(WEIGHTS, 0.0)  # all losses weigh nothing


@pytest.fixture
def batch(speech: Tensor) -> Tensor:
    """(8, 1, WINDOW)."""
    return speech[:8, :, 2000 : 2000 + WINDOW]


def models(state: TrainState) -> list[nn.Module]:
    """Copies of generator and discriminators as they are now."""
    return [copy.deepcopy(module) for module in state.models()]


def plain_gradients(
    networks: list[nn.Module], batches: Sequence[Tensor], weights: dict[str, float], seed: int
) -> None:
    """Fill the gradients of both sides the plain way: fresh discriminator forwards for each loss, one backward each."""
    generator, *critics = networks
    frozen = copy.deepcopy(critics)  # what the generator's losses see: their parameters learn nothing from it
    for index, real in enumerate(batches):
        seed_noise(seed, 0, index, 0)
        fake = generator(real)
        terms = {"commitment": fake.commitment, "codebook": fake.codebook}
        terms["adversarial"] = sum(generator_loss(critic(fake.audio)[0]) for critic in frozen)
        terms["feature_matching"] = sum(
            feature_matching_loss(critic(real)[1], critic(fake.audio)[1]) for critic in frozen
        )
        for name, loss in SPECTRAL.items():
            terms[name] = loss(real, fake.audio, sampling_rate=16000)
        total = sum(weights[name] * value for name, value in terms.items())
        (total / len(batches)).backward()
    for index, real in enumerate(batches):
        seed_noise(seed, 0, index, 0)
        with torch.no_grad():
            audio = generator(real).audio
        for critic in critics:
            (discriminator_loss(critic(real)[0], critic(audio)[0]) / len(batches)).backward()


def plain_update(
    state: TrainState, batches: Sequence[Tensor], optimizer: type[Optimizer], rate: float, seed: int = 0
) -> list[nn.Module]:
    """The networks after one separate update from the state's weights."""
    generator, *critics = networks = models(state)
    plain_gradients(networks, batches, WEIGHTS, seed)
    for parameters in (list(generator.parameters()), [p for critic in critics for p in critic.parameters()]):
        optimizer(parameters, lr=rate).step()  # type: ignore[call-arg]
    return networks


def largest_difference(ours: Sequence[nn.Module], theirs: Sequence[nn.Module]) -> float:
    """Largest difference of a weight, relative to the largest weight of its tensor."""
    pairs = [
        (a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    ]
    with torch.no_grad():
        return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in pairs)


@pytest.mark.parametrize(
    ("dtype", "optimizer", "rate", "tolerance"),
    [
        (torch.float64, SGD, 1e-3, 1e-12),
        (torch.float64, AdamW, 1e-3, 1e-9),
        (torch.float32, SGD, 1e-4, 1e-6),
    ],
)
@pytest.mark.parametrize(("noise", "micro_batches"), [(False, 1), (True, 2)])
def test_equals_separate_updates(
    dtype: torch.dtype,
    optimizer: type[Optimizer],
    rate: float,
    tolerance: float,
    noise: bool,
    micro_batches: int,
    make_accelerator: MakeAccelerator,
    batch: Tensor,
) -> None:
    accelerator = make_accelerator(micro_batches)
    state = make_state(accelerator, dtype=dtype, optimizer=optimizer, learning_rate=rate, noise=noise)
    before = models(state)
    batches = list(batch[:4].to(dtype).chunk(micro_batches))
    expected = plain_update(state, batches, optimizer, rate, seed=3)
    report = train_step(batches, state, accelerator, step_settings(seed=3))
    assert not report.skipped
    assert largest_difference(state.models(), expected) < tolerance
    for old, new in zip(before, state.models(), strict=True):
        assert largest_difference([new], [old]) > 1e3 * tolerance  # it did move


def test_losses_are_reported_as_they_are_weighted(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    """The gradient norm of a report is that of the weighted sum of its losses; names are those of the config."""
    accelerator = make_accelerator(2)
    state = make_state(accelerator)
    networks = models(state)
    batches = list(batch[:4].split(2))
    report = train_step(batches, state, accelerator, step_settings(), log_unweighted=True)
    assert set(report.losses) == {*WEIGHTS, "discriminator/mpd", "discriminator/msstftd"}
    plain_gradients(networks, batches, WEIGHTS, seed=0)
    for name, group in (("generator", networks[:1]), ("discriminator", networks[1:])):
        gradients = [p.grad for module in group for p in module.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        torch.testing.assert_close(report.grad_norms[name], norm, rtol=1e-4, atol=0)
    seed_noise(0, 0, 0, 0)
    fakes = [networks[0](batches[0])]
    seed_noise(0, 0, 1, 0)
    fakes.append(networks[0](batches[1]))
    for name in ("commitment", "codebook"):
        expected = (getattr(fakes[0], name) + getattr(fakes[1], name)) / 2
        torch.testing.assert_close(report.losses[name], expected.detach())
    for name, loss in SPECTRAL.items():
        values = [
            loss(real, fake.audio, sampling_rate=16000) for real, fake in zip(batches, fakes, strict=True)
        ]
        torch.testing.assert_close(report.losses[name], torch.stack(values).mean().detach())
    assert all(not value.requires_grad for value in report.losses.values())


@pytest.mark.parametrize("split", [2, 8])
def test_accumulation_equals_one_big_batch(
    split: int, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    results = []
    for micro_batches in (1, split):
        accelerator = make_accelerator(micro_batches)
        state = make_state(accelerator, dtype=torch.float64, optimizer=SGD, noise=False)
        for step in range(2):
            report = train_step(
                list(batch.double().roll(step, 0).chunk(micro_batches)), state, accelerator, step_settings()
            )
        results.append((state, report))
    (whole, one), (parts, other) = results
    assert largest_difference(parts.models(), whole.models()) < 1e-12
    assert one.counts is not None and other.counts is not None and torch.equal(one.counts, other.counts)
    assert one.losses.keys() == other.losses.keys()
    for name, value in one.losses.items():
        torch.testing.assert_close(other.losses[name], value)


# Each side alone


def one_step(
    accelerator: Accelerator, batch: Tensor, weights: dict[str, float] | None = None, **options: Any
) -> TrainState:
    """A fresh state after one step of SGD."""
    state = make_state(accelerator, optimizer=SGD, **options)
    train_step([batch[:4]], state, accelerator, step_settings(weights))
    return state


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_discriminators_learning_leaves_the_generator_untouched(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    accelerator = make_accelerator()
    fresh, after = make_state(accelerator), one_step(accelerator, batch, NOTHING)
    assert same(fresh.generator, after.generator)
    assert not any(
        same(fresh.discriminators[name], after.discriminators[name]) for name in fresh.discriminators
    )


def test_generators_losses_leave_the_discriminators_untouched(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    """What the discriminators learn is bitwise the same, whatever the generator is trained for."""
    accelerator = make_accelerator()
    plain, without = one_step(accelerator, batch), one_step(accelerator, batch, NOTHING)
    heavy = one_step(accelerator, batch, {"adversarial": 100.0, "feature_matching": 50.0})
    assert not same(plain.generator, heavy.generator)
    for name, critic in plain.discriminators.items():
        assert same(critic, heavy.discriminators[name]) and same(critic, without.discriminators[name])


def test_a_frozen_discriminator_gives_the_generator_the_same_update(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    accelerator = make_accelerator()
    plain = one_step(accelerator, batch)
    frozen = one_step(accelerator, batch, discriminator_learning_rate=0.0)
    assert same(plain.generator, frozen.generator)
    assert all(
        same(critic, fresh)
        for critic, fresh in zip(frozen.discriminators.values(), make_discriminators(1).values(), strict=True)
    )


def test_works_without_discriminators(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator = make_accelerator()
    state = make_state(accelerator, discriminators={})
    before = snapshot(state)
    report = train_step([batch[:2]], state, accelerator, step_settings())
    assert not report.skipped
    assert "adversarial" not in report.losses
    assert any(name.startswith("model.0") for name in differences(before, snapshot(state)))


@pytest.mark.parametrize("name", ["mel", "stft", "multi_scale_mel"])
def test_a_loss_of_weight_zero_is_logged_and_nothing_else(
    name: str, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    accelerator = make_accelerator()
    results = []
    for log_unweighted in (False, True):
        state = make_state(accelerator)
        report = train_step(
            [batch[:4]], state, accelerator, step_settings({name: 0.0}), log_unweighted=log_unweighted
        )
        assert (name in report.losses) is log_unweighted
        results.append(snapshot(state))
    assert differences(*results) == []


# What is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_bad_sample_reaches_no_weight(
    value: float, micro_batch: int, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    accelerator = make_accelerator(2)
    state = make_state(accelerator)
    clean = list(batch[:4].split(2))
    settings = step_settings(restart_after=0.5, max_grad_norm=1.0)
    train_step(clean, state, accelerator, settings)
    before = snapshot(state)
    bad = [part.clone() for part in clean]
    bad[micro_batch][1, 0, 77] = value
    report = train_step(bad, state, accelerator, settings)
    assert report.skipped
    assert state.counters["skipped_updates"] == 1
    changed = differences(before, snapshot(state))
    assert all(
        name.startswith(("step", "counter", "schedule")) or name.endswith("groups") for name in changed
    ), changed
    assert state.step == 2
    following = train_step(clean, state, accelerator, settings)
    assert not following.skipped
    assert all(p.isfinite().all() for module in state.models() for p in module.parameters())
    assert {name.split(".")[0] for name in differences(before, snapshot(state))} >= {
        "model",
        "optimizer",
        "usage",
    }


@pytest.mark.parametrize("side", [0, 1, 2])
def test_a_bad_gradient_of_one_network_stops_all(
    side: int, make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    accelerator = make_accelerator()
    state = make_state(accelerator)
    parameter = list(state.models()[side].parameters())[2]
    hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
    before = snapshot(state)
    assert train_step([batch[:2]], state, accelerator, step_settings()).skipped
    assert not [name for name in differences(before, snapshot(state)) if name.startswith(("model", "usage"))]
    hook.remove()
    assert not train_step([batch[:2]], state, accelerator, step_settings()).skipped


def test_a_skipped_step_equals_a_step_that_never_was(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    """After a skipped step the next one uses the next noise and learning rate, and otherwise the state of before."""
    accelerator = make_accelerator()
    results = []
    for first in (batch[:2] * float("nan"), None):
        state = make_state(accelerator)
        if first is None:
            state.step = 1
            for name, optimizer in state.optimizers.items():
                optimizer.step()  # without gradients: moves nothing, but schedules want to see it
                state.schedules[name].step()
        else:
            train_step([first], state, accelerator, step_settings())
        train_step([batch[2:4]], state, accelerator, step_settings())
        results.append(snapshot(state))
    assert set(differences(*results)) <= {"counter.skipped_updates"}


# Clipping, noise, precision


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_clipping(limit: float, make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    """SGD with rate 1 moves by the gradient: its norm is the limit, or the gradient's own if that is less."""
    accelerator = make_accelerator(2)
    state = make_state(accelerator, dtype=torch.float64, optimizer=SGD, learning_rate=1.0)
    before = models(state)
    report = train_step(
        list(batch[:4].double().split(2)), state, accelerator, step_settings(max_grad_norm=limit)
    )
    after = state.models()
    for name, group in (("generator", slice(0, 1)), ("discriminator", slice(1, None))):
        moves = [
            (a - b).detach().norm()
            for old, new in zip(before[group], after[group], strict=True)
            for a, b in zip(old.parameters(), new.parameters(), strict=True)
        ]
        norm = float(report.grad_norms[name])
        assert norm > 0.01  # of before clipping
        assert float(torch.stack(moves).norm()) == pytest.approx(min(limit, norm), rel=2e-3)


def test_noise_depends_on_the_place_in_the_run_alone(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    accelerator = make_accelerator()

    def weights_after(step: int, seed: int, global_seed: int) -> dict[str, Tensor]:
        state = make_state(accelerator, optimizer=SGD)
        state.step = step
        torch.manual_seed(global_seed)
        train_step([batch[:2]], state, accelerator, step_settings(seed=seed))
        return state.generator.state_dict()

    first = weights_after(5, 1, 0)
    assert differences(first, weights_after(5, 1, 99)) == []
    assert differences(first, weights_after(6, 1, 0)) != []
    assert differences(first, weights_after(5, 2, 0)) != []


def test_bfloat16_keeps_weights_and_losses_in_float32(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    plain = make_accelerator()
    state = make_state(plain, learning_rate=0.0)
    expected = train_step([batch[:4]], state, plain, step_settings())
    accelerator = make_accelerator(mixed_precision="bf16")
    state = make_state(accelerator)
    report = train_step([batch[:4]], state, accelerator, step_settings())
    assert not report.skipped
    assert {p.dtype for module in state.models() for p in module.parameters()} == {torch.float32}
    for name, value in report.losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.losses[name], rtol=0.1, atol=1e-3)
    assert report.losses["discriminator/mpd"] != expected.losses["discriminator/mpd"]  # autocast was on


def test_counts_are_of_the_whole_step(make_accelerator: MakeAccelerator, batch: Tensor) -> None:
    accelerator = make_accelerator(2)
    state = make_state(accelerator)
    report = train_step(list(batch[:4].split(2)), state, accelerator, step_settings())
    frames = 4 * WINDOW // 32
    assert report.counts is not None
    assert report.counts.sum(-1).tolist() == [frames // 4, frames // 2, frames]
    assert torch.equal(state.usage.counts, report.counts)


def test_a_step_takes_as_many_micro_batches_as_the_accelerator_accumulates(
    make_accelerator: MakeAccelerator, batch: Tensor
) -> None:
    """With another number gradients would not be summed over the ranks, without a word."""
    accelerator = make_accelerator(2)
    state = make_state(accelerator)
    with pytest.raises(ValueError, match="takes 2 micro-batches, not 3"):
        train_step(list(batch[:6].chunk(3)), state, accelerator, step_settings())
