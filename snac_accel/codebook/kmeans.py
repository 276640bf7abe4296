"""Codebooks that start from clusters of real latents.

Lookups are on L2-normalised vectors, so clusters are clusters of directions; the rows themselves stay at the scale of the
latents, because the quantizer losses are taken on the raw rows.

Shapes: B batch, F_l frames of level l, d codebook dimension, K codebook size, N vectors.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..generator import TrainableSNAC, project, unproject
from .methods import levels, wide
from .use import count_codes, perplexity


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
    dtype = wide(vectors.device)
    sums = torch.zeros_like(centres, dtype=dtype).index_add_(0, labels, vectors.to(dtype)).to(centres)
    counts = torch.bincount(labels, minlength=len(centres)).to(vectors)[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)
