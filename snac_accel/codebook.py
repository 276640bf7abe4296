"""Codebook health: statistics of use, data-dependent initialisation, restart of dead codes.

All of it lives outside `forward`: the generator hands out codes and latents, and what is decided here is decided from numbers
that are the same on all ranks. Lookups are on L2-normalised vectors, so clusters are clusters of directions; the rows
themselves stay at the scale of the latents, because the quantizer losses are taken on the raw rows.

Shapes: B batch, F_l frames of level l, d codebook dimension, K codebook size, N vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as functional
from snac.vq import VectorQuantize
from torch import Tensor

from .generator import TrainableSNAC, project, unproject
from .seeds import derive_seed

Reduce = Callable[[Tensor], Tensor]  # sum over ranks; the identity in one process


def identity(tensor: Tensor) -> Tensor:
    """The `Reduce` of a single process."""
    return tensor


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy (nats) of the distribution `counts` (…, K): 1 (one code) to K (all alike), 0 without counts."""
    counts = counts.cpu()  # few numbers; not every device has float64
    probabilities = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    entropy = torch.special.entr(probabilities).sum(-1)
    return torch.where(counts.sum(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


def share_used(counts: Tensor) -> Tensor:
    """Share of the K codes in `counts` (…, K) that were chosen at least once, 0 to 1."""
    return (counts.cpu() > 0).double().mean(-1)


def count_codes(codes: Sequence[Tensor], codebook_size: int) -> Tensor:
    """How often each code was chosen: per level (B, F_l) -> (levels, K) int64."""
    return torch.stack([torch.bincount(level.flatten(), minlength=codebook_size) for level in codes])


class CodebookUsage:
    """Counts and ages of all codes, the same on every rank. Part of the training state, not of the model's buffers."""

    def __init__(self, num_levels: int, codebook_size: int, device: torch.device | str = "cpu") -> None:
        shape = (num_levels, codebook_size)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)  # choices since the run began
        self.age = torch.zeros(
            shape, dtype=torch.int64, device=device
        )  # lookups of the level since last chosen
        self.restarts = torch.zeros(num_levels, dtype=torch.int64, device=device)  # codes restarted so far

    def observe(self, counts: Tensor) -> None:
        """Take the (levels, K) choices of one step, already summed over ranks and micro-batches."""
        self.counts += counts
        self.age = torch.where(counts > 0, 0, self.age + counts.sum(-1, keepdim=True))

    def dead(self, restart_after: float) -> Tensor:
        """Mask (levels, K) of the codes not chosen in the last `restart_after` × K lookups of their level.

        Were all codes equally likely, a living code would be missed with probability exp(-restart_after).
        """
        return self.age >= restart_after * self.age.shape[-1]

    def state_dict(self) -> dict[str, Tensor]:
        """The three tensors by name."""
        return {"counts": self.counts, "age": self.age, "restarts": self.restarts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the three tensors back; shapes must agree."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


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
) -> Tensor:
    """Move every dead code onto a latent of the step just made; call it *after* the optimiser's step.

    `latents` holds, for each micro-batch of this rank, the generator's latents per level (B, d, F_l). The new rows are drawn by
    (seed, step, level) from the latents of the whole global batch, so they do not depend on how that batch was spread over
    ranks and micro-batches. A restarted code's age and optimiser moments are zeroed. `averages` are the levels'
    codebooks in a moving average: there the code moves at once as well, a mean of old and new would fit no latent.
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
        _forget_moments(optimizer, level.codebook.weight, rows)
        usage.age[index, rows] = 0
    restarted = dead.sum(-1)
    usage.restarts += restarted
    return restarted


def levels(generator: TrainableSNAC) -> list[VectorQuantize]:
    """The quantizer levels, coarse to fine."""
    return list(generator.quantizer.quantizers)


def codebooks(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The codebooks, coarse to fine, among a generator's tensors by name."""
    return [weights[name] for name in weights if name.endswith(".codebook.weight")]


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


@torch.no_grad()
def initialize_codebooks(
    generator: TrainableSNAC, clips: Iterable[Tensor], *, seed: int = 0, iterations: int = 10
) -> Tensor:
    """Set every codebook to k-means centres of its own latents on `clips`, an iterable of (B, 1, T).

    Levels are fitted coarse to fine, each on the residual that the levels before it leave, as they will be used. Returns the
    perplexity of each level on these clips (levels,). Needs no gradient and leaves all other weights alone.
    Source: SoundStream (Zeghidour et al. 2021), section III-C.
    """
    device = next(generator.parameters()).device
    residuals = [generator.encode_latent(audio.to(device, generator.dtype)) for audio in clips]  # each (B, D, F)
    counts = []
    for index, level in enumerate(levels(generator)):
        latents = [project(level, residual) for residual in residuals]  # each (B, d, F_l)
        vectors = torch.cat([z.transpose(1, 2).flatten(0, 1) for z in latents])  # (N, d)
        level.codebook.weight.copy_(
            spherical_kmeans(vectors, level.codebook_size, seed=seed + index, iterations=iterations)
        )
        chosen = [level.decode_latents(z) for z in latents]
        residuals = [r - unproject(level, z_q) for r, (z_q, _) in zip(residuals, chosen, strict=True)]
        counts.append(
            count_codes([torch.cat([codes.flatten() for _, codes in chosen])], level.codebook_size)[0]
        )
    return perplexity(torch.stack(counts))


def spherical_kmeans(vectors: Tensor, num_clusters: int, *, seed: int = 0, iterations: int = 10) -> Tensor:
    """Centres (num_clusters, d) of `vectors` (N, d), clustered by direction, each the mean of its raw members.

    Empty clusters are given the vectors that fit their own centre worst. Where there are fewer different vectors than
    clusters, rows would repeat; those are moved by about a hundredth of their length, so that no two are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-num_clusters // len(vectors))
    order = torch.randperm(len(vectors), generator=generator).repeat(rounds)[:num_clusters]
    centres = vectors[order.to(vectors.device)]
    directions = functional.normalize(vectors)
    for _ in range(iterations):
        similarity, labels = _assign(directions, functional.normalize(centres))
        centres = _means(vectors, labels, centres)
        empty = (torch.bincount(labels, minlength=num_clusters) == 0).nonzero().flatten()[: len(vectors)]
        centres[empty] = vectors[similarity.argsort()[: len(empty)]]
    return _separate(centres, generator)


def _separate(centres: Tensor, generator: torch.Generator) -> Tensor:
    """Move each row of `centres` (K, d) that repeats an earlier one by about a hundredth of its length."""
    _, kind = centres.unique(dim=0, return_inverse=True)
    order = torch.arange(len(centres), device=centres.device)
    first = order.new_full((len(centres),), len(centres)).scatter_reduce(
        0, kind, order, "amin"
    )  # row of each kind
    repeats = order > first[kind]
    noise = torch.randn(centres.shape, generator=generator).to(centres)
    moved = centres + 0.01 * noise * centres.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.where(repeats[:, None], moved, centres)


def _assign(directions: Tensor, centres: Tensor, chunk: int = 16384) -> tuple[Tensor, Tensor]:
    """Cosine and index of the best centre for each direction, in chunks to bound memory: (N,), (N,)."""
    best = [(part @ centres.T).max(-1) for part in directions.split(chunk)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def _means(vectors: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    # In float64 where there is one: a GPU adds in any order, and rounding could tip an assignment.
    wide = torch.float32 if vectors.device.type == "mps" else torch.float64
    sums = torch.zeros_like(centres, dtype=wide).index_add_(0, labels, vectors.to(wide)).to(centres)
    counts = torch.bincount(labels, minlength=len(centres)).to(vectors)[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)
