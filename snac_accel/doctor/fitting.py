"""What fits into the memory there is: the longest window and the largest batch, with and without activation checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from tabulate import tabulate

from ..config import TrainingConfig
from ..launching import accumulation_steps
from .memory import FakeStep, StepMemory

GIB = 2**30
COLUMNS = {False: "all activations kept", True: "activation checkpointing"}
FORMAT = 1  # of the JSON object
NOT_COUNTED = {
    "cpu": "not counted: the program itself and its libraries (about 1 GiB), the data loader's processes",
    "cuda": "not counted: the context of the GPU and the workspaces of its libraries (about 1 GiB), the allocator's fragments",
}
NOT_COUNTED["compiled"] = "torch.compile keeps other activations than are counted here, mostly fewer"


@dataclass(frozen=True)
class Fit:
    """The step at the configuration's batch and window, and what would fit beside it."""

    step: StepMemory
    longest_samples: int  # at the configuration's batch; whole padding quanta; 0: none
    largest_batch: int  # at the configuration's window; 0: none


@dataclass(frozen=True)
class MemoryReport:
    """All that `doctor --memory` says."""

    config: TrainingConfig
    device: str
    precision: str
    num_processes: int
    available: float  # bytes, per process
    fits: dict[bool, Fit]  # with activation checkpointing or not

    @property
    def chosen(self) -> Fit:
        """The one that the configuration asks for."""
        return self.fits[self.config.performance.activation_checkpointing]

    @property
    def exit_code(self) -> int:
        """1 if the configuration's step does not fit, else 0."""
        return int(self.chosen.step.peak > self.available)


def estimate_memory(
    config: TrainingConfig,
    *,
    available: float | None = None,
    precision: str = "no",
    num_processes: int = 1,
    device: str | None = None,
    follow: Callable[[str], None] = lambda what: None,
) -> MemoryReport:
    """Run the configuration's step on tensors without memory, and see what fits into `available` bytes (None: what is free)."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    limit = free_bytes(device) if available is None else available
    fits = {}
    for checkpointing, name in COLUMNS.items():
        step = FakeStep(
            config,
            checkpointing=checkpointing,
            device=device,
            precision=precision,
            accumulates=accumulation_steps(config, num_processes) > 1,
            num_processes=num_processes,
        )
        follow(name)
        fits[checkpointing] = fit(step, config, limit)
    return MemoryReport(config, device, precision, num_processes, limit, fits)


def fit(step: FakeStep, config: TrainingConfig, available: float) -> Fit:
    """Three runs: at the configuration's batch and window, at twice the batch, at twice the window."""
    batch, samples, quantum = (
        config.training.batch_size,
        config.segment_samples,
        config.model.facts.padding_quantum,
    )
    here, more, longer = step.run(batch, samples), step.run(2 * batch, samples), step.run(batch, 2 * samples)
    windows = largest(here, longer, available) * samples
    return Fit(
        here, math.floor(windows / quantum) * quantum, math.floor(largest(here, more, available) * batch)
    )


def largest(once: StepMemory, twice: StepMemory, available: float) -> float:
    """By how much may grow what doubles from `once` to `twice`, as a factor on `once`; 0 if nothing of it fits."""
    factors = []
    for small, large in zip(once.moments, twice.moments, strict=True):
        slope = large.peak - small.peak  # per `once`
        fixed = small.peak - slope
        if fixed > available:
            return 0.0
        if slope > 0:
            factors.append((available - fixed) / slope)
    return min(factors)


def free_bytes(device: str) -> float:
    """Memory that is free now, of the GPU or of the machine."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available


def text_memory(report: MemoryReport) -> str:
    """The table, and what it leaves out."""
    config, rate = report.config, report.config.model.sampling_rate
    batch, window = config.training.batch_size, config.segment_samples / rate
    precision = {"no": "float32"}.get(report.precision, report.precision)
    cells = {checkpointing: _column(found, rate) for checkpointing, found in report.fits.items()}
    rows = [[label, *(column[label] for column in cells.values())] for label in cells[False]]
    chosen = report.config.performance.activation_checkpointing
    headers = ["", *(f"{name} (chosen)" if key == chosen else name for key, name in COLUMNS.items())]
    table = tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right"))
    verdict = "does not fit into" if report.exit_code else "fits into"
    lines = [
        f"a step of {batch} windows of {window:.3g} s, {precision}, on {_of(report)}: an estimate",
        table,
        f"the step as configured {verdict} {report.available / GIB:.1f} GiB",
        NOT_COUNTED[report.device],
    ]
    if config.performance.compile != "none":
        lines.append(NOT_COUNTED["compiled"])
    return "\n".join(lines)


def _of(report: MemoryReport) -> str:
    if report.num_processes == 1:
        return report.device
    return f"each of {report.num_processes} processes ({report.device})"


def _column(found: Fit, rate: int) -> dict[str, str]:
    """Row -> what stands there."""
    worst, step = found.step.worst, found.step
    parts = {
        "weights": worst.weights,
        "moments of the optimisers": worst.moments,
        "gradients": worst.gradients,
        "buckets of gradients": worst.buckets,
        "generator's activations, waiting": worst.generator,
        "the part at work": worst.work,
    }
    if not worst.buckets:
        del parts["buckets of gradients"]
    column = {label: _gib(size) for label, size in parts.items()}
    column["peak"] = f"{_gib(step.peak)}"
    for moment in step.moments:
        column[f"└ {moment.name}"] = ("* " if moment is worst else "") + _gib(moment.peak)
    column["longest window at this batch"] = (
        f"{found.longest_samples / rate:.2f} s" if found.longest_samples else "none"
    )
    column["largest batch at this window"] = f"{found.largest_batch}" if found.largest_batch else "none"
    return column


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def json_memory(report: MemoryReport) -> dict[str, Any]:
    """The same as plain values; sizes in bytes, windows in samples."""
    return {
        "format": FORMAT,
        "exit_code": report.exit_code,
        "device": report.device,
        "precision": report.precision,
        "processes": report.num_processes,
        "available_bytes": report.available,
        "batch_size": report.config.training.batch_size,
        "window_samples": report.config.segment_samples,
        "kept": _plain(report.fits[False]),
        "checkpointed": _plain(report.fits[True]),
    }


def _plain(found: Fit) -> Mapping[str, Any]:
    return {
        "peak_bytes": found.step.peak,
        "peak_at": found.step.worst.name,
        "moments": [moment._asdict() | {"work": moment.work} for moment in found.step.moments],
        "longest_window_samples": found.longest_samples,
        "largest_batch": found.largest_batch,
    }
