"""A profile of some steps of a run: what happened when, and where the time went (`--profile START:STOP`)."""

from __future__ import annotations

import gzip
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile, record_function

from .files import new_folder, write_bytes
from .traces import (
    STEP,
    Part,
    Trace,
    busy_share,
    collectives_of,
    kernels_of,
    operators_of,
    parts_of,
    read_trace,
)

TRACE_FILE, TABLE_FILE = "trace.json.gz", "table.md"
TOP = 20  # operators and kernels in the tables
MEGABYTE = 1e6
COMPRESSION = 3  # of 9: quicker than the usual 9, and hardly larger
Item = TypeVar("Item")


class StepProfiler:
    """Profiles what happens after `start` steps are done until `stop` are; changes nothing of what they compute."""

    def __init__(
        self, steps: tuple[int, int] | None, folder: Path, about: str = "", say: Callable[[str], None] = print
    ) -> None:
        """`steps` None: nothing is profiled. `about` stands in the table; where it lies is told to `say`."""
        self.steps, self.folder, self.about, self.say = steps, folder, about, say
        self._profile: profile | None = None
        self._step: record_function | None = None
        self._first = 0  # steps done when it began

    def follow(self, items: Iterable[Item], current: Callable[[], int]) -> Iterator[Item]:
        """The same items, one for each step; `current` gives the number of steps that are done."""
        iterator = iter(items)
        try:
            while True:
                self._turn(current())
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                yield item
        finally:
            self._end(current())

    def _turn(self, done: int) -> None:
        """Between two steps: begin or end the profile, or the range of the step."""
        if self.steps is None:
            return
        start, stop = self.steps
        if done >= stop:
            if self._profile is None:
                self.say(
                    f"nothing is profiled: the run goes on after step {done}, --profile {start}:{stop} lies before"
                )
            self._end(done)
        elif self._profile is not None or done >= start:
            self._begin_step(done)

    def _begin_step(self, done: int) -> None:
        if self._profile is None:
            self._first, self._profile = done, start_profile()
        if self._step is not None:
            self._step.__exit__(None, None, None)
        self._step = record_function(STEP.format(done + 1))  # as the log counts: step 1 is the first
        self._step.__enter__()

    def _end(self, done: int) -> None:
        """Write the profile if there is one, of as many steps as there were; no other is begun."""
        self.steps = None
        if self._profile is None or self._step is None:
            return
        self._step.__exit__(None, None, None)
        self._profile.stop()
        try:
            self._write(self._profile, done)
        except OSError as error:  # a full disk, say: no reason to end the run
            self.say(f"warning: the profile cannot be written to {self.folder}: {error.strerror or error}")
        self._profile = self._step = None

    def _write(self, finished: profile, done: int) -> None:
        with new_folder(self.folder) as draft:
            plain = draft / "trace.json"
            finished.export_chrome_trace(str(plain))
            trace = read_trace(plain)
            with open(plain, "rb") as source, gzip.open(draft / TRACE_FILE, "wb", COMPRESSION) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            plain.unlink()
            text = f"# A step: mean of steps {self._first + 1} to {done}\n\n{self.about}\n\n"
            write_bytes(draft / TABLE_FILE, f"{text}{tables(trace)}\n".encode())
        self.say(
            f"profile of steps {self._first + 1} to {done}: {self.folder / TABLE_FILE}; "
            f"https://ui.perfetto.dev shows {self.folder / TRACE_FILE}"
        )


def start_profile() -> profile:
    """Start a profiler of this process, its GPU where there is one, and memory."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it prints an error about the missing GPU
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")  # there is one cycle only
        started = profile(activities=activities, profile_memory=True)
        started.start()
    return started


def tables(trace: Trace) -> str:
    """The tables of a trace as Markdown: parts of a step, kernels where there is a GPU, operators."""
    number = max(len(trace.steps), 1)
    text = [_part_table(parts_of(trace), bool(trace.kernels))]
    if trace.kernels:
        text += ["## Kernels", f"The GPU was busy {busy_share(trace):.1%} of the time."]
        text += [_top(kernels_of(trace), "kernel", "GPU ms per step", number)]
    if collectives := collectives_of(trace):
        text += ["## Between the processes", "Much of it happens while the thread that trains goes on."]
        text += [_top(collectives, "operation", "ms per step", number)]
    text += ["## Operators", "Time of the processor without what an operator calls."]
    text += [_top(operators_of(trace), "operator", "ms per step", number)]
    return "\n\n".join(text)


def _part_table(parts: Sequence[Part], has_device: bool) -> str:
    total, on_device = sum(part.seconds for part in parts), sum(part.device_seconds for part in parts)
    whole = Part("step", total, on_device, max((part.peak_bytes or 0 for part in parts), default=0))
    headers = ["part", "ms", "share", *(["GPU ms", "share"] if has_device else []), "memory, highest (MB)"]
    rows = []
    for part in [*parts, whole]:
        row = [part.name, f"{1e3 * part.seconds:.1f}", _share(part.seconds, total)]
        if has_device:
            row += [f"{1e3 * part.device_seconds:.1f}", _share(part.device_seconds, on_device)]
        rows.append([*row, "" if part.peak_bytes is None else f"{part.peak_bytes / MEGABYTE:.0f}"])
    return _markdown(rows, headers)


def _top(found: Sequence[tuple[str, int, float]], kind: str, unit: str, number: int) -> str:
    total = sum(seconds for _, _, seconds in found)
    rows = [
        [f"`{name[:90]}`", f"{calls / number:.0f}", f"{1e3 * seconds / number:.2f}", _share(seconds, total)]
        for name, calls, seconds in found[:TOP]
    ]
    return _markdown(rows, [kind, "calls per step", unit, "share"])


def _share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else ""


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, colalign=_align(headers))


def _align(headers: Sequence[str]) -> list[str]:
    return ["left"] + ["right"] * (len(headers) - 1)
