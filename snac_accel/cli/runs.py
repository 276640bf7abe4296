"""`snac-accel runs` and `snac-accel watch`."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

from ..clock import BUCKETS
from ..heartbeat import Beat
from ..runs import BAD, RUNNING, Run, find_runs, look_at
from .flags import ConfigParser

EXIT_OK, EXIT_STALE = 0, 1
HEADERS = ["run", "state", "step", "best log-mel", "at step", "goodput"]


def runs_parser() -> ConfigParser:
    """The flags of `runs`."""
    parser = ConfigParser(prog="snac-accel runs", description="List runs: state, step, best validation, goodput.")
    parser.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="folder that holds them (default: runs)")
    return parser


def watch_parser() -> ConfigParser:
    """The flags of `watch`."""
    parser = ConfigParser(
        prog="snac-accel watch",
        description="Show where a run is. Exit code 1: it is neither complete nor was it stopped, but nobody works on it.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    stale = "seconds without a sign of life, or without getting on, after which a rank is stale "
    stale += "(default: three heartbeats, and the run's distributed.timeout_seconds)"
    parser.add_argument("--stale_seconds", metavar="S", type=_seconds, help=stale)
    parser.add_argument("--every", metavar="S", type=_seconds, help="look again every S seconds as long as it runs")
    return parser


def runs(arguments: Sequence[str]) -> int:
    """List runs: state, step, best validation, goodput."""
    flags = runs_parser().parse_known(arguments)
    print(_table([HEADERS, *map(_row, find_runs(Path(flags.folder)))]))
    return EXIT_OK


def watch(arguments: Sequence[str]) -> int:
    """Show where a run is; exit code 1 if nobody works on it, though somebody should."""
    flags = watch_parser().parse_known(arguments)
    while True:
        run = look_at(Path(flags.run), stale_seconds=flags.stale_seconds)
        print(_report(run), flush=True)
        if flags.every is None or run.state != RUNNING:
            return EXIT_STALE if run.state in BAD else EXIT_OK
        time.sleep(flags.every)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: should be a number of seconds above 0")
    return value


def _row(run: Run) -> list[str]:
    best = ["", ""] if run.best is None else [f"{run.best:.4g}", f"{run.best_step}"]
    goodput = "" if run.goodput is None else f"{run.goodput:.1%}"
    return [run.folder.name, run.state, f"{run.step}/{run.num_steps}", *best, goodput]


def _report(run: Run) -> str:
    """State, ranks and time of one run."""
    now = time.time()
    lines = [f"{run.folder}: {run.state}{f', {run.reason}' if run.reason else ''}; step {run.step} of {run.num_steps}"]
    lines.append(_table([["rank", "host", "pid", "step", "phase", "for", "seen"], *(_rank(beat, now) for beat in run.beats)]))
    if run.account is not None:
        wall, seconds = max(run.account["wall_seconds"], 1e-9), run.account["seconds"]
        parts = [f"{name} {seconds[name] / wall:.1%}" for name in BUCKETS if seconds[name] >= 0.0005 * wall]
        lines.append(f"goodput {run.goodput:.1%} of {_duration(wall)}: {', '.join(parts)}")
    return "\n".join(lines)


def _rank(beat: Beat, now: float) -> list[str]:
    seen = f"{_duration(max(now - beat.unix_time, 0.0))} ago"
    phase = re.split(r":| in ", beat.outcome)[0] if beat.outcome else beat.phase
    return [str(beat.rank), beat.host, str(beat.pid), str(beat.step), phase, _duration(beat.stuck_seconds), seen]


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
