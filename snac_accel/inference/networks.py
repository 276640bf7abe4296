"""A model made ready for use: loaded, frozen, weight normalisation folded in, noise by place.

Codes and audio are those of the stock package with the same weights and the same noise, bit for bit in float32 on a CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import ConfigError
from ..evaluation.models import open_model
from ..generator import TrainableSNAC
from .noise import NoisePlace, place_noise
from .reach import Reach, reach_of


class Network(NamedTuple):
    """A frozen model, the place that its noise follows, and how far it looks."""

    model: TrainableSNAC
    noise: NoisePlace
    reach: Reach
    device: torch.device


def open_network(source: str, device: str = "auto") -> Network:
    """Load an export, a run, a checkpoint or a repository of the Hub; of a run what `snac-accel export` would write.

    Raises CheckpointError or ConfigError, one line.
    """
    return prepare_network(open_model(source).generator, find_device(device))


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU if there is one. Raises ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device = {name}: cannot be used here ({reason}); auto takes what there is") from error


def prepare_network(model: TrainableSNAC, device: torch.device | str = "cpu") -> Network:
    """Make a model ready for use, in place: it can no longer be trained."""
    model = model.to(device).eval().requires_grad_(False)
    fold_weight_norm(model)
    return Network(model, place_noise(model.decoder, model.decoder_rates), reach_of(model), torch.device(device))


def fold_weight_norm(module: nn.Module) -> None:
    """Put the weight that weight normalisation gives in the place of its length and direction: it is computed no more."""
    for child in module.modules():
        if parametrize.is_parametrized(child, "weight"):
            parametrize.remove_parametrizations(child, "weight", leave_parametrized=True)
