"""Decode codes as they come: each layer keeps the few samples that it needs of the past, and nothing is computed twice.

A convolution gives out a sample once it has seen everything to the right that the sample depends on, so audio comes
`look_ahead` samples after its codes, and is that of the whole decode, to the rounding of float32: there are no seams. With
windowed attention whole windows have to be waited for.

Shapes: B batch (1), C channels, T samples at the rate of a layer, F_l codes of level l.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from snac.attention import LocalMHA
from snac.layers import DecoderBlock, ResidualUnit
from torch import Tensor, nn

from ..errors import DataError
from .layouts import FlatLayout
from .networks import Network
from .noise import PlacedNoise

SLOW_BELOW = 20480  # numbers: the bound in `use_mkldnn` (aten/src/ATen/native/Convolution.cpp)


class Pointwise:
    """A layer whose samples do not know of each other."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        """Take what comes; give what is known now. `last`: nothing more comes."""
        return None if x is None else self.module(x)


class Placed(Pointwise):
    """Noise, which follows the place in the clip."""

    first = 0

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is None:
            return None
        result: Tensor = self.module(x, self.first)
        self.first += x.shape[-1]
        return result


class Local:
    """A convolution that looks `reach` samples to either side and makes `factor` samples of one."""

    def __init__(self, module: nn.Conv1d | nn.ConvTranspose1d, reach: int, factor: int = 1) -> None:
        self.module, self.reach, self.factor = module, reach, factor
        self._seen: Tensor | None = None  # what is still looked at; it begins with zeros, as a clip does

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        parts = [part for part in (self._seen, x) if part is not None]
        if not parts:
            return None
        edge = parts[-1].new_zeros(*parts[-1].shape[:2], self.reach)
        parts = [*([edge] if self._seen is None else []), *parts, *([edge] if last else [])]
        seen = torch.cat(parts, -1)
        self._seen = seen[..., -2 * self.reach :]
        if seen.shape[-1] <= 2 * self.reach:
            return None
        # The ends are wrong, for the layer takes them for the ends of the clip.
        output: Tensor = _upsample(self.module, seen) if _is_slow(self.module, seen) else self.module(seen)
        return output[..., self.reach * self.factor : -self.reach * self.factor]


def _is_slow(module: nn.Module, x: Tensor) -> bool:
    """Whether torch (2.11) takes its slow way through a transposed convolution: on a CPU, for so few numbers."""
    return isinstance(module, nn.ConvTranspose1d) and x.device.type == "cpu" and x.numel() <= SLOW_BELOW


def _upsample(module: nn.Conv1d | nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """A transposed convolution whose kernel is two strides long as one matrix product, (1, C, T) -> (1, O, T · stride).

    Each sample gives two strides of output; the second half of one lies under the first half of the next.
    """
    stride, weight = module.stride[0], module.weight  # (C, O, 2 · stride)
    halves = (x[0].T @ weight.flatten(1)).view(-1, weight.shape[1], 2, stride)  # (T, O, half, stride)
    output = torch.nn.functional.pad(halves[:, :, 0], (0, 0, 0, 0, 0, 1))
    output[1:] += halves[:, :, 1]
    samples = output.permute(1, 0, 2).flatten(1)[:, int(module.padding[0]) :][:, : len(halves) * stride]
    return samples[None] if module.bias is None else samples[None] + module.bias[:, None]


class Windows:
    """Attention within windows: whole ones are let through."""

    def __init__(self, module: LocalMHA) -> None:
        self.module = module
        self._waiting: Tensor | None = None

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        parts = [part for part in (self._waiting, x) if part is not None]
        if not parts:
            return None
        waiting = torch.cat(parts, -1)
        whole = waiting.shape[-1] // self.module.window_size * self.module.window_size
        self._waiting = waiting[..., whole:]
        return self.module(waiting[..., :whole]) if whole else None


class Residual:
    """x + f(x), where f lags behind."""

    def __init__(self, inner: Chain) -> None:
        self.inner = inner
        self._waiting: Tensor | None = None

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        parts = [part for part in (self._waiting, x) if part is not None]
        y = self.inner.push(x, last)
        self._waiting = torch.cat(parts, -1) if parts else None
        if y is None or self._waiting is None:
            return None
        length = y.shape[-1]
        x, self._waiting = self._waiting[..., :length], self._waiting[..., length:]
        return x + y


Layer = Pointwise | Local | Windows | Residual


class Chain:
    """Layers one after the other."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = list(layers)

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        for layer in self.layers:
            x = layer.push(x, last)
        return x


def layers_of(module: nn.Module) -> list[Layer]:
    """The layers of a decoder, or of a part of it; raises TypeError for a module of a kind that snac 1.2 has not."""
    if isinstance(module, (nn.Sequential, DecoderBlock)):
        parts = module.block if isinstance(module, DecoderBlock) else module
        return [layer for part in parts for layer in layers_of(part)]
    if isinstance(module, ResidualUnit):
        return [Residual(Chain(layers_of(module.block)))]
    if isinstance(module, nn.ConvTranspose1d):
        return [Local(module, 1, module.stride[0])]
    if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
        return [Local(module, module.kernel_size[0] // 2 * module.dilation[0])]
    if isinstance(module, LocalMHA):
        return [Windows(module)]
    if isinstance(module, PlacedNoise):
        return [Placed(module)]
    if type(module).__name__ in ("Snake1d", "FastSnake1d", "Conv1d", "ParametrizedConv1d", "Tanh"):
        return [Pointwise(module)]
    raise TypeError(f"cannot decode {type(module).__name__} as codes come")


class StreamingDecoder:
    """Decodes one clip as its codes come: `push` them, and `finish` at the end.

    A push takes whole groups (one code of the coarsest level and the finer ones below it), as many as there are; `push_tokens`
    takes the tokens of a `layout`, also parts of groups. Each returns audio (T,), which may be empty.
    """

    def __init__(self, network: Network, *, noise_seed: int | None = 0, layout: FlatLayout | None = None) -> None:
        self.network, self.noise_seed, self.layout = network, noise_seed, layout
        self.group_samples = int(network.model.hop_length) * network.model.vq_strides[0]
        self._chain = Chain(layers_of(network.model.decoder.model))
        self._tokens: list[int] = []

    @property
    def look_ahead(self) -> int:
        """Samples that audio comes after its codes, at most; the group that it belongs to has to be complete as well."""
        return _look_ahead(self._chain, int(self.network.model.hop_length))

    def push(self, levels: Sequence[Tensor]) -> Tensor:
        """Take codes, per level (F_l,); return the audio (T,) that is known now."""
        strides = self.network.model.vq_strides
        groups = len(levels[0])
        for level, (codes, stride) in enumerate(zip(levels, strides, strict=True)):
            if len(codes) * stride != groups * strides[0]:
                each = strides[0] // stride
                raise DataError(f"level {level} has {len(codes)} codes for {groups} groups: {each} belong to each")
            if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.network.model.codebook_size:
                raise DataError(f"level {level} has codes beyond 0..{self.network.model.codebook_size - 1}")
        return self._push(levels if groups else None, last=False)

    def push_tokens(self, tokens: Iterable[int]) -> Tensor:
        """Take tokens of the layout; those of an incomplete group wait for the rest."""
        if self.layout is None:
            raise ValueError("tokens need a layout: StreamingDecoder(network, layout=FlatLayout(…))")
        self._tokens += tokens
        whole = len(self._tokens) // self.layout.group_size * self.layout.group_size
        ready, self._tokens = self._tokens[:whole], self._tokens[whole:]
        return self.push(self.layout.unflatten(torch.tensor(ready, dtype=torch.int64)))

    def finish(self) -> Tensor:
        """Return the rest of the audio (T,); raises DataError if the last group is not complete."""
        if self._tokens:
            raise DataError(f"the last {len(self._tokens)} tokens are no whole group")
        return self._push(None, last=True)

    @torch.inference_mode()
    def _push(self, levels: Sequence[Tensor] | None, last: bool) -> Tensor:
        self.network.noise.seed, self.network.noise.first_frames = self.noise_seed, (0,)
        latent = None
        if levels is not None:
            latent = self.network.model.quantizer.from_codes([codes[None].to(self.network.device) for codes in levels])
        audio = self._chain.push(latent, last)
        return torch.empty(0) if audio is None else audio[0, 0].float().cpu()


def _look_ahead(chain: Chain, hop: int) -> int:
    """Samples of audio between the end of the codes and the end of what they give, at the worst moment."""
    frames, rate, waits = Fraction(0), 1, 0

    def walk(layers: Iterable[Layer]) -> None:
        nonlocal frames, rate, waits
        for layer in layers:
            if isinstance(layer, Residual):
                walk(layer.inner.layers)
            elif isinstance(layer, Windows):
                waits += layer.module.window_size - 1
            elif isinstance(layer, Local):
                frames += Fraction(layer.reach, rate)
                rate *= layer.factor

    walk(chain.layers)
    return math.ceil((frames + waits) * hop)
