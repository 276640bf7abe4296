"""A moving average of the generator's weights: smoother than the weights themselves, and not trained.

a ← d·a + (1 − d)·w after every update of the weights w, with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the
weights of the beginning are soon forgotten (as TensorFlow's ExponentialMovingAverage has it). Every rank has the same weights,
so every rank computes the same average, and nothing is sent. A step is one update, whatever its accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NUMBER = "updates"  # the name of n in what is saved; the names of weights have dots


class WeightAverage:
    """The average of a module's tensors, by the names of its `state_dict`; what is not floating point is copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
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
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, share)
            else:
                self.tensors[name].copy_(tensor)
        self.updates += 1

    @contextmanager
    def inside(self, module: nn.Module) -> Iterator[None]:
        """The average in the place of the weights of `module`, which come back bit by bit."""
        own = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        try:
            _copy(self.tensors, module)
            yield
        finally:
            _copy(own, module)

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


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(source[name])
