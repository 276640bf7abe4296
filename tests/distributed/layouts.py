"""Real training runs of a few steps in some layout of processes, batch and accumulation, watched from within.

What runs is `train.main`, from the configuration to the last checkpoint. The watching hooks change only what is asked for:
float64 networks, SGD in the place of AdamW, one clip made of NaN, no training at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from worlds import run_world

NUM_STEPS = 6
NAN_STEP, NAN_ROW = 4, 3  # the step, counted from 0, and the row of its global batch in which NaN is planted
TINY: dict[str, Any] = {
    "model": {
        "encoder_dim": 4,
        "encoder_rates": [8, 16],
        "decoder_dim": 16,
        "decoder_rates": [16, 8],
        "vq_strides": [4, 2, 1],
        "codebook_size": 16,
        "noise": False,  # drawn for each process and micro-batch: with it, layouts agree in distribution only
    },
    "training": {
        "seed": 9,  # no window is silent: see `test_trajectory`
        "num_iterations": NUM_STEPS,
        "log_interval": 1,
        "learning_rate": 5e-4,
        "discriminator_learning_rate": 1e-3,
        "lr_decay": 0.9,
        "warmup_steps": 3,
        "max_grad_norm": 0.5,
        "save_interval": 1000,
    },
    "data": {"segment_length": 0.256, "num_workers": 0, "gain_db": [-6, 6], "shuffle_buffer": 50},
    "losses": {"mel": 1.0, "stft": 1.0},
    "validation": {"enabled": False},
    "discriminators": {
        "mpd": {"periods": [2, 3], "channels": [4, 8]},
        "msstftd": {"fft_sizes": [256], "hop_lengths": [64], "win_lengths": [256], "channels": [4, 8]},
    },
    "codebook": {"initialization_clips": 24, "hold_steps": 2, "release_steps": 2, "restart_after": 6},
    "tracking": {"trackers": [], "progress_bar": False},
}


class Layout(NamedTuple):
    """How a global batch is spread."""

    processes: int
    batch_size: int  # per process and micro-batch
    accumulation: int

    @property
    def clips(self) -> int:
        """The size of the global batch."""
        return self.processes * self.batch_size * self.accumulation

    def place(self, row: int) -> tuple[int, int, int]:
        """Micro-batch, rank and row within the micro-batch of a row of the global batch."""
        block, offset = divmod(row, self.batch_size)
        return *divmod(block, self.processes), offset

    def __str__(self) -> str:
        return "x".join(map(str, self))


@dataclass(frozen=True)
class Hooks:
    """What the watched run does differently."""

    float64: bool = False
    sgd: bool = False
    nan: bool = False  # the clip at NAN_STEP, NAN_ROW is made of NaN
    trains: bool = True  # else the batches are only looked at


@dataclass
class StepRecord:
    """What one rank saw and did in one step."""

    names: list[list[str]]  # of the clips, per micro-batch
    audio: list[list[str]]  # digests of the windows, per micro-batch
    skipped: bool = False
    losses: dict[str, float] = field(default_factory=dict)  # means over the rank's micro-batches
    grad_norms: dict[str, float] = field(default_factory=dict)  # before clipping
    restarts: list[int] = field(default_factory=list)  # per level
    counts: list[list[int]] = field(default_factory=list)  # codes chosen, per level
    learning_rates: dict[str, list[float]] = field(default_factory=dict)  # of the groups, after the step
    digests: dict[str, str] = field(default_factory=dict)  # of weights, moments, usage after the step


@dataclass
class Trace:
    """A run as one rank saw it."""

    steps: list[StepRecord] = field(default_factory=list)
    start: dict[str, str] = field(default_factory=dict)  # digests before the first step
    state: dict[str, Any] = field(default_factory=dict)  # every tensor that moves, after the last step


def tiny_run(folder: Path, layout: Layout, **changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run in a folder; the global batch is stated, the accumulation follows from it."""
    from snac_accel.config import merge, preset_run

    batch = {"batch_size": layout.batch_size, "global_batch_size": layout.clips}
    own = {"training": batch, "paths": {"run_dir": str(folder)}, "checkpoint": {"resume": "auto"}}
    return merge(merge(merge(preset_run("demo"), TINY), own), changes)


def train_in(
    layout: Layout, folder: Path, hooks: Hooks | None = None, **changes: dict[str, Any]
) -> list[Trace]:
    """The trace of each rank of a run in `layout`."""
    config = tiny_run(folder, layout, **changes)
    return run_world(layout.processes, watched_run, layout, hooks or Hooks(), config)


def global_batches(layout: Layout, traces: Sequence[Trace], attribute: str) -> list[list[str]]:
    """`names` or `audio` of each step, put together from all ranks in the order of the global batch."""
    return [
        [
            item
            for micro_batch in range(layout.accumulation)
            for trace in traces
            for item in getattr(trace.steps[step], attribute)[micro_batch]
        ]
        for step in range(len(traces[0].steps))
    ]


def watched_run(layout: Layout, hooks: Hooks, config: dict[str, Any]) -> Trace:
    """On one rank: train as `config` says, and write down what happens."""
    from snac_accel import optimizers, train

    trace = Trace()
    with ExitStack() as stack:

        def replace(module: Any, name: str, replacement: Callable[..., Any]) -> None:
            stack.enter_context(mock.patch.object(module, name, replacement))

        if hooks.float64:
            replace(train, "setup_state", _with_float64(train.setup_state))
        if hooks.sgd:
            replace(optimizers, "AdamW", _sgd)
        replace(train, "step_batches", _recorded(train.step_batches, trace))
        replace(
            train, "train_step", _watched(train.train_step if hooks.trains else _look, layout, hooks, trace)
        )
        replace(train, "finish", lambda session: None)  # the export is not what is tested, and is float32
        assert train.main(config) == 0
    return trace


def _with_float64(setup_state: Callable[..., Any]) -> Callable[..., Any]:
    """`setup_state` on networks converted to float64; what came before it, the start of the codebooks, stays as it is."""
    from torch import nn

    def setup(*arguments: Any) -> Any:
        for value in arguments:
            for module in value.values() if isinstance(value, dict) else [value]:
                if isinstance(module, nn.Module):
                    module.double()
        return setup_state(*arguments)

    return setup


def _sgd(parameters: Any, lr: float, **adam: Any) -> Any:
    """SGD with momentum: unlike AdamW it does not make whole steps of rounding. Larger ones, since gradients are clipped."""
    from torch.optim import SGD

    return SGD(parameters, lr=20 * lr, momentum=0.8, weight_decay=adam["weight_decay"])


def _recorded(step_batches: Callable[..., Any], trace: Trace) -> Callable[..., Iterator[Any]]:
    """`step_batches` that writes down clips and windows."""

    def batches(session: Any) -> Iterator[Any]:
        for micro_batches in step_batches(session):
            names = [list(batch.names) for batch in micro_batches]
            audio = [[digest([window]) for window in batch.audio] for batch in micro_batches]
            trace.steps.append(StepRecord(names, audio))
            yield micro_batches

    return batches


def _watched(
    train_step: Callable[..., Any], layout: Layout, hooks: Hooks, trace: Trace
) -> Callable[..., Any]:
    """`train_step` on what the hooks make of the batch, which writes down what it did."""

    def step(batches: list[Any], state: Any, accelerator: Any, *arguments: Any, **named: Any) -> Any:
        assert len(batches) == layout.accumulation
        if hooks.float64:
            batches = [batch.double() for batch in batches]
        if hooks.nan and state.step == NAN_STEP:
            _plant_nan(batches, layout, accelerator.process_index)
        if not trace.start:
            trace.start = _digests(state)
        report = train_step(batches, state, accelerator, *arguments, **named)
        _write_down(report, state, trace.steps[-1])
        trace.state = {name: tensor.clone() for name, tensor in moving(state).items()}
        return report

    return step


def _look(batches: Any, state: Any, *arguments: Any, **named: Any) -> Any:
    """In the place of `train_step`: only count."""
    from snac_accel.step import StepReport

    state.step += 1
    return StepReport()


def _plant_nan(batches: list[Any], layout: Layout, rank: int) -> None:
    micro_batch, owner, row = layout.place(NAN_ROW)
    if rank == owner:
        batches[micro_batch][row] = float("nan")


def _write_down(report: Any, state: Any, record: StepRecord) -> None:
    record.skipped = report.skipped
    record.losses = {name: float(value) for name, value in report.losses.items()}
    record.grad_norms = {name: float(value) for name, value in report.grad_norms.items()}
    record.restarts = [] if report.restarts is None else report.restarts.tolist()
    record.counts = [] if report.counts is None else report.counts.tolist()
    record.learning_rates = {
        name: [group["lr"] for group in optimizer.param_groups]
        for name, optimizer in state.optimizers.items()
    }
    record.digests = _digests(state)


def moving(state: Any) -> dict[str, Any]:
    """Every tensor of the training state, not copied, under names that do not depend on the layout."""
    flat: dict[str, Any] = {}
    for name, module in {"generator": state.generator, **state.discriminators}.items():
        plain = getattr(module, "module", module)  # DDP
        flat |= {f"weights.{name}.{key}": tensor for key, tensor in plain.state_dict().items()}
    for name, optimizer in state.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            flat |= {f"moments.{name}.{index}.{key}": tensor for key, tensor in moments.items()}
    if state.codebook_method is not None:
        flat |= {f"moments.method.{name}": tensor for name, tensor in state.codebook_method.state_dict().items()}
    return flat | {f"usage.{name}": tensor for name, tensor in state.usage.state_dict().items()}


def _digests(state: Any) -> dict[str, str]:
    flat = moving(state)
    return {
        part: digest(flat[name] for name in sorted(flat) if name.startswith(part))
        for part in ("weights", "moments", "usage")
    }


def digest(tensors: Iterable[Any]) -> str:
    """A digest of the bits of some tensors."""
    total = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
