"""What a run begins with: weights, codebooks, the same data on all ranks, or the data that a checkpoint goes on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .codebook import initialize_codebooks
from .config import TrainingConfig
from .dataset import AudioDataset, ValidationClips, make_loader
from .errors import CheckpointError
from .export import read_weights
from .generator import TrainableSNAC

MAX_STREAMED_NAMES = 64  # clips of a stream that are compared over the ranks
INITIALIZATION_BATCH = 16  # windows encoded at a time for the start of the codebooks


def clip_names(training: AudioDataset, validation: ValidationClips | None) -> dict[str, list[str]]:
    """The names by which ranks know that they have the same data; of a stream the first ones have to do."""
    names = training.clip_names(MAX_STREAMED_NAMES)
    return {"training": names} if validation is None else {"training": names, "validation": validation.names}


def load_generator(generator: TrainableSNAC, source: str, model: dict[str, Any]) -> None:
    """Copy the weights of a snac folder, checkpoint or Hub repository; raises CheckpointError if they do not fit."""
    try:
        generator.load_state_dict(read_weights(source, model))
    except RuntimeError as error:
        raise CheckpointError(
            f"{source} does not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from error


def start_codebooks(generator: TrainableSNAC, training: AudioDataset, config: TrainingConfig) -> None:
    """Fit fresh codebooks to the latents of the first clips of the keyed order; published weights are left alone."""
    if config.codebook.initialization != "kmeans" or config.training.init_from is not None:
        return
    clips = first_clips(training, config.codebook.initialization_clips, config.data.num_workers)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # their number would change the rounding, and that can tip a choice of cluster
    try:
        initialize_codebooks(generator, clips, seed=config.training.seed)
    finally:
        torch.set_num_threads(threads)


def first_clips(training: AudioDataset, number: int, num_workers: int) -> Iterator[Tensor]:
    """The first `number` windows of the keyed order, (B, 1, T) with a B that does not depend on the layout of the run."""
    loader = make_loader(
        training, INITIALIZATION_BATCH, num_steps=-(-number // INITIALIZATION_BATCH), num_workers=num_workers
    )
    for index, batch in enumerate(loader):
        yield batch.audio[: number - index * INITIALIZATION_BATCH]


def data_promise(
    manifest: Mapping[str, Any], config: TrainingConfig, num_processes: int, global_batch_size: int
) -> str | None:
    """The sentence about the data of a run resumed with other processes; None if nothing changed.

    Raises CheckpointError if the clips per step changed for another reason: then it was hardly meant.
    """
    before, processes_before = manifest["global_batch_size"], manifest["world_size"]
    change = f"processes: {processes_before} before, {num_processes} now"
    if before == global_batch_size:
        if processes_before == num_processes:
            return None
        return f"data order: exact ({change}): the same windows in the same steps"
    per_process = before * num_processes == global_batch_size * processes_before
    if config.training.global_batch_size is not None or not per_process:
        raise CheckpointError(
            f"the checkpoint was made with {before} clips per step, this run has {global_batch_size}: "
            f"set training.global_batch_size to {before}"
        )
    return (
        f"data order: each clip at most once per epoch ({change}): the run goes on where the "
        f"stream was left, with {global_batch_size} clips per step instead of {before} "
        f"(training.global_batch_size = {before} would keep the steps the same)"
    )
