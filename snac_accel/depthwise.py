"""SNAC's depthwise convolutions with a faster way through them on a CPU: the same values forward, equal gradients.

oneDNN has fast depthwise kernels, but not for dilated ones, nor for the gradients of many channels. A dilated convolution is
a plain one over every d-th sample: seen as an image of d columns, audio needs no copy for that. Its input gradient is the same
convolution with the kernel reversed, and its weight gradient seven inner products for each channel. Elsewhere than on a
CPU, and when a compiler is at work, the stock convolution runs.

Shapes: B batch, C channels, T samples, K kernel size (odd), d dilation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class DepthwiseFunction(torch.autograd.Function):
    """y[c, t] = b[c] + Σ_k w[c, k] x[c, t + (k - K//2) d], zeros beyond the ends.

    (B, C, T), (C, 1, K), (C,) -> (B, C, T).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return correlate(x, weight, bias, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = correlate(gradient, weight.flip(-1), None, ctx.dilation)
        if ctx.needs_input_grad[1]:
            grad_weight = inner_products(x, gradient, weight.shape[-1], ctx.dilation).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum((0, 2))
        return grad_x, grad_weight, grad_bias, None


def correlate(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Return the depthwise correlation of `x` (B, C, T) with `weight` (C, 1, K), as long as `x`, plus `bias` (C,).

    oneDNN's kernels begin with the bias, but for the dilated ones, which add it last: so it is here, to the last bit.
    """
    channels, _, size = weight.shape
    reach = size // 2 * dilation
    if dilation == 1:
        return functional.conv1d(x, weight, bias, padding=reach, groups=channels)
    batch, _, length = x.shape
    padded = functional.pad(x, (reach, reach + -length % dilation))
    image = padded.view(batch, channels, -1, dilation)  # column j holds the samples j, j + d, j + 2d, …
    result = functional.conv2d(image, weight.unsqueeze(-1), groups=channels)
    result = result.reshape(batch, channels, -1)[..., :length]
    return result.contiguous() if bias is None else result + bias.unsqueeze(-1)


def inner_products(x: Tensor, gradient: Tensor, size: int, dilation: int) -> Tensor:
    """Return the weight gradient (C, 1, K): inner products of `gradient` with `x` shifted, (B, C, T) both.

    In float32 at least: bfloat16 would lose digits over so many samples, and is slower here.
    """
    if x.dtype == torch.bfloat16:
        x, gradient = x.float(), gradient.float()
    batch, channels, length = x.shape
    padded = functional.pad(x, (size // 2 * dilation,) * 2)
    strides = (padded.stride(0), padded.stride(1), dilation, 1)
    shifted = padded.as_strided((batch, channels, size, length), strides)
    return torch.matmul(shifted, gradient.contiguous().unsqueeze(-1)).sum(0).transpose(1, 2)


class FastDepthwiseConv1d(nn.Conv1d):
    """`nn.Conv1d` with one group for each channel through `DepthwiseFunction` where that is faster."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu" or torch.compiler.is_compiling() or input.dtype == torch.float16:
            return super()._conv_forward(input, weight, bias)
        if torch.is_autocast_enabled("cpu"):  # as autocast does with any convolution
            kind = torch.get_autocast_dtype("cpu")
            input, weight, bias = input.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        result: Tensor = DepthwiseFunction.apply(input, weight, bias, self.dilation[0])
        return result


def replace_depthwise(module: nn.Module) -> None:
    """Put a `FastDepthwiseConv1d` with the same parameters in the place of every such convolution below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv1d) and _is_depthwise(child):
            setattr(module, name, _fast(child))
        else:
            replace_depthwise(child)


def _is_depthwise(conv: nn.Conv1d) -> bool:
    one_group_each = conv.groups == conv.in_channels == conv.out_channels > 1
    same_length = conv.stride == (1,) and conv.padding == (conv.kernel_size[0] // 2 * conv.dilation[0],)
    return one_group_each and same_length and conv.kernel_size[0] % 2 == 1 and conv.padding_mode == "zeros"


def _fast(conv: nn.Conv1d) -> nn.Module:
    """Return the weight-normalised twin of `conv`, made without drawing random numbers, with its very parameters."""
    twin = FastDepthwiseConv1d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        padding=conv.kernel_size[0] // 2 * conv.dilation[0],
        dilation=conv.dilation[0],
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    if hasattr(conv, "parametrizations"):
        weight_norm(twin)
    for owner, name in [(path, name) for path, m in conv.named_modules() for name in m._parameters]:
        setattr(twin.get_submodule(owner), name, conv.get_submodule(owner)._parameters[name])
    return twin
