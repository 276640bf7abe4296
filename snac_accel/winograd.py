"""Winograd's minimal filtering: convolutions of many channels with fewer multiplications, for a CPU.

F(m, r) computes m outputs of a filter of r taps with m + r - 1 multiplications instead of m r: input tiles and filters are
evaluated at m + r - 1 points, multiplied there (one matrix product over the channels for each point), and brought back. In two
dimensions the savings multiply: F(2 x 2, 3 x 3) needs 16 instead of 36, F(4, 5) 8 instead of 20. Values and gradients are
those of the plain convolution up to rounding. Source: Lavin and Gray 2016, sections 4.1 and 4.2; the matrices are made as
Toom and Cook do, from points that are small powers of two.

The transformed filters would be the largest tensors of a step, and writing them would take longer than the products. So they
are made for `BLOCK` output channels at a time, used while the processor's cache holds them, and made again in the
backward pass.

Shapes: B batch, I and O channels in and out, H x W positions, K taps, P points, N tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity
TILES = {(3, 3): (2, 2), (5, 1): (4, 1)}  # outputs of a tile, by kernel
BLOCK = 128  # output channels whose filters are transformed at a time


class Plan(NamedTuple):
    """How tiles are cut and evaluated: numbers in both directions, and the matrices of both, multiplied out."""

    kernel: tuple[int, int]
    tile: tuple[int, int]  # outputs
    points: tuple[int, int]  # inputs of a tile, and points
    data: Tensor  # (P, P): input tile -> values
    weight: Tensor  # (P, K): filter -> values
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


# --- the three products of a convolution, by blocks of output channels


def convolve(values: Tensor, weight: Tensor, size: tuple[int, int, int], how: Plan) -> Tensor:
    """Return the output (B, O, H, W), `size` = (B, H, W), of tiles evaluated to (P, N, I) and filters (O, I, *kernel)."""
    batch, height, width = size
    (high, wide), (rows, columns) = _counts(height, width, how), how.tile
    result = values.new_empty(batch, len(weight), high, rows, wide, columns)
    for part, filters in transformed(weight, how):
        products = torch.bmm(values, filters.mT)  # (P, N, block)
        grid = (how.output @ products.flatten(1)).view(rows, columns, batch, high, wide, -1)
        result[:, part] = grid.permute(2, 5, 3, 0, 4, 1)
    return result.view(batch, len(weight), high * rows, wide * columns)[..., :height, :width]


def input_gradient(products: Tensor, weight: Tensor, how: Plan) -> Tensor:
    """Return the gradient of the evaluated tiles (P, N, I), of spread output gradients (P, N, O)."""
    gradient = products.new_zeros(*products.shape[:2], weight.shape[1])
    for part, filters in transformed(weight, how):
        gradient.baddbmm_(products[:, :, part], filters)
    return gradient


def weight_gradient(products: Tensor, values: Tensor, how: Plan) -> Iterator[tuple[slice, Tensor]]:
    """Yield the gradient of the filters of some output channels at a time, (block, I, K) in a buffer that is used again."""
    inputs = values.shape[2]
    for part in _parts(products.shape[2]):
        gradient = torch.bmm(products[:, :, part].mT, values)  # (P, block, I)
        taps = how.weight.T @ gradient.flatten(1)  # (K, block I)
        yield part, torch.stack(taps.unbind(), dim=1).view(-1, inputs, len(taps))


def transformed(weight: Tensor, how: Plan) -> Iterator[tuple[slice, Tensor]]:
    """Yield the transformed filters (P, block, I) of some output channels at a time, in a buffer that is used again."""
    inputs = weight.shape[1]
    buffer = weight.new_empty(len(how.weight), min(BLOCK, len(weight)) * inputs)
    for part in _parts(len(weight)):
        filters = weight[part].flatten(2).flatten(0, 1).T  # (K, block I)
        block = buffer[:, : filters.shape[1]]
        torch.mm(how.weight, filters, out=block)
        yield part, block.view(len(how.weight), -1, inputs)


def _parts(channels: int) -> Iterator[slice]:
    yield from (slice(start, min(start + BLOCK, channels)) for start in range(0, channels, BLOCK))


# --- tiles


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
