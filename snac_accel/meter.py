"""What happened between two log lines, as named scalars."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .codebook import perplexity, share_used
from .config import TrainingConfig
from .costs import step_cost, total_cost
from .peaks import Precision, peak_flops
from .step import StepReport

log = logging.getLogger(__name__)
BY_FAMILY = "discriminator/"  # these names are paths already; everything else is of `train/`


def precise(device: torch.device) -> torch.dtype:
    """float64 for sums of many numbers; float32 on Metal, which has no wider type."""
    return torch.float32 if device.type == "mps" else torch.float64


class Counted(NamedTuple):
    """Operations, over all ranks."""

    step_flops: float = 0.0  # of a step; 0: not counted
    peak_flops: float | None = None  # a second, as the GPUs' maker promises; None: not known


class StepMeter:
    """Adds up step reports; tensors stay on the device until `flush`, so that no step waits for a number."""

    def __init__(self, counted: Counted | None = None) -> None:
        self.counted = counted or Counted()
        self._start()

    def _start(self) -> None:
        self.losses: dict[str, tuple[Tensor, int]] = {}  # sum and number of the steps that computed it
        self.counts: Tensor | None = None  # (levels, K)
        self.restarts: Tensor | None = None  # (levels,)
        self.steps = 0
        self.waited = 0.0  # seconds for data
        self.audio_seconds = 0.0  # over all ranks
        self.started = time.perf_counter()

    def add(self, report: StepReport, *, waited: float, audio_seconds: float) -> None:
        """Take one step: its report, the seconds it waited for data, the seconds of audio it trained on over all ranks."""
        for name, value in [*report.losses.items(), *_norms(report)]:
            total, number = self.losses.get(name, (torch.zeros_like(value), 0))
            self.losses[name] = total + value, number + 1
        self.counts = _plus(self.counts, report.counts)
        self.restarts = _plus(self.restarts, report.restarts)
        self.steps += 1
        self.waited += waited
        self.audio_seconds += audio_seconds

    def sums(self) -> dict[str, Any]:
        """What this rank has added up since the last flush, exactly, for JSON; times are not kept."""
        tensors = {"counts": self.counts, "restarts": self.restarts}
        return {
            "losses": {name: [float(total).hex(), number, str(total.dtype)] for name, (total, number) in self.losses.items()},
            **{name: None if tensor is None else _rows(tensor) for name, tensor in tensors.items()},
        }

    def go_on(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Begin with what `sums` gave before the run was interrupted: the next line of the log is what it would have been."""
        for name, (total, number, dtype) in saved["losses"].items():
            value = torch.tensor(float.fromhex(total), dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
            self.losses[name] = value, number
        for name in ("counts", "restarts"):
            if saved[name] is not None:
                rows = [list(map(int, row.split())) for row in saved[name]]
                setattr(self, name, torch.tensor(rows if name == "counts" else rows[0], device=device))

    def flush(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last flush and start anew; collective."""
        names = list(self.losses)
        means = (
            torch.stack([self.losses[name][0].to(precise(self.losses[name][0].device)) / self.losses[name][1] for name in names])
            if names
            else None
        )
        values = mean_over_ranks(means).tolist() if means is not None else []
        scalars = {_path(name): value for name, value in zip(names, values, strict=True)} | self._codebooks()
        elapsed = time.perf_counter() - self.started
        steps_per_second = self.steps / elapsed
        scalars["time/step_seconds"] = elapsed / max(self.steps, 1)
        scalars["time/data_wait"] = self.waited / elapsed
        scalars["throughput/audio_seconds_per_second"] = self.audio_seconds / elapsed
        self._start()
        return scalars | self._operations(steps_per_second)

    def _operations(self, steps_per_second: float) -> dict[str, float]:
        """Operations per second, and their share of the peak ("model FLOPs utilization"), where they are known."""
        rate = self.counted.step_flops * steps_per_second
        scalars = {"throughput/tflop_per_second": rate / 1e12} if rate else {}
        if rate and self.counted.peak_flops:
            scalars["throughput/mfu"] = rate / self.counted.peak_flops
        return scalars

    def _codebooks(self) -> dict[str, float]:
        if self.counts is None:
            return {}
        columns = {"perplexity": perplexity(self.counts), "share_used": share_used(self.counts)}
        if self.restarts is not None:
            columns["restarts"] = self.restarts
        return {
            f"codebook/level_{level}/{name}": float(value)
            for name, values in columns.items()
            for level, value in enumerate(values.tolist())
        }


def count_step(
    config: TrainingConfig,
    accelerator: Accelerator,
    accumulation: int,
    generator: nn.Module,
    discriminators: Mapping[str, nn.Module],
) -> Counted:
    """What a step of a run with these networks costs, on rank 0, which logs it; the networks not wrapped yet."""
    if not accelerator.is_main_process:
        return Counted()
    shape = (config.training.batch_size, 1, config.segment_samples)
    try:
        parts = step_cost(
            generator,
            discriminators,
            shape,
            loss_weights=config.losses.model_dump(),
            sampling_rate=config.model.sampling_rate,
            accumulation_steps=accumulation,
        )
    except RuntimeError as error:  # a network of somebody's own that needs to see its numbers
        log.warning("FLOP/s are not logged: %s", " ".join(str(error).split())[:200])
        return Counted()
    peak = peak_of(accelerator, config)
    ranks = accelerator.num_processes
    return Counted(total_cost(parts).flops * ranks, None if peak is None else peak * ranks)


def peak_of(accelerator: Accelerator, config: TrainingConfig) -> float | None:
    """What the maker of this rank's GPU promises in the run's precision, operations per second; None if it is not known."""
    if accelerator.device.type != "cuda":
        return None
    # Nearly all operations of a float32 run are convolutions.
    precision: Precision = "tf32" if config.training.tf32_convolutions else "fp32"
    if accelerator.mixed_precision in ("bf16", "fp16"):
        precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp16"
    return peak_flops(torch.cuda.get_device_name(accelerator.device), precision)


def _norms(report: StepReport) -> list[tuple[str, Tensor]]:
    return [(f"grad_norm/{name}", value) for name, value in report.grad_norms.items()]


def _plus(total: Tensor | None, value: Tensor | None) -> Tensor | None:
    return value if total is None else total if value is None else total + value


def _rows(tensor: Tensor) -> list[str]:
    """Whole numbers, a line of text for each row: JSON would give each number one of its own."""
    return [" ".join(map(str, row)) for row in tensor.reshape(-1, tensor.shape[-1]).tolist()]


def _path(name: str) -> str:
    return name if name.startswith(BY_FAMILY) else f"train/{name}"
