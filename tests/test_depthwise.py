"""The depthwise convolutions against the stock ones: the same values to the bit, equal gradients, the same parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from snac_accel.depthwise import DepthwiseFunction, FastDepthwiseConv1d, replace_depthwise
from tiny import make_generator


def stock(channels: int, dilation: int) -> nn.Module:
    """A depthwise convolution as upstream has them."""
    torch.manual_seed(channels)
    padding = 3 * dilation
    return weight_norm(nn.Conv1d(channels, channels, 7, padding=padding, dilation=dilation, groups=channels))


def fast(channels: int, dilation: int) -> nn.Module:
    """The same, replaced."""
    holder = nn.Sequential(stock(channels, dilation))
    replace_depthwise(holder)
    assert isinstance(holder[0], FastDepthwiseConv1d)
    return holder[0]


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_gradient_is_the_derivative(dilation: int) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 20), (3, 1, 5), (3,)]
    tensors = [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *args: DepthwiseFunction.apply(*args, dilation), tensors)


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Of x and of all parameters."""
    x = x.clone().requires_grad_()
    output = module(x)
    (output.float() * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
    return [gradient for p in (x, *module.parameters()) if (gradient := p.grad) is not None]


@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize(("channels", "length"), [(3, 7), (16, 250), (48, 1801), (100, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_stock_convolution(channels: int, length: int, dilation: int, batch: int) -> None:
    x = torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(1))
    ours, theirs = fast(channels, dilation), stock(channels, dilation)
    assert torch.equal(ours(x), theirs(x))
    for found, expected in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("dilation", [1, 3])
def test_autocast_gives_bfloat16_and_float32_gradients(dilation: int) -> None:
    x = torch.randn(2, 16, 400, generator=torch.Generator().manual_seed(1))
    ours, theirs = fast(16, dilation), stock(16, dilation)
    exact = gradients(theirs, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).dtype == theirs(x).dtype == torch.bfloat16
        torch.testing.assert_close(ours(x), theirs(x), rtol=0.01, atol=0.01)
        found = gradients(ours, x)
    for gradient, reference in zip(found, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() <= 0.03 * reference.norm()


def test_frozen_parameters_get_no_gradient() -> None:
    module = fast(16, 3).requires_grad_(False)
    x = torch.randn(1, 16, 100, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in module.parameters())


def test_replacing_keeps_parameters_names_and_the_random_state() -> None:
    module = nn.Sequential(stock(8, 3), nn.Conv1d(8, 8, 7, groups=8, stride=2), nn.Conv1d(8, 4, 1))
    before, names, others = dict(module.named_parameters()), list(module.state_dict()), list(module)[1:]
    state = torch.get_rng_state()
    replace_depthwise(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(module.state_dict()) == names
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    assert list(module)[1:] == others  # strided, and not depthwise: left as they were


def test_the_generator_has_only_fast_ones_and_can_be_copied() -> None:
    generator = make_generator()
    depthwise = [m for m in generator.modules() if isinstance(m, nn.Conv1d) and m.groups == m.in_channels > 1]
    assert depthwise and all(isinstance(module, FastDepthwiseConv1d) for module in depthwise)
    twin = copy.deepcopy(generator)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in generator.parameters()}
