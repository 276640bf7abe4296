"""Read a trace of torch.profiler: where the time of its steps went, by part of the step and by operator.

A trace is Chrome's JSON, times in microseconds. Parts are the ranges that `step`, `train` and `session` name; what a part did on
a GPU is what was launched while it lasted, from whichever thread, since the backward pass has threads of its own.
"""

from __future__ import annotations

import gzip
import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STEP = "step {}"  # the range of a whole step, from the wait for its data to its last work
PARTS = (
    "data wait", "generator forward", "discriminator ", "spectral losses", "generator backward", "optimizers", "codebooks",
    "bookkeeping", "validation", "save",
)  # fmt: skip
REST = "everything else"
BACKENDS = ("gloo:", "nccl:")  # of torch.distributed: how the names of its operations begin
_STEP_NAME = re.compile(r"step \d+")
_RUNTIME = ("cuda_runtime", "cuda_driver")  # what launches; ROCm's has the same names
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class Span(NamedTuple):
    """Something that lasted."""

    name: str
    start: float  # µs
    end: float
    thread: tuple[Any, Any]  # process and thread, or GPU and stream
    category: str

    @property
    def length(self) -> float:
        """In µs."""
        return self.end - self.start


class Kernel(NamedTuple):
    """Work of a GPU: a kernel or a copy."""

    span: Span
    launched: float  # when the host asked for it, µs


class Allocation(NamedTuple):
    """Memory taken, or given back."""

    time: float  # µs
    num_bytes: int
    on_device: bool


class Trace(NamedTuple):
    """What is used of a trace."""

    steps: list[Span]
    ranges: list[Span]  # all other named ranges
    operators: list[Span]
    kernels: list[Kernel]
    memory: list[Allocation]
    base: int = 0  # ns since 1970 at which its times begin

    @property
    def parts(self) -> list[Span]:
        """The ranges that are parts of a step, on the thread of the steps."""
        threads = {step.thread for step in self.steps}
        return [span for span in self.ranges if span.thread in threads and span.name.startswith(PARTS)]


class Part(NamedTuple):
    """What a part costs in one step, on average."""

    name: str
    seconds: float  # of the thread that trains
    device_seconds: float  # of the GPU
    peak_bytes: (
        int | None
    )  # the most memory in use while it lasted, above that at the beginning; None: nothing was taken


class Stretch(NamedTuple):
    """A piece of time, and the innermost of the spans that cover it."""

    start: float
    end: float
    span: Span


def read_trace(path: Path) -> Trace:
    """Read a trace as torch.profiler exports it, .json or .json.gz."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as file:
        content = json.load(file)
    events: list[dict[str, Any]] = content["traceEvents"]
    spans = [_span(event) for event in events if event.get("ph") == "X" and "cat" in event]
    annotations = [span for span in spans if span.category == "user_annotation"]
    memory = [
        Allocation(event["ts"], event["args"]["Bytes"], event["args"]["Device Type"] != 0)
        for event in events
        if event.get("name") == "[memory]"
    ]
    return Trace(
        sorted(
            (span for span in annotations if _STEP_NAME.fullmatch(span.name)), key=lambda span: span.start
        ),
        [span for span in annotations if not _STEP_NAME.fullmatch(span.name)],
        [span for span in spans if span.category == "cpu_op"],
        _kernels(events),
        sorted(memory),
        content.get("baseTimeNanoseconds", 0),
    )


def _span(event: dict[str, Any]) -> Span:
    start = float(event["ts"])
    thread = (event.get("pid"), event.get("tid"))
    return Span(event["name"], start, start + float(event.get("dur", 0.0)), thread, event["cat"])


def _kernels(events: Iterable[dict[str, Any]]) -> list[Kernel]:
    """The work of GPUs, each with the time of the call that launched it."""
    launches: dict[Any, float] = {}
    found = []
    for event in events:
        correlation = event.get("args", {}).get("correlation")
        if event.get("cat") in _RUNTIME:
            launches[correlation] = float(event["ts"])
        elif event.get("cat") in _ON_DEVICE:
            found.append((_span(event), correlation))
    return [Kernel(span, launches.get(correlation, span.start)) for span, correlation in found]


def innermost(spans: Iterable[Span]) -> list[Stretch]:
    """The time that one thread's nested spans cover, in order, each piece with the innermost span there."""
    stretches: list[Stretch] = []
    around: list[Span] = []
    now = 0.0

    def go_on(until: float) -> None:
        nonlocal now
        if around and until > now:
            stretches.append(Stretch(now, until, around[-1]))
        now = max(now, until)

    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        while around and around[-1].end <= span.start:
            go_on(around[-1].end)
            around.pop()
        go_on(span.start)
        around.append(span)
    while around:
        go_on(around[-1].end)
        around.pop()
    return stretches


def parts_of(trace: Trace) -> list[Part]:
    """The mean step by part, in the order in which parts first come; last, what no part covers. They add up to the step."""
    names = list(dict.fromkeys(span.name for span in sorted(trace.parts, key=lambda span: span.start)))
    stretches = innermost([*trace.steps, *trace.parts])
    part_at = _finder(stretches)
    host: defaultdict[str, float] = defaultdict(float)
    device: defaultdict[str, float] = defaultdict(float)
    for stretch in stretches:
        host[_part_name(stretch.span)] += stretch.end - stretch.start
    for kernel in trace.kernels:
        device[part_at(kernel.launched)] += kernel.span.length
    peaks = _peaks(trace.memory, part_at)
    number = 1e6 * max(len(trace.steps), 1)
    return [
        Part(name, host[name] / number, device[name] / number, peaks.get(name)) for name in [*names, REST]
    ]


def _part_name(span: Span) -> str:
    return REST if _STEP_NAME.fullmatch(span.name) else span.name


def _finder(stretches: Sequence[Stretch]) -> Callable[[float], str]:
    """A function from a time to the name of the part that lasted then."""
    starts = [stretch.start for stretch in stretches]

    def find(time: float) -> str:
        index = bisect_right(starts, time) - 1
        return _part_name(stretches[index].span) if index >= 0 and time < stretches[index].end else REST

    return find


def _peaks(memory: Sequence[Allocation], part_at: Callable[[float], str]) -> dict[str, int]:
    """The highest level of memory while each part lasted: of the GPU if there is one, else of the host."""
    on_device = any(allocation.on_device for allocation in memory)
    peaks: dict[str, int] = {}
    level = 0
    for allocation in memory:
        if allocation.on_device == on_device:
            name = part_at(allocation.time)
            peaks[name] = max(peaks.get(name, 0), level, level + allocation.num_bytes)
            level += allocation.num_bytes
    return peaks


def operators_of(trace: Trace) -> list[tuple[str, int, float]]:
    """Name, calls and seconds of each operator, all steps together, the longest first; what it calls does not count."""
    times: defaultdict[str, float] = defaultdict(float)
    calls = Counter(span.name for span in trace.operators)
    for thread in {span.thread for span in trace.operators}:
        for stretch in innermost(span for span in trace.operators if span.thread == thread):
            times[stretch.span.name] += stretch.end - stretch.start
    return _longest_first(times, calls)


def kernels_of(trace: Trace) -> list[tuple[str, int, float]]:
    """Name, calls and seconds of each kernel and kind of copy, all steps together, the longest first."""
    times: defaultdict[str, float] = defaultdict(float)
    calls = Counter(kernel.span.name for kernel in trace.kernels)
    for kernel in trace.kernels:
        times[kernel.span.name] += kernel.span.length
    return _longest_first(times, calls)


def _longest_first(times: Mapping[str, float], calls: Mapping[str, int]) -> list[tuple[str, int, float]]:
    return sorted(((name, calls[name], time / 1e6) for name, time in times.items()), key=lambda row: -row[2])


def collectives_of(trace: Trace) -> list[tuple[str, int, float]]:
    """Name, calls and seconds of what processes do together, all steps together, the longest first; beside other work."""
    found = [span for span in trace.ranges if span.name.startswith(BACKENDS)]
    times: defaultdict[str, float] = defaultdict(float)
    for span in found:
        times[span.name] += span.length
    return _longest_first(times, Counter(span.name for span in found))


def busy_share(trace: Trace) -> float:
    """The share of the steps in which the GPU did something: any stream."""
    busy, end = 0.0, 0.0
    for span in sorted((kernel.span for kernel in trace.kernels), key=lambda span: span.start):
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return busy / max(sum(step.length for step in trace.steps), 1e-9)
