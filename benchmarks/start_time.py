"""How long the program takes to start: help, mistakes, and from launch to the first step, fresh and resumed.

python benchmarks/start_time.py                            seven rounds; some minutes
python benchmarks/start_time.py --rounds 3 --profile       and which modules the import of the trainer spends its time on

Every way is a process of its own, launched as a user would, in turns with the others. A launch ends when the run says that it
has started: all is loaded and the first batch is there. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from measure import Ratio, alternate, machine, positive, quartiles, table

import snac_accel

LAUNCHER = str(Path(__file__).parent.parent / "launch" / "train.py")
DEMO_DATA = str(Path(snac_accel.__file__).parent / "demo")
COMMAND = [sys.executable, "-m", "snac_accel"]
QUIET = ["--tracking.progress_bar", "false"]
LONGEST_SECONDS = 600.0
TOP_MODULES = 20

BARE, HELP, MISTAKE = "python -c pass", "snac-accel --help", "a mistake in the configuration"
TORCH, ACCELERATE = "import torch", "the same mistake through accelerate launch"
DEMO, RESUME = "demo, launch to first step", "24 kHz, resume to next step"
WITHOUT_VALIDATION = "└ without the validation before it"
TARGETS = {HELP: 0.3, MISTAKE: 1.0, DEMO: 15.0, RESUME: 10.0}  # seconds


class Launch(NamedTuple):
    """What a launched run said of its start, and when."""

    seconds: float  # from outside, until the line came
    line: str

    @property
    def validation(self) -> float:
        """Seconds of the validation before the first step."""
        found = re.search(r"validation (\d+\.\d)", self.line)
        return float(found[1]) if found else 0.0


# --- ways


def run(command: Sequence[str], code: int = 0) -> None:
    """Run a command to its end; RuntimeError unless it leaves with `code`."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_SECONDS)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} left with {done.returncode}: {done.stderr[-1000:]}")


def launch(arguments: Sequence[str]) -> Launch:
    """Start a training run, wait until it says that it has started, and end it there."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, "train", *arguments, *QUIET],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line.strip())
            if line.startswith("started in"):
                return Launch(time.perf_counter() - began, said[-1])
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its data workers
        process.wait()
    raise RuntimeError("the run did not start:\n" + "\n".join(said[-10:]))


def demo(folder: Path) -> Launch:
    """Launch the demo in a fresh folder."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        return launch(["--preset", "demo", "--paths.run_dir", f"{place}/run"])


def published_run(folder: Path) -> list[str]:
    """A run of the published 24 kHz model with all of its discriminators on the demo's speech, one window a step."""
    flags = "--preset 24khz --batch_size 1 --codebook.initialization random --validation.enabled false"
    return [*flags.split(), "--dataset_path", DEMO_DATA, "--paths.run_dir", str(folder / "published")]


def make_checkpoint(folder: Path) -> None:
    """Train the run that will be resumed for one step."""
    run([*COMMAND, "train", *published_run(folder), "--num_iterations", "1", *QUIET])


def resume(folder: Path) -> Launch:
    """Go on with that run."""
    return launch([*published_run(folder), "--num_iterations", "2"])


def timed(command: Sequence[str], code: int = 0) -> Callable[[], float]:
    """A way: the seconds of a command."""

    def way() -> float:
        began = time.perf_counter()
        run(command, code)
        return time.perf_counter() - began

    return way


WRONG = ["--preset", "demoo"]
LIGHT = {
    BARE: timed([sys.executable, "-c", "pass"]),
    HELP: timed([*COMMAND, "--help"]),
    MISTAKE: timed([*COMMAND, "train", *WRONG], 2),
    TORCH: timed([sys.executable, "-c", "import torch"]),
    ACCELERATE: timed([str(Path(sys.executable).parent / "accelerate"), "launch", LAUNCHER, *WRONG], 1),
}

# --- measuring


def measure(
    folder: Path, rounds: int, *, with_resume: bool, warm_up: int = 1
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every way, by round, and the last line that each launch said."""
    lines: dict[str, str] = {}
    validations: list[float] = []

    def launched(name: str, start: Callable[[Path], Launch]) -> Callable[[], float]:
        def way() -> float:
            found = start(folder)
            lines[name] = found.line
            if name == DEMO:
                validations.append(found.validation)
            return found.seconds

        return way

    ways = {**LIGHT, DEMO: launched(DEMO, demo)}
    if with_resume:
        make_checkpoint(folder)
        ways[RESUME] = launched(RESUME, resume)
    found = alternate(ways, rounds, warm_up=warm_up, measured_by=lambda way: way())
    own = zip(found[DEMO], validations[warm_up:], strict=True)
    found[WITHOUT_VALIDATION] = [seconds - validation for seconds, validation in own]
    return found, lines


def report(found: dict[str, list[float]]) -> str:
    """The table, in the order of the ways."""
    order = [
        name
        for name in (BARE, HELP, MISTAKE, ACCELERATE, TORCH, DEMO, WITHOUT_VALIDATION, RESUME)
        if name in found
    ]
    rows = []
    for name in order:
        low, high = quartiles(found[name])
        target = TARGETS.get(name)
        median = statistics.median(found[name])
        met = "" if target is None else "yes" if median < target else "no"
        rows.append(
            [name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", "" if target is None else f"{target:g}", met]
        )
    return table(rows, ["start", "seconds, median", "quartiles", "target", "met"])


# --- imports


def import_profile() -> str:
    """Where the import of the trainer spends its time: by package, without what each imports itself from others."""
    command = [sys.executable, "-X", "importtime", "-c", "import snac_accel.train"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=True)
    seconds: defaultdict[str, float] = defaultdict(float)
    modules: defaultdict[str, int] = defaultdict(int)
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE):
        package = name.partition(".")[0]
        seconds[package] += int(own) / 1e6
        modules[package] += 1
    total = sum(seconds.values())
    longest = sorted(seconds, key=lambda package: -seconds[package])[:TOP_MODULES]
    rows = [[name, modules[name], f"{seconds[name]:.3f}", f"{seconds[name] / total:.1%}"] for name in longest]
    rows.append(["all", sum(modules.values()), f"{total:.3f}", "100.0%"])
    return table(rows, ["package", "modules", "seconds", "share"])


# --- commands


def short() -> list[Ratio]:
    """For `make bench`: seconds over what is promised. The resumed run, which needs a checkpoint of 1.2 GB, is left out."""
    with tempfile.TemporaryDirectory(prefix="start_time_") as folder:
        quick = alternate({way: LIGHT[way] for way in (HELP, MISTAKE)}, 7, measured_by=lambda way: way())
        started = [demo(Path(folder)).seconds for _ in range(2)]
    names = {HELP: "start: --help", MISTAKE: "start: a mistake", DEMO: "start: demo to its first step"}
    return [
        Ratio(f"{names[way]} / promised", tuple(value / TARGETS[way] for value in values), "lower", 1.0)
        for way, values in {**quick, DEMO: started}.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=7, help="measured rounds (default: 7)")
    parser.add_argument(
        "--no-resume", action="store_true", help="leave out the resumed run: it needs 1.2 GB of disk"
    )
    parser.add_argument(
        "--profile", action="store_true", help="say which packages the import spends its time on"
    )
    flags = parser.parse_args(arguments)
    print(f"{machine()}; {flags.rounds} rounds\n")
    with tempfile.TemporaryDirectory(prefix="start_time_") as folder:
        found, lines = measure(Path(folder), flags.rounds, with_resume=not flags.no_resume)
    print(report(found))
    for name, line in lines.items():
        print(f"\n{name}: {line}")
    if flags.profile:
        print(f"\nimport snac_accel.train, under -X importtime:\n\n{import_profile()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
