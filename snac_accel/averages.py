"""Moving averages of the generator's weights: smoother than the weights themselves, and not trained.

a ← a + s(n)·(w − a) after every update of the weights w, with the share s(n) after n updates before it:

- exponential: s = 1 − min(decay, (1 + n) / (10 + n)), so that the weights of the beginning are soon forgotten (as TensorFlow's
  ExponentialMovingAverage has it). It looks back a fixed number of updates.
- power: s = 1 − (1 − 1 / t)^(γ + 1) with t = n + 1, a mean over all weights so far, each weighted by its time to the power γ. It
  looks back a fixed part of the run: γ follows from its relative width, the standard deviation of that profile over t.
  Source: Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3.1 and appendix C.

Averages of two widths, saved now and then during a run, can be combined into one of any width afterwards (`combination`).
Every rank has the same weights, so every rank computes the same average, and nothing is sent. A step is one update, whatever its
accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

NUMBER = "updates"  # the name of n in what is saved; the names of weights have dots
LARGEST_WIDTH = 1 / math.sqrt(12)  # of the plain mean over everything, γ = 0
Share = Callable[[int], float]  # of the new weights, after so many updates


def exponential(decay: float) -> Share:
    """The exponential average, with a quick beginning."""
    return lambda updates: 1 - min(decay, (1 + updates) / (10 + updates))


def power(relative_width: float) -> Share:
    """The power-function average of a width, as a part of the run so far: above 0, below `LARGEST_WIDTH`."""
    exponent = exponent_of(relative_width)
    return lambda updates: 1 - (1 - 1 / (updates + 1)) ** (exponent + 1)


def exponent_of(relative_width: float) -> float:
    """γ of a relative width σ: the largest root of σ² (γ + 2)² (γ + 3) = γ + 1."""
    if not 0 < relative_width < LARGEST_WIDTH:
        raise ValueError(f"relative width {relative_width:g}: should be above 0 and below {LARGEST_WIDTH:.4f}")
    inverse = relative_width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class WeightAverage:
    """The average of a module's tensors, by the names of its `state_dict`; what is not floating point is copied."""

    def __init__(self, module: nn.Module, share: Share) -> None:
        self.share = share
        self.tensors: dict[str, Tensor] = {}
        self.updates = 0
        self.start(module)

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        """Begin anew from the weights of `module`."""
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights of `module`, once after each step that changed them."""
        new = module.state_dict()
        moving = [name for name, tensor in new.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in moving], [new[name] for name in moving], self.share(self.updates))
        for name in new.keys() - set(moving):
            self.tensors[name].copy_(new[name])
        self.updates += 1

    @contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """The average in the place of the weights of `module`, which come back bit by bit."""
        with weights_in(module, self.tensors):
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name, and the number of updates."""
        return {**self.tensors, NUMBER: torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the tensors back; raises RuntimeError, as modules do, if names or shapes are another model's."""
        if state.keys() != self.state_dict().keys():
            names = sorted(state.keys() ^ self.state_dict().keys())
            raise RuntimeError(f"names that only one of both has: {', '.join(names[:5])}")
        for name, tensor in self.tensors.items():
            if tensor.shape != state[name].shape:
                raise RuntimeError(f"{name} is of shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(state[name])
        self.updates = int(state[NUMBER])


@contextmanager
def weights_in(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """`tensors`, by the names of `state_dict`, in the place of the weights of `module`, which come back bit by bit."""
    own = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    try:
        _copy(tensors, module)
        yield
    finally:
        _copy(own, module)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(source[name])


class Profile(NamedTuple):
    """A power-function average: over which of the updates it looks."""

    updates: int  # t: it is of that moment
    relative_width: float

    @property
    def exponent(self) -> float:
        """γ."""
        return exponent_of(self.relative_width)


def combination(saved: Sequence[Profile], wanted: Profile) -> list[float]:
    """The weights, summing to 1, with which averages that were `saved` come nearest to the one that is `wanted`.

    Nearest: in the mean square over time of the two profiles. Source: Karras et al. 2024, section 3.2, appendix C.3; the sum is
    held at 1 by a Lagrange multiplier, so that what stands still is kept.
    """
    count, scale = len(saved), wanted.updates  # else the products are far smaller than the ones
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = [[scale * _product(one, other) for other in saved] for one in saved]
    system[count, count] = 0
    right = np.array([*(scale * _product(one, wanted) for one in saved), 1.0])
    return [float(weight) for weight in np.linalg.lstsq(system, right, rcond=None)[0][:count]]


def _product(one: Profile, other: Profile) -> float:
    """∫ p q dτ of two profiles p(τ) = (γ + 1) τ^γ / t^(γ + 1) on 0..t."""
    first, last = sorted((one, other))
    a, b = first.exponent, last.exponent
    return (a + 1) * (b + 1) / (a + b + 1) * (first.updates / last.updates) ** b / last.updates
