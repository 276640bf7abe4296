"""The hand-written snake against upstream's: same values, same gradients, less kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from snac.layers import Snake1d, snake
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from snac_accel.snake import FastSnake1d, SnakeFunction, replace_snakes
from tiny import make_generator


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x (2, 3, 17) and positive alpha (1, 3, 1), both with gradient."""
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(2, 3, 17, generator=random, dtype=torch.float64)
    alpha = 0.3 + torch.rand(1, 3, 1, generator=random, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), alpha.to(dtype).requires_grad_()


def test_gradient_is_the_derivative() -> None:
    assert torch.autograd.gradcheck(SnakeFunction.apply, inputs())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_upstream(dtype: torch.dtype, tolerance: float) -> None:
    results = []
    for function in (SnakeFunction.apply, snake):
        x, alpha = inputs(dtype)
        output = function(x, alpha)
        (output * torch.arange(output.numel(), dtype=dtype).view_as(output).cos()).sum().backward()
        results.append((output, x.grad, alpha.grad))
    (ours, *our_gradients), (theirs, *their_gradients) = results
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=tolerance, atol=tolerance)


def test_autocast_gives_upstreams_values_as_the_next_convolution_takes_them() -> None:
    """Upstream's are float32, which autocast makes bfloat16 before the convolution that follows."""
    x, alpha = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = SnakeFunction.apply(x.bfloat16(), alpha), snake(x.bfloat16(), alpha)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs.bfloat16())
    ours.float().square().sum().backward()
    found = [x.grad, alpha.grad]
    x.grad = alpha.grad = None
    theirs.square().sum().backward()
    for gradient, expected in zip(found, [x.grad, alpha.grad], strict=True):
        assert gradient is not None and expected is not None and gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_inputs_get_no_gradient(frozen: int) -> None:
    pair = inputs()
    pair[frozen].requires_grad_(False)
    SnakeFunction.apply(*pair).sum().backward()
    assert pair[frozen].grad is None
    assert pair[1 - frozen].grad is not None


def kept(module: nn.Module, x: Tensor) -> int:
    """Number of values that `module` keeps for its backward pass."""
    numbers: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        numbers.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(numbers)


def test_keeps_less_than_upstream() -> None:
    x = torch.randn(2, 8, 1000, requires_grad=True)
    assert kept(FastSnake1d(8), x) == 2 * x.numel() + 8  # input and output, which its neighbours keep anyway
    assert kept(Snake1d(8), x) > kept(FastSnake1d(8), x)


def test_replacing_keeps_parameters_and_their_names() -> None:
    module = nn.Sequential(Snake1d(3), nn.ModuleDict({"inner": nn.Sequential(Snake1d(2))}))
    before = dict(module.named_parameters())
    replace_snakes(module)
    after = dict(module.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)  # an optimiser built before goes on working


def test_no_upstream_snake_is_left_in_the_generator() -> None:
    snakes = [module for module in make_generator().modules() if isinstance(module, Snake1d)]
    assert len(snakes) > 10
    assert all(isinstance(module, FastSnake1d) for module in snakes)
