"""The moving average of the generator's weights: its definition, and that nothing else moves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import make_generator, make_state, step_settings
from torch import Tensor, nn

from snac_accel.averages import Profile, WeightAverage, combination, exponent_of, exponential, power
from snac_accel.step import train_step


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_it_is_the_recursion() -> None:
    """a ← d·a + (1 − d)·w with d = min(decay, (1 + n) / (10 + n)), computed here in float64."""
    module = nn.Linear(3, 2)
    average, expected = WeightAverage(module, exponential(0.5)), module.weight.detach().double()
    for number in range(20):
        changed(module, number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * module.weight.detach().double()
        average.update(module)
    assert torch.allclose(average.tensors["weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert average.updates == 20


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.28])
def test_the_power_average_is_the_weighted_mean_over_all_updates(width: float) -> None:
    """Σ (t^(γ+1) − (t−1)^(γ+1)) w_t / T^(γ+1) in float64, and the width is the standard deviation of that profile over T."""
    module, number = nn.Linear(3, 2), 400
    average, exponent = WeightAverage(module, power(width)), exponent_of(width) + 1
    steps = np.arange(1, number + 1, dtype=np.float64)
    shares = (steps**exponent - (steps - 1) ** exponent) / number**exponent
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for step in range(number):
        changed(module, step)
        average.update(module)
        expected += shares[step] * module.weight.detach().double()
    torch.testing.assert_close(average.tensors["weight"].double(), expected, rtol=1e-4, atol=1e-4)
    middle = float((shares * steps).sum())
    deviation = math.sqrt(float((shares * (steps - middle) ** 2).sum())) / number
    assert deviation == pytest.approx(width, rel=0.02)


def test_widths_without_an_exponent_are_refused() -> None:
    with pytest.raises(ValueError, match="below 0.2887"):
        exponent_of(0.3)


def test_saved_averages_give_those_of_other_widths() -> None:
    """Two widths, saved ten times: what they are combined into is the average that was kept all along, to a hundredth."""
    rng, number = np.random.default_rng(0), 1000
    weights = np.cumsum(rng.normal(size=(number, 3)), axis=0) + 20  # they wander, as in training
    kept = {width: np.zeros(3) for width in (0.05, 0.1, 0.07, 0.15)}
    saved: list[tuple[Profile, np.ndarray]] = []
    for step in range(number):
        for width, mean in kept.items():
            mean += power(width)(step) * (weights[step] - mean)
        if (step + 1) % 100 == 0:
            saved += [(Profile(step + 1, width), kept[width].copy()) for width in (0.05, 0.1)]
    spread = float(np.std(weights[-200:]))
    for width in (0.07, 0.15):
        shares = combination([profile for profile, _ in saved], Profile(number, width))
        combined = sum(share * mean for share, (_, mean) in zip(shares, saved, strict=True))
        assert sum(shares) == pytest.approx(1)
        assert np.abs(combined - kept[width]).max() < 0.02 * spread
    exact = combination([profile for profile, _ in saved], Profile(number, 0.05))
    assert exact[-2] == pytest.approx(1, abs=1e-6)  # it is there


def test_the_average_of_what_stands_still_is_itself() -> None:
    module = make_generator()
    average = WeightAverage(module, exponential(0.99))
    for _ in range(5):
        average.update(module)
    assert all(torch.equal(average.tensors[name], tensor) for name, tensor in module.state_dict().items())


def test_inside_the_weights_are_the_average_and_come_back(speech: Tensor) -> None:
    module = make_generator()
    average = WeightAverage(module, exponential(0.9))
    changed(module, 1)
    average.update(module)
    before, kept = weights(module), {name: tensor.clone() for name, tensor in average.tensors.items()}
    with pytest.raises(KeyboardInterrupt), average.inside(module):
        assert all(torch.equal(kept[name], tensor) for name, tensor in module.state_dict().items())
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(torch.equal(kept[name], tensor) for name, tensor in average.tensors.items())


def test_what_is_saved_goes_on_bit_by_bit() -> None:
    module = make_generator()
    straight = WeightAverage(module, exponential(0.9))
    for seed in range(3):
        changed(module, seed)
        straight.update(module)
    again = WeightAverage(make_generator(5), exponential(0.9))
    again.load_state_dict({name: tensor.clone() for name, tensor in straight.state_dict().items()})
    changed(module, 7)
    for average in (straight, again):
        average.update(module)
    assert again.updates == straight.updates == 4
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in straight.tensors.items())


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_the_average_of_another_model_is_refused(fault: str) -> None:
    average = WeightAverage(nn.Linear(3, 2), exponential(0.9))
    other = WeightAverage(nn.Linear(4, 2), exponential(0.9)).state_dict()
    if fault == "missing":
        other.pop("bias")
    before = weights_of(average)
    with pytest.raises(RuntimeError, match="bias" if fault == "missing" else "weight is of shape"):
        average.load_state_dict(other)
    assert all(torch.equal(before[name], tensor) for name, tensor in average.tensors.items())


def weights_of(average: WeightAverage) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in average.tensors.items()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_is_one_update_and_the_training_is_the_same(
    accumulation: int, speech: Tensor, make_accelerator: Callable[..., Accelerator]
) -> None:
    accelerator = make_accelerator(accumulation)
    with_average, without = make_state(accelerator), make_state(accelerator)
    with_average.average = WeightAverage(with_average.generator, exponential(0.9))
    batches = list(speech[:4, :, :1280].chunk(accumulation))
    for _ in range(3):
        start = weights_of(with_average.average)
        for state in (with_average, without):
            train_step(batches, state, accelerator, step_settings())
        decay = min(0.9, with_average.average.updates / (9 + with_average.average.updates))
        for name, tensor in with_average.generator.state_dict().items():
            expected = decay * start[name] + (1 - decay) * tensor
            assert torch.allclose(with_average.average.tensors[name], expected, atol=1e-6), name
    assert with_average.average.updates == 3
    ours, theirs = with_average.generator.state_dict(), without.generator.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_step_that_changes_nothing_is_no_update(
    speech: Tensor, make_accelerator: Callable[..., Accelerator]
) -> None:
    accelerator = make_accelerator()
    state = make_state(accelerator)
    state.average = WeightAverage(state.generator, exponential(0.9))
    before = weights_of(state.average)
    batch = speech[:2, :, :1280].clone()
    batch[0, 0, 0] = float("nan")
    report = train_step([batch], state, accelerator, step_settings())
    assert report.skipped and state.average.updates == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in state.average.tensors.items())


def test_a_restarted_code_moves_in_the_average_too(
    speech: Tensor, make_accelerator: Callable[..., Accelerator]
) -> None:
    """Between its old place and its new one there is nothing that the encoder ever gives."""
    accelerator = make_accelerator()
    state = make_state(accelerator)
    state.average = WeightAverage(state.generator, exponential(0.999))
    state.snapshot_averages = [WeightAverage(state.generator, power(width)) for width in (0.05, 0.1)]
    state.usage.age[0, 3] = 10**9
    for average in state.averages():
        average.updates = 10**6  # far beyond the beginning: the average hardly moves by itself
    row = state.generator.quantizer.quantizers[0].codebook.weight
    train_step([speech[:2, :, :1280]], state, accelerator, step_settings(restart_after=8.0))
    assert state.usage.restarts[0] == 1 and state.usage.age[0, 3] == 0
    for average in state.averages():
        mean = average.tensors["quantizer.quantizers.0.codebook.weight"]
        assert torch.allclose(mean[3], row[3], rtol=1e-5)
