"""The jobs that a checkpoint amounts to: its model, and its training pack."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import export_checkpoint
from ..run_card import SAMPLES
from ..stored import place_of
from .jobs import Job, Queue
from .pack import BRANCH, write_pack

AUDIO = "*.wav"


def put_checkpoint(queue: Queue, checkpoint: Path, hub: Mapping[str, Any], samples: Path | None = None) -> None:
    """Put a checkpoint into the queue, as `hub`, a section of the configuration, asks for. `samples`: a folder of audio."""
    job = model_job(checkpoint, hub)
    queue.put(job, lambda files: write_model(checkpoint, files, job.repository, samples))
    pack = pack_job(checkpoint, hub)
    if pack is not None:
        queue.put(pack, lambda files: write_pack(checkpoint, files, job.repository))


def model_job(checkpoint: Path, hub: Mapping[str, Any]) -> Job:
    """The commit of the model itself."""
    step = _step_of(checkpoint)
    name = f"step-{step:08}"
    return Job(
        repository=hub["repository"],
        step=step,
        message=f"Step {step}",
        private=hub.get("private"),
        tag=name if hub.get("revisions") == "tag" else None,
        new_branch=name if hub.get("revisions") == "branch" else None,
        replaced=SAMPLES,
    )


def pack_job(checkpoint: Path, hub: Mapping[str, Any]) -> Job | None:
    """The commit of the training pack, if one is asked for."""
    kind, step = hub.get("training_pack", "none"), _step_of(checkpoint)
    if kind == "none":
        return None
    repository, branch = (hub["repository"], BRANCH) if kind == "branch" else (f"{hub['repository']}-training", "main")
    return Job(repository, step, f"Training pack of step {step}", branch, private=hub.get("private"))


def write_model(
    checkpoint: Path, folder: Path, repository: str, samples: Path | None = None, license: str | None = None
) -> None:
    """The export of a checkpoint as it is pushed: with card and samples."""
    sounds = sorted(samples.glob(AUDIO)) if samples is not None and samples.is_dir() else []
    names = [f"{SAMPLES}/{file.name}" for file in sounds]
    export_checkpoint(checkpoint, folder, repository=repository, samples=names, license=license)
    for file, name in zip(sounds, names, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)


def _step_of(checkpoint: Path) -> int:
    place = place_of(checkpoint)
    return 0 if place is None else place.step
