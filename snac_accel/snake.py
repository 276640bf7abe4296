"""The snake activation with a hand-written backward: the same forward, less memory and fewer passes over it.

Shapes: B batch, C channels, T samples.
"""

from __future__ import annotations

from typing import Any

import torch
from snac.layers import Snake1d, snake
from torch import Tensor, nn


class SnakeFunction(torch.autograd.Function):
    """x + sin²(αx) / α, upstream's own kernel forward; saves x alone and needs one sine backward.

    d/dx = 1 + sin(2αx); d/dα = (x sin(2αx) - sin²(αx) / α) / α. Source: Ziyin et al. 2020, equation 4; `snac/layers.py`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return snake(x, alpha)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, alpha = ctx.saved_tensors
        inverse = (alpha + 1e-9).reciprocal()
        sine, cosine = torch.sin(scaled := x * alpha), torch.cos(scaled)
        slope = gradient * cosine.mul_(sine)  # gradient · sin(2αx) / 2
        grad_alpha = None
        if ctx.needs_input_grad[1]:
            by_argument = 2 * (slope * x).sum((0, 2), keepdim=True) * inverse
            grad_alpha = (
                by_argument - (gradient * sine.square_()).sum((0, 2), keepdim=True) * inverse.square()
            )
        return gradient + slope.mul_(2 * alpha * inverse), grad_alpha


class FastSnake1d(Snake1d):
    """`snac.layers.Snake1d` through `SnakeFunction`; the same parameter under the same name."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return SnakeFunction.apply(x, self.alpha)


def replace_snakes(module: nn.Module) -> None:
    """Put a `FastSnake1d` with the same parameter in the place of every upstream snake below `module`."""
    for name, child in module.named_children():
        if type(child) is Snake1d:
            alpha = child.get_parameter("alpha")  # (1, C, 1)
            fast = FastSnake1d(alpha.shape[1])
            fast.alpha = alpha
            setattr(module, name, fast)
        else:
            replace_snakes(child)
