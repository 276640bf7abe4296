"""What a run says at its beginning, and the table that it ends with: held-out numbers at step 0 and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tabulate import tabulate
from torch import nn

from .config import TrainingConfig
from .run_folder import RunFolder

ROWS = {
    "validation/mel_distance": "log-mel distance (7 scales)",
    "validation/stft_distance": "STFT distance",
    "validation/si_sdr_db": "SI-SDR (dB)",
}

PRECISIONS = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}


def results_table(first: Mapping[str, float], last: Mapping[str, float], information: Sequence[float]) -> str:
    """Held-out metrics and perplexities `first` and `last`, rows of the log, and what each level carries, as lines of text.

    `information` is `evaluate.level_information`: growth of the log-mel distance when a level's codes are shuffled in time.
    """
    rows = [[label, *_pair(first, last, name), _ratio(first, last, name)] for name, label in ROWS.items()]
    for level, growth in enumerate(information):
        rows.append(
            [f"perplexity, level {level}", *_pair(first, last, f"validation/level_{level}/perplexity"), ""]
        )
        rows.append(["└ log-mel distance with its codes shuffled", "", f"{growth:+.1%}", ""])
    headers = ["held-out", *(f"step {row['step']:g}" for row in (first, last)), "ratio"]
    return tabulate(
        rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right", "right")
    )


def _pair(first: Mapping[str, float], last: Mapping[str, float], name: str) -> list[str]:
    return [f"{row[name]:.2f}" if name in row else "" for row in (first, last)]


def _ratio(first: Mapping[str, float], last: Mapping[str, float], name: str) -> str:
    """Of two distances, which end at 0; a ratio of decibels means nothing."""
    meaningful = "distance" in name and first.get(name)
    return f"{last[name] / first[name]:.2f}" if meaningful and name in last else ""


class Processes(NamedTuple):
    """How the work of a step is spread, and what it is computed on and in."""

    number: int
    accumulation: int  # micro-batches
    device: str
    precision: str  # a key of `PRECISIONS`

    def batch(self, batch_size: int) -> str:
        """The windows of a step, and how they come about."""
        total = batch_size * self.number * self.accumulation
        processes = "1 process" if self.number == 1 else f"{self.number} processes"
        micro_batches = "1 micro-batch" if self.accumulation == 1 else f"{self.accumulation} micro-batches"
        return f"{total} windows (batch {batch_size} x {processes} x {micro_batches})"


def introduction(
    config: TrainingConfig,
    generator: nn.Module,
    discriminators: Mapping[str, nn.Module],
    folder: RunFolder,
    processes: Processes,
) -> str:
    """A few lines about what is about to be trained, and on what."""
    facts = config.model.facts
    rates = "/".join(f"{rate:.3g}" for rate in facts.token_rates)
    sizes = ", ".join(f"{name} {millions(module)}" for name, module in discriminators.items()) or "none"
    seconds = config.segment_samples / config.model.sampling_rate
    lines = [
        f"run: {folder.root}" + (f" (continues {folder.resume_from.name})" if folder.resume_from else ""),
        f"generator: {millions(generator)} parameters, {config.model.sampling_rate} Hz, tokens at {rates} Hz, "
        f"{facts.bitrate / 1000:.3g} kbit/s; discriminators: {sizes}",
        f"step: {processes.batch(config.training.batch_size)} of {seconds:.3g} s; "
        f"{config.training.num_iterations} steps",
        f"processes: {processes.number}, on {processes.device}, {PRECISIONS[processes.precision]}",
    ]
    return "\n".join(lines + ([config.segment_note] if config.segment_note else []))


def millions(module: nn.Module) -> str:
    """Number of parameters, as '19.84 M'."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"
