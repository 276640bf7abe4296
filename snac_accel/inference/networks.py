"""A model made ready for use: loaded, frozen, weight normalisation folded in, noise by place.

Codes and audio are those of the stock package with the same weights and the same noise, bit for bit in float32 on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checkpoint import export_checkpoint
from ..config import to_dict, validate
from ..errors import CheckpointError, ConfigError
from ..export import read_model
from ..generator import TrainableSNAC
from ..stored import MANIFEST, list_checkpoints
from ..weight_names import with_current_names
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
    place = find_device(device)
    folder = Path(source).expanduser()
    if not folder.is_dir() and source.startswith((".", "/", "~")):
        raise CheckpointError(f"{source}: no such folder; give an export, a run, a checkpoint or the name of a Hub repository")
    if (folder / MANIFEST).is_file() or list_checkpoints(folder / "checkpoints") or list_checkpoints(folder):
        with TemporaryDirectory() as temporary:
            export_checkpoint(folder, Path(temporary) / "export")
            config, weights = read_model(str(Path(temporary) / "export"))
    else:
        config, weights = read_model(str(folder) if folder.is_dir() else source)
    return prepare_network(_build(source, config, weights), place)


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


def _build(source: str, config: dict[str, Any], weights: dict[str, Tensor]) -> TrainableSNAC:
    """The network of a configuration that nobody has looked at."""
    try:
        checked = to_dict(validate({"model": config, "validation": {"enabled": False}}))["model"]
    except ConfigError as error:
        raise CheckpointError(f"{source} is no model that can be used: {error}") from error
    with torch.device("meta"):
        model = TrainableSNAC(**checked)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights = with_current_names(weights, shapes)
    found = {name: tensor.shape for name, tensor in weights.items()}
    if wrong := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        raise CheckpointError(f"{source}: its weights do not fit its config.json (first difference: {wrong[0]})")
    model = TrainableSNAC(**checked)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


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
