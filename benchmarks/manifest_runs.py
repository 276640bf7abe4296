"""Whole runs of the trainer on manifests of any number of rows, for `growth.py`: seconds of a step, from the run's own log."""

from __future__ import annotations

import csv
import io
import json
import statistics
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from snac_accel.config import load_config, to_dict
from snac_accel.presets import DATASET_CONFIGS
from snac_accel.train import main as train_main

LOG_EVERY = 4  # steps
LINES_SKIPPED, LINES = 1, 3  # lines of a run's log that do not count, and that do


def write_manifest(path: Path, count: int) -> Path:
    """A manifest of `count` rows that name the demo's recordings in turns."""
    recordings = sorted((Path(DATASET_CONFIGS["demo"]["dataset_path"]) / "train").glob("*.ogg"))
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["audio", "number"])
        rows.writerows([recordings[number % len(recordings)], number] for number in range(count))
    return path


def run_of(manifest: Path, run: Path) -> dict[str, Any]:
    """A run of the demo's networks on a manifest that does nothing but steps on two short windows."""
    steps = LOG_EVERY * (LINES_SKIPPED + LINES)
    training = {
        "num_iterations": steps,
        "log_interval": LOG_EVERY,
        "save_interval": 10 * steps,
        "batch_size": 2,
    }
    overrides = {
        "training": training,
        "data": {"dataset_path": str(manifest), "num_workers": 0, "segment_length": 0.256},
        "validation": {"enabled": False},
        "codebook": {"initialization": "random", "hold_steps": 0},
        "tracking": {"trackers": [], "progress_bar": False},
        "paths": {"run_dir": str(run)},
    }
    return to_dict(load_config("demo", overrides=overrides, environment={}))


def logged_seconds(manifest: Path) -> float:
    """Seconds of a step as a run's log has them: the median of its lines."""
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):  # what a run says
            train_main(run_of(manifest, Path(folder) / "run"))
        lines = (Path(folder) / "run" / "logs" / "metrics.jsonl").read_text().splitlines()
    found = [line["time/step_seconds"] for line in map(json.loads, lines) if "time/step_seconds" in line]
    return statistics.median(found[LINES_SKIPPED:])
