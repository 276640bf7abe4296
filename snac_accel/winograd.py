"""Convolutions of many channels with fewer multiplications, for a CPU: Winograd's minimal filtering.

F(m, r) computes m outputs of a filter of r taps with m + r - 1 multiplications instead of m r: input tiles and filters are
evaluated at m + r - 1 points, multiplied there (one matrix product over the channels for each point), and brought back. In two
dimensions the savings multiply: F(2 x 2, 3 x 3) needs 16 instead of 36, F(4, 5) 8 instead of 20. Values and gradients are
those of the plain convolution up to rounding. Source: Lavin and Gray 2016, sections 4.1 and 4.2; the matrices are made as
Toom and Cook do, from points that are small powers of two.

GPU libraries do this by themselves, oneDNN does not. Shapes: B batch, I and O channels in and out, H x W positions,
P points, N tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity
TILES = {(3, 3): (2, 2), (5, 1): (4, 1)}  # outputs of a tile, by kernel
MIN_CHANNELS = 256  # below, bringing tiles there and back costs more than it saves
_state = {"weight_gradients": True}


class Plan(NamedTuple):
    """How tiles are cut and evaluated: numbers in both directions, and the matrices of both, multiplied out."""

    kernel: tuple[int, int]
    tile: tuple[int, int]  # outputs
    points: tuple[int, int]  # inputs of a tile, and points
    data: Tensor  # (P, P): input tile -> values
    weight: Tensor  # (P, R): filter -> values
    output: Tensor  # (M, P): products -> output tile


@lru_cache(maxsize=16)
def plan(kernel: tuple[int, int], dtype: torch.dtype) -> Plan:
    """Return the plan for a kernel of `TILES`."""
    tile = TILES[kernel]
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training afterwards
        rows, columns = (matrices(m, r) for m, r in zip(tile, kernel, strict=True))
        data, weight, output = (
            torch.kron(a.contiguous(), b.contiguous()).to(dtype) for a, b in zip(rows, columns, strict=True)
        )
    points = (tile[0] + kernel[0] - 1, tile[1] + kernel[1] - 1)
    return Plan(kernel, tile, points, data, weight, output)


def matrices(outputs: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Bᵀ (n, n), G (n, r) and Aᵀ (m, n) of F(m, r), float64: y = Aᵀ ((G g) ⊙ (Bᵀ d)), n = m + r - 1.

    Transposed polynomial multiplication: A and G evaluate at the points, B interpolates.
    """
    size = outputs + taps - 1
    points = torch.tensor(POINTS[: size - 1], dtype=torch.float64)
    differences = points[:, None] - points + torch.eye(size - 1, dtype=torch.float64)
    # With these scales the entries of Bᵀ are small and short.
    scales = torch.cat([differences.prod(1), torch.ones(1, dtype=torch.float64)])
    data = torch.linalg.inv(_evaluation(points, size)).T * scales[:, None]
    return data, _evaluation(points, taps) / scales[:, None], _evaluation(points, outputs).T


def _evaluation(points: Tensor, size: int) -> Tensor:
    """The matrix that evaluates a polynomial of `size` coefficients at the points and at infinity."""
    finite = points[:, None] ** torch.arange(size)
    return torch.cat([finite, torch.eye(size, dtype=torch.float64)[-1:]])


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Leave out the weights' gradients in backward passes; a `Function` is not told what `autograd.grad` was asked for."""
    _state["weight_gradients"] = False
    try:
        yield
    finally:
        _state["weight_gradients"] = True


class TransformWeight(torch.autograd.Function):
    """(O, I, *kernel) -> (P, O, I)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.shape = weight.shape
        ctx.set_materialize_grads(False)
        matrix = plan(tuple(weight.shape[2:]), weight.dtype).weight
        return (matrix @ weight.flatten(2).flatten(0, 1).T).view(-1, *weight.shape[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        (gradient,) = gradients
        if gradient is None:
            return None
        matrix = plan(tuple(ctx.shape[2:]), gradient.dtype).weight
        return (matrix.T @ gradient.flatten(1)).T.reshape(ctx.shape)


class WinogradFunction(torch.autograd.Function):
    """(B, I, H, W), transformed weight (P, O, I), bias (O,) -> (B, O, H, W); stride 1, zeros around, same size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: tuple[int, int]) -> Tensor:
        how = plan(kernel, x.dtype)
        values = evaluate_tiles(x, how)  # (P, N, I)
        products = torch.bmm(values, weight.mT)  # (P, N, O)
        ctx.save_for_backward(values, weight)
        ctx.kernel, ctx.size = kernel, x.shape
        batch, _, height, width = x.shape
        tiles = _counts(height, width, how)
        grid = (how.output @ products.flatten(1)).view(*how.tile, batch, *tiles, -1)
        grid = grid.permute(2, 5, 3, 0, 4, 1).reshape(
            batch, -1, tiles[0] * how.tile[0], tiles[1] * how.tile[1]
        )
        return grid[..., :height, :width] + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        values, weight = ctx.saved_tensors
        how = plan(ctx.kernel, gradient.dtype)
        products = spread_tiles(gradient, how)  # (P, N, O)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = add_tiles(torch.bmm(products, weight), ctx.size, how)
        if ctx.needs_input_grad[1] and _state["weight_gradients"]:
            grad_weight = torch.bmm(products.mT, values)
        if ctx.needs_input_grad[2] and _state["weight_gradients"]:
            grad_bias = gradient.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


def _counts(height: int, width: int, how: Plan) -> tuple[int, int]:
    return -(-height // how.tile[0]), -(-width // how.tile[1])


def evaluate_tiles(x: Tensor, how: Plan) -> Tensor:
    """Return the values of all input tiles of `x` (B, I, H, W), (P, N, I): tiles overlap."""
    (high, wide), (rows, columns) = _counts(x.shape[2], x.shape[3], how), how.tile
    top, left = how.kernel[0] // 2, how.kernel[1] // 2
    bottom = high * rows + how.kernel[0] - 1 - x.shape[2] - top
    right = wide * columns + how.kernel[1] - 1 - x.shape[3] - left
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom))  # channels last
    tiles = padded.unfold(1, how.points[0], rows).unfold(2, how.points[1], columns)  # (B, h, w, I, p, q)
    tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(how.data.shape[0], -1)
    return (how.data @ tiles).view(how.data.shape[0], -1, x.shape[1])


def add_tiles(values: Tensor, size: tuple[int, int, int, int], how: Plan) -> Tensor:
    """Return the transpose of `evaluate_tiles`: (P, N, I) -> (B, I, H, W), overlapping tiles added."""
    batch, channels, height, width = size
    (high, wide), (rows, columns) = _counts(height, width, how), how.tile
    tiles = (how.data.T @ values.flatten(1)).view(*how.points, batch, high, wide, channels)
    padded_size = (batch, high * rows + how.kernel[0] - 1, wide * columns + how.kernel[1] - 1, channels)
    padded = values.new_zeros(padded_size)
    for p in range(how.points[0]):
        for q in range(how.points[1]):
            rows_of = slice(p, p + (high - 1) * rows + 1, rows)
            padded[:, rows_of, q : q + (wide - 1) * columns + 1 : columns] += tiles[p, q]
    top, left = how.kernel[0] // 2, how.kernel[1] // 2
    return padded[:, top : top + height, left : left + width].permute(0, 3, 1, 2).contiguous()


def spread_tiles(gradient: Tensor, how: Plan) -> Tensor:
    """Return the transpose of the way back from products to outputs: (B, O, H, W) -> (P, N, O)."""
    batch, channels, height, width = gradient.shape
    (high, wide), (rows, columns) = _counts(height, width, how), how.tile
    margins = (0, 0, 0, wide * columns - width, 0, high * rows - height)
    padded = functional.pad(gradient.permute(0, 2, 3, 1), margins)
    tiles = padded.reshape(batch, high, rows, wide, columns, channels).permute(2, 4, 0, 1, 3, 5)
    return (how.output.T @ tiles.reshape(rows * columns, -1)).view(-1, batch * high * wide, channels)


class FastConv2d(nn.Conv2d):
    """`nn.Conv2d` that goes Winograd's way where it is shorter: many channels, stride 1, a CPU, full precision."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None or not self.is_shorter(input, weight):
            return super()._conv_forward(input, weight, bias)
        kernel = (weight.shape[2], weight.shape[3])
        result: Tensor = WinogradFunction.apply(input, _transformed(weight), bias, kernel)
        return result

    def is_shorter(self, input: Tensor, weight: Tensor) -> bool:
        """Whether Winograd's way is shorter for this input, (B, I, H, W)."""
        kernel = (weight.shape[2], weight.shape[3])
        same_size = self.padding == (kernel[0] // 2, kernel[1] // 2) and self.dilation == (1, 1)
        fits = kernel in TILES and self.stride == (1, 1) and same_size and self.groups == 1
        full = input.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        here = input.device.type == "cpu" and not torch.compiler.is_compiling()
        return fits and full and here and min(weight.shape[:2]) >= MIN_CHANNELS


def _transformed(weight: Tensor) -> Tensor:
    """Return the transformed weight, made once for a weight that was itself computed once for several passes.

    As `parametrize.cached` does for weight normalisation. A parameter is changed in place by every step, so nothing is
    remembered of it.
    """
    if weight.is_leaf:
        return TransformWeight.apply(weight)
    if not hasattr(weight, "winograd"):
        weight.winograd = TransformWeight.apply(weight)  # type: ignore[attr-defined]
    return weight.winograd  # type: ignore[attr-defined]
