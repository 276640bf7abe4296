"""Restart of dead codes, from numbers that are the same on all ranks.

Shapes: B batch, F_l frames of level l, d codebook dimension, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..generator import TrainableSNAC
from ..seeds import derive_seed
from .methods import CodebookMethod, Reduce, identity, levels
from .use import CodebookUsage


@torch.no_grad()
def restart_dead_codes(
    generator: TrainableSNAC,
    usage: CodebookUsage,
    latents: Sequence[Sequence[Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    restart_after: float,
    seed: int,
    step: int,
    rank: int = 0,
    num_processes: int = 1,
    reduce: Reduce = identity,
    averages: Sequence[Tensor] | None = None,
    method: CodebookMethod | None = None,
) -> Tensor:
    """Move every dead code onto a latent of the step just made; call it *after* the optimiser's step.

    `latents` holds, for each micro-batch of this rank, the generator's latents per level (B, d, F_l). The new rows are drawn by
    (seed, step, level) from the latents of the whole global batch, so they do not depend on how that batch was spread over
    ranks and micro-batches. A restarted code's age and optimiser moments are zeroed. `averages` are the levels'
    codebooks in a moving average: there the code moves at once as well, a mean of old and new would fit no latent.
    `method`, where there is one, forgets what it knew of the code.
    Returns the number of restarts per level.

    The idea is that of EnCodec (Défossez et al. 2022, appendix A.2) after Jukebox (Dhariwal et al. 2020).
    """
    dead = usage.dead(restart_after)
    for index, level in enumerate(levels(generator)):
        rows = dead[index].nonzero().flatten()
        if not len(rows):
            continue
        batches = [micro_batch[index] for micro_batch in latents]
        picks = _draw(len(rows), _global_count(batches, num_processes), seed, step, index)
        fresh = reduce(_own_rows(batches, picks.to(rows.device), rank, num_processes))
        level.codebook.weight[rows] = fresh.to(level.codebook.weight.dtype)
        if averages is not None:
            averages[index][rows] = level.codebook.weight[rows]
        if method is not None:
            method.restarted(index, rows, level.codebook.weight[rows])
        _forget_moments(optimizer, level.codebook.weight, rows)
        usage.age[index, rows] = 0
    restarted = dead.sum(-1)
    usage.restarts += restarted
    return restarted


def _global_count(batches: Sequence[Tensor], num_processes: int) -> int:
    return sum(batch.shape[0] * batch.shape[2] for batch in batches) * num_processes


def _draw(number: int, population: int, seed: int, step: int, level: int) -> Tensor:
    """`number` indices below `population`, without repetition as far as it reaches, keyed by (seed, step, level)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "restart", step, level))
    rounds = -(-number // population)
    return torch.cat([torch.randperm(population, generator=generator) for _ in range(rounds)])[:number]


def _own_rows(batches: Sequence[Tensor], picks: Tensor, rank: int, num_processes: int) -> Tensor:
    """Rows `picks` of the global batch's latents, (picks, d); zero where another rank holds the row.

    The global order is that of the data: micro-batch, rank, row, frame.
    """
    batch, dimension, frames = batches[0].shape
    own = torch.stack(list(batches)).transpose(2, 3).reshape(len(batches), batch * frames, dimension)
    block, offset = picks // (batch * frames), picks % (batch * frames)
    mine = block % num_processes == rank
    rows = own[(block // num_processes).clamp_max(len(batches) - 1), offset]
    return torch.where(mine[:, None], rows, 0)


def _forget_moments(optimizer: torch.optim.Optimizer, weight: Tensor, rows: Tensor) -> None:
    for name, value in optimizer.state.get(weight, {}).items():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            optimizer.state[weight][name][rows] = 0
