"""A model to evaluate, from whatever the user names: an export folder, a run, a checkpoint, a repository of the Hub.

Shapes: T samples, D latent channels, F frames of the latent, F_l frames of level l.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint import export_checkpoint
from ..config import TrainingConfig, to_dict, validate
from ..errors import CheckpointError, ConfigError
from ..export import read_model
from ..generator import TrainableSNAC, unproject
from ..redaction import nameable
from ..run_folder import root_of, saved_config
from ..stored import MANIFEST, find_checkpoint, list_checkpoints, verify_checkpoint
from ..weight_names import with_current_names

MAX_LABEL = 60


class EvaluatedModel(NamedTuple):
    """A model in evaluation mode, and what tables call it."""

    label: str
    generator: TrainableSNAC
    facts: dict[str, Any]  # for the page and the summary: kind, step, rates; no path of this machine


class Place(NamedTuple):
    """What a name leads to."""

    kind: str  # export, run, checkpoint or repository
    source: str
    checkpoint: Path | None  # of a run or a checkpoint


def find_model(name: str) -> Place:
    """What `name` leads to; reads no tensors. CheckpointError, one line, if it is a folder that holds no model."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise CheckpointError(f"{name}: no such folder; give an export, a run, a checkpoint or the name of a Hub repository")
        return Place("repository", name, None)
    if (folder / MANIFEST).is_file():
        return Place("checkpoint", str(folder), folder)
    if list_checkpoints(folder / "checkpoints") or list_checkpoints(folder):
        return Place("run", str(folder), find_checkpoint(folder))
    if saved_config(folder) is not None and (folder / "export").is_dir():
        return Place("export", str(folder / "export"), None)
    return Place("export", str(folder), None)


def run_config(place: Place) -> TrainingConfig | None:
    """The configuration of the run that a model comes from; None where that is not known."""
    folders = [] if place.checkpoint is None else [place.checkpoint, root_of(place.checkpoint)]
    if place.kind == "export":
        folders.append(Path(place.source).parent)
    for folder in folders:
        if (saved := saved_config(folder)) is not None:
            return validate(saved)
    return None


def open_model(name: str, label: str | None = None) -> EvaluatedModel:
    """Load a model onto the CPU; a run or a checkpoint as it would be exported, so with its average where it has one.

    Raises CheckpointError or ConfigError, one line.
    """
    place = find_model(name)
    step = None
    if place.checkpoint is None:
        model, weights = read_model(place.source)
    else:
        step = int(verify_checkpoint(place.checkpoint)["step"])
        with tempfile.TemporaryDirectory() as folder:
            export = Path(folder) / "export"
            export_checkpoint(place.checkpoint, export)
            model, weights = read_model(str(export))
    generator = build(name, model, weights)
    return EvaluatedModel(label or default_label(place), generator, {"kind": place.kind, "step": step, **describe(generator)})


def build(name: str, model: dict[str, Any], weights: dict[str, Tensor]) -> TrainableSNAC:
    """The network of a configuration that nobody has looked at, with its weights, in evaluation mode."""
    try:
        checked = to_dict(validate({"model": model, "validation": {"enabled": False}}))["model"]
    except ConfigError as error:
        raise CheckpointError(f"{name} is no model that can be used: {error}") from error
    with torch.device("meta"):
        generator = TrainableSNAC(**checked)
    shapes = {key: value.shape for key, value in generator.state_dict().items()}
    weights = with_current_names(weights, shapes)
    if shapes != {key: value.shape for key, value in weights.items()}:
        wrong = sorted(key for key in shapes.keys() | weights.keys() if key not in weights or key not in shapes) or ["a shape"]
        raise CheckpointError(f"{name}: its weights do not fit its config.json (first difference: {wrong[0]})")
    generator = TrainableSNAC(**checked)  # only now: a configuration alone may ask for any amount of memory
    generator.load_state_dict({key: value.float() for key, value in weights.items()})
    return generator.eval()


def describe(generator: TrainableSNAC) -> dict[str, Any]:
    """Rates and sizes: what decides what a listener may expect."""
    hop = int(generator.hop_length)
    rates = [generator.sampling_rate / hop / stride for stride in generator.vq_strides]
    bits = (generator.codebook_size - 1).bit_length()
    return {
        "sampling_rate": generator.sampling_rate,
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "token_rates": rates,  # per level, in Hz, coarse to fine
        "codebook_size": generator.codebook_size,
        "bitrate": sum(rates) * bits,  # bits per second, nominal
    }


def default_label(place: Place) -> str:
    """A short name without the folders of this machine: `demo step 400`, `demo/export`, `hubertsiuzdak/snac_24khz`."""
    if place.kind == "repository":
        return nameable(place.source)[:MAX_LABEL]
    path = Path(place.source).resolve()
    if place.checkpoint is None:
        return f"{path.parent.name}/{path.name}"[-MAX_LABEL:] if path.name == "export" else path.name[:MAX_LABEL]
    root = root_of(place.checkpoint).resolve().name
    return f"{root[: MAX_LABEL - 20]} step {int(place.checkpoint.name.split('_')[-1].split('.')[0])}"


def name_and_label(word: str) -> tuple[str, str | None]:
    """`NAME=MODEL` or `MODEL` of the command line, as (model, label)."""
    label, mark, name = word.partition("=")
    if not mark or not label.strip() or "/" in label:
        return word, None
    return name, label.strip()[:MAX_LABEL]


def distinct(labels: Sequence[str]) -> list[str]:
    """The labels, numbered where they would be the same."""
    return [
        label if labels.count(label) == 1 else f"{label} ({labels[:index].count(label) + 1})"
        for index, label in enumerate(labels)
    ]


def decode_levels(generator: TrainableSNAC, codes: Sequence[Tensor], number: int) -> Tensor:
    """Audio (1, 1, T') from the `number` coarsest levels of codes (1, F_l): what the finer ones add is left out."""
    levels = list(generator.quantizer.quantizers)[:number]
    parts = [unproject(level, level.decode_code(own)) for level, own in zip(levels, codes, strict=False)]
    quantized = parts[0]  # (1, D, F); one after the other, as upstream adds them
    for part in parts[1:]:
        quantized = quantized + part
    return generator.decoder(quantized)
