"""What the processes of a run have to tell each other in one step, counted from the networks themselves.

DDP averages every gradient over the processes, in buckets: one of up to 1 MiB, then as many of up to 25 MiB as
are needed, from the last layer to the first, each sent off as soon as its gradients are there. Gradients are
float32 in every precision (bf16 and fp16 are autocast, the weights stay float32), so the bytes do not depend on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from snac_accel.config import TrainingConfig, to_dict
from snac_accel.costs import forward_flops
from snac_accel.discriminators import DISCRIMINATORS
from snac_accel.generator import TrainableSNAC
from snac_accel.guards import PLACES
from snac_accel.signals import STOP_SIGNALS

BUCKET_LIMITS = [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 * 1024**2]  # bytes; DDP's defaults
INT64_BYTES, FLOAT32_BYTES = 8, 4
# `session.account`: samples, padding, retries, failed saves, bad clips, tries, and for each signal whether it came.
ACCOUNT_BYTES = (8 + len(STOP_SIGNALS)) * INT64_BYTES  # of a run with one source


class Network(NamedTuple):
    """One wrapped module of a step."""

    name: str
    parameters: int
    buckets: tuple[int, ...]  # bytes of each, in the order in which they are sent
    forward_flops: int  # of one window
    step_forwards: int  # cost of its part of a step, in forward passes
    synced_forwards: int  # the part of that during which its gradients come up and are sent

    @property
    def gradient_bytes(self) -> int:
        """What every process adds to the all-reduce of a step."""
        return sum(self.buckets)

    @property
    def step_flops(self) -> int:
        """Of one window in a whole step."""
        return self.forward_flops * self.step_forwards


class SmallCollectives(NamedTuple):
    """What is all-reduced in a step beside the gradients, in bytes."""

    account: int  # the books of the step
    code_counts: int  # how often each code was chosen
    restarted_rows: int  # at most: if all codes were restarted at once; usually none
    verdict: int  # whether the numbers of the step are right


def generator_of(config: TrainingConfig) -> TrainableSNAC:
    """The run's generator with random weights."""
    return TrainableSNAC(**to_dict(config)["model"])


def discriminators_of(config: TrainingConfig) -> dict[str, nn.Module]:
    """The run's discriminators by name, with random weights."""
    options = config.discriminators.model_dump()
    return {
        name: family(**options[name]) for name, family in DISCRIMINATORS.items() if options[name] is not None
    }


def networks(config: TrainingConfig) -> list[Network]:
    """All wrapped modules of a run, counted.

    A backward pass costs two forward passes, one for the inputs and one for the weights. The generator is run once
    in each direction: 3. A discriminator is run on real and on fake audio (2), the verdict on the fake goes back to
    the audio alone (1), and its own loss goes back through both passes (4): 7.
    """
    window = torch.zeros(1, 1, config.segment_samples)
    modules: dict[str, nn.Module] = {"generator": generator_of(config), **discriminators_of(config)}
    return [
        Network(
            name,
            sum(parameter.numel() for parameter in module.parameters()),
            planned_buckets(module),
            forward_flops(module, window),
            *((3, 2) if name == "generator" else (7, 4)),
        )
        for name, module in modules.items()
    ]


def planned_buckets(module: nn.Module) -> tuple[int, ...]:
    """Bytes of each bucket that DDP makes of a module whose gradients come up from the last parameter to the first."""
    parameters = [parameter.detach() for parameter in module.parameters()][::-1]
    indices, _ = dist._compute_bucket_assignment_by_size(parameters, BUCKET_LIMITS)
    return tuple(sum(parameters[i].numel() * parameters[i].element_size() for i in one) for one in indices)


def small_collectives(config: TrainingConfig) -> SmallCollectives:
    """The bytes of a step's small all-reduces; every process sends the same."""
    codes = len(config.model.vq_strides) * config.model.codebook_size
    return SmallCollectives(
        ACCOUNT_BYTES,
        codes * INT64_BYTES,
        codes * config.model.codebook_dim * FLOAT32_BYTES,
        (len(PLACES) + 1) * FLOAT32_BYTES,
    )
