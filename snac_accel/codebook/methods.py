"""What moves the codebooks: the optimiser, moving averages of the latents, or a shared linear map.

Whatever is chosen, the codebooks in the model are plain weights after every step: lookups, checkpoints' weights and exports
know nothing of it. A method acts at two places of the step: it takes the gradients of the codebooks away before the
optimiser steps, and sees the latents and codes of all ranks after it.

Shapes: B batch, F_l frames of level l, d codebook dimension, K codebook size, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from snac.vq import VectorQuantize
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ..generator import GeneratorOutput, TrainableSNAC

Reduce = Callable[[Tensor], Tensor]  # sum over ranks; the identity in one process


def identity(tensor: Tensor) -> Tensor:
    """The `Reduce` of a single process."""
    return tensor


def wide(device: torch.device) -> torch.dtype:
    """float64 where there is one: a GPU adds in any order, and rounding could tip an assignment."""
    return torch.float32 if device.type == "mps" else torch.float64


def levels(generator: TrainableSNAC) -> list[VectorQuantize]:
    """The quantizer levels, coarse to fine."""
    return list(generator.quantizer.quantizers)


def codebooks(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The codebooks, coarse to fine, among a generator's tensors by name."""
    return [weights[name] for name in weights if name.endswith(".codebook.weight")]


class CodebookMethod:
    """What moves the codebooks in the optimiser's place; the same on every rank, and part of a checkpoint."""

    uses_codebook_loss = True  # whether the gradient of the codebook loss is what it goes by

    def __init__(self, generator: TrainableSNAC) -> None:
        self.start(generator)

    def start(self, generator: TrainableSNAC) -> None:
        """Begin anew from the codebooks of `generator`."""
        raise NotImplementedError

    def take_gradients(self, generator: TrainableSNAC, optimizer: Optimizer) -> None:
        """Take the codebooks' gradients, the same on all ranks, before `optimizer` steps, so that it leaves them alone."""
        raise NotImplementedError

    def follow(
        self, generator: TrainableSNAC, outputs: Sequence[GeneratorOutput], counts: Tensor, reduce: Reduce = identity
    ) -> None:
        """See the micro-batches of this rank, and how often each code was chosen on all ranks, (L, K); collective."""

    def restarted(self, level: int, rows: Tensor, fresh: Tensor) -> None:
        """Forget what is known of the codes `rows` of a level, which are `fresh` (rows, d) from now on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps, by name."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy it back; raises KeyError or RuntimeError if names or shapes are another model's."""
        own = self.state_dict()
        if own.keys() != state.keys():
            raise RuntimeError(f"names that only one of both has: {', '.join(sorted(own.keys() ^ state.keys())[:5])}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])


class MovingAverage(CodebookMethod):
    """Each code is the mean of the latents that chose it, the latest ones counting most.

    n ← γ n + (1 − γ) · times chosen in the step,  m ← γ m + (1 − γ) · sum of those latents,  code = m / n, over all ranks.
    A code of which nothing is known (at the start, restarted, or not chosen for very long) counts as though it had been
    chosen as often as the others. While the encoder is held (learning rate 0) the codes stand still too.
    Source: van den Oord et al. 2017, appendix A.1.
    """

    uses_codebook_loss = False
    FORGOTTEN = 1e-6  # times a step, below which nothing is known of a code: float32 has too few digits for its mean

    def __init__(self, generator: TrainableSNAC, decay: float = 0.99) -> None:
        self.decay = decay
        super().__init__(generator)

    def start(self, generator: TrainableSNAC) -> None:
        """Nothing is known of any code yet."""
        weights = torch.stack([level.codebook.weight.detach() for level in levels(generator)])
        self.number = torch.zeros_like(weights[..., 0])  # (L, K)
        self.total = torch.zeros_like(weights)  # (L, K, d)
        self.held = False

    def take_gradients(self, generator: TrainableSNAC, optimizer: Optimizer) -> None:
        """The gradients are not needed."""
        self.held = optimizer.param_groups[0]["lr"] == 0
        for level in levels(generator):
            level.codebook.weight.grad = None

    @torch.no_grad()
    def follow(
        self, generator: TrainableSNAC, outputs: Sequence[GeneratorOutput], counts: Tensor, reduce: Reduce = identity
    ) -> None:
        """Move every code that is known to the mean of its latents."""
        if self.held:
            return
        weights = torch.stack([level.codebook.weight for level in levels(generator)])
        sums = reduce(self._sums(outputs, weights)).to(weights.dtype)
        share = counts.sum(-1, keepdim=True).to(weights.dtype) / counts.shape[-1]  # of a code, were all chosen alike
        unknown = self.number < self.FORGOTTEN * share
        self.number = torch.where(unknown, share, self.number)
        self.total = torch.where(unknown[..., None], share[..., None] * weights, self.total)
        self.number.lerp_(counts.to(weights.dtype), 1 - self.decay)
        self.total.lerp_(sums, 1 - self.decay)
        for level, rows in zip(levels(generator), self.total / self.number[..., None], strict=True):
            level.codebook.weight.copy_(rows)

    def _sums(self, outputs: Sequence[GeneratorOutput], weights: Tensor) -> Tensor:
        """Sum of the latents that chose each code, (L, K, d), over the micro-batches of this rank."""
        sums = torch.zeros_like(weights, dtype=wide(weights.device))
        for output in outputs:
            for level, (latents, codes) in enumerate(zip(output.latents, output.codes, strict=True)):
                sums[level].index_add_(0, codes.flatten(), latents.transpose(1, 2).flatten(0, 1).to(sums.dtype))
        return sums

    def restarted(self, level: int, rows: Tensor, fresh: Tensor) -> None:
        """Nothing is known of these codes."""
        self.number[level, rows] = 0
        self.total[level, rows] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Numbers and totals."""
        return {"number": self.number, "total": self.total}


class Reparametrised(CodebookMethod):
    """All codes of a level move together: code_k = base_k · M + o, with one matrix M (d, d) and one offset o (d) a level.

    M and o are trained by AdamW with the learning rate and moments' decays of the encoder; base stays as it started. A code that
    nobody chooses follows the latents along with the others, so that it may be chosen again. The gradients of M and o are
    those of the codebook by the chain rule, so the model itself keeps plain rows.
    Source: SimVQ (Zhu et al. 2024), with the offset of Huh et al. 2023 (affine reparametrisation).
    """

    def start(self, generator: TrainableSNAC) -> None:
        """M is the identity and o is 0: the codes are where they are."""
        self.base = torch.stack([level.codebook.weight.detach().clone() for level in levels(generator)])  # (L, K, d)
        num_levels, _, dimension = self.base.shape
        self.matrix = torch.eye(dimension).to(self.base).repeat(num_levels, 1, 1).requires_grad_()  # (L, d, d)
        self.offset = self.base.new_zeros(num_levels, 1, dimension).requires_grad_()  # (L, 1, d)
        self.optimizer = AdamW([self.matrix, self.offset], weight_decay=0.0)
        for parameter in (self.matrix, self.offset):
            self.optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def take_gradients(self, generator: TrainableSNAC, optimizer: Optimizer) -> None:
        """Hand the gradients on to M and o, step, and write the codes that come of it."""
        rows = [level.codebook.weight for level in levels(generator)]
        gradients = torch.stack([torch.zeros_like(row) if row.grad is None else row.grad for row in rows])
        self.matrix.grad = self.base.mT @ gradients
        self.offset.grad = gradients.sum(-2, keepdim=True)
        group, own = optimizer.param_groups[0], self.optimizer.param_groups[0]
        own |= {name: group[name] for name in ("lr", "betas", "eps") if name in group}
        self.optimizer.step()
        for row, codes in zip(rows, self.base @ self.matrix + self.offset, strict=True):
            row.copy_(codes)
            row.grad = None

    @torch.no_grad()
    def restarted(self, level: int, rows: Tensor, fresh: Tensor) -> None:
        """The bases that M and o send to `fresh`; the moments are of all codes together, and stay."""
        matrix, moved = self.matrix[level].double().cpu(), (fresh - self.offset[level]).double().cpu()
        self.base[level, rows] = (moved @ torch.linalg.pinv(matrix)).to(self.base)

    def state_dict(self) -> dict[str, Tensor]:
        """Bases, matrices, offsets, and the moments of the latter two."""
        state = {"base": self.base, "matrix": self.matrix.detach(), "offset": self.offset.detach()}
        for name, parameter in (("matrix", self.matrix), ("offset", self.offset)):
            state |= {f"{name}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        return state


METHODS: dict[str, type[CodebookMethod] | None] = {  # None: the optimiser moves them, by the codebook loss
    "gradient": None,
    "moving_average": MovingAverage,
    "reparametrised": Reparametrised,
}


def codebook_method(name: str, generator: TrainableSNAC, *, decay: float = 0.99) -> CodebookMethod | None:
    """The method of that name for the codebooks of `generator`; None where the optimiser moves them."""
    if name == "moving_average":
        return MovingAverage(generator, decay)
    method = METHODS[name]
    return None if method is None else method(generator)
