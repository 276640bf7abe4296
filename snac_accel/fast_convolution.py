"""Weight-normalised convolutions that go Winograd's way on a CPU, prepared once for all passes of a step through them.

GPU libraries have Winograd's convolutions, oneDNN does not. Weight normalisation is folded in: w = g v / ‖v‖ is never made, and
the gradients of g and v are finished block by block while those of w are still in the processor's cache.

Shapes: B batch, I and O channels in and out, H x W positions, P points, N tiles, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .winograd import (
    TILES,
    Plan,
    add_tiles,
    convolve,
    evaluate_tiles,
    input_gradient,
    plan,
    spread_tiles,
    weight_gradient,
)

MIN_CHANNELS = 256  # below, bringing tiles there and back costs more than it saves


@dataclass
class Weight:
    """A weight-normalised weight, prepared: what all passes through it share."""

    direction: Tensor  # v, (O, I, *kernel)
    scale: Tensor  # g / ‖v‖, (O,)
    token: Tensor = field(default_factory=lambda: torch.empty(0))  # leads autograd from the passes to `GatherWeight`
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # output gradients and inputs of passes, as tiles
    task: int = -1  # the backward pass that they are of

    def add(self, products: Tensor, values: Tensor) -> None:
        """Note a pass's share of the gradient; those of an earlier backward pass, which did not want them, go."""
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self.task, self.pending = task, []
        self.pending.append((products, values))

    def take(self) -> tuple[Tensor, Tensor]:
        """Return what was noted, side by side: (P, N, O), (P, N, I)."""
        pending, self.pending = self.pending, []
        products, values = (parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*pending))
        return products, values


@dataclass
class _Modes:
    weight_gradients: bool = True
    shared: dict[nn.Module, Weight] | None = None


_modes = _Modes()


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Leave out the weights' gradients in backward passes; a `Function` is not told what `autograd.grad` was asked for."""
    _modes.weight_gradients = False
    try:
        yield
    finally:
        _modes.weight_gradients = True


@contextmanager
def shared_weights() -> Iterator[None]:
    """Normalise and prepare each weight once for all forward passes inside; the weights must not change meanwhile."""
    _modes.shared = {}
    try:
        with parametrize.cached():
            yield
    finally:
        _modes.shared = None


class GatherWeight(torch.autograd.Function):
    """Stands for the weight in the graph: forward a token, backward the gradients of v and g from all passes at once.

    Autograd calls this after every pass that takes part has noted its share in `Weight.pending`. With D the gradient of w:
    dg = D · v / ‖v‖ and dv = g / ‖v‖ (D - (D · v / ‖v‖²) v). Source: Salimans and Kingma 2016, equation 3.
    """

    @staticmethod
    def forward(ctx: Any, direction: Tensor, gain: Tensor, weight: Weight) -> Tensor:
        ctx.save_for_backward(weight.direction, weight.scale)
        ctx.weight, ctx.gain_shape = weight, gain.shape
        return direction.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        direction, scale = ctx.saved_tensors
        if not ctx.weight.pending:
            return None, None, None
        products, values = ctx.weight.take()
        grad_direction = torch.empty_like(direction)
        grad_gain = scale.new_empty(len(scale))
        norms = torch.linalg.vector_norm(direction.flatten(1), dim=1)
        for part, gradient in weight_gradient(products, values, plan_of(direction)):
            gradient, rows = gradient.flatten(1), direction[part].flatten(1)
            along = torch.linalg.vecdot(gradient, rows)
            grad_gain[part] = along / norms[part]
            gradient.addcmul_(rows, (along / norms[part].square())[:, None], value=-1)
            torch.mul(gradient, scale[part, None], out=grad_direction[part].flatten(1))
        return grad_direction, grad_gain.view(ctx.gain_shape), None


class WinogradFunction(torch.autograd.Function):
    """(B, I, H, W), token of the weight, bias (O,) -> (B, O, H, W); stride 1, zeros around, same size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, bias: Tensor, weight: Weight) -> Tensor:
        how = plan_of(weight.direction)
        values = evaluate_tiles(x, how)
        ctx.save_for_backward(values, weight.direction, weight.scale)
        ctx.weight, ctx.size = weight, x.shape
        output = convolve(values, weight.direction, (x.shape[0], x.shape[2], x.shape[3]), how)
        return torch.addcmul(bias[:, None, None], output, weight.scale[:, None, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        values, direction, scale = ctx.saved_tensors
        how = plan_of(direction)
        products = spread_tiles(gradient, how)
        grad_x = grad_token = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = add_tiles(input_gradient(products * scale, direction, how), ctx.size, how)
        if ctx.needs_input_grad[1] and _modes.weight_gradients:
            ctx.weight.add(products, values)
            grad_token = gradient.new_zeros(())
        if ctx.needs_input_grad[2] and _modes.weight_gradients:
            grad_bias = gradient.sum((0, 2, 3))
        return grad_x, grad_token, grad_bias, None


def plan_of(direction: Tensor) -> Plan:
    """Return the plan for filters (O, I, *kernel)."""
    return plan((direction.shape[2], direction.shape[3]), direction.dtype)


class FastConv2d(nn.Conv2d):
    """`nn.Conv2d` that goes Winograd's way where it is shorter: weight-normalised, many channels, stride 1, on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        if not self.is_shorter(input):
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        with torch.autocast("cpu", enabled=False):  # half precision would be no faster, and lose digits in the tiles
            weight = self.prepared()
            result: Tensor = WinogradFunction.apply(
                input.to(weight.direction.dtype), weight.token, self.bias, weight
            )
        return result.to(dtype)

    def is_shorter(self, input: Tensor) -> bool:
        """Whether Winograd's way is shorter for this input, (B, I, H, W)."""
        kernel = (self.kernel_size[0], self.kernel_size[1])
        same_size = self.padding == (kernel[0] // 2, kernel[1] // 2) and self.dilation == (1, 1)
        fits = kernel in TILES and self.stride == (1, 1) and same_size and self.groups == 1
        wide = min(self.in_channels, self.out_channels) >= MIN_CHANNELS and self.bias is not None
        here = input.device.type == "cpu" and not torch.compiler.is_compiling()
        return fits and wide and here and parametrize.is_parametrized(self, "weight")

    def prepared(self) -> Weight:
        """Return the prepared weight: the one of this pass, or of all passes in `shared_weights`."""
        if _modes.shared is None:
            return self._prepare()
        if self not in _modes.shared:
            _modes.shared[self] = self._prepare()
        return _modes.shared[self]

    def _prepare(self) -> Weight:
        gain = self.get_parameter("parametrizations.weight.original0")
        direction = self.get_parameter("parametrizations.weight.original1")
        with torch.no_grad():
            scale = gain.flatten() / torch.linalg.vector_norm(direction.flatten(1), dim=1)
        weight = Weight(direction.detach(), scale)
        weight.token = GatherWeight.apply(direction, gain, weight)
        return weight
