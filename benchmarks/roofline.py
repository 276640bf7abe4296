"""Each part of a step against the least that this machine needs for it: its operations, its bytes, the machine's peaks.

    python benchmarks/roofline.py                                   all presets; some minutes on two cores
    python benchmarks/roofline.py --preset 24khz --batch_size 16 --precision bf16
    python benchmarks/roofline.py --preset demo --rounds 9 --threads 1

Operations and bytes are counted (`snac_accel.costs`), peaks are measured here: the quickest product of large square matrices,
and the quickest a += s b over long arrays. A part needs at least the longer of operations / peak and bytes / bandwidth;
parts run one after the other, so a step needs at least the sum. Peaks and steps are measured in turns. On a GPU, where there
is one, it is waited for before and after each part, which costs a step a little.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from limits import Clock, Machine, Peaks
from measure import Ratio, available_cores, machine, positive, table
from step_time import make_batch

from snac_accel import step as step_module
from snac_accel.config import TrainingConfig, load_config
from snac_accel.costs import FLOAT32_BYTES, Cost, step_cost, total_cost
from snac_accel.launching import create_accelerator, release
from snac_accel.train import setup_models, setup_state, step_settings

BATCH_SIZES = {"24khz": 1, "32khz": 1, "44khz": 1, "demo": 8}  # if none is asked for


class Round(NamedTuple):
    """What was measured in turns."""

    peaks: Peaks
    step: float  # seconds
    parts: dict[str, float]  # seconds


class Subject:
    """The trainer's step with a preset's networks."""

    def __init__(self, config: TrainingConfig, threads: int) -> None:
        self.config, self.precision = config, config.training.mixed_precision or "no"
        self.accelerator = create_accelerator(config)
        torch.set_num_threads(threads)
        self.device = self.accelerator.device
        self.clock = Clock(self.device)
        networks = setup_models(config, self.device)
        self.batch = make_batch(config, config.training.batch_size).to(self.device)
        self.costs = step_cost(
            *networks,
            self.batch.shape,
            loss_weights=config.losses.model_dump(),
            sampling_rate=config.model.sampling_rate,
            product_bytes=FLOAT32_BYTES if self.precision == "no" else 2,
        )
        self.state = setup_state(config, self.accelerator, *networks)
        self.settings = step_settings(config)

    def step(self) -> None:
        """One step."""
        step_module.train_step([self.batch], self.state, self.accelerator, self.settings)

    def rounds(self, number: int) -> list[Round]:
        """Peaks and a step in turns, after two steps that do not count."""
        found, machine = [], Machine(self.clock)
        with self.clock.listening():
            for _ in range(2):
                self.step()
            for _ in range(number):
                peaks = machine.peaks()
                self.clock.parts = {}
                step = self.clock.seconds(self.step)
                found.append(Round(peaks, step, self.clock.parts))
        return found

    def floor(self, peaks: Peaks) -> float:
        """Seconds that a step needs at least."""
        return sum(peaks.floor(part, cost, self.precision) for part, cost in self.costs.items())


def best(rounds: Sequence[Round]) -> Peaks:
    """The highest rate of each kind."""
    return Peaks(*(max(rates) for rates in zip(*(one.peaks for one in rounds), strict=True)))


def rows(subject: Subject, rounds: Sequence[Round]) -> list[list[str]]:
    """A line for each part, one for what lies between the parts, one for the step."""
    peaks, costs = best(rounds), subject.costs
    step = statistics.median(one.step for one in rounds)
    measured = {part: statistics.median(one.parts[part] for one in rounds) for part in rounds[0].parts}
    lines = []
    for part in dict.fromkeys([*costs, *measured]):
        cost = costs.get(part, Cost())
        least = peaks.floor(part, cost, subject.precision)
        limit = "arithmetic" if least == peaks.arithmetic(part, cost, subject.precision) else "memory"
        lines.append(_line(part, cost, least, limit if least else "", measured.get(part)))
    if measured:
        lines.append(_line("all else", Cost(), 0.0, "", max(0.0, step - sum(measured.values()))))
    return [*lines, _line("step", total_cost(costs), subject.floor(peaks), "", step)]


def _line(part: str, cost: Cost, least: float, limit: str, measured: float | None) -> list[str]:
    counted = [
        f"{cost.flops / 1e9:.2f}",
        f"{cost.num_bytes / 1e9:.3f}",
        f"{cost.intensity:.1f}",
        f"{least:.4f}",
    ]
    seconds_of = "" if measured is None else f"{measured:.4f}"
    over = f"{measured / least:.2f}" if measured and least else ""
    return [part, *(counted if cost.flops else [""] * 4), limit, seconds_of, over]


def report(subject: Subject, rounds: Sequence[Round], preset: str) -> str:
    """The table of a preset, under the peaks that it was measured with."""
    config, peaks = subject.config, best(rounds)
    window = config.segment_samples / config.model.sampling_rate
    rate = peaks.no if subject.precision == "no" else peaks.bf16
    headers = [
        "part",
        "GFLOP",
        "GB",
        "FLOP/byte",
        "floor (s)",
        "limited by",
        "measured (s)",
        "measured / floor",
    ]
    flops = total_cost(subject.costs).flops / statistics.median(one.step for one in rounds)
    return (
        f"{preset}: batch {config.training.batch_size} x {window:.3f} s on {subject.device}, mixed precision "
        f"{subject.precision}, {len(rounds)} rounds\n"
        f"peaks: float32 {peaks.no / 1e9:.0f} GFLOP/s, bf16 {peaks.bf16 / 1e9:.0f} GFLOP/s, "
        f"memory {peaks.memory / 1e9:.1f} GB/s\n"
        f"the step: {flops / 1e9:.1f} GFLOP/s, {flops / rate:.0%} of the peak of its precision\n\n"
        f"{table(rows(subject, rounds), headers)}\n"
    )


def measure(flags: argparse.Namespace, preset: str) -> tuple[Subject, list[Round]]:
    """Rounds of one preset."""
    overrides = {
        "training": {
            "batch_size": flags.batch_size or BATCH_SIZES[preset],
            "mixed_precision": flags.precision,
        },
        "tracking": {"trackers": []},
        **({} if flags.seconds is None else {"data": {"segment_length": flags.seconds}}),
    }
    config = load_config(preset, overrides=overrides, environment={})
    subject = Subject(config, flags.threads)
    found = subject.rounds(flags.rounds)
    release(subject.accelerator)  # the next preset's may have another precision
    return subject, found


def short() -> list[Ratio]:
    """A step over its floor, round by round: the published 24 kHz networks and the demo's."""
    found = []
    for preset, rounds in (("24khz", 3), ("demo", 7)):
        subject, measured = measure(parse_flags(["--rounds", str(rounds)]), preset)
        values = tuple(one.step / subject.floor(one.peaks) for one in measured)
        found.append(Ratio(f"roofline: {preset} step over its floor, float32", values, "lower"))
    return found


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=list(BATCH_SIZES),
        default=list(BATCH_SIZES),
        help="which networks (default: all)",
    )
    parser.add_argument("--batch_size", type=positive, help="windows per step (default: 1, demo 8)")
    parser.add_argument("--seconds", type=float, help="length of a window (default: the preset's)")
    parser.add_argument(
        "--precision", choices=("no", "bf16"), default="no", help="mixed precision (default: no, float32)"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="measured steps (default: 5)")
    parser.add_argument(
        "--threads", type=positive, default=available_cores(), help="of torch (default: all cores)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, measure, print."""
    flags = parse_flags(arguments)
    print(machine(flags.threads) + "\n")
    for preset in flags.preset:
        print(report(*measure(flags, preset), preset), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
