"""Winograd's convolutions against the plain ones: the same values and gradients up to rounding, the weight transformed once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from snac_accel import winograd
from snac_accel.discriminators import PeriodDiscriminator, STFTDiscriminator
from snac_accel.winograd import TILES, FastConv2d, TransformWeight, WinogradFunction, input_gradients_only

KERNELS = list(TILES)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that are the same every time."""
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Winograd's way."""
    return WinogradFunction.apply(x, TransformWeight.apply(weight), bias, tuple(weight.shape[2:]))


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution."""
    return functional.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4), (8, 8), (13, 1), (1, 6)])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_convolution_for_every_size(
    kernel: tuple[int, int], height: int, width: int, batch: int
) -> None:
    """Also where the last tiles stick out; values and all gradients, to the digits of float64."""
    tensors = [draw(batch, 3, height, width), draw(4, 3, *kernel), draw(4)]
    results = []
    for way in (ours, plain):
        output = way(*tensors)
        gradient = draw(*output.shape).detach()
        results.append([output, *torch.autograd.grad(output, tensors, gradient)])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_is_about_as_exact_as_the_convolution(kernel: tuple[int, int]) -> None:
    exact = [draw(2, 300, 20, 9), draw(256, 300, *kernel), draw(256)]
    reference = plain(*exact)
    single = [tensor.detach().float() for tensor in exact]
    errors = [(way(*single) - reference).abs().max() / reference.abs().max() for way in (ours, plain)]
    assert errors[0] < max(4 * errors[1], 2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_the_input_gradient_where_only_that_is_wanted(kernel: tuple[int, int]) -> None:
    tensors = [draw(1, 3, 6, 5), draw(4, 3, *kernel), draw(4)]
    output = ours(*tensors).square().sum()
    with input_gradients_only():
        found = torch.autograd.grad(output, tensors, retain_graph=True, allow_unused=True)
    everything = torch.autograd.grad(output, tensors)
    assert torch.equal(found[0], everything[0])
    assert found[1] is None and found[2] is None
    assert everything[1].abs().sum() > 0 and everything[2].abs().sum() > 0


def wide(kernel: tuple[int, int], **options: object) -> nn.Module:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return weight_norm(FastConv2d(256, 256, kernel, padding=padding, **options))


@pytest.fixture
def transformed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each weight that is transformed."""
    calls: list[int] = []
    apply = TransformWeight.apply
    monkeypatch.setattr(winograd.TransformWeight, "apply", lambda weight: (calls.append(1), apply(weight))[1])
    return calls


def test_a_weight_is_transformed_once_for_both_passes_and_anew_after_a_step(transformed: list[int]) -> None:
    module, x = wide((3, 3)), torch.randn(1, 256, 4, 4)
    for steps in (1, 2):
        with parametrize.cached():
            first, second = module(x), module(2 * x)
        assert len(transformed) == steps
        (first.sum() + second.sum()).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)
    expected = functional.conv2d(x, module.weight, module.bias, padding=1)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [(8, 256), (256, 8)])
def test_few_channels_go_the_plain_way(channels: tuple[int, int], transformed: list[int]) -> None:
    FastConv2d(*channels, 3, padding=1)(torch.randn(1, channels[0], 4, 4))
    assert transformed == []


@pytest.mark.parametrize(
    ("kernel", "options"), [((3, 3), {"stride": 2}), ((3, 3), {"bias": False}), ((7, 7), {}), ((3, 1), {})]
)
def test_other_convolutions_go_the_plain_way(
    kernel: tuple[int, int], options: dict[str, object], transformed: list[int]
) -> None:
    wide(kernel, **options)(torch.randn(1, 256, 8, 8))
    assert transformed == []


def test_autocast_goes_the_plain_way(transformed: list[int]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert wide((3, 3))(torch.randn(1, 256, 4, 4)).dtype == torch.bfloat16
    assert transformed == []


@pytest.mark.parametrize(
    "discriminator",
    [PeriodDiscriminator(3, (8, 256, 256)), STFTDiscriminator(64, 16, 64, (8, 256, 256))],
    ids=["period", "stft"],
)
def test_discriminators_answer_as_with_plain_convolutions(
    discriminator: nn.Module, transformed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdict, features, and every gradient."""
    audio = draw(2, 1, 600, dtype=torch.float32)
    results = []
    for _ in range(2):
        logits, features = discriminator(audio)
        loss = logits.square().sum() + sum(feature.abs().sum() for feature in features)
        results.append([logits, *features, *torch.autograd.grad(loss, [audio, *discriminator.parameters()])])
        monkeypatch.setattr(FastConv2d, "is_shorter", lambda *_: False)
    assert len(transformed) == 1
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5 * float(expected.abs().max()))
