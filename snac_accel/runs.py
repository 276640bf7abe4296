"""What the files of a run say about it: where it is, whether it lives, how its time was spent; loads no torch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .clock import GOODPUT_FILE, read_account
from .errors import ConfigError
from .heartbeat import FOLDER, Beat, read_beats

CONFIG_FILE, LOG_FILE = "config.json", "metrics.jsonl"
BEST_METRIC = "validation/mel_distance"  # the smaller the better
# States of a run. Those of `BAD` mean that nobody works on it though somebody should.
RUNNING, COMPLETE, STOPPED, FAILED, STALE, DEAD, UNKNOWN = (
    "running", "complete", "stopped", "failed", "stale", "dead", "not started",
)  # fmt: skip
BAD = (FAILED, STALE, DEAD, UNKNOWN)
LARGEST_CONFIG = 1 << 20  # bytes


class Run(NamedTuple):
    """A run, as its files show it."""

    folder: Path
    state: str
    reason: str  # why it is in that state; "" where there is nothing to say
    step: int
    num_steps: int
    best: float | None  # of `BEST_METRIC`
    best_step: int | None
    goodput: float | None  # 0 to 1
    beats: list[Beat]
    account: dict[str, Any] | None  # of its time


def find_runs(folder: Path) -> list[Run]:
    """All runs right below a folder, by name; links to them are passed over."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: give one that holds runs, such as runs")
    return [look_at(path) for path in sorted(folder.iterdir()) if not path.is_symlink() and (path / CONFIG_FILE).is_file()]


def look_at(folder: Path, now: float | None = None, stale_seconds: float | None = None) -> Run:
    """What is known of the run in a folder; ConfigError if none is there. `stale_seconds`: see `state_of`."""
    config = _config(folder)
    logs = Path(_setting(config, "paths", "log_dir") or folder / "logs")
    if not logs.is_absolute() and not logs.is_dir() and (folder / "logs").is_dir():
        logs = folder / "logs"
    beats = read_beats(logs / FOLDER)
    state, reason = state_of(beats, time.time() if now is None else now, stale_seconds)
    step, best, best_step = _progress(logs / LOG_FILE)
    account = read_account(logs / GOODPUT_FILE)
    return Run(
        folder,
        state,
        reason,
        max([step, *(beat.step for beat in beats)]),
        int(_setting(config, "training", "num_iterations") or 0),
        best,
        best_step,
        None if account is None else account["goodput"],
        beats,
        account,
    )


def state_of(beats: list[Beat], now: float, stale_seconds: float | None = None) -> tuple[str, str]:
    """State and reason, from the last signs of life of all ranks.

    A rank is stale if it has been silent for `stale_seconds` (None: three beats), or has not got on for that long (None:
    distributed.timeout_seconds).
    """
    if not beats:
        return UNKNOWN, "no rank has given a sign of life yet"
    world = beats[0].world_size
    beats = [beat for beat in beats if beat.world_size == world]
    running = [beat for beat in beats if not beat.outcome]
    for beat in running:
        if beat.silent_seconds(now) > 2 * beat.beat_seconds and beat.is_gone:  # seen from a container its pid means nothing
            return DEAD, f"{beat.name} is gone, last {beat.at}"
    for beat in running:
        if beat.is_silent(now, stale_seconds):
            return STALE, f"{beat.name} has been silent for {beat.silent_seconds(now):.0f} s, last {beat.at}"
        stuck = max(beat.silent_seconds(now), 0.0) + beat.stuck_seconds
        if stuck > (beat.limit_seconds if stale_seconds is None else stale_seconds):
            return STALE, f"{beat.name} has not got on for {stuck:.0f} s, {beat.at}"
    if running and len(beats) < world:
        return RUNNING, f"{world - len(beats)} of {world} ranks have given no sign of life yet"
    if running:
        return RUNNING, ""
    bad = next((beat for beat in beats if beat.outcome not in (COMPLETE,) and not beat.outcome.startswith(STOPPED)), None)
    if bad is not None:
        return FAILED, f"{bad.name}: {bad.outcome.removeprefix('failed: ')}"
    state, _, reason = beats[0].outcome.partition(": ")
    return state, reason


def _config(folder: Path) -> dict[str, Any]:
    try:
        with open(folder / CONFIG_FILE, encoding="utf-8") as lines:
            config = json.loads(lines.read(LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder} holds no run: its {CONFIG_FILE} is missing or cannot be read") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder} holds no run: its {CONFIG_FILE} is no configuration")
    return config


def _setting(config: dict[str, Any], section: str, name: str) -> Any:
    values = config.get(section)
    return values.get(name) if isinstance(values, dict) else None


def _progress(log: Path) -> tuple[int, float | None, int | None]:
    """The last step in a log, the best validation and its step."""
    step, best, best_step = 0, None, None
    for row in _rows(log):
        step = row.get("step", step)
        value = row.get(BEST_METRIC)
        if isinstance(value, float) and math.isfinite(value) and (best is None or value < best):
            best, best_step = value, step
    return step, best, best_step


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log that can be read: of those with a validation all, else the last."""
    last = None
    with suppress(OSError), open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            last = line
            if BEST_METRIC in line and (row := _row(line)) is not None:
                yield row
    if last is not None and (row := _row(last)) is not None:
        yield row


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # cut short by a crash
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
