"""How codebooks are used: perplexity, entropy, share, and the age of every code.

Shapes: B batch, F_l frames of level l, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy (nats) of the distribution `counts` (…, K): 1 (one code) to K (all alike), 0 without counts."""
    counts = counts.cpu()  # few numbers; not every device has float64
    probabilities = counts.double() / counts.sum(-1, keepdim=True).clamp_min(1)
    entropy = torch.special.entr(probabilities).sum(-1)
    return torch.where(counts.sum(-1) > 0, entropy.exp(), torch.zeros_like(entropy))


def entropy_rates(perplexities: Sequence[float], token_rates: Sequence[float], codebook_size: int) -> dict[str, float]:
    """Bits per second that the codes of each level, and all together, carry if coded one by one, by their names in the log.

    A coder without memory would spend as much; what follows from the codes before is not seen. From N lookups of a level at most
    log2 N bits a code can come out. `entropy_share` is the total over the nominal bit rate, log2 K bits a code: 1 where all codes
    are used alike.
    """
    rates = [rate * math.log2(max(value, 1.0)) for value, rate in zip(perplexities, token_rates, strict=True)]
    named = {f"level_{level}/entropy_bits_per_second": rate for level, rate in enumerate(rates)}
    nominal = math.log2(codebook_size) * sum(token_rates)
    return named | {"entropy_bits_per_second": sum(rates), "entropy_share": sum(rates) / nominal}


def reachable_codes(counts: Tensor) -> Tensor:
    """How many of the K codes would be expected in `counts` (…, K), were all equally likely: few lookups cannot show many."""
    size = counts.shape[-1]
    return size * (1 - (1 - 1 / size) ** counts.sum(-1).double().cpu())


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

    def scalars(self, restart_after: float) -> dict[str, float]:
        """Number of dead codes and greatest age, in lookups over K, of each level, by their names in the log."""
        dead, oldest = self.dead(restart_after).sum(-1).tolist(), self.age.amax(-1).tolist()
        named = {f"level_{level}/dead_codes": float(number) for level, number in enumerate(dead)}
        return named | {f"level_{level}/oldest_age": age / self.age.shape[-1] for level, age in enumerate(oldest)}

    def state_dict(self) -> dict[str, Tensor]:
        """The three tensors by name."""
        return {"counts": self.counts, "age": self.age, "restarts": self.restarts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the three tensors back; shapes must agree."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
