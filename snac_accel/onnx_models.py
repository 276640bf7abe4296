"""A model as two ONNX files, encoder and decoder, under the names that existing runtimes expect.

    DIR/onnx/encoder_model.onnx    input_values (batch, 1, samples) → audio_codes.0 … (batch, frames of the level), coarse to fine
    DIR/onnx/decoder_model.onnx    audio_codes.0 … → audio_values (batch, 1, samples): whole quanta
    DIR/config.json                arguments of `snac.SNAC`, and `model_type`
    DIR/README.md                  the card

Batch and length are free; the encoder pads with zeros as snac does. The decoder adds no noise, so it is deterministic: where
`snac` draws noise n ~ N(0, 1), here n = 0. Names and layout are those of onnx-community/snac_24khz-ONNX.

Shapes: B batch, T samples, D latent channels, F frames, w window of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from einops import rearrange
from snac import SNAC
from snac.attention import LocalMHA, apply_rotary_pos_emb
from snac.layers import NoiseBlock
from torch import Tensor, nn

from .errors import CheckpointError, ConfigError
from .evaluation.models import open_model
from .files import new_folder, write_bytes, write_json
from .generator import TrainableSNAC
from .inference.networks import fold_weight_norm

ENCODER, DECODER = "onnx/encoder_model.onnx", "onnx/decoder_model.onnx"
INPUT, OUTPUT = "input_values", "audio_values"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
LEAST_EQUAL_CODES = 0.999
LARGEST_AUDIO_ERROR = 1e-4
TIE = 1e-4  # of squared distances between vectors of length 1


class Comparison(NamedTuple):
    """What onnxruntime gives, against torch."""

    equal_codes: float  # share
    largest_gap: float  # of a differing code: how much further from the latent than the one that torch chose
    audio_error: float  # largest difference of samples, with the same codes


def code_names(levels: int) -> list[str]:
    """`audio_codes.0`, … coarse to fine."""
    return [f"audio_codes.{level}" for level in range(levels)]


def export_onnx(source: str, folder: Path, speech: Callable[[int], Tensor]) -> Comparison:
    """Write the ONNX folder of an export, a run, a checkpoint or a Hub repository, and compare it with torch.

    `speech` gives audio (B, 1, T) at a sampling rate. Raises CheckpointError, one line, if they differ by more than
    rounding; nothing is written then.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"export-onnx needs {', '.join(missing)}: pip install 'snac_accel[onnx]'")
    if folder.exists():
        raise CheckpointError(f"{folder} exists already: give a new folder")
    trained = open_model(source).generator
    config = arguments_of(trained)
    model = plain_model(config, trained.state_dict())
    with new_folder(folder) as draft:
        (draft / "onnx").mkdir()
        _write_encoder(model, draft / ENCODER)
        _write_decoder(model, draft / DECODER)
        compared = compare(model, draft, speech(config["sampling_rate"]))
        _check(folder, compared)
        own = {"model_type": "snac", "architectures": ["SnacModel"]}
        write_json(draft / "config.json", {**config, **own})
        write_bytes(draft / "README.md", card(config, source, compared).encode())
    return compared


def shipped_speech(sampling_rate: int, seconds: float = 4.0) -> Tensor:
    """Recorded speech that comes with the package, (1, 1, T) at a sampling rate."""
    import soundfile
    import torchaudio

    clip = sorted((Path(__file__).parent / "demo" / "validation").glob("*.flac"))[0]
    samples, rate = soundfile.read(clip, dtype="float32", frames=int(16000 * seconds))
    return torchaudio.functional.resample(torch.from_numpy(samples), rate, sampling_rate)[None, None]


def arguments_of(model: TrainableSNAC) -> dict[str, Any]:
    """The arguments that the model was built with."""
    names = (
        "sampling_rate", "encoder_dim", "encoder_rates", "latent_dim", "decoder_dim", "decoder_rates", "attn_window_size",
        "codebook_size", "codebook_dim", "vq_strides",
    )  # fmt: skip
    return {
        **{name: getattr(model, name) for name in names},
        "noise": any(isinstance(module, NoiseBlock) for module in model.modules()),
        "depthwise": model.encoder.block[-1].groups > 1,
    }


def plain_model(config: dict[str, Any], weights: dict[str, Tensor]) -> SNAC:
    """The stock model in a form that ONNX has words for: weights folded, no noise, attention written out."""
    model = SNAC(**config)
    model.load_state_dict(weights)
    fold_weight_norm(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NoiseBlock):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, LocalMHA):
                setattr(parent, name, _Attention(child))
    return model.eval().requires_grad_(False)


class _Attention(nn.Module):
    """`snac.attention.LocalMHA` in matrix products: the fused one of torch takes four dimensions only, in ONNX."""

    def __init__(self, original: LocalMHA) -> None:
        super().__init__()
        self.original = original

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, F) → the same; F is a multiple of the window."""
        own = self.original
        windows = x.shape[-1] // own.window_size
        qkv = own.to_qkv(own.norm(x.transpose(1, 2))).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b (w n) (h d) -> b h w n d", w=windows, h=own.heads) for t in qkv)
        if own.rel_pos is not None:
            q, k = apply_rotary_pos_emb(q, k, *own.rel_pos(k))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        out = rearrange(weights @ v, "b h w n d -> b (w n) (h d)")
        mixed: Tensor = own.to_out(out).transpose(1, 2) + x
        return mixed


class _Encoder(nn.Module):
    def __init__(self, model: SNAC) -> None:
        super().__init__()
        self.model, self.quantum = model, quantum_of(model)

    def forward(self, audio: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, T) → codes of each level."""
        length = audio.shape[-1]
        whole = (length + self.quantum - 1) // self.quantum * self.quantum
        latent = self.model.encoder(functional.pad(audio, (0, whole - length)))
        return tuple(self.model.quantizer(latent)[1])


class _Decoder(nn.Module):
    def __init__(self, model: SNAC) -> None:
        super().__init__()
        self.model = model

    def forward(self, *codes: Tensor) -> Tensor:
        """Codes of each level → (B, 1, T)."""
        audio: Tensor = self.model.decoder(self.model.quantizer.from_codes(list(codes)))
        return audio


def quantum_of(model: SNAC) -> int:
    """Samples to whose multiples snac pads."""
    return int(model.hop_length * math.lcm(model.vq_strides[0], model.attn_window_size or 1))


def _write_encoder(model: SNAC, path: Path) -> None:
    quantum = quantum_of(model)
    example = torch.zeros(2, 1, 3 * quantum - 7)
    shapes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("samples")}
    _write(_Encoder(model), (example,), ({**shapes},), [INPUT], code_names(len(model.vq_strides)), path)


def _write_decoder(model: SNAC, path: Path) -> None:
    frames = [quantum_of(model) // model.hop_length // stride for stride in model.vq_strides]  # of a quantum
    example = tuple(torch.zeros(2, 3 * number, dtype=torch.int64) for number in frames)
    batch, quanta = torch.export.Dim("batch"), torch.export.Dim("quanta")
    shapes = tuple({0: batch, 1: number * quanta if number > 1 else quanta} for number in frames)
    _write(_Decoder(model), example, (shapes,), code_names(len(frames)), [OUTPUT], path)


def _write(
    network: nn.Module, example: tuple[Tensor, ...], shapes: Any, inputs: list[str], outputs: list[str], path: Path
) -> None:
    torch.onnx.export(
        network.eval(), example, str(path), input_names=inputs, output_names=outputs, dynamic_shapes=shapes,
        opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


@torch.no_grad()
def compare(model: SNAC, folder: Path, audio: Tensor) -> Comparison:
    """Codes and audio of the files in `folder`, run by onnxruntime, against the model's own for `audio` (B, 1, T)."""
    import onnxruntime

    names = code_names(len(model.vq_strides))
    providers = ["CPUExecutionProvider"]
    run = [onnxruntime.InferenceSession(str(folder / name), providers=providers).run for name in (ENCODER, DECODER)]
    theirs = [torch.from_numpy(level) for level in run[0](names, {INPUT: audio.numpy()})]
    ours = model.encode(audio)
    equal = sum(int((a == b).sum()) for a, b in zip(ours, theirs, strict=True)) / sum(level.numel() for level in ours)
    decoded = torch.from_numpy(run[1]([OUTPUT], {name: level.numpy() for name, level in zip(names, ours, strict=True)})[0])
    error = float((decoded - model.decode(ours)).abs().max())
    return Comparison(equal, largest_gap(model, audio, ours, theirs), error)


def largest_gap(model: SNAC, audio: Tensor, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """How much further than the best code a differing one is from the latent: squared distance of vectors of length 1.

    A code that differs since a coarser one of the same time does is no difference of its own.
    """
    residual, gap = model.encoder(model.preprocess(audio)), 0.0
    spread = torch.zeros(residual.shape[0], residual.shape[-1], dtype=torch.bool)  # (B, F): a coarser level differs here
    for level, own, other in zip(model.quantizer.quantizers, ours, theirs, strict=True):
        pooled = functional.avg_pool1d(residual, level.stride, level.stride) if level.stride > 1 else residual
        latent = functional.normalize(level.in_proj(pooled), dim=1)  # (B, d, F_l)
        rows = functional.normalize(level.codebook.weight, dim=1)
        further = [(latent - rows[codes].transpose(1, 2)).square().sum(1) for codes in (own, other)]  # (B, F_l)
        spread_here = spread.reshape(*own.shape, level.stride).any(-1)
        counted = (own != other) & ~spread_here
        if counted.any():
            gap = max(gap, float((further[1] - further[0])[counted].max()))
        spread = spread | (own != other).repeat_interleave(level.stride, dim=-1)
        residual = residual - level.out_proj(level.decode_code(own)).repeat_interleave(level.stride, dim=-1)
    return gap


def _check(folder: Path, compared: Comparison) -> None:
    if compared.equal_codes < LEAST_EQUAL_CODES or compared.largest_gap > TIE or compared.audio_error > LARGEST_AUDIO_ERROR:
        raise CheckpointError(
            f"{folder} is not written: onnxruntime differs from torch by more than rounding ({compared.equal_codes:.2%} of the "
            f"codes are equal, the furthest other one by {compared.largest_gap:.1e}, audio by {compared.audio_error:.1e})"
        )


def card(config: dict[str, Any], source: str, compared: Comparison) -> str:
    """README.md of the folder; the snippet runs in it."""
    from huggingface_hub import ModelCardData

    from .model_card import is_hub_id, public_name

    base: dict[str, Any] = {"base_model": source.partition("@")[0]} if is_hub_id(source.partition("@")[0]) else {}
    data = ModelCardData(
        library_name="transformers.js", tags=["snac", "onnx", "snac_accel", "neural-audio-codec"], pipeline_tag="audio-to-audio",
        sampling_rate=config["sampling_rate"], **base,
    )  # fmt: skip
    names, rate = code_names(len(config["vq_strides"])), config["sampling_rate"]
    return f"""---
{data.to_yaml()}
---

# SNAC at {rate} Hz as ONNX

Made from `{public_name(source)}` by `snac-accel export-onnx`. Batch and length are free. The decoder adds no noise: it is
deterministic, and gives what `snac` gives without its noise.

| file | inputs | outputs |
|---|---|---|
| `{ENCODER}` | `{INPUT}` float32 (batch, 1, samples) | {", ".join(f"`{name}`" for name in names)} int64 (batch, frames) |
| `{DECODER}` | {", ".join(f"`{name}`" for name in names)} | `{OUTPUT}` float32 (batch, 1, samples) |

Compared with torch on recorded speech: {compared.equal_codes:.3%} of the codes are equal, the others are ties; audio differs by
{compared.audio_error:.0e} at most.

```python
import numpy as np
import onnxruntime

encoder = onnxruntime.InferenceSession("{ENCODER}")
decoder = onnxruntime.InferenceSession("{DECODER}")
audio = np.zeros((1, 1, {rate}), dtype=np.float32)
codes = encoder.run(None, {{"{INPUT}": audio}})
names = [node.name for node in decoder.get_inputs()]
decoded = decoder.run(None, dict(zip(names, codes)))[0][..., : audio.shape[-1]]
```
"""
