"""Tiny networks and training states for the tests: everything that training has, in milliseconds.

Windows are of `WINDOW` samples: whole quanta of `MODEL`, and long enough for the seven-scale mel loss.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from snac import SNAC
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from snac_accel.codebook import CodebookUsage
from snac_accel.discriminators import MultiPeriodDiscriminator, MultiScaleSTFTDiscriminator
from snac_accel.generator import TrainableSNAC, encoding_modules
from snac_accel.state import TrainState
from snac_accel.step import StepSettings

MODEL: dict[str, Any] = {  # hop 32 samples, quantum 128
    "sampling_rate": 16000,
    "encoder_dim": 4,
    "encoder_rates": [2, 4, 4],
    "latent_dim": None,
    "decoder_dim": 32,
    "decoder_rates": [4, 4, 2],
    "attn_window_size": None,
    "codebook_size": 32,
    "codebook_dim": 4,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
ATTENTION_MODEL = {**MODEL, "encoder_dim": 8, "decoder_dim": 64, "attn_window_size": 4}
ODD_MODEL = {
    **MODEL,
    "encoder_rates": [3, 5],
    "decoder_rates": [5, 3],
    "vq_strides": [6, 2],
    "depthwise": False,
}
WINDOW = 1280
FUSED_ADAMW = partial(AdamW, fused=True)  # as `train.setup_optimizers` has it
WEIGHTS = {
    "adversarial": 1.0,
    "feature_matching": 2.0,
    "multi_scale_mel": 15.0,
    "mel": 0.0,
    "stft": 0.5,
    "commitment": 0.25,
    "codebook": 1.0,
}


def make_generator(seed: int = 0, model: dict[str, Any] = MODEL, **changes: Any) -> TrainableSNAC:
    """A `TrainableSNAC` with random weights of `seed`, in evaluation mode as `from_pretrained` gives it."""
    torch.manual_seed(seed)
    return TrainableSNAC(**{**model, **changes}).eval()


def stock_twin(generator: TrainableSNAC, model: dict[str, Any] = MODEL) -> SNAC:
    """The stock package's model with the same weights and mode."""
    stock = SNAC(**model)
    stock.load_state_dict(generator.state_dict())
    return stock.train(generator.training)


def make_discriminators(seed: int = 0) -> dict[str, nn.Module]:
    """Both families, small."""
    torch.manual_seed(seed)
    return {
        "mpd": MultiPeriodDiscriminator(periods=(2, 3), channels=(4, 8)),
        "msstftd": MultiScaleSTFTDiscriminator((64, 128), (16, 32), (48, 96), channels=(4, 8)),
    }


def make_state(
    accelerator: Accelerator,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    optimizer: Callable[..., Optimizer] = FUSED_ADAMW,
    learning_rate: float = 1e-3,
    discriminator_learning_rate: float | None = None,
    discriminators: dict[str, nn.Module] | None = None,
    **model: Any,
) -> TrainState:
    """A prepared `TrainState`, built as `train.setup_state` does; `model` changes arguments of `MODEL`."""
    generator = make_generator(seed, **model).to(dtype).train()
    critics = make_discriminators(seed + 1) if discriminators is None else discriminators
    critics = {name: module.to(dtype) for name, module in critics.items()}
    encoding = [p for part in encoding_modules(generator) for p in part.parameters()]
    own = {id(p) for p in encoding}
    groups = {
        "generator": [
            {"params": encoding},
            {"params": [p for p in generator.parameters() if id(p) not in own]},
        ]
    }
    if critics:
        groups["discriminator"] = [
            {"params": [p for module in critics.values() for p in module.parameters()]}
        ]
    rates = {"generator": learning_rate, "discriminator": discriminator_learning_rate}
    plain = {
        name: optimizer(group, lr=learning_rate if rates[name] is None else rates[name])
        for name, group in groups.items()
    }
    decays = [lambda step: 0.8**step, lambda step: 0.9**step]
    schedules: dict[str, LRScheduler] = {
        name: LambdaLR(one, decays[: len(one.param_groups)]) for name, one in plain.items()
    }
    return TrainState(
        accelerator.prepare_model(generator),
        {name: accelerator.prepare_model(module) for name, module in critics.items()},
        plain,
        schedules,
        CodebookUsage(generator.n_codebooks, generator.codebook_size),
    )


def step_settings(weights: dict[str, float] | None = None, **options: Any) -> StepSettings:
    """Settings of a step with `WEIGHTS` changed by `weights`."""
    return StepSettings(
        loss_weights={**WEIGHTS, **(weights or {})}, sampling_rate=MODEL["sampling_rate"], **options
    )


def snapshot(state: TrainState) -> dict[str, Any]:
    """A deep copy of everything that moves in a state, flat, for bitwise comparison."""
    flat: dict[str, Any] = {"step": state.step, **{f"counter.{k}": v for k, v in state.counters.items()}}
    for index, module in enumerate(state.models()):
        flat |= {f"model.{index}.{name}": tensor for name, tensor in module.state_dict().items()}
    for name, optimizer in state.optimizers.items():
        saved = optimizer.state_dict()
        for parameter, moments in saved["state"].items():
            flat |= {f"optimizer.{name}.{parameter}.{key}": value for key, value in moments.items()}
        flat[f"optimizer.{name}.groups"] = json.dumps(saved["param_groups"])  # JSON has no tuples
        schedule = state.schedules[name].state_dict()
        flat |= {f"schedule.{name}.{key}": value for key, value in schedule.items() if key != "lr_lambdas"}
    flat |= {f"usage.{name}": tensor for name, tensor in state.usage.state_dict().items()}
    if state.codebook_method is not None:
        flat |= {f"method.{name}": tensor for name, tensor in state.codebook_method.state_dict().items()}
    return copy.deepcopy(flat)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names under which two snapshots are not bitwise equal."""
    changed = before.keys() ^ after.keys()
    return sorted(changed) + [
        name for name in before.keys() & after.keys() if not _same(before[name], after[name])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    return bool(one == other)
