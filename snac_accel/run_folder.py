"""Where a run lives, and whether it may: fresh folders, resumed ones, and folders that belong to another run. Loads no torch.

runs/demo -> demo-20260101-120000     the newest run of that name
runs/demo-20260101-120000/
    config.json                       the resolved config; runs again with --config
    checkpoints/step_00000600/        see `checkpoint`
    logs/                             metrics.jsonl, bad_samples.jsonl, trackers
    averages/                         of averaging.snapshot_steps, see `post_hoc`
    samples/                          held-out clips: original, reconstruction, spectrograms
    page/                             the same to listen to, with curves: open index.html
    profile/                          of --profile: a table by part of the step, and the trace
    export/                           the snac folder
    .lock                             who runs here; see `locks`
    STOP                              to be made by hand: the run saves and leaves
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .changes import Change, allowing, describe, find_changes, refused
from .errors import CheckpointError, ConfigError
from .files import TEMPORARY_PREFIX, replace_json
from .locks import LOCK_FILE
from .stored import MANIFEST, find_checkpoint, list_checkpoints, read_json

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
AVERAGES = "averages"
SET_ASIDE = "set_aside"  # beside the checkpoints: those that were newer when the run went back, in a folder for each time
RUNS = Path("runs")
LEFTOVERS = {LOCK_FILE, TEMPORARY_PREFIX + CONFIG_FILE}  # of a start that was killed before the folder was a run's


class RunFolder(NamedTuple):
    """The folders of a run, and the checkpoint it continues from."""

    root: Path
    checkpoints: Path
    logs: Path
    resume_from: Path | None
    notes: tuple[str, ...] = ()  # what the user should know about the choice
    changes: tuple[Change, ...] = ()  # of the config, since that checkpoint

    @property
    def averages(self) -> Path:
        """Folder of the moving averages that are saved now and then."""
        return self.root / AVERAGES

    @property
    def samples(self) -> Path:
        """Folder of audio and pictures."""
        return self.root / "samples"

    @property
    def page(self) -> Path:
        """Folder of the listening page."""
        return self.root / "page"

    @property
    def profile(self) -> Path:
        """Folder of the profile."""
        return self.root / "profile"

    @property
    def export(self) -> Path:
        """The snac folder."""
        return self.root / "export"


def place_run(config: Mapping[str, Any]) -> RunFolder:
    """Decide the folder of a run, reading no checkpoint and writing nothing; call it on one rank only.

    `config` is the resolved config as nested plain values. Raises ConfigError or CheckpointError, one line, if the folder
    holds another run, or if `checkpoint.resume` names no checkpoint.
    """
    paths, resume = config["paths"], config["checkpoint"]["resume"]
    explicit = paths["run_dir"] or paths["checkpoint_dir"]
    link = None if explicit else RUNS / paths["run_name"]
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
        folder.root.mkdir(parents=True, exist_ok=True)
        replace_json(folder.root / CONFIG_FILE, config)  # first: it is what makes the folder a run's
        for path in (folder.checkpoints, folder.logs):
            path.mkdir(parents=True, exist_ok=True)
        if not (paths["run_dir"] or paths["checkpoint_dir"]):
            _link(RUNS / paths["run_name"], folder.root)
    except OSError as error:
        raise ConfigError(f"{folder.root} cannot be created: {error}") from error


def saved_config(root: Path) -> dict[str, Any] | None:
    """The config of the run, or of the checkpoint, that lives in `root`; None if neither does."""
    try:
        saved = read_json(root / CONFIG_FILE)
    except CheckpointError:
        return None
    return saved if isinstance(saved, dict) and {"model", "training", "paths"} <= saved.keys() else None


def layout(root: Path, paths: Mapping[str, Any]) -> RunFolder:
    """The folders of a run in `root`."""
    checkpoints = Path(paths.get("checkpoint_dir") or root / "checkpoints")
    return RunFolder(root, checkpoints, Path(paths.get("log_dir") or root / "logs"), None)


def root_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    parent = checkpoint.resolve().parent
    if parent.parent.name == SET_ASIDE:
        parent = parent.parent.parent
    return parent.parent if parent.name == "checkpoints" else parent


def refuse_another_run(root: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise ConfigError, one line with all of them, if settings changed that need to be allowed."""
    changes = refused(find_changes(saved, config), config["checkpoint"].get("allow_changes", ()))
    if changes:
        raise ConfigError(
            f"{root} holds another run ({describe(changes)}): choose another paths.run_dir, give the same settings, "
            f"or go on with these by {allowing(changes)}"
        )


def _explicit(root: Path, resume: str, config: Mapping[str, Any]) -> RunFolder:
    folder = layout(root, config["paths"])
    saved = saved_config(root)
    if saved is None:
        _refuse_strange_files(folder)
        return folder
    if resume == "never":
        raise ConfigError(
            f"{root} already holds a run: choose another paths.run_dir, or continue it with --resume auto"
        )
    refuse_another_run(root, saved, config)
    _refuse_other_folders(folder, saved, config)
    return folder


def _refuse_other_folders(folder: RunFolder, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Where checkpoint_dir or log_dir changed: the run must not lose its checkpoints, or meet those of another."""
    before = layout(folder.root, saved["paths"])
    if before.checkpoints.resolve() != folder.checkpoints.resolve():
        if list_checkpoints(before.checkpoints):
            raise ConfigError(
                f"the checkpoints of {folder.root} are in {before.checkpoints}, not in {folder.checkpoints}: "
                "leave paths.checkpoint_dir as it was, or move them"
            )
        for checkpoint in list_checkpoints(folder.checkpoints)[-1:]:
            refuse_another_run(folder.checkpoints, saved_config(checkpoint) or saved, config)
    if before.logs.resolve() != folder.logs.resolve():
        _refuse_strange_log(folder)


def _named(name: str, resume: str, config: Mapping[str, Any]) -> RunFolder:
    newest = RUNS / name
    note: tuple[str, ...] = ()
    saved = saved_config(newest) if resume == "auto" else None
    if saved is not None:
        changes = refused(find_changes(saved, config), config["checkpoint"].get("allow_changes", ()))
        if not changes:
            return layout(newest.resolve(), config["paths"])
        note = (
            f"a fresh run: {newest.resolve()} has other settings ({describe(changes)}); "
            f"{allowing(changes)} would go on with it",
        )
    folder = layout(_fresh_name(name), config["paths"])
    _refuse_strange_files(folder)
    return folder._replace(notes=note)


def _from_checkpoint(path: Path, explicit: str | None, config: Mapping[str, Any]) -> RunFolder:
    """The run that `path` belongs to goes on in its own folder, or branches off into `explicit`.

    A branch that has checkpoints goes on with its own, if it is this command that made it.
    """
    checkpoints = _candidates(path)
    folder = layout(Path(explicit or root_of(checkpoints[-1])), config["paths"])
    saved = saved_config(folder.root)
    own = folder.checkpoints.resolve() == checkpoints[-1].resolve().parent
    if not own and list_checkpoints(folder.checkpoints) and not same_command(saved, config):
        raise ConfigError(
            f"{folder.root} already holds a run: choose another paths.run_dir, or continue it with --resume auto"
        )
    if saved is not None:
        refuse_another_run(folder.root, saved, config)
    elif own:
        refuse_another_run(folder.root, saved_config(checkpoints[-1]) or config, config)
    else:
        _refuse_strange_files(folder)
    return folder


def _candidates(path: Path) -> list[Path]:
    """The checkpoint that `path` is, or all of the run there; CheckpointError if there is none."""
    if (path / MANIFEST).is_file():
        return [path]
    return list_checkpoints(path / "checkpoints") or list_checkpoints(path) or [find_checkpoint(path)]


def same_command(saved: Mapping[str, Any] | None, config: Mapping[str, Any]) -> bool:
    """Whether the run was started with the same --resume before."""
    before = (saved or {}).get("checkpoint")
    return isinstance(before, Mapping) and before.get("resume") == config["checkpoint"]["resume"]


def _refuse_strange_files(folder: RunFolder) -> None:
    if folder.root.exists():
        if not folder.root.is_dir() or any(file.name not in LEFTOVERS for file in folder.root.iterdir()):
            raise ConfigError(
                f"{folder.root} is not empty and holds no run of this program: choose another paths.run_dir"
            )
    _refuse_strange_log(folder)
    if list_checkpoints(folder.checkpoints):
        raise ConfigError(
            f"{folder.checkpoints} holds another run's checkpoints: choose another paths.checkpoint_dir"
        )


def _refuse_strange_log(folder: RunFolder) -> None:
    if (folder.logs / METRICS_FILE).exists():
        raise ConfigError(f"{folder.logs} holds the log of another run: choose another paths.log_dir")


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
