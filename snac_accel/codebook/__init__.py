"""Codebooks: how they start, what moves them, how they are used, and how dead codes are brought back.

All of it lives outside `forward`: the generator hands out codes and latents, and what is decided here is decided from numbers
that are the same on all ranks.
"""

from .kmeans import initialize_codebooks, spherical_kmeans
from .methods import (
    METHODS,
    CodebookMethod,
    MovingAverage,
    Reduce,
    Reparametrised,
    codebook_method,
    codebooks,
    identity,
    levels,
)
from .picture import usage_figure
from .restart import restart_dead_codes
from .use import CodebookUsage, count_codes, entropy_rates, perplexity, reachable_codes, share_used

__all__ = [
    "METHODS",
    "CodebookMethod",
    "CodebookUsage",
    "MovingAverage",
    "Reduce",
    "Reparametrised",
    "codebook_method",
    "codebooks",
    "count_codes",
    "entropy_rates",
    "identity",
    "initialize_codebooks",
    "levels",
    "perplexity",
    "reachable_codes",
    "restart_dead_codes",
    "share_used",
    "spherical_kmeans",
    "usage_figure",
]
