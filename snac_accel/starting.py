"""What a run begins with: weights and codebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .codebook import initialize_codebooks
from .config import TrainingConfig
from .dataset import Mixture, make_loader
from .errors import CheckpointError
from .export import read_weights
from .generator import TrainableSNAC
from .lineage import keep, read_origin, write_origin
from .run_folder import RunFolder, root_of
from .training_pack import read_discriminators

INITIALIZATION_BATCH = 16  # windows encoded at a time for the start of the codebooks


def load_generator(generator: TrainableSNAC, source: str, model: dict[str, Any]) -> None:
    """Copy the weights of a snac folder, checkpoint or Hub repository; raises CheckpointError if they do not fit."""
    try:
        generator.load_state_dict(read_weights(source, model))
    except RuntimeError as error:
        raise CheckpointError(
            f"{source} does not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from error


def load_discriminators(discriminators: Mapping[str, nn.Module], source: str) -> str:
    """Copy the weights of the discriminators that lie beside those of `source`; returns what to say about it."""
    if not discriminators:
        return "no discriminators"
    found, fresh = read_discriminators(source, list(discriminators)), []
    for name, module in discriminators.items():
        try:
            module.load_state_dict(found.tensors[name])
        except KeyError:
            fresh.append(f"{name} (there is none)")
        except RuntimeError:
            fresh.append(f"{name} (that one has other options)")
    known = [name for name in discriminators if not any(text.startswith(f"{name} (") for text in fresh)]
    lines = [f"discriminators from {found.place}: {', '.join(known)}"] if known else []
    lines += [f"discriminators with random weights: {', '.join(fresh)}"] if fresh else []
    return "; ".join(lines)


def keep_origin(folder: RunFolder, config: TrainingConfig, generator: TrainableSNAC) -> None:
    """Keep, in the run's folder, what a run starts from; one that branches off takes over what is known of the other."""
    source = config.training.init_from
    if source is None or read_origin(folder.root) is not None:
        return
    if folder.resume_from is None:
        write_origin(folder.root, source, generator.state_dict())
    elif (origin := read_origin(root_of(folder.resume_from))) is not None:
        keep(folder.root, origin)


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
