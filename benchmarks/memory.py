"""The memory of a training step: ours, ours with activation checkpointing, the plain one; and what the doctor expects.

    python benchmarks/memory.py                              the published 24 kHz model, batch 8
    python benchmarks/memory.py --model tiny --batch-size 4  the demo's model: seconds

Each way runs in a process of its own. The second of three steps is counted: every allocation of torch is added up as it comes and
goes (`torch.profiler`), over what is there at its beginning: weights, moments, gradients. On a GPU it is
`torch.cuda.max_memory_allocated`. "resident" is the most that the system gave the process, with everything in it. The third
step is timed. The doctor's estimate (`snac-accel doctor --memory`) is counted without memory, on fake tensors.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import Ratio, alternate, available_cores, machine, positive, ratio, seconds, table
from plain_step import PlainSNAC
from step_time import PRESETS, Models, default_adamw, make_batch, our_step, their_step
from torch import Tensor
from torch.optim import Optimizer

from snac_accel.activations import checkpoint_activations
from snac_accel.config import TrainingConfig, load_config, to_dict
from snac_accel.doctor.memory import FakeStep
from snac_accel.train import setup_models, setup_optimizers, step_settings

OURS = {False: "ours", True: "ours, checkpointing"}  # activation checkpointing or not
WAYS = ("plain", *OURS.values())
TOLERANCE = 0.15  # of the estimate
Step = Callable[[], None]


class Measured(NamedTuple):
    """What one way needed."""

    peak: int  # bytes of tensors
    resident: int  # bytes of the process
    seconds: float  # of a step


class Way(NamedTuple):
    """A step, and what it works on."""

    step: Step
    models: Models
    optimizers: dict[str, Optimizer]

    def standing(self) -> int:
        """Bytes of weights, buffers, gradients and moments that there are now."""
        tensors: list[Tensor] = []
        for module in self.models.networks().values():
            tensors += [*module.parameters(), *module.buffers()]
            tensors += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        for optimizer in self.optimizers.values():
            tensors += [
                value
                for entry in optimizer.state.values()
                for value in entry.values()
                if isinstance(value, Tensor)
            ]
        return sum(tensor.nbytes for tensor in tensors)


def make_way(name: str, config: TrainingConfig, batch: Tensor) -> Way:
    """One of `WAYS` on fresh models."""
    settings = step_settings(config)
    generator, discriminators = setup_models(config, batch.device)
    models = Models(generator, discriminators)
    if name == "plain":
        plain = PlainSNAC(**to_dict(config)["model"]).to(batch.device)
        models = Models(plain, discriminators)
        optimizers = default_adamw(models, config)
        return Way(their_step(models, optimizers, batch, settings), models, optimizers)
    if name == OURS[True]:
        checkpoint_activations(generator)
    optimizers = setup_optimizers(*models, config)[0]
    return Way(our_step(models, optimizers, batch, settings), models, optimizers)


def measure_way(name: str, config: TrainingConfig, batch_size: int) -> Measured:
    """Three steps in this process: the first makes the moments, the second is counted, the third timed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    way = make_way(name, config, make_batch(config, batch_size).to(device))
    way.step()
    peak = peak_of_step(way)
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    return Measured(peak, resident, seconds(way.step))


def peak_of_step(way: Way) -> int:
    """The most bytes of tensors that are there at once during a step."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        way.step()
        return torch.cuda.max_memory_allocated()
    return way.standing() + allocated_peak(way.step)


def allocated_peak(work: Step) -> int:
    """The most bytes that torch's allocator had given out during `work`, over what it had before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        work()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def expected(config: TrainingConfig, batch_size: int, checkpointing: bool) -> float:
    """What the doctor expects of our step, in bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        FakeStep(config, checkpointing=checkpointing, device=device)
        .run(batch_size, config.segment_samples)
        .peak
    )


def in_own_process(name: str, flags: argparse.Namespace) -> Measured:
    """`measure_way`, where nothing else has ever been."""
    command = [sys.executable, str(Path(__file__)), "--way", name, "--model", flags.model]
    command += ["--batch-size", str(flags.batch_size), "--threads", str(flags.threads)]
    command += [] if flags.seconds is None else ["--seconds", str(flags.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def report(found: dict[str, Measured], estimates: dict[str, float]) -> str:
    """A row for each way."""
    plain = found["plain"]
    rows = [
        [
            name,
            gib(one.peak),
            f"{one.peak / plain.peak:.3f}",
            gib(one.resident),
            f"{one.seconds:.2f}",
            gib(estimates[name]) if name in estimates else "",
            f"{estimates[name] / one.peak:.3f}" if name in estimates else "",
        ]
        for name, one in found.items()
    ]
    headers = [
        "step",
        "peak of tensors",
        "of plain",
        "resident",
        "seconds",
        "the doctor's estimate",
        "of the peak",
    ]
    return table(rows, headers)


def gib(size: float) -> str:
    """Bytes in GiB, small ones in MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def short() -> list[Ratio]:
    """The demo's model: the bytes and the time of checkpointing, ours against the plain step, the estimate's error."""
    config = small_config("tiny", None)
    batch = make_batch(config, 4)
    ways = {name: make_way(name, config, batch) for name in WAYS}
    for way in ways.values():
        way.step()
    peak = {name: float(peak_of_step(way)) for name, way in ways.items()}
    off = [expected(config, 4, on) / peak[name] for on, name in OURS.items()]
    steps = {name: ways[name].step for name in OURS.values()}
    times = alternate(steps, rounds=7)
    return [
        Ratio("memory, ours of plain, tiny", (peak["ours"] / peak["plain"],), "lower", 1.0),
        Ratio("memory, checkpointing of not, tiny", (peak[OURS[True]] / peak["ours"],), "lower", 1.0),
        Ratio("memory, estimate off by, tiny", tuple(max(x, 1 / x) for x in off), "lower", 1 + TOLERANCE),
        ratio("time, checkpointing of not, tiny", times[OURS[True]], times["ours"], better="lower"),
    ]


def small_config(model: str, window_seconds: float | None) -> TrainingConfig:
    """The preset of a model, with another window if one is asked for."""
    overrides: dict[str, Any] = {} if window_seconds is None else {"data": {"segment_length": window_seconds}}
    return load_config(PRESETS[model], overrides=overrides, environment={})


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", choices=list(PRESETS), default="24khz", help="which models (default: 24khz)"
    )
    parser.add_argument("--batch-size", type=positive, default=8, help="windows per step (default: 8)")
    parser.add_argument("--seconds", type=float, help="length of a window (default: the preset's)")
    parser.add_argument(
        "--threads", type=positive, default=available_cores(), help="of torch (default: all cores)"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if ours needs more than plain, or if an estimate is off by more than 15 %."""
    flags = parse_flags(arguments)
    torch.set_num_threads(flags.threads)
    config = small_config(flags.model, flags.seconds)
    if flags.way:
        print(json.dumps(measure_way(flags.way, config, flags.batch_size)._asdict()))
        return 0
    window = config.segment_samples / config.model.sampling_rate
    print(f"model {flags.model}, batch {flags.batch_size} x {window:.3f} s, float32")
    print(machine(flags.threads), end="\n\n")
    found = {name: in_own_process(name, flags) for name in WAYS}
    estimates = {name: expected(config, flags.batch_size, on) for on, name in OURS.items()}
    print(report(found, estimates))
    good = all(abs(estimates[name] / found[name].peak - 1) <= TOLERANCE for name in estimates)
    return int(not (good and found["ours"].peak < found["plain"].peak))


if __name__ == "__main__":
    raise SystemExit(main())
