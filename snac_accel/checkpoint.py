"""Checkpoints: one folder for each saved step, complete or absent, with nothing in it that is ever unpickled.

    step_00001000/
        manifest.json                 format, step, world size, config hash; size and SHA-256 of every file, its own too
        config.json                   the resolved config
        progress.json                 step, place in the data, counters, best validation, loss scale
        generator.safetensors         weights, under the names of `snac.SNAC`
        discriminator.NAME.safetensors
        average.safetensors           the moving average of the generator's weights, where one is kept
        average.NUMBER.safetensors    those that are saved now and then, with `averaging.snapshot_steps`
        optimizer.NAME.safetensors    moments; `optimizer.NAME.json` holds the groups
        schedule.NAME.json
        codebook_usage.safetensors    counts and ages of all codes
        codebook_method.safetensors   what moves the codebooks, unless the optimiser does

The folder is written under a temporary name, flushed, then moved into place; older ones are removed only after that. What is
written is a snapshot in host memory, so that training can go on meanwhile (`saving`). `stored` finds and verifies.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import __version__
from .averages import NUMBER, WeightAverage
from .config import TrainingConfig
from .errors import CheckpointError
from .export import write_export
from .files import can_exchange, free_bytes, make_folder, new_folder, to_json, write_bytes, write_pieces, writing_problem
from .retention import Retention, rotate, sweep
from .run_card import run_card
from .run_folder import root_of
from .state import TrainState
from .stored import (
    FORMAT,
    MANIFEST,
    find_checkpoint,
    list_checkpoints,
    newest_checkpoint,
    path_for,
    place_of,
    read_json,
    sealed,
    verify_checkpoint,
)
from .tensor_files import tensor_pieces

__all__ = [
    "FORMAT",
    "MANIFEST",
    "export_checkpoint",
    "find_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "newest_checkpoint",
    "save_checkpoint",
    "verify_checkpoint",
]
AVERAGE_FILE = "average.safetensors"
METHOD_FILE = "codebook_method.safetensors"
SPARE_BYTES = 1 << 16  # beside the tensors: names, headers, whole blocks of the disk
log = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """What a checkpoint will hold, by file, in host memory and shared with nobody."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    texts: dict[str, bytes]
    score: dict[str, Any] | None = None  # what the validation of this step came to: metric, value, better

    @property
    def num_bytes(self) -> int:
        """About what it needs on the disk."""
        tensors = sum(tensor.nbytes for file in self.tensors.values() for tensor in file.values())
        return tensors + sum(map(len, self.texts.values())) + SPARE_BYTES


def snapshot(state: TrainState) -> Snapshot:
    """Copy everything that moves; what is trained may change as soon as this returns."""
    tensors = {f"{name}.safetensors": _copies(module.state_dict()) for name, module in _modules(state).items()}
    texts = {"progress.json": to_json(state.progress())}
    for name, optimizer in state.optimizers.items():
        saved = optimizer.state_dict()
        tensors[f"optimizer.{name}.safetensors"] = _copies(_flatten(saved["state"]))
        texts[f"optimizer.{name}.json"] = to_json(saved["param_groups"])
        texts[f"schedule.{name}.json"] = to_json(state.schedules[name].state_dict())
    tensors["codebook_usage.safetensors"] = _copies(state.usage.state_dict())
    tensors |= {name: _copies(average.state_dict()) for name, average in _averages(state).items()}
    if state.codebook_method is not None:
        tensors[METHOD_FILE] = _copies(state.codebook_method.state_dict())
    return Snapshot(state.step, tensors, texts)


def save_checkpoint(
    folder: Path,
    state: TrainState,
    *,
    config: dict[str, Any],
    config_hash: str,
    world_size: int = 1,
    global_batch_size: int = 0,
    data: dict[str, str] | None = None,
    score: dict[str, Any] | None = None,
    keep_last: int | None = None,
    keep_every: int | None = None,
    keep_best: int = 0,
) -> Path:
    """Write `folder/step_N` for the state's step, then remove the older ones that are not to be kept; call it on one rank only.

    `score` is what the validation of this step came to, {"metric", "value"}, smaller is better. Raises CheckpointError, one
    line with path and free bytes, if the folder cannot be written; what was there is then still there.
    """
    facts = {
        "config_hash": config_hash,
        "world_size": world_size,
        "global_batch_size": global_batch_size,
        "data": data or {},
    }
    taken = snapshot(state)._replace(score=score)
    return write_snapshot(folder, taken, config, facts, Retention(keep_last, keep_every, keep_best))


def write_snapshot(
    folder: Path, taken: Snapshot, config: Mapping[str, Any], facts: Mapping[str, Any], retention: Retention
) -> Path:
    """Write a snapshot as `save_checkpoint` does; `facts` go into the manifest."""
    try:
        sweep(folder)
        _check_space(folder, taken.num_bytes)
        make_folder(folder)
        in_one_move = can_exchange(folder)
        target = path_for(folder, taken.step, in_one_move)
        with new_folder(target, mark=None if in_one_move else MANIFEST) as draft:
            files = {name: write_pieces(draft / name, tensor_pieces(tensors)) for name, tensors in taken.tensors.items()}
            texts = {**taken.texts, "config.json": to_json(config)}
            files |= {name: write_bytes(draft / name, text) for name, text in texts.items()}
            listed = {name: files[name]._asdict() for name in sorted(files)}
            known = {"format": FORMAT, "program": f"snac_accel {__version__}", "step": taken.step, "score": taken.score}
            write_bytes(draft / MANIFEST, sealed({**known, **facts, "files": listed}))
    except OSError as error:
        raise CheckpointError(writing_problem(error, folder)) from error
    try:
        rotate(folder, target, retention)
    except OSError as error:  # the checkpoint stands: the next one tries again
        log.warning("%s: older checkpoints could not be removed (%s)", folder, error.strerror or error)
    return target


def _check_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise CheckpointError(
            f"{folder} cannot be written: {free} bytes free, a checkpoint needs {needed}: make room, or set paths.checkpoint_dir"
        )


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Copy a checkpoint into `state`, in place; returns its manifest.

    Raises CheckpointError, one line, if a file is missing, damaged, or holds another model's tensors.
    """
    manifest = verify_checkpoint(path)
    files = _Files(path, frozenset(manifest["files"]))
    try:
        for name, module in _modules(state).items():
            files.load(f"{name}.safetensors", module)
        for name, optimizer in state.optimizers.items():
            _load_optimizer(optimizer, files, name)
            _load_schedule(state.schedules[name], files.json(f"schedule.{name}.json"))
        files.load("codebook_usage.safetensors", state.usage)
        parts: dict[str, Any] = dict(_averages(state))
        if state.codebook_method is not None:
            parts[METHOD_FILE] = state.codebook_method
        for name, part in parts.items():
            _load_or_start(part, files, name, _modules(state)["generator"])
        state.load_progress(files.json("progress.json"))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise CheckpointError(f"{path} holds something else than a checkpoint of this model: {reason}") from error
    return manifest


class _Files(NamedTuple):
    """The files of a verified checkpoint: no others are read."""

    path: Path
    names: frozenset[str]

    def _named(self, name: str) -> Path:
        if name not in self.names:
            raise CheckpointError(f"{self.path / name} is missing from the checkpoint: it belongs to another model")
        return self.path / name

    def json(self, name: str) -> Any:
        return read_json(self._named(name))

    def tensors(self, name: str) -> dict[str, Tensor]:
        return _read_tensors(self._named(name))

    def load(self, name: str, part: Any) -> None:
        """Let a part of the state take the tensors of a file."""
        tensors = self.tensors(name)
        try:
            part.load_state_dict(tensors)
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"{self.path / name} belongs to another model: {reason}") from error


def _load_or_start(part: Any, files: _Files, name: str, generator: nn.Module) -> None:
    """Let `part` take its file; where there is none it was switched on since, and begins with the weights just loaded."""
    if name in files.names:
        files.load(name, part)
    else:
        part.start(generator)


def fresh_method(manifest: Mapping[str, Any], config: TrainingConfig) -> str | None:
    """What should be said where what moves the codebooks begins anew, since the checkpoint was made with another; else None."""
    if config.codebook.method == "gradient" or METHOD_FILE in manifest["files"]:
        return None
    return f"codebook.method = {config.codebook.method} begins with the codebooks of the checkpoint, which knows nothing of it"


def _averages(state: TrainState) -> dict[str, WeightAverage]:
    """The moving averages by the names of their files."""
    kept = {} if state.average is None else {AVERAGE_FILE: state.average}
    return kept | {f"average.{number}.safetensors": average for number, average in enumerate(state.snapshot_averages)}


def without_average(manifest: Mapping[str, Any], state: TrainState) -> str | None:
    """What should be said where a checkpoint has no moving average of a run that keeps one now; None: nothing."""
    missing = [name for name in _averages(state) if name not in manifest["files"]]
    return f"the checkpoint has no {', '.join(missing)}: the average begins with its weights" if missing else None


def read_exported(checkpoint: Path) -> dict[str, Tensor]:
    """The generator's weights that a run would export from a verified checkpoint: the moving average, where there is one."""
    files = _Files(checkpoint, frozenset(verify_checkpoint(checkpoint)["files"]))
    weights = files.tensors(AVERAGE_FILE if AVERAGE_FILE in files.names else "generator.safetensors")
    weights.pop(NUMBER, None)
    return weights


def _load_schedule(schedule: LRScheduler, saved: dict[str, Any]) -> None:
    """Schedules take over whatever attributes they are given; these are asked for by name."""
    schedule.load_state_dict({name: saved[name] for name in schedule.state_dict()})


def _load_optimizer(optimizer: Optimizer, files: _Files, name: str) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in files.tensors(f"optimizer.{name}.safetensors").items():
        index, field = key.split(".", 1)
        entries.setdefault(int(index), {})[field] = tensor
    groups = files.json(f"optimizer.{name}.json")
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except ValueError as error:
        raise CheckpointError(
            f"{files.path / f'optimizer.{name}.json'} belongs to another model: {error}"
        ) from error


def export_checkpoint(
    source: Path,
    folder: Path,
    *,
    extra: Collection[str] = (),
    repository: str | None = None,
    samples: Sequence[str] = (),
    license: str | None = None,
) -> Path:
    """Write the snac folder of a run's newest checkpoint, or of one checkpoint: of its moving average, where it has one.

    `extra` as in `export.write_export`; `repository`, `samples` (paths in it) and `license` are for the card. Returns the
    checkpoint. Raises CheckpointError, one line, if anything is wrong with it.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already: give a new folder")
    checkpoint = find_checkpoint(source)
    files = _Files(checkpoint, frozenset(verify_checkpoint(checkpoint)["files"]))
    config = files.json("config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise CheckpointError(f"{checkpoint / 'config.json'} should hold the section model of a configuration")
    averaged = AVERAGE_FILE in files.names
    weights = read_exported(checkpoint)
    if license is not None:
        config["hub"] = {**(config.get("hub") or {}), "license": license}
    place = place_of(checkpoint)
    step = 0 if place is None else place.step
    root = root_of(checkpoint)
    card = run_card(root, config, step, weights, repository=repository, averaged=averaged, samples=samples)
    try:
        write_export(folder, config["model"], weights, card=card, extra=extra)
    except OSError as error:
        raise CheckpointError(writing_problem(error, folder)) from error
    return checkpoint


def _modules(state: TrainState) -> dict[str, nn.Module]:
    plain = {f"discriminator.{name}": module for name, module in state.discriminators.items()}
    plain["generator"] = state.generator
    return {
        name: extract_model_from_parallel(module, keep_fp32_wrapper=True) for name, module in plain.items()
    }


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _flatten(state: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
