"""`--profile START:STOP`: a trace and tables of real steps, and the same weights as without."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from test_train import losses, tiny_config, weights

from snac_accel import cli
from snac_accel.profiling import TABLE_FILE, TRACE_FILE, StepProfiler, tables
from snac_accel.traces import (
    REST,
    Span,
    Trace,
    busy_share,
    innermost,
    kernels_of,
    operators_of,
    parts_of,
    read_trace,
)
from snac_accel.train import main

PARTS = [
    "data wait",
    "generator forward",
    "discriminator mpd",
    "discriminator msstftd",
    "spectral losses",
    "generator backward",
    "optimizers",
    "codebooks",
    "bookkeeping",
]


def run(folder: Path, profile: str | None) -> Path:
    """A tiny run of three steps of two micro-batches."""
    sections: dict[str, Any] = {
        "training": {"num_iterations": 3, "save_interval": 2, "validation_interval": 2},
        "tracking": {"trackers": [], "profile": profile},
        "validation": {"max_clips": 1, "max_clip_seconds": 1.0},
    }
    sections["training"] |= {"batch_size": 1, "gradient_accumulation_steps": 2}
    assert main(tiny_config(folder, **sections)) == 0
    return folder


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second step, which saves and validates, and third were profiled."""
    return run(tmp_path_factory.mktemp("profiled") / "run", "1:3")


@pytest.fixture(scope="module")
def trace(profiled: Path) -> Trace:
    return read_trace(profiled / "profile" / TRACE_FILE)


def test_profiling_changes_no_weight(profiled: Path, tmp_path: Path) -> None:
    plain = run(tmp_path / "run", None)
    assert not (plain / "profile").exists()
    assert losses(profiled) == losses(plain)
    expected, found = weights(plain), weights(profiled)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_trace_holds_the_steps_and_their_parts(trace: Trace) -> None:
    assert [step.name for step in trace.steps] == ["step 2", "step 3"]
    for step in trace.steps:
        inside = [part.name for part in trace.parts if step.start <= part.start and part.end <= step.end]
        assert set(PARTS) <= set(inside)
        assert inside.count("generator forward") == inside.count("generator backward") == 2
        assert inside.count("optimizers") == 1
    assert {part.name for part in trace.parts} - set(PARTS) == {"validation", "save"}
    assert trace.operators and trace.memory and not trace.kernels


def test_parts_add_up_to_the_step(trace: Trace) -> None:
    parts = parts_of(trace)
    whole = sum(step.length for step in trace.steps) / len(trace.steps) / 1e6
    assert sum(part.seconds for part in parts) == pytest.approx(whole, rel=1e-6)
    assert parts[-1].name == REST and min(part.seconds for part in parts) >= 0
    assert {part.peak_bytes for part in parts if part.name == "generator backward"} != {None}


def test_operators_add_up_to_less_than_the_steps(trace: Trace) -> None:
    found = {name: (calls, seconds) for name, calls, seconds in operators_of(trace)}
    assert 0 < sum(seconds for _, seconds in found.values()) <= sum(step.length for step in trace.steps) / 1e6
    assert found["aten::convolution_backward"][0] > 0
    assert found["aten::conv1d"][1] < found["aten::convolution_backward"][1]  # it only calls others


def test_the_table_says_what_it_is_of(profiled: Path) -> None:
    text = (profiled / "profile" / TABLE_FILE).read_text()
    assert (
        text.startswith("# A step: mean of steps 2 to 3\n")
        and "Rank 0 of 1, cpu, mixed precision no; 2 x 1 windows" in text
    )
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert set(PARTS) <= set(rows) and {"step", REST} <= set(rows)
    assert "GPU" not in text


def test_a_run_that_goes_on_later_is_not_profiled(tmp_path: Path) -> None:
    said: list[str] = []
    assert list(StepProfiler((1, 3), tmp_path / "profile", say=said.append).follow("ab", lambda: 3)) == [
        "a",
        "b",
    ]
    assert said == ["nothing is profiled: the run goes on after step 3, --profile 1:3 lies before"]
    assert not (tmp_path / "profile").exists()


def test_a_loop_that_ends_early_leaves_what_there_was(tmp_path: Path) -> None:
    said: list[str] = []
    progress = {"done": 0}
    profiler = StepProfiler((1, 10), tmp_path / "profile", say=said.append)
    for item in profiler.follow(range(5), lambda: progress["done"]):
        torch.ones(3) + item
        progress["done"] += 1
        if item == 2:
            break
    assert [step.name for step in read_trace(tmp_path / "profile" / TRACE_FILE).steps] == ["step 2", "step 3"]
    assert said[0].startswith(f"profile of steps 2 to 3: {tmp_path / 'profile' / TABLE_FILE}; ")


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    profiler = StepProfiler((0, 1), tmp_path / "file" / "profile", say=said.append)
    assert list(profiler.follow("a", lambda: 0)) == ["a"]
    assert said == [f"warning: the profile cannot be written to {tmp_path}/file/profile: Not a directory"]


def test_without_a_range_the_items_pass_untouched(tmp_path: Path) -> None:
    def items() -> Iterator[int]:
        yield from range(3)

    assert list(StepProfiler(None, tmp_path / "profile").follow(items(), lambda: 0)) == [0, 1, 2]
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(
    "value", ["5", "5:5", "6:5", "-1:5", ":5", "5:", "a:b", "1:2:3", "1.0:2", "٣:٤", "1: 2"]
)
def test_a_range_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--preset", "demo", f"--profile={value}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: tracking.profile = {json.dumps(value, ensure_ascii=False)}: should be START:STOP"
    )
    assert error.count("\n") == 1


def test_a_range_beyond_the_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--preset", "demo", "--profile", "7:11", "--num_iterations", "10"]) == 2
    error = capsys.readouterr().err
    assert (
        error
        == 'error: tracking.profile = "7:11": should end by the last step, training.num_iterations = 10\n'
    )


def test_innermost_spans_cover_each_moment_once() -> None:
    """Random nested spans: what covers a moment is the shortest span around it."""
    dice = random.Random(0)
    spans: list[Span] = []

    def grow(start: int, end: int, depth: int) -> None:
        spans.append(Span(f"{start}-{end}", start, end, (0, 0), "cpu_op"))
        while depth and end - start > 2 and dice.random() < 0.8:
            inner = sorted(dice.sample(range(start, end + 1), 2))
            grow(*inner, depth - 1)
            start = inner[1]

    grow(0, 100, 4)
    grow(120, 150, 3)
    stretches = innermost(dice.sample(spans, len(spans)))
    assert all(a.end <= b.start for a, b in zip(stretches, stretches[1:], strict=False))
    for moment in (point + 0.5 for point in range(160)):
        around = [span for span in spans if span.start < moment < span.end]
        found = [stretch.span for stretch in stretches if stretch.start < moment < stretch.end]
        assert [span.length for span in found] == ([min(span.length for span in around)] if around else [])


def gpu_trace(path: Path) -> Path:
    """A trace in the form that a GPU gives: asynchronous kernels, the backward pass in a thread of its own."""
    host, device = {"pid": 7, "tid": 7}, {"pid": 0, "tid": 13}

    def event(
        name: str, category: str, start: float, length: float, where: dict[str, int], **args: Any
    ) -> dict[str, Any]:
        return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": length, "args": args, **where}

    events = [
        event("step 1", "user_annotation", 0, 100, host),
        event("generator forward", "user_annotation", 10, 20, host),
        event("generator forward", "gpu_user_annotation", 15, 40, device),
        event("generator backward", "user_annotation", 40, 30, host),
        event("cudaLaunchKernel", "cuda_runtime", 12, 1, host, correlation=1),
        event("cudaLaunchKernel", "cuda_runtime", 45, 1, {"pid": 7, "tid": 8}, correlation=2),
        event("cuLaunchKernel", "cuda_driver", 80, 1, host, correlation=3),
        event("conv", "kernel", 15, 40, device, correlation=1),
        event("conv backward", "kernel", 55, 30, device, correlation=2),
        event("all-reduce", "kernel", 70, 20, {"pid": 0, "tid": 14}, correlation=3),
    ]
    for time, taken, kind in ((11, 1000, 1), (13, 500, 1), (44, -500, 1), (46, 10**6, 0)):
        args = {"Bytes": taken, "Device Type": kind}
        events.append({"ph": "i", "name": "[memory]", "cat": "cpu_instant_event", "ts": time, "args": args})
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_kernels_belong_to_the_part_that_launched_them(tmp_path: Path) -> None:
    trace = read_trace(gpu_trace(tmp_path / "trace.json"))
    parts = {part.name: part for part in parts_of(trace)}
    microseconds = {name: round(1e6 * part.device_seconds, 6) for name, part in parts.items()}
    assert microseconds == {"generator forward": 40, "generator backward": 30, REST: 20}
    assert parts["generator forward"].peak_bytes == 1500 and parts["generator backward"].peak_bytes == 1500
    assert [name for name, _, _ in kernels_of(trace)] == ["conv", "conv backward", "all-reduce"]
    assert busy_share(trace) == pytest.approx(0.75)  # 15 to 90
    assert "The GPU was busy 75.0% of the time." in tables(trace)


@pytest.fixture
def step_picture(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import step_picture

    return step_picture


def test_the_picture_draws_each_part_in_its_lane(step_picture: ModuleType, trace: Trace) -> None:
    worker = Span("window", trace.steps[-1].start - 1e4, trace.steps[-1].end + 1e4, ("worker", 0), "worker")
    bars = step_picture.bars(trace, [worker])
    step = trace.steps[-1].length / 1e3
    assert all(0 <= bar.start < bar.end <= step + 1e-9 for bar in bars)
    lanes = step_picture.lanes_of(bars)
    assert lanes[:5] == [
        "data worker",
        "data wait",
        "generator",
        "discriminator mpd",
        "discriminator msstftd",
    ]
    picture = ElementTree.fromstring(step_picture.svg(bars, step, "a < b"))
    tips = [title.text or "" for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert len(tips) == 1 + len(bars) and any(tip.startswith("generator backward: ") for tip in tips)


def test_copies_to_a_gpu_have_a_lane(step_picture: ModuleType, tmp_path: Path) -> None:
    path = gpu_trace(tmp_path / "trace.json")
    text = path.read_text().replace(
        '"all-reduce", "cat": "kernel"', '"Memcpy HtoD (Pinned -> Device)", "cat": "gpu_memcpy"'
    )
    path.write_text(text)
    assert step_picture.lanes_of(step_picture.bars(read_trace(path), [])) == ["copy to the GPU", "generator"]
