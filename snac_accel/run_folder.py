"""Where a run lives, and whether it may: fresh folders, resumed ones, and folders that belong to another run.

runs/demo -> demo-20260101-120000     the newest run of that name
runs/demo-20260101-120000/
    config.json                       the resolved config; runs again with --config
    checkpoints/step_00000600/        see `checkpoint`
    logs/                             metrics.jsonl, bad_samples.jsonl, trackers
    samples/                          held-out clips: original, reconstruction, spectrograms
    profile/                          of --profile: a table by part of the step, and the trace
    export/                           the snac folder
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoint import find_checkpoint, list_checkpoints, newest_checkpoint
from .errors import ConfigError
from .files import replace_json
from .tracking import METRICS_FILE

CONFIG_FILE = "config.json"
RUNS = Path("runs")

# Settings that a resumed run may change: they alter neither the model nor the order of the data.
HARMLESS = {
    "training.num_iterations", "training.save_interval", "training.log_interval", "training.validation_interval",
    "training.non_finite_limit", "training.batch_size", "training.gradient_accumulation_steps",
    "training.global_batch_size", "training.mixed_precision", "training.matmul_precision", "training.tf32_convolutions",
    "data.num_workers", "data.max_bad_fraction", "data.cache_dir", "data.cache_gigabytes", "data.steps_per_epoch",
    "validation.max_clips", "validation.max_clip_seconds", "validation.num_samples",
}  # fmt: skip
HARMLESS_SECTIONS = {"checkpoint", "distributed", "performance", "tracking", "paths"}


class RunFolder(NamedTuple):
    """The folders of a run, and the checkpoint it continues from."""

    root: Path
    checkpoints: Path
    logs: Path
    resume_from: Path | None

    @property
    def samples(self) -> Path:
        """Folder of audio and pictures."""
        return self.root / "samples"

    @property
    def profile(self) -> Path:
        """Folder of the profile."""
        return self.root / "profile"

    @property
    def export(self) -> Path:
        """The snac folder."""
        return self.root / "export"


def choose_run(config: Mapping[str, Any]) -> RunFolder:
    """Decide the folder of a run and the checkpoint it continues from, writing nothing; call it on one rank only.

    `config` is the resolved config as nested plain values. Raises ConfigError or CheckpointError, one line, if the folder
    holds another run, or if `checkpoint.resume` names no checkpoint.
    """
    paths, resume = config["paths"], config["checkpoint"]["resume"]
    explicit = paths["run_dir"] or paths["checkpoint_dir"]
    link = None if explicit else _link_of(config)
    if link is not None and link.exists() and not link.is_symlink():
        raise ConfigError(f"{link} is not the link to the newest run: choose another paths.run_name")
    if resume not in ("auto", "never"):
        return _from_checkpoint(Path(resume), explicit, config)
    if explicit:
        return _explicit(Path(explicit), resume, config)
    return _named(paths["run_name"], resume, config)


def create_run(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Create what is missing of the folders, save the config, and let the link of the run's name lead there."""
    paths = config["paths"]
    try:
        for path in (folder.root, folder.checkpoints, folder.logs):
            path.mkdir(parents=True, exist_ok=True)
        replace_json(folder.root / CONFIG_FILE, config)
        if not (paths["run_dir"] or paths["checkpoint_dir"]):
            _link(_link_of(config), folder.root)
    except OSError as error:
        raise ConfigError(f"{folder.root} cannot be created: {error}") from error


def _link_of(config: Mapping[str, Any]) -> Path:
    return RUNS / config["paths"]["run_name"]


def _layout(root: Path, paths: Mapping[str, Any], resume_from: Path | None = None) -> RunFolder:
    checkpoints = Path(paths["checkpoint_dir"] or root / "checkpoints")
    return RunFolder(root, checkpoints, Path(paths["log_dir"] or root / "logs"), resume_from)


def _explicit(root: Path, resume: str, config: Mapping[str, Any]) -> RunFolder:
    folder = _layout(root, config["paths"])
    saved = _saved_config(root)
    if saved is None:
        _refuse_strange_files(folder)
        return folder
    if resume == "never":
        raise ConfigError(
            f"{root} already holds a run: choose another paths.run_dir, or continue it with --resume auto"
        )
    _refuse_another_run(root, saved, config)
    return folder._replace(resume_from=newest_checkpoint(folder.checkpoints))


def _named(name: str, resume: str, config: Mapping[str, Any]) -> RunFolder:
    newest = RUNS / name
    saved = _saved_config(newest) if resume == "auto" else None
    if saved is not None and harmful_change(saved, config) is None:
        folder = _layout(newest.resolve(), config["paths"])
        return folder._replace(resume_from=newest_checkpoint(folder.checkpoints))
    folder = _layout(_fresh_name(name), config["paths"])
    _refuse_strange_files(folder)
    return folder


def _from_checkpoint(path: Path, explicit: str | None, config: Mapping[str, Any]) -> RunFolder:
    """The run that `path` belongs to goes on in its own folder, or branches off into `explicit`, which must be free."""
    checkpoint = find_checkpoint(path)
    folder = _layout(Path(explicit or _root_of(checkpoint)), config["paths"], checkpoint)
    saved = _saved_config(folder.root)
    goes_on = explicit is None or folder.checkpoints.resolve() == checkpoint.resolve().parent
    if not goes_on and list_checkpoints(folder.checkpoints):
        raise ConfigError(f"{folder.root} already holds a run: choose another paths.run_dir")
    if saved is not None:
        _refuse_another_run(folder.root, saved, config)
    elif not goes_on:
        _refuse_strange_files(folder)
    return folder


def _root_of(checkpoint: Path) -> Path:
    parent = checkpoint.resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


def _saved_config(root: Path) -> dict[str, Any] | None:
    """The config of the run that lives in `root`, None if no run lives there."""
    try:
        saved = json.loads((root / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) and {"model", "training", "paths"} <= saved.keys() else None


def _refuse_another_run(root: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if change := harmful_change(saved, config):
        raise ConfigError(
            f"{root} holds another run ({change}): choose another paths.run_dir, or give the same setting"
        )


def _refuse_strange_files(folder: RunFolder) -> None:
    if folder.root.exists() and (not folder.root.is_dir() or any(folder.root.iterdir())):
        raise ConfigError(
            f"{folder.root} is not empty and holds no run of this program: choose another paths.run_dir"
        )
    if (folder.logs / METRICS_FILE).exists():
        raise ConfigError(f"{folder.logs} holds the log of another run: choose another paths.log_dir")
    if list_checkpoints(folder.checkpoints):
        raise ConfigError(
            f"{folder.checkpoints} holds another run's checkpoints: choose another paths.checkpoint_dir"
        )


def harmful_change(saved: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The first setting that a resumed run may not change, with both values; None if there is none."""
    for section, settings in config.items():
        if section in HARMLESS_SECTIONS:
            continue
        before = saved.get(section, {})
        for key, value in settings.items():
            name = f"{section}.{key}"
            if name not in HARMLESS and before.get(key) != value:
                return f"{name} was {before.get(key)}, is {value}"
    return None


def _fresh_name(name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = (RUNS / f"{name}-{stamp}{suffix}" for suffix in ["", *(f"-{i}" for i in range(2, 1000))])
    return next(path for path in candidates if not path.exists())


def _link(link: Path, target: Path) -> None:
    """Let `link` lead to `target`, in one rename."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
    os.replace(temporary, link)
