"""How much memory a training step needs, and what would fit: found out on tensors that have a shape but no memory.

The trainer's own step runs on them, from the generator's forward pass to its backward pass, and every tensor that it makes is
counted while it lives. The optimisers' moments are added. What is not counted is what lies below torch's tensors: the context of
a GPU and the workspaces of its libraries, the allocator's fragments, on a CPU the program itself.

Memory grows with batch and window along a straight line at every moment of the step, so three runs say what would fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp import GradScaler

from ..activations import checkpoint_activations
from ..codebook import CodebookUsage
from ..config import TrainingConfig, to_dict
from ..discriminators import DISCRIMINATORS
from ..generator import TrainableSNAC
from ..state import TrainState
from ..step import StepReport, StepSettings, gather_gradients
from .live_bytes import LiveBytes

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
GENERATOR_FORWARD = "generator forward"


class Moment(NamedTuple):
    """A part of the step, and the most that is alive in it, in bytes; the others are parts of the peak."""

    name: str
    peak: float
    weights: float
    moments: float  # of AdamW
    gradients: float
    buckets: float  # in which DDP sends gradients
    generator: float  # activations that wait for its backward pass

    @property
    def work(self) -> float:
        """What this part itself has alive at its peak."""
        return self.peak - self.weights - self.moments - self.gradients - self.buckets - self.generator


@dataclass(frozen=True)
class StepMemory:
    """What a step needs at one batch and window."""

    batch_size: int
    samples: int  # of a window
    moments: list[Moment]  # in the order of the step

    @property
    def worst(self) -> Moment:
        """Where the step needs most."""
        return max(self.moments, key=lambda moment: moment.peak)

    @property
    def peak(self) -> float:
        """Bytes."""
        return self.worst.peak


class FakeStep:
    """The trainer's step on tensors without memory, as `config` has it, for any batch and window."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        checkpointing: bool,
        device: str = "cpu",
        precision: str = "no",
        accumulates: bool = False,
        num_processes: int = 1,
    ) -> None:
        self.device, self.accumulates, self.num_processes = device, accumulates, num_processes
        # Filter banks and windows are made of real tensors only, are real, and may so be kept by their caches.
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode, torch.device(device):
            generator = TrainableSNAC(**to_dict(config)["model"]).train()
            options = config.discriminators.model_dump()
            critics: dict[str, nn.Module] = {
                name: family(**options[name])
                for name, family in DISCRIMINATORS.items()
                if options[name] is not None
            }
        if checkpointing:
            checkpoint_activations(generator)
        usage = CodebookUsage(len(generator.vq_strides), generator.codebook_size)
        self.state = TrainState(generator, critics, {}, {}, usage, GradScaler(enabled=False))
        self.settings = StepSettings(config.losses.model_dump(), config.model.sampling_rate)
        if precision in AUTOCAST:
            for module in self.state.models():
                module.forward = _autocast(module.forward, device, AUTOCAST[precision])

    @property
    def parameters(self) -> list[Tensor]:
        """Of all networks."""
        return [parameter for module in self.state.models() for parameter in module.parameters()]

    def gradients(self) -> int:
        """Bytes of the gradients that there are now."""
        return sum(parameter.grad.nbytes for parameter in self.parameters if parameter.grad is not None)

    def run(self, batch_size: int, samples: int) -> StepMemory:
        """One step of `batch_size` windows of so many samples."""
        live = self._count(batch_size, samples)
        if (
            live.live
        ):  # filter banks and windows that the process had not needed before: they stay in their caches
            live = self._count(batch_size, samples)
        return StepMemory(batch_size, samples, self._moments(live))

    def _count(self, batch_size: int, samples: int) -> LiveBytes:
        with self.mode:
            real = torch.zeros(batch_size, 1, samples, device=self.device)
        with LiveBytes(self.gradients) as live:
            live.count(real)
            with torch.profiler.record_function(GENERATOR_FORWARD):
                output = self.state.generator(real)
            gather_gradients(real, output, self.state, self.settings, StepReport(), 1.0, False)
        for parameter in self.parameters:
            parameter.grad = None
        return live

    def _moments(self, live: LiveBytes) -> list[Moment]:
        weights = sum(
            tensor.nbytes
            for module in self.state.models()
            for tensor in [*module.parameters(), *module.buffers()]
        )
        full = sum(parameter.nbytes for parameter in self.parameters)  # of all gradients
        buckets = full if self.num_processes > 1 else 0
        waiting = next(one.after for one in live.ranges if one.name == GENERATOR_FORWARD)
        found = []
        for one in live.ranges:
            gradients = full if self.accumulates else one.gradients
            peak = one.peak + gradients - one.gradients + weights + 2 * full + buckets
            generator = 0 if one.name == GENERATOR_FORWARD else waiting
            found.append(Moment(one.name, peak, weights, 2 * full, gradients, buckets, generator))
        # The optimisers' own step: everything but activations.
        found.append(Moment("optimizers", weights + 3 * full + buckets, weights, 2 * full, full, buckets, 0))
        return found


def _autocast(forward: Callable[..., object], device: str, dtype: torch.dtype) -> Callable[..., object]:
    """As Accelerate wraps a model for mixed precision."""
    return convert_outputs_to_fp32(torch.autocast(device, dtype)(forward))
