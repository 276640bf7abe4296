"""What a run begins with: weights and codebooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .codebook import initialize_codebooks
from .config import TrainingConfig
from .dataset import Mixture, make_loader
from .errors import CheckpointError
from .export import read_weights
from .generator import TrainableSNAC

INITIALIZATION_BATCH = 16  # windows encoded at a time for the start of the codebooks


def load_generator(generator: TrainableSNAC, source: str, model: dict[str, Any]) -> None:
    """Copy the weights of a snac folder, checkpoint or Hub repository; raises CheckpointError if they do not fit."""
    try:
        generator.load_state_dict(read_weights(source, model))
    except RuntimeError as error:
        raise CheckpointError(
            f"{source} does not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from error


def start_codebooks(generator: TrainableSNAC, training: Mixture, config: TrainingConfig) -> None:
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


def first_clips(training: Mixture, number: int, num_workers: int) -> Iterator[Tensor]:
    """The first `number` windows of the keyed order, (B, 1, T) with a B that does not depend on the layout of the run."""
    loader = make_loader(
        training, INITIALIZATION_BATCH, num_steps=-(-number // INITIALIZATION_BATCH), num_workers=num_workers
    )
    for index, batch in enumerate(loader):
        yield batch.audio[: number - index * INITIALIZATION_BATCH]
