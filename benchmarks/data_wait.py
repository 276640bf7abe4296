"""The share of a step that the trainer waits for data: `time/data_wait` of its own log, with 0, 1 and 2 workers.

python benchmarks/data_wait.py                             the demo, 80 steps for each number of workers
python benchmarks/data_wait.py --preset demo --steps 200 --workers 1 4

With 0 workers the windows are made between the steps, so the share is what they cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import Ratio, machine, table

from snac_accel.config import load_config, to_dict
from snac_accel.train import main as train_main

LOG_EVERY = 10
SKIPPED = 2  # log lines at the start, while workers and caches warm up
SHORT_STEPS = 45  # seven lines are left
PROMISED = 1 / (1 - 0.02)  # at most 2 % of a step are spent waiting


def settings(preset: str, steps: int, workers: int | None, log_every: int, run: Path) -> dict[str, Any]:
    """A run of the preset that does nothing but steps."""
    overrides = {
        "training": {"num_iterations": steps, "log_interval": log_every, "save_interval": 10 * steps},
        "data": {} if workers is None else {"num_workers": workers},
        "validation": {"enabled": False},
        "codebook": {"initialization": "random"},
        "tracking": {"trackers": [], "progress_bar": False},
        "paths": {"run_dir": str(run)},
    }
    return to_dict(load_config(preset, overrides=overrides))


def log_lines(preset: str, steps: int, workers: int | None, log_every: int) -> list[dict[str, float]]:
    """The lines of the log of such a run; workers None: as many as the preset has."""
    with tempfile.TemporaryDirectory() as folder:
        if status := train_main(settings(preset, steps, workers, log_every, Path(folder) / "run")):
            raise SystemExit(status)  # stopped by a signal: what is there is not what was asked for
        lines = (Path(folder) / "run" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "time/data_wait" in row][SKIPPED:]


def measure(preset: str, steps: int, workers: int) -> list[Any]:
    """Return workers, seconds of a step, and the share waited: median, and the worst of the log's lines."""
    rows = log_lines(preset, steps, workers, LOG_EVERY)
    waits = [row["time/data_wait"] for row in rows]
    seconds = statistics.median(row["time/step_seconds"] for row in rows)
    return [workers, f"{seconds:.3f}", f"{statistics.median(waits):.2%}", f"{max(waits):.2%}"]


def short() -> list[Ratio]:
    """A step of the demo over the same step without its wait for data, with as many workers as the preset has."""
    lines = log_lines("demo", SHORT_STEPS, None, log_every=5)
    values = tuple(1 / (1 - row["time/data_wait"]) for row in lines)
    return [Ratio("step / step without its wait for data, demo", values, "lower", PROMISED)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    flags = parser.parse_args(arguments)
    rows = [measure(flags.preset, flags.steps, workers) for workers in flags.workers]
    print(f"{machine()}; preset {flags.preset}, {flags.steps} steps\n")
    print(table(rows, ["workers", "step (s)", "waits for data, median", "worst of ten steps"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
