"""What happens to the time of a step when there is more of something: linear where it should be, flat where it should be flat.

    python benchmarks/growth.py                              all four tables for the demo's networks; some minutes on two cores
    python benchmarks/growth.py --tables batch window --preset 24khz --sizes 1 2 4 --rounds 3
    python benchmarks/growth.py --tables rows --rows 100 1000000

- batch, window: the trainer's step on more, or longer, windows. A step is a fixed cost and so much for each; a line is laid
  through the ends of the table, and how far the other rows are off it is printed.
- rows: whole runs of the trainer on manifests of more and more rows (which name the demo's files again and again), data
  made between the steps; what its log says of a step. Nothing in the loop may depend on the number of rows.
- processes: one process of one thread, and several that share each step by gloo, with as many windows each.

Everything is measured in turns, so that whatever else the machine does hits all rows of a table alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from manifest_runs import logged_seconds, run_of, write_manifest
from measure import Ratio, alternate, available_cores, machine, positive, ratio, seconds, table
from ranks import Rank, Ranks
from step_time import make_batch

from snac_accel.config import TrainingConfig, load_config
from snac_accel.launching import release
from snac_accel.step import train_step
from snac_accel.train import setup_dataset

TABLES = ("batch", "window", "rows", "processes")
Times = dict[int, list[float]]  # row of a table -> seconds, one for each round


def config_of(preset: str, **sections: Any) -> TrainingConfig:
    """The preset without trackers."""
    return load_config(preset, overrides={"tracking": {"trackers": []}, **sections}, environment={})


def in_turns(ways: Mapping[int, Callable[[], float]], rounds: int, warm_up: int = 1) -> Times:
    """Let every way give its seconds in turns."""
    by_name = {str(row): way for row, way in ways.items()}
    found = alternate(by_name, rounds, warm_up=warm_up, measured_by=lambda way: way())
    return {row: found[str(row)] for row in ways}


def of_batches(config: TrainingConfig, batches: Mapping[int, torch.Tensor], rounds: int) -> Times:
    """Seconds of the trainer's step on each of the batches."""
    threads = torch.get_num_threads()
    worker = Rank(config, 1)
    torch.set_num_threads(threads)  # the trainer takes all cores
    device = worker.accelerator.device

    def way(batch: torch.Tensor) -> Callable[[], None]:
        batch = batch.to(device)

        def step() -> None:
            train_step([batch], worker.state, worker.accelerator, worker.settings)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return step

    try:
        return in_turns({size: partial(seconds, way(batch)) for size, batch in batches.items()}, rounds)
    finally:
        release(worker.accelerator)


def by_batch(preset: str, sizes: Sequence[int], rounds: int) -> Times:
    """Windows per step -> seconds."""
    config = config_of(preset)
    return of_batches(config, {size: make_batch(config, size) for size in sizes}, rounds)


def by_window(preset: str, factors: Sequence[int], batch_size: int, rounds: int) -> Times:
    """Multiples of half of the preset's window -> seconds."""
    config = config_of(preset)
    batch = make_batch(config, batch_size)
    samples = config.segment_samples // 2
    longest = batch.repeat(1, 1, -(-max(factors) // 2))
    return of_batches(config, {factor: longest[..., : factor * samples] for factor in factors}, rounds)


def by_rows(counts: Sequence[int], rounds: int) -> tuple[Times, dict[int, float]]:
    """Rows of a manifest -> seconds of a step, and -> seconds to open it."""
    with tempfile.TemporaryDirectory() as folder:
        manifests = {count: write_manifest(Path(folder) / f"{count}.csv", count) for count in counts}
        runs = {count: run_of(manifest, Path(folder) / "run") for count, manifest in manifests.items()}
        opening = {count: seconds(partial(setup_dataset, run)) for count, run in runs.items()}
        ways = {count: partial(logged_seconds, manifest) for count, manifest in manifests.items()}
        times = in_turns(ways, rounds, warm_up=0)
        return times, opening


def by_processes(preset: str, counts: Sequence[int], batch_size: int, rounds: int) -> Times:
    """Processes of one thread with `batch_size` windows each -> seconds."""
    config = config_of(preset)
    with ExitStack() as stack:
        ways = {}
        for count in counts:
            ranks = Ranks(count, threads=1, config=config, global_batch=count * batch_size)
            ways[count] = partial(stack.enter_context(ranks).seconds, "step")
        return in_turns(ways, rounds, warm_up=3)


def medians(times: Times) -> dict[int, float]:
    """The middle of each row."""
    return {row: statistics.median(values) for row, values in times.items()}


def linear_table(times: Times, name: str, unit: float = 1.0) -> str:
    """Rows with the time of each unit, over that of the last row, and the distance from the line through the ends."""
    found = medians(times)
    first, last = min(found), max(found)
    slope = (found[last] - found[first]) / max(last - first, 1)
    fixed = found[last] - slope * last
    rows = [
        [
            f"{size * unit:g}",
            f"{value:.4f}",
            f"{value / size:.4f}",
            f"{value / size / (found[last] / last):.2f}",
        ]
        + [f"{value / (fixed + slope * size) - 1:+.0%}"]
        for size, value in found.items()
    ]
    headers = [name, "step (s)", "per unit (s)", "over the last", "off the line"]
    return f"{table(rows, headers)}\n\nfixed {fixed:.4f} s, {slope:.4f} s for each unit\n"


def flat_table(times: Times, name: str, more: dict[int, float] | None = None, heading: str = "") -> str:
    """Rows with their time over that of the first, median of the rounds' ratios."""
    first = min(times)
    rows = []
    for row, value in medians(times).items():
        over = statistics.median(ratio("", times[row], times[first], better="lower").values)
        rows.append([f"{row:,}", f"{value:.4f}", f"{over:.2f}", *([f"{more[row]:.2f}"] if more else [])])
    return table(rows, [name, "step (s)", "over the first", *([heading] if more else [])]) + "\n"


def short() -> list[Ratio]:
    """The ends of each table, as times of one unit."""

    def per_unit(name: str, times: Times, target: float) -> Ratio:
        low, high = min(times), max(times)
        each = {size: [value / size for value in times[size]] for size in (low, high)}
        return ratio(name, each[high], each[low], better="lower", target=target)

    found = [
        per_unit("growth: time of a window, batch 8 over 4", by_batch("demo", [4, 8], 5), 1.1),
        per_unit("growth: time of a second, windows of 1 s over 0.5 s", by_window("demo", [2, 4], 4, 5), 1.1),
    ]
    rows, _ = by_rows([100, 10_000], 3)
    found.append(
        ratio("growth: step, 10,000 rows over 100", rows[10_000], rows[100], better="lower", target=1.1)
    )
    if available_cores() > 1:
        times = by_processes("demo", [1, 2], 4, 5)
        found.append(
            ratio(
                "growth: step, 2 processes over 1, as many windows each", times[2], times[1], better="lower"
            )
        )
    return found


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=f"{help} (default: %(default)s)", **options)

    processes = [count for count in (1, 2, 4, 8) if count <= available_cores()]
    add("tables", "what to measure", nargs="+", choices=TABLES, default=TABLES)
    add("preset", "networks of batch, window and processes", default="demo")
    add("sizes", "windows per step", nargs="+", type=positive, default=[1, 2, 4, 8, 16, 32])
    add(
        "halves",
        "lengths of windows, in halves of the preset's",
        nargs="+",
        type=positive,
        default=[1, 2, 4, 8],
    )
    add("rows", "of the manifests", nargs="+", type=positive, default=[10**power for power in range(2, 7)])
    add("processes", "of one thread each", nargs="+", type=positive, default=processes)
    add("batch_size", "windows of each process, for window and processes", type=positive, default=4)
    add("rounds", "measured rounds", type=positive, default=7)
    add("threads", "of torch, for batch and window", type=positive, default=available_cores())
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    flags = parse_flags(arguments)
    torch.set_num_threads(flags.threads)
    print(f"{machine(flags.threads)}\npreset {flags.preset}, float32, {flags.rounds} rounds\n", flush=True)
    if "batch" in flags.tables:
        print(linear_table(by_batch(flags.preset, flags.sizes, flags.rounds), "windows per step"), flush=True)
    if "window" in flags.tables:
        config = config_of(flags.preset)
        half = config.segment_samples / config.model.sampling_rate / 2
        times = by_window(flags.preset, flags.halves, flags.batch_size, flags.rounds)
        print(linear_table(times, f"seconds of each of {flags.batch_size} windows", half), flush=True)
    if "rows" in flags.tables:
        times, opening = by_rows(flags.rows, flags.rounds)
        print(flat_table(times, "rows of the manifest", opening, "to open them (s)"), flush=True)
    if "processes" in flags.tables:
        times = by_processes(flags.preset, flags.processes, flags.batch_size, flags.rounds)
        print(flat_table(times, f"processes with {flags.batch_size} windows each"), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
