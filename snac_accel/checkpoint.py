"""Checkpoints: one folder for each saved step, complete or absent, with nothing in it that is ever unpickled.

    step_00001000/
        manifest.json                 format, step, world size, config hash; size and SHA-256 of every other file
        config.json                   the resolved config
        progress.json                 step, place in the data, counters, loss scale
        generator.safetensors         weights, under the names of `snac.SNAC`
        discriminator.NAME.safetensors
        optimizer.NAME.safetensors    moments; `optimizer.NAME.json` holds the groups
        schedule.NAME.json
        codebook_usage.safetensors    counts and ages of all codes

The folder is written under a temporary name, flushed, then renamed; older ones are removed only after that.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import CheckpointError
from .export import write_export
from .files import new_folder, sha256, sync_folder, write_bytes, write_json
from .state import TrainState

FORMAT = 2  # 1 had no place in the data
HASHING_THREADS = 4
SETTLED_SECONDS = 3.0  # after which a file's time of change tells contents apart, on every file system
MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    state: TrainState,
    *,
    config: dict[str, Any],
    config_hash: str,
    world_size: int = 1,
    global_batch_size: int = 0,
    data: dict[str, str] | None = None,
    keep_last: int | None = None,
) -> Path:
    """Write `folder/step_N` for the state's step and remove all but the `keep_last` newest; call it on one rank only."""
    target = folder / f"step_{state.step:08d}"
    with new_folder(target) as draft:
        _write_state(draft, state)
        write_json(draft / "config.json", config)
        facts = {
            "step": state.step,
            "config_hash": config_hash,
            "world_size": world_size,
            "global_batch_size": global_batch_size,
            "data": data or {},
        }
        write_json(draft / MANIFEST, {"format": FORMAT, **facts, "files": _fingerprints(draft)})
    if keep_last is not None:
        for old in list_checkpoints(folder)[:-keep_last]:
            if old != target:  # newer ones may stand here, if the run went back to an older one
                shutil.rmtree(old, ignore_errors=True)  # folders of a bucket vanish with their last file
        sync_folder(folder)
    return target


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Copy a checkpoint into `state`, in place; returns its manifest.

    Raises CheckpointError, one line, if a file is missing, damaged, or holds another model's tensors.
    """
    manifest = verify_checkpoint(path)
    for name, module in _modules(state).items():
        _load_module(module, path / f"{name}.safetensors")
    for name, optimizer in state.optimizers.items():
        _load_optimizer(optimizer, path, name)
        state.schedules[name].load_state_dict(_read_json(path / f"schedule.{name}.json"))
    state.usage.load_state_dict(_read_tensors(path / "codebook_usage.safetensors"))
    progress = _read_json(path / "progress.json")
    state.step = int(progress["step"])
    state.position = int(progress["position"])
    state.counters.update(progress["counters"])
    state.sources.update(progress.get("sources", {}))
    if progress["scaler"]:  # empty unless the run was in float16
        state.scaler.load_state_dict(progress["scaler"])
    return manifest


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Return the manifest after comparing every file's size and SHA-256 with it; raise CheckpointError naming the file."""
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is not a complete checkpoint: it has no {MANIFEST}")
    manifest = _read_json(path / MANIFEST)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {found}, this version reads {FORMAT}")
    expected = _expected_files(path, manifest)
    for file in expected:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing from the checkpoint")
    with ThreadPoolExecutor(HASHING_THREADS) as threads:  # hashlib lets the others run meanwhile
        for (file, fingerprint), found in zip(expected.items(), threads.map(_fingerprint, expected), strict=True):
            if found != fingerprint:
                raise CheckpointError(f"{file} is damaged: it is not the file that was saved")
    return manifest


def _fingerprint(file: Path) -> tuple[int, str]:
    """Size and SHA-256. A file that has not changed since is not read again: a run that looks for its newest checkpoint
    reads all of it, and then loads it."""
    status = file.stat()
    if time.time() - status.st_mtime < SETTLED_SECONDS:  # it might change within one tick of its clock
        return status.st_size, sha256(file)
    return status.st_size, _known_sha256(file.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=64)
def _known_sha256(file: Path, size: int, modified: int, inode: int) -> str:
    return sha256(file)


def _expected_files(path: Path, manifest: dict[str, Any]) -> dict[Path, tuple[int, str]]:
    """Size and SHA-256 of every file that should be there."""
    try:
        if not {"step", "config_hash", "world_size", "global_batch_size"} <= manifest.keys():
            raise KeyError("facts")
        return {path / name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged: it is not the file that was saved") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint below `folder`; damaged ones are passed over with a warning."""
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
            return path
        except CheckpointError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` is, or the newest intact one of the run there; CheckpointError if there is none."""
    if (path / MANIFEST).is_file():
        return path
    found = newest_checkpoint(path / "checkpoints") or newest_checkpoint(path)
    if found is None:
        raise CheckpointError(
            f"{path}: no checkpoint there; give a step_… folder or the folder of a run (--resume also takes auto and never)"
        )
    return found


def export_checkpoint(source: Path, folder: Path) -> Path:
    """Write the snac folder of a run's newest checkpoint, or of one checkpoint; returns the checkpoint."""
    if folder.exists():
        raise CheckpointError(f"{folder} exists already: give a new folder")
    checkpoint = find_checkpoint(source)
    verify_checkpoint(checkpoint)
    model = _read_json(checkpoint / "config.json")["model"]
    write_export(folder, model, _read_tensors(checkpoint / "generator.safetensors"))
    return checkpoint


def list_checkpoints(folder: Path) -> list[Path]:
    """All complete-looking checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def _modules(state: TrainState) -> dict[str, nn.Module]:
    plain = {f"discriminator.{name}": module for name, module in state.discriminators.items()}
    plain["generator"] = state.generator
    return {
        name: extract_model_from_parallel(module, keep_fp32_wrapper=True) for name, module in plain.items()
    }


def _write_state(folder: Path, state: TrainState) -> None:
    for name, module in _modules(state).items():
        _write_tensors(folder / f"{name}.safetensors", module.state_dict())
    for name, optimizer in state.optimizers.items():
        saved = optimizer.state_dict()
        _write_tensors(folder / f"optimizer.{name}.safetensors", _flatten(saved["state"]))
        write_json(folder / f"optimizer.{name}.json", saved["param_groups"])
        write_json(folder / f"schedule.{name}.json", state.schedules[name].state_dict())
    _write_tensors(folder / "codebook_usage.safetensors", state.usage.state_dict())
    write_json(folder / "progress.json", state.progress())


def _fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())
    }


def _flatten(state: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def _load_module(module: nn.Module, file: Path) -> None:
    try:
        module.load_state_dict(_read_tensors(file))
    except RuntimeError as error:
        raise CheckpointError(
            f"{file} belongs to another model: {str(error).splitlines()[-1].strip()}"
        ) from error


def _load_optimizer(optimizer: Optimizer, path: Path, name: str) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _read_tensors(path / f"optimizer.{name}.safetensors").items():
        index, field = key.split(".", 1)
        entries.setdefault(int(index), {})[field] = tensor
    groups = _read_json(path / f"optimizer.{name}.json")
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except ValueError as error:
        raise CheckpointError(
            f"{path / f'optimizer.{name}.json'} belongs to another model: {error}"
        ) from error


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    write_bytes(
        path,
        safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        ),
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
