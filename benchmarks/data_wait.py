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
from datetime import date
from pathlib import Path
from typing import Any

from step_time import available_cores, cpu_model
from tabulate import tabulate

from snac_accel.config import load_config, to_dict
from snac_accel.train import main as train_main

LOG_EVERY = 10
SKIPPED = 2  # log lines at the start, while workers and caches warm up


def settings(preset: str, steps: int, workers: int, run: Path) -> dict[str, Any]:
    """A run of the preset that does nothing but steps."""
    overrides = {
        "training": {"num_iterations": steps, "log_interval": LOG_EVERY, "save_interval": 10 * steps},
        "data": {"num_workers": workers},
        "validation": {"enabled": False},
        "codebook": {"initialization": "random"},
        "tracking": {"trackers": [], "progress_bar": False},
        "paths": {"run_dir": str(run)},
    }
    return to_dict(load_config(preset, overrides=overrides))


def measure(preset: str, steps: int, workers: int) -> list[Any]:
    """Return workers, seconds of a step, and the share waited: median, and the worst of the log's lines."""
    with tempfile.TemporaryDirectory() as folder:
        train_main(settings(preset, steps, workers, Path(folder) / "run"))
        lines = (Path(folder) / "run" / "logs" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "time/data_wait" in row][SKIPPED:]
    waits = [row["time/data_wait"] for row in rows]
    seconds = statistics.median(row["time/step_seconds"] for row in rows)
    return [workers, f"{seconds:.3f}", f"{statistics.median(waits):.2%}", f"{max(waits):.2%}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    flags = parser.parse_args(arguments)
    rows = [measure(flags.preset, flags.steps, workers) for workers in flags.workers]
    print(f"machine: {cpu_model()}, {available_cores()} cores; {date.today()}; preset {flags.preset}, {flags.steps} steps\n")
    headers = ["workers", "step (s)", "waits for data, median", "worst of ten steps"]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
