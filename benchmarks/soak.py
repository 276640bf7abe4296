"""A run under a storm against the same run in quiet: equal weights, and no growth of memory or open files.

    python benchmarks/soak.py                               30 incidents; some minutes
    python benchmarks/soak.py --incidents 200 --seed 3

Both runs train the same tiny model on the demo's speech, with validation, a moving average, restarted codes and a data worker.
One is killed, signalled and stopped, loses its workers, finds its disk full and its newest checkpoint damaged, in an order that
follows from the seed, and is started again each time by the same command. At the end every tensor, every counter and every logged
number is compared bit by bit. The quiet run is watched: its memory and its open files at each quarter of its steps (in the first
it still shares memory with the process that it was forked from).
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from incidents import INCIDENTS, mount, unmount
from lives import Life, Sample, last_step, life, rows
from measure import machine, table
from safetensors.torch import load

from snac_accel.config import merge, preset_run
from snac_accel.plain_json import read_json
from snac_accel.stored import list_checkpoints, verify_checkpoint

DISK_MEGABYTES = 48
STEPS_PER_INCIDENT = 5  # of which some are lost by the kills
TINY: dict[str, Any] = {
    "model": {"encoder_dim": 4, "decoder_dim": 32, "codebook_size": 16},
    "training": {"batch_size": 2, "save_interval": 3, "log_interval": 1, "validation_interval": 20, "warmup_steps": 2},
    "data": {"segment_length": 0.256, "num_workers": 1},
    "validation": {"max_clips": 2, "max_clip_seconds": 0.5, "num_samples": 0},
    "discriminators": {
        "mpd": {"periods": [2, 3], "channels": [4, 8]},
        "msstftd": {"fft_sizes": [256], "hop_lengths": [64], "win_lengths": [256], "channels": [4, 8]},
    },
    "codebook": {"initialization_clips": 8, "hold_steps": 1, "release_steps": 1, "restart_after": 2},
    "averaging": {"decay": 0.9},
    "tracking": {"trackers": [], "progress_bar": False},
    "checkpoint": {"resume": "auto", "keep_last": 3, "max_failed_saves": 100},
}


class Event(NamedTuple):
    """An incident, and what came of it."""

    name: str
    step: int  # the last one logged before
    code: int | None  # exit code; None: the process lived on
    resumed_at: int  # the step that the next life went on from


class Soak(NamedTuple):
    """What was found."""

    events: list[Event]
    differences: list[str]
    samples: list[Sample]  # of the quiet run
    left_out: str | None  # why there was no full disk


def soak(steps: int, names: Sequence[str], seed: int, folder: Path) -> Soak:
    """Both runs, compared."""
    quiet = folder / "quiet"
    quiet.mkdir(parents=True)
    samples = live_quietly(config_of(quiet / "run", steps), quiet)
    with disk(folder / "storm") as left_out:
        names = [name for name in names if left_out is None or name != "full disk"]
        events = weather(config_of(folder / "storm" / "run", steps), folder / "storm", names, random.Random(seed))
        return Soak(events, list(compare(quiet / "run", folder / "storm" / "run")), samples, left_out)


def config_of(run_dir: Path, steps: int) -> dict[str, Any]:
    """The run that both are."""
    return merge(merge(preset_run("demo"), TINY), {"training": {"num_iterations": steps}, "paths": {"run_dir": str(run_dir)}})


@contextmanager
def disk(folder: Path) -> Iterator[str | None]:
    """A small disk; yields why there is none, if the system does not let us have one."""
    problem = mount(folder, DISK_MEGABYTES)
    try:
        yield problem
    finally:
        if problem is None:
            unmount(folder)


def live_quietly(config: dict[str, Any], folder: Path) -> list[Sample]:
    """The run without incidents; what it had at every step, once it trained."""
    samples: dict[int, Sample] = {}
    with life(config, folder) as one:

        def look() -> bool:
            if (sample := one.sample()) is not None and sample.step > 0:
                samples[sample.step] = sample
            return False

        one.until(look)
        code = one.wait()
        if code != 0:
            raise RuntimeError(f"the quiet run ended with {code}:\n{one.output()}")
    return [samples[step] for step in sorted(samples)]


def weather(config: dict[str, Any], folder: Path, names: Sequence[str], chance: random.Random) -> list[Event]:
    """Start the run again and again until it is complete; returns what happened to it."""
    waiting, events = list(names), []
    run_dir = Path(config["paths"]["run_dir"])
    for _ in range(2 * len(names) + 2):
        with life(config, folder) as one:
            begun = last_step(run_dir)
            while waiting and _trains(one, begun + chance.randint(1, STEPS_PER_INCIDENT)):
                name = waiting.pop(0)
                event = suffer(one, name)
                events.append(event)
                begun = last_step(run_dir)
                if event.code is not None:
                    break
            else:
                code = one.wait()
                if code != 0:
                    raise RuntimeError(f"the run ended with {code}:\n{one.output()}")
                return events
    raise RuntimeError("the run did not come to its end")


def _trains(one: Life, step: int) -> bool:
    """Wait until a step is logged; False if the run ended before."""
    return one.until(lambda: last_step(one.run_dir) >= step)


def suffer(one: Life, name: str) -> Event:
    """Let an incident happen; raises RuntimeError if what came of it is not what should."""
    incident, step = INCIDENTS[name], last_step(one.run_dir)
    incident.harm(one)
    code = None if None in incident.codes and one.process.is_alive() else one.wait()
    if code not in incident.codes and code != 0:  # 0: it was complete before the harm came
        raise RuntimeError(f"{name} at step {step}: exit code {code}, should be {incident.codes}:\n{one.output()}")
    saved = list_checkpoints(one.run_dir / "checkpoints")
    return Event(name, step, code, int(saved[-1].name.partition("_")[2].partition(".")[0]) if saved else 0)


def compare(quiet: Path, storm: Path) -> Iterator[str]:
    """What is not equal, bit by bit, and what was left behind."""
    ends = [list_checkpoints(run / "checkpoints")[-1] for run in (quiet, storm)]
    for end in ends:
        verify_checkpoint(end)
    if ends[0].name != ends[1].name:
        yield f"the last step: {ends[0].name} and {ends[1].name}"
    files = [{file.name: load(file.read_bytes()) for file in end.glob("*.safetensors")} for end in ends]
    for file in files[0].keys() | files[1].keys():
        ours, theirs = (one.get(file, {}) for one in files)
        for name in ours.keys() | theirs.keys():
            if name not in ours or name not in theirs or ours[name].numpy().tobytes() != theirs[name].numpy().tobytes():
                yield f"{file}: {name}"
    first, second = (read_json(end / "progress.json") for end in ends)
    yield from (f"progress: {name}" for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    expected = {(row["step"], frozenset(row)): row for row in rows(quiet)}
    seen = {(row["step"], frozenset(row)): row for row in rows(storm)}
    yield from (f"the log lacks step {step}: {sorted(names)[:3]}" for step, names in expected.keys() - seen.keys())
    yield from (f"the log of step {key[0]}" for key in expected.keys() & seen.keys() if expected[key] != seen[key])
    yield from (f"left behind: {path}" for path in storm.rglob(".incomplete-*"))


def growth(samples: Sequence[Sample]) -> list[list[object]]:
    """Rows of the table: medians of each quarter of the quiet run."""
    found: list[list[object]] = []
    for quarter in range(4):
        part = samples[len(samples) * quarter // 4 : len(samples) * (quarter + 1) // 4]
        if part:
            steps = f"{part[0].step} to {part[-1].step}"
            columns = [[sample[column] for sample in part] for column in (1, 2, 3)]
            found.append([steps, *(f"{statistics.median(column):.4g}" for column in columns)])
    return found


def main() -> None:
    """Print what happened, the comparison, and the growth; exit code 1 if the runs are not equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--incidents", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    chance, names = random.Random(flags.seed), list(INCIDENTS)
    storm = (names * (flags.incidents // len(names) + 1))[: flags.incidents]
    chance.shuffle(storm)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        found = soak(STEPS_PER_INCIDENT * flags.incidents, storm, flags.seed, Path(folder))
    print(machine(), "\n")
    print(table([[e.name, e.step, "lives on" if e.code is None else e.code, e.resumed_at] for e in found.events],
                ["incident", "after step", "exit code", "newest checkpoint"]), "\n")  # fmt: skip
    print(table(growth(found.samples), ["steps of the quiet run", "memory (MB)", "open files", "threads"]), "\n")
    if found.left_out:
        print(f"not measured: a full disk ({found.left_out})")
    print("\n".join(found.differences) or "both runs are equal: every tensor, counter and logged number")
    print(f"{len(found.events)} incidents, {time.monotonic() - begun:.0f} s")
    raise SystemExit(bool(found.differences))


if __name__ == "__main__":
    main()
