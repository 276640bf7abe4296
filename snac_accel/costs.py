"""What a training step costs: floating-point operations and bytes by part, counted without computing anything.

The networks and losses are run on torch's meta device, where tensors have shapes but no contents, in the order of
`step.train_step`, and every convolution, matrix product and Fourier transform that comes by is counted. So what a step leaves
out is left out here: the first layers of encoder and discriminators need no gradient of their input (but for the one that the
verdict on the fake sends into the generator), and that verdict needs no gradients of weights.

Operations ("model FLOPs"): a multiplication and an addition are two. Padding counts as if it were sound. A Fourier transform of
N complex numbers counts as 5 N log2 N, of real numbers as half of it (the convention of FFTW's benchmark). Everything between
the products (activations, sums, means) is not counted, nor is what is computed twice to save memory.

Bytes: the least that has to move if everything between the products is done in passing. Each product reads its operands once
and writes its result once; the optimisers read and write each parameter, gradient and moment once, and the norm reads each
gradient before. What a step really moves is more.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from .losses import DISCRIMINATOR_LOSSES, SPECTRAL_LOSSES, discriminator_loss

FLOAT32_BYTES = 4
# AdamW, for each parameter: decay 1, first moment 3, second moment 4, square root, its correction and ε 3, update 3; norm 2.
OPTIMIZER_FLOPS = 16
# Read: parameter, gradient (twice: the norm of all must be known first) and two moments; write: parameter and two moments.
OPTIMIZER_BYTES = 8 * FLOAT32_BYTES
aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Of a part of a step."""

    flops: int = 0
    num_bytes: int = 0  # at least

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.num_bytes + other.num_bytes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.num_bytes * times)

    @property
    def intensity(self) -> float:
        """Operations per byte: what a machine needs to be limited by its arithmetic rather than by its memory."""
        return self.flops / max(self.num_bytes, 1)


class Counter(TorchDispatchMode):
    """Counts the products that run inside of it; `product_bytes` is the width of their numbers (2 under autocast)."""

    def __init__(self, product_bytes: int = FLOAT32_BYTES) -> None:
        super().__init__()
        self.product_bytes = product_bytes
        self.cost = Cost()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in FORMULAS:
            flops = int(FORMULAS[packet](*args, **kwargs, out_val=result))
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            if packet is aten.convolution_backward:
                tensors = _used_in_backward(args, tensors)
            self.cost += Cost(flops, sum(self._bytes_of(tensor) for tensor in tensors))
        return result

    def _bytes_of(self, tensor: Tensor) -> int:
        stored = tensor.untyped_storage().nbytes() // tensor.element_size()  # fewer than it has if it was expanded
        elements = min(tensor.numel(), stored)
        return elements * (self.product_bytes if tensor.dtype == torch.float32 else tensor.element_size())


def _used_in_backward(args: Sequence[Any], tensors: list[Tensor]) -> list[Tensor]:
    """The input is read for the weight's gradient, the weight for the input's."""
    unread = [args[1] if not args[-1][1] else None, args[2] if not args[-1][0] else None]
    return [tensor for tensor in tensors if not any(tensor is one for one in unread)]


def _convolution_backward(*args: Any, out_val: Any) -> int:
    """As many products for each gradient as forward. torch's own formula forgets the groups of a weight's gradient."""
    gradient, audio, weight, _, _, _, _, transposed, _, _, mask = args
    return int(sum(mask[:2])) * conv_flop_count(audio.shape, weight.shape, gradient.shape, transposed)


def _fft(factor: float, real: bool) -> Callable[..., int]:
    """`factor` N log2 N for each transform, N the longer side: the spectrum of real numbers has half of it."""

    def formula(values: Tensor, dims: Sequence[int], *rest: Any, out_val: Tensor) -> int:
        longer = max(values, out_val, key=lambda tensor: tensor.shape[dims[-1]]) if real else values
        size = math.prod(longer.shape[dim] for dim in dims)
        return round(factor * longer.numel() * math.log2(size))

    return formula


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.convolution_backward: _convolution_backward,
    aten._fft_r2c: _fft(2.5, real=True),
    aten._fft_c2r: _fft(2.5, real=True),
    aten._fft_c2c: _fft(5.0, real=False),
}


def step_cost(
    generator: nn.Module,
    discriminators: Mapping[str, nn.Module],
    shape: Sequence[int],
    *,
    loss_weights: Mapping[str, float],
    sampling_rate: int,
    accumulation_steps: int = 1,
    product_bytes: int = FLOAT32_BYTES,
) -> dict[str, Cost]:
    """Cost of one step of one process by part; `shape` is a micro-batch's, (B, 1, T).

    The parts are "generator", each discriminator by its name, "spectral losses" (those with a weight: the others are computed at
    logging steps only) and "optimizers". With `product_bytes` 2 the networks run in a 16-bit type; the losses stay float32.
    The networks may be on any device, and are left alone. Raises RuntimeError if one of them cannot be run without contents.
    """
    parts: dict[str, Cost] = {}
    with _meta_autocast():
        real = torch.empty(*shape, device="meta")
        with Counter(product_bytes) as counter:
            _run_generator(on_meta(generator), real)
        parts["generator"] = counter.cost * accumulation_steps
        for name, discriminator in discriminators.items():
            with Counter(product_bytes) as counter:
                _run_discriminator(on_meta(discriminator), real, loss_weights)
            parts[name] = counter.cost * accumulation_steps
        with Counter() as counter:
            _run_spectral_losses(real, loss_weights, sampling_rate)
        parts["spectral losses"] = counter.cost * accumulation_steps
    networks = [generator, *discriminators.values()]
    trained = sum(p.numel() for module in networks for p in module.parameters() if p.requires_grad)
    parts["optimizers"] = Cost(OPTIMIZER_FLOPS * trained, OPTIMIZER_BYTES * trained)
    return parts


def total_cost(parts: Mapping[str, Cost]) -> Cost:
    """The whole step."""
    return sum(parts.values(), Cost())


@torch.no_grad()
def forward_flops(module: nn.Module, *inputs: Tensor) -> int:
    """Operations of a forward pass on tensors of these shapes."""
    with _meta_autocast(), Counter() as counter:
        on_meta(module)(*(torch.empty_like(one, device="meta") for one in inputs))
    return counter.cost.flops


def on_meta(module: nn.Module) -> nn.Module:
    """A copy with the shapes of all tensors, but not their contents."""
    replaced: dict[int, Any] = {}  # what deepcopy takes for already copied
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(module, replaced)


def _run_generator(generator: nn.Module, real: Tensor) -> None:
    output = generator(real)
    quantizer_losses = output.commitment + output.codebook
    ((output.audio * torch.empty_like(real)).sum() + quantizer_losses).backward()


def _run_discriminator(discriminator: nn.Module, real: Tensor, loss_weights: Mapping[str, float]) -> None:
    leaf = torch.empty_like(real).requires_grad_()
    with parametrize.cached():
        on_real, on_fake = discriminator(real), discriminator(leaf)
    terms = [
        loss(on_real, on_fake)
        for name, loss in DISCRIMINATOR_LOSSES.items()
        if loss_weights.get(name, 0.0) > 0
    ]
    if terms:
        torch.autograd.grad(torch.stack(terms).sum(), leaf, retain_graph=True)
    trained = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
    if trained:
        discriminator_loss(on_real[0], on_fake[0]).backward(inputs=trained)


def _run_spectral_losses(real: Tensor, loss_weights: Mapping[str, float], sampling_rate: int) -> None:
    for name, loss in SPECTRAL_LOSSES.items():
        if loss_weights.get(name, 0.0) > 0:
            leaf = torch.empty_like(real).requires_grad_()
            torch.autograd.grad(loss(real, leaf, sampling_rate=sampling_rate), leaf)


@contextmanager
def _meta_autocast() -> Iterator[None]:
    """Let `torch.autocast` be asked for the meta device, which it refuses, though there is nothing to cast there."""
    original = torch.autocast

    def autocast(device_type: str, *args: Any, **options: Any) -> Any:
        return nullcontext() if device_type == "meta" else original(device_type, *args, **options)

    torch.autocast = autocast  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = original  # type: ignore[misc]
