"""Learning rates of the generator's parts: factors, and the groups of parameters that share one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from .config.finetuning import FineTuningSettings
from .generator import TrainableSNAC, encoding_modules


class Group(NamedTuple):
    """Parameters with one learning rate at every step."""

    parameters: list[nn.Parameter]
    encoding: bool  # they decide the codes of the coarsest level: `codebook.hold_steps` holds them
    factor: float


def generator_groups(generator: TrainableSNAC, settings: FineTuningSettings) -> list[Group]:
    """The groups of the generator's parameters: what encodes, then the rest, each by rising factor.

    With all factors 1 there are two of them, as in every checkpoint without factors.
    """
    own = {id(p) for part in encoding_modules(generator) for p in part.parameters()}
    factors = dict(_factors(generator, settings))
    # The order inside a group is the one that checkpoints have: part by part for what encodes.
    encoding = [p for part in encoding_modules(generator) for p in part.parameters()]
    others = [p for p in generator.parameters() if id(p) not in own]
    groups = []
    for parameters, encodes in ((encoding, True), (others, False)):
        for factor in sorted({factors[id(p)] for p in parameters}):
            groups.append(Group([p for p in parameters if factors[id(p)] == factor], encodes, factor))
    return groups


def _factors(generator: TrainableSNAC, settings: FineTuningSettings) -> Iterator[tuple[int, float]]:
    """The factor of each parameter, by its id: of its part, times the decay for each block between it and the output."""
    encoder, decoder = list(generator.encoder.block), list(generator.decoder.model)
    blocks: list[tuple[nn.Module, float]] = [(block, settings.encoder_rate) for block in encoder]
    blocks += [(generator.quantizer, settings.quantizer_rate)]
    blocks += [(block, settings.decoder_rate) for block in decoder]
    blocks = [(block, rate) for block, rate in blocks if any(True for _ in block.parameters())]
    for number, (block, rate) in enumerate(reversed(blocks)):
        for parameter in block.parameters():
            yield id(parameter), rate * settings.layer_decay**number
