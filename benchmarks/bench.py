"""All benchmarks in short, as one table of ratios against the stored ones: what `make bench` runs.

    python benchmarks/bench.py                                  all of them
    python benchmarks/bench.py --only data_wait step_time       some scripts
    python benchmarks/bench.py --store                          keep the ratios in results/reference.json

Each script's `short()` runs in a process of its own. The exit code is 1 if a ratio is worse than the stored one by more
than the noise, or if a script fails. How to read the table: docs/speed/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from comparison import (
    FAILED,
    NOT_MEASURED,
    Record,
    Row,
    compare,
    differences,
    record_from_json,
    record_to_json,
    report,
)
from measure import NotMeasured, available_cores, from_json, machine, read_json, to_json, versions, write_json

SCRIPTS = (
    "step_time", "start_time", "memory", "compile_time", "roofline", "growth",
    "data_throughput", "data_wait", "data_memory", "scaling",
)  # fmt: skip
REFERENCE = Path(__file__).parent / "results" / "reference.json"
LONGEST_SECONDS = 600.0  # of one script, which is then ended
USUAL_SECONDS = 40.0  # for the forecast, where nothing is stored
SHOWN_LINES = 20  # of what a script that failed has printed


class Outcome(NamedTuple):
    """What one script gave: a record, or the reason why there is none."""

    script: str
    record: Record | None
    kind: str = ""  # FAILED, NOT_MEASURED
    reason: str = ""

    def rows(self, stored: Record | None) -> list[Row]:
        """Its rows of the table."""
        if self.record is None:
            return [Row(self.script, f"{self.kind}: {self.reason}")]
        return compare(self.record.ratios, stored.ratios if stored else [])


# --- one script, in its own process


def run_short(script: str, answer: Path) -> int:
    """Write what a script's `short` gives; called in the new process."""
    try:
        write_json(answer, {"ratios": to_json(importlib.import_module(script).short())})
    except NotMeasured as error:
        write_json(answer, {"not_measured": str(error)})
    return 0


def outcome(script: str) -> Outcome:
    """Run a script's `short` in a process of its own, with as many threads as there are cores."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        status = _run([sys.executable, __file__, "--run", script, str(answer)], log)
        seconds = time.perf_counter() - started
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if status != 0 or not answer.exists():
            say("\n".join(f"    {line}" for line in lines[-SHOWN_LINES:]))
            reason = f"took more than {LONGEST_SECONDS:g} s" if status is None else _reason(lines, status)
            return Outcome(script, None, FAILED, reason)
        for line in lines:
            if line.startswith(NOT_MEASURED):
                say(f"    {line}")
        found = read_json(answer)
    if "not_measured" in found:
        return Outcome(script, None, NOT_MEASURED, found["not_measured"])
    place, date = machine().removeprefix("machine: ").partition(";")[0], time.strftime("%Y-%m-%d")
    return Outcome(script, Record(from_json(found["ratios"]), place, date, versions(), round(seconds, 1)))


def _reason(lines: Sequence[str], status: int) -> str:
    """The last line that a script printed, which is that of its exception."""
    return " ".join(lines[-1].split())[:120] if lines else f"exit code {status}"


def _run(command: Sequence[str], log: Path) -> int | None:
    """Exit code of a command whose output goes into a file; None if it took too long. Nothing of it is left running."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SNAC_ACCEL_")}
    own["OMP_NUM_THREADS"] = str(available_cores())
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=own, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parent, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what a script has started: its workers, too, are of its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


# --- all of them


def run_all(scripts: Sequence[str], stored: Mapping[str, Record]) -> list[Outcome]:
    """Run scripts one after the other, and say on stderr how far it is."""
    expected = {script: stored[script].seconds if script in stored else USUAL_SECONDS for script in scripts}
    found = []
    for number, script in enumerate(scripts, 1):
        left = sum(expected[later] for later in scripts[number - 1 :])
        say(f"[{number}/{len(scripts)}] {script}; about {_minutes(left)} left")
        found.append(outcome(script))
    return found


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def say(text: str) -> None:
    """Print on stderr; the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def read_reference(path: Path) -> dict[str, Record]:
    """The stored records by script; none if nothing was stored yet."""
    if not path.exists():
        return {}
    return {script: record_from_json(plain) for script, plain in read_json(path).items()}


def store(path: Path, outcomes: Sequence[Outcome], stored: Mapping[str, Record]) -> None:
    """Keep the new records, and of the other scripts the old ones."""
    records = dict(stored) | {found.script: found.record for found in outcomes if found.record is not None}
    write_json(path, {script: record_to_json(records[script]) for script in SCRIPTS if script in records})


def remarks(outcomes: Sequence[Outcome], stored: Mapping[str, Record]) -> list[str]:
    """What may explain changes beside the code, each once."""
    pairs = [(found.record, stored.get(found.script)) for found in outcomes]
    lines = [line for here, before in pairs if here and before for line in differences(here, before)]
    return list(dict.fromkeys(lines))


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="scripts to run (default: all)"
    )
    parser.add_argument("--store", action="store_true", help="keep these ratios as those to compare with")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="file of the stored ratios")
    parser.add_argument(
        "--run", nargs=2, help=argparse.SUPPRESS
    )  # script and file for the answer: the new process
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare, print; returns 1 if something is worse or failed."""
    flags = parse_flags(arguments)
    if flags.run:
        return run_short(flags.run[0], Path(flags.run[1]))
    stored = read_reference(flags.reference)
    outcomes = run_all(flags.only, stored)
    rows = [row for found in outcomes for row in found.rows(stored.get(found.script))]
    print(f"{machine()}\n\n{report(rows)}")
    for line in remarks(outcomes, stored):
        print(f"\n{line}")
    if flags.store:
        store(flags.reference, outcomes, stored)
        say(f"stored in {flags.reference}")
    return int(any(row.is_bad for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
