"""Averages of the generator's weights that are saved now and then during a run, and combined into one of any width after it.

    averages/step_00010000.width_0.05.safetensors    a power average of that step and relative width, and its number of updates

Two widths are enough: from what they were at several times, an average of a width between them, or somewhat outside, can be put
together. Source: Karras et al. 2024 (EDM2), section 3.2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .averages import NUMBER, Profile, WeightAverage, combination
from .errors import CheckpointError
from .files import TEMPORARY_PREFIX, make_folder, sync_folder, write_pieces
from .tensor_files import tensor_pieces

_NAME = re.compile(r"step_(\d{1,18})\.width_(0\.\d{1,17})\.safetensors")


class SavedAverage(NamedTuple):
    """A file of the folder."""

    path: Path
    step: int
    profile: Profile


class Combined(NamedTuple):
    """An average put together."""

    weights: dict[str, Tensor]  # float32, by the names of `state_dict`
    profile: Profile
    step: int
    shares: dict[str, float]  # of each file, by its name


def save_averages(folder: Path, step: int, averages: Sequence[tuple[float, WeightAverage]]) -> list[Path]:
    """Write each average of a relative width; raises OSError, which names the file."""
    make_folder(folder)
    paths = []
    for width, average in averages:
        path = folder / f"step_{step:08d}.width_{width:g}.safetensors"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in average.state_dict().items()}
        write_pieces(path.with_name(TEMPORARY_PREFIX + path.name), tensor_pieces(tensors))
        os.replace(path.with_name(TEMPORARY_PREFIX + path.name), path)
        paths.append(path)
    sync_folder(folder)
    return paths


def saved_averages(folder: Path) -> list[SavedAverage]:
    """What is there, oldest first; raises CheckpointError if a file cannot be read."""
    found = []
    for path in sorted(folder.glob("step_*.width_*.safetensors")):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(SavedAverage(path, int(match[1]), Profile(_updates(path), float(match[2]))))
    return sorted(found, key=lambda saved: (saved.step, saved.profile.relative_width))


def combine_averages(folder: Path, relative_width: float, step: int | None = None) -> Combined:
    """The average of `relative_width` as of `step` (None: the newest that is saved), from all that was saved until then.

    The codebooks are those of the newest file of the nearest width: a code that was restarted has jumped, and a mean over a jump
    fits no latent. Raises CheckpointError, one line.
    """
    everything = saved_averages(folder)
    saved = [one for one in everything if step is None or one.step <= step]
    if not saved or step is not None and saved[-1].step != step:
        steps = sorted({one.step for one in everything})
        there = f"there are {', '.join(map(str, steps))}" if steps else "none: set averaging.snapshot_steps in the next run"
        raise CheckpointError(f"{folder}: no average {'is saved' if step is None else f'of step {step}'}; {there}")
    newest = [one for one in saved if one.step == saved[-1].step]
    wanted = Profile(newest[0].profile.updates, relative_width)
    shares = combination([one.profile for one in saved], wanted)
    nearest = min(newest, key=lambda one: abs(one.profile.relative_width - relative_width))
    last = _read(nearest.path)
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in last.items() if _is_averaged(name, tensor)}
    for one, share in zip(saved, shares, strict=True):
        tensors = _read(one.path)
        for name, tensor in total.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise CheckpointError(f"{one.path} is of another model than {nearest.path}: they differ in {name}")
            tensor.add_(tensors[name].double(), alpha=share)
    weights = {name: total[name].float() if name in total else tensor for name, tensor in last.items() if name != NUMBER}
    return Combined(weights, wanted, saved[-1].step, {one.path.name: share for one, share in zip(saved, shares, strict=True)})


def _is_averaged(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not name.endswith(".codebook.weight")


def _updates(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            updates = int(file.get_tensor(NUMBER))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if updates < 1:
        raise CheckpointError(f"{path} is an average of {updates} updates; should be at least 1")
    return updates


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
