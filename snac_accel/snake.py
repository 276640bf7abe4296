"""The snake activation with a hand-written backward: the same forward, less memory and fewer passes over it.

Shapes: B batch, C channels, T samples.
"""

from __future__ import annotations

from typing import Any

import torch
from snac.layers import Snake1d, snake
from torch import Tensor, nn


class SnakeFunction(torch.autograd.Function):
    """x + sin²(αx) / α, upstream's own kernel forward; one sine backward, and nothing kept but input and output.

    The next layer keeps the output anyway, and sin²(αx) / α is output - x. With u = sin(2αx): d/dx = 1 + u and
    d/dα = (x u - (output - x)) / α. Source: Ziyin et al. 2020, equation 4; `snac/layers.py`, whose α has 1e-9 added.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        output = snake(x, alpha)
        ctx.save_for_backward(x, alpha, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        x, alpha, output = ctx.saved_tensors
        inverse = (alpha + 1e-9).reciprocal()
        sine = (x * (2 * alpha)).sin_()
        grad_alpha = None
        if ctx.needs_input_grad[1]:
            change = torch.addcmul(x, x, sine).sub_(output)  # x u - (output - x)
            grad_alpha = change.mul_(gradient).sum((0, 2), keepdim=True) * inverse
        return torch.addcmul(gradient, gradient, sine.mul_(alpha * inverse)), grad_alpha


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
