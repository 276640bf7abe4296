"""Winograd's convolutions against the plain ones: the same values and gradients up to rounding, weights prepared once."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from snac_accel import fast_convolution, winograd
from snac_accel.discriminators import PeriodDiscriminator, STFTDiscriminator
from snac_accel.fast_convolution import FastConv2d, input_gradients_only, shared_weights
from snac_accel.winograd import TILES

KERNELS = list(TILES)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four channels go Winograd's way, two at a time."""
    monkeypatch.setattr(fast_convolution, "MIN_CHANNELS", 4)
    monkeypatch.setattr(winograd, "BLOCK", 3)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """Grows by the layer whose weight is prepared."""
    layers: list[nn.Module] = []
    prepare = FastConv2d._prepare
    monkeypatch.setattr(FastConv2d, "_prepare", lambda layer: (layers.append(layer), prepare(layer))[1])
    yield layers


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that are the same every time."""
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()


def layer(kernel: tuple[int, int], inputs: int = 5, outputs: int = 8, **options: object) -> nn.Module:
    """A weight-normalised layer in float64, its gains not those that it begins with."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    torch.manual_seed(0)
    module = weight_norm(FastConv2d(inputs, outputs, kernel, **{"padding": padding, **options})).double()
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(torch.linspace(-0.5, 2, outputs).view(-1, 1, 1, 1))
    return module


def plain(module: nn.Module, x: Tensor) -> Tensor:
    """What torch makes of the layer."""
    return functional.conv2d(x, module.weight, module.bias, module.stride, module.padding)


def gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of a sum with fixed weights."""
    return list(torch.autograd.grad(output, inputs, draw(*output.shape, dtype=output.dtype).detach()))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4), (8, 8), (13, 1), (1, 6)])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_convolution_for_every_size(
    kernel: tuple[int, int], height: int, width: int, batch: int, prepared: list[nn.Module]
) -> None:
    """Also where the last tiles stick out; values and all gradients, of gain and direction too, to the digits of float64."""
    module, x = layer(kernel), draw(batch, 5, height, width)
    results = []
    for output in (module(x), plain(module, x)):
        results.append([output, *gradients(output, x, *module.parameters())])
    assert len(prepared) == 1
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_is_about_as_exact_as_the_convolution(kernel: tuple[int, int]) -> None:
    exact, x = layer(kernel, 300, 256), draw(2, 300, 20, 9)
    reference = plain(exact, x)
    single = copy.deepcopy(exact).float()
    errors = [
        (way(x.float()) - reference).abs().max() / reference.abs().max()
        for way in (single, lambda audio: plain(single, audio))
    ]
    assert errors[0] < max(4 * errors[1], 2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_the_input_gradient_where_only_that_is_wanted(kernel: tuple[int, int]) -> None:
    module, x = layer(kernel), draw(1, 5, 6, 5)
    wanted = [x, *module.parameters()]
    output = module(x).square().sum()
    with input_gradients_only():
        found = torch.autograd.grad(output, wanted, retain_graph=True, allow_unused=True)
    everything = torch.autograd.grad(output, wanted)
    assert torch.equal(found[0], everything[0])
    assert found[1:] == (None, None, None)
    assert all(gradient.abs().sum() > 0 for gradient in everything)


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_passes_share_a_weight_whose_gradients_add_up(
    kernel: tuple[int, int], prepared: list[nn.Module]
) -> None:
    """Also where a backward pass before it went through one of them and did not want the weights."""
    module, first, second = layer(kernel), draw(1, 5, 6, 5), draw(2, 5, 6, 5)
    with shared_weights():
        outputs = module(first), module(second)
    assert len(prepared) == 1
    total = outputs[0].square().sum() + outputs[1].sin().sum()
    torch.autograd.grad(total, second, retain_graph=True)
    found = torch.autograd.grad(total, [first, second, *module.parameters()], retain_graph=True)
    alone = torch.autograd.grad(outputs[0].square().sum(), list(module.parameters()))
    expected = plain(module, first).square().sum() + plain(module, second).sin().sum()
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, [first, second, *module.parameters()]), rtol=1e-10, atol=1e-10
    )
    expected_alone = torch.autograd.grad(plain(module, first).square().sum(), list(module.parameters()))
    torch.testing.assert_close(alone, expected_alone, rtol=1e-10, atol=1e-10)


def test_a_changed_weight_is_prepared_anew_and_never_used_for_old_gradients(prepared: list[nn.Module]) -> None:
    module, x = layer((3, 3)), draw(1, 5, 4, 4)
    for steps in (1, 2):
        with shared_weights():
            output = module(x)
        assert len(prepared) == steps
        torch.testing.assert_close(output, plain(module, x))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(
    ("kernel", "options"),
    [((3, 3), {"stride": 2}), ((3, 3), {"bias": False}), ((7, 7), {}), ((3, 1), {}), ((3, 3), {"outputs": 3})],
)
def test_other_convolutions_go_the_plain_way(
    kernel: tuple[int, int], options: dict[str, object], prepared: list[nn.Module]
) -> None:
    module, x = layer(kernel, **options), draw(1, 5, 8, 8)
    assert torch.equal(module(x), plain(module, x))
    assert prepared == []


def test_under_autocast_it_computes_in_float32_and_answers_in_half_precision(prepared: list[nn.Module]) -> None:
    module, x = layer((3, 3)).float(), draw(1, 5, 9, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(x)
    assert output.dtype == torch.bfloat16 and len(prepared) == 1
    torch.testing.assert_close(output, plain(module, x).bfloat16())


@pytest.mark.parametrize(
    "discriminator",
    [PeriodDiscriminator(3, (8, 16, 16)), STFTDiscriminator(64, 16, 64, (8, 16, 16))],
    ids=["period", "stft"],
)
def test_discriminators_answer_as_with_plain_convolutions(
    discriminator: nn.Module, prepared: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdict, features, and every gradient."""
    audio = draw(2, 1, 600, dtype=torch.float32)
    results = []
    for _ in range(2):
        logits, features = discriminator(audio)
        loss = logits.square().sum() + sum(feature.abs().sum() for feature in features)
        results.append([logits, *features, *torch.autograd.grad(loss, [audio, *discriminator.parameters()])])
        monkeypatch.setattr(FastConv2d, "is_shorter", lambda *_: False)
    assert len(prepared) == 1
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())


def test_weights_of_checkpoints_keep_their_names() -> None:
    reference = weight_norm(nn.Conv2d(5, 8, 3, padding=1))
    module = layer((3, 3)).float()
    module(torch.zeros(1, 5, 4, 4))
    assert list(module.state_dict()) == list(reference.state_dict())
