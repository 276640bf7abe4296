"""The table of ratios against the stored ones: what counts as a change, and what becomes of scripts that fail."""

from __future__ import annotations

import ast
import itertools
import random
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def measure() -> ModuleType:
    import measure

    return measure


@pytest.fixture
def comparison() -> ModuleType:
    import comparison

    return comparison


@pytest.fixture
def bench() -> ModuleType:
    import bench

    return bench


# --- measuring


def test_ways_are_called_in_turns_and_the_warm_up_does_not_count(measure: ModuleType) -> None:
    calls, clock = "", itertools.count()

    def way(name: str) -> int:
        nonlocal calls
        calls += name
        return next(clock)

    ways = {"a": lambda: way("A"), "b": lambda: way("B")}
    found = measure.alternate(ways, 3, warm_up=2, measured_by=lambda call: call())
    assert calls == "AB" * 5
    assert found == {"a": [4, 6, 8], "b": [5, 7, 9]}


def test_seconds_are_measured_where_nothing_else_is_asked_for(measure: ModuleType) -> None:
    found = measure.alternate({"nothing": lambda: None, "sleep": lambda: time.sleep(0.01)}, 2)
    assert all(value >= 0 for value in found["nothing"])
    assert all(value >= 0.01 for value in found["sleep"])


def test_a_ratio_is_taken_round_by_round(measure: ModuleType) -> None:
    found = measure.ratio("step", [1.0, 4.0, 3.0], [2.0, 4.0, 12.0], better="lower", target=0.5)
    assert found.values == (0.5, 1.0, 0.25)
    assert (found.median, found.low, found.high, found.spread) == (0.5, 0.375, 0.75, 0.375)
    with pytest.raises(ValueError):
        measure.ratio("step", [1.0], [1.0, 2.0], better="lower")


def test_one_round_has_no_spread(measure: ModuleType) -> None:
    assert measure.Ratio("step", (0.5,), "lower").spread == 0


@pytest.mark.parametrize(
    ("better", "target", "met"),
    [
        ("lower", 0.5, True), ("lower", 0.4, False), ("higher", 0.5, True),
        ("higher", 0.6, False), ("lower", None, True),
    ],
)  # fmt: skip
def test_targets(measure: ModuleType, better: str, target: float | None, met: bool) -> None:
    assert measure.Ratio("step", (0.4, 0.5, 0.6), better, target).meets_target == met


def test_the_machine_is_named(measure: ModuleType) -> None:
    assert measure.cpu_model()
    assert measure.available_cores() >= 1
    assert measure.machine(3).startswith(f"machine: {measure.cpu_model()}")
    assert " 3 threads" in measure.machine(3)
    assert set(measure.versions()) == {"python", "torch", "accelerate", "snac"}


# --- what counts as a change

STEADY = (0.50, 0.50, 0.51, 0.49, 0.50)  # quartiles equal
WIDE = (0.40, 0.45, 0.45, 0.50, 0.55, 0.55, 0.60)  # quartiles 0.1 apart


@pytest.mark.parametrize(
    ("now", "stored", "better", "expected"),
    [
        (STEADY, STEADY, "lower", "same within noise"),
        ((0.505,) * 3, STEADY, "lower", "same within noise"),  # no spread, but 1 %
        ((0.52,) * 3, STEADY, "lower", "WORSE"),
        ((0.52,) * 3, STEADY, "higher", "better"),
        ((0.48,) * 3, STEADY, "lower", "better"),
        ((0.48,) * 3, STEADY, "higher", "WORSE"),
        ((0.64,) * 7, WIDE, "lower", "same within noise"),
        ((0.66,) * 7, WIDE, "lower", "WORSE"),
        ((0.84,) * 3, WIDE, "lower", "same within noise"),  # few rounds
        ((0.86,) * 3, WIDE, "lower", "WORSE"),
        ((0.0,), (0.0,), "lower", "same within noise"),  # counted
        ((1.0,), (0.0,), "lower", "WORSE"),
        (tuple(value + 0.28 for value in WIDE), WIDE, "lower", "same within noise"),  # both are wide
        (tuple(value + 0.32 for value in WIDE), WIDE, "lower", "WORSE"),
    ],
)
def test_a_change_is_more_than_the_noise_of_both(
    measure: ModuleType, comparison: ModuleType, now: tuple, stored: tuple, better: str, expected: str
) -> None:
    before = measure.Ratio("step", stored, better)
    assert comparison.verdict(measure.Ratio("step", now, better), before) == expected


def test_noise_alone_is_hardly_ever_a_change(measure: ModuleType, comparison: ModuleType) -> None:
    """Rounds against as many of the same thing, and of one that is a tenth slower."""
    draw, verdicts = random.Random(0), []
    for factor, rounds in ((1.0, 7), (1.0, 3), (1.1, 7)):
        pairs = [[[draw.gauss(0.5, 0.01) for _ in range(rounds)] for _ in range(2)] for _ in range(2000)]
        found = [
            comparison.change(
                measure.Ratio("step", tuple(factor * value for value in now), "lower"),
                measure.Ratio("step", tuple(stored), "lower"),
            )
            for now, stored in pairs
        ]
        verdicts.append(found.count("WORSE") / len(found))
    assert verdicts[0] < 0.001
    assert verdicts[1] < 0.003
    assert verdicts[2] > 0.85


def test_a_missed_target_is_said_beside_the_change(measure: ModuleType, comparison: ModuleType) -> None:
    now = measure.Ratio("step", STEADY, "lower", 0.4)
    assert comparison.verdict(now, now) == "same within noise, target missed"
    assert comparison.verdict(now, None) == "new, target missed"
    assert not comparison.Row("step", "same within noise, target missed").is_bad
    assert comparison.Row("step", "WORSE, target missed").is_bad


def test_new_and_gone_ratios_have_rows(measure: ModuleType, comparison: ModuleType) -> None:
    new, old, kept = (measure.Ratio(name, STEADY, "lower") for name in ("new one", "old one", "kept"))
    rows = comparison.compare([new, kept], [old, kept])
    assert [(row.name, row.verdict) for row in rows] == [
        ("new one", "new"),
        ("kept", "same within noise"),
        ("old one", "gone"),
    ]
    assert not any(row.is_bad for row in rows)


def test_the_table_says_what_is_needed_to_judge(measure: ModuleType, comparison: ModuleType) -> None:
    now, stored = measure.Ratio("step", (0.6,) * 3, "lower", 0.55), measure.Ratio("step", WIDE, "lower", 0.55)
    *_, line = comparison.report(comparison.compare([now], [stored])).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "step", "0.600 (0.600 to 0.600)", "0.500", "+20.0%", "0.000 and 0.100", "at most 0.55",
        "same within noise, target missed",
    ]  # fmt: skip


def test_other_machines_and_versions_are_pointed_out(comparison: ModuleType) -> None:
    here = comparison.Record([], "A, 2 cores", "2026-01-02", {"torch": "2.11.0"}, 1.0)
    there = comparison.Record([], "B, 8 cores", "2026-01-01", {"torch": "2.10.0"}, 1.0)
    assert comparison.differences(here, here) == []
    assert comparison.differences(here, there) == [
        "stored on another machine (B, 8 cores)",
        "stored with torch 2.10.0, here 2.11.0",
    ]


def test_records_survive_a_file(measure: ModuleType, comparison: ModuleType, tmp_path: Path) -> None:
    ratios = [
        measure.Ratio("a", (0.1, 1 / 3), "lower", 0.5),
        measure.Ratio("b (c / d), 24 kHz", (2.0,), "higher"),
    ]
    record = comparison.Record(ratios, "A, 2 cores", "2026-01-02", {"torch": "2.11.0"}, 12.3)
    measure.write_json(tmp_path / "file", comparison.record_to_json(record))
    assert comparison.record_from_json(measure.read_json(tmp_path / "file")) == record


# --- scripts in processes of their own

GOOD = """
from measure import Ratio
def short():
    print("not measured: the part for GPUs")
    return [Ratio("made up", ({values}), "lower", 0.55)]
"""
NOT_HERE = """
from measure import NotMeasured
def short():
    raise NotMeasured("no GPU")
"""
BROKEN = """
def short():
    raise ValueError("something is\\nwrong")
"""
KILLED = """
import os, signal
def short():
    os.kill(os.getpid(), signal.SIGKILL)
"""
ENDLESS = """
import pathlib, subprocess, time
def short():
    child = subprocess.Popen(["sleep", "100"])
    pathlib.Path(__file__).with_suffix(".pid").write_text(str(child.pid))
    time.sleep(100)
"""


@pytest.fixture
def made_up(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are the scripts."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(bench, "SCRIPTS", ("good_one", "other_one", "not_here", "broken", "killed"))
    (tmp_path / "good_one.py").write_text(GOOD.format(values="0.5, 0.5, 0.5"))
    (tmp_path / "other_one.py").write_text(GOOD.format(values="0.4,"))
    for name, text in {"not_here": NOT_HERE, "broken": BROKEN, "killed": KILLED}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_a_script_that_fails_is_a_row_and_not_the_end(
    bench: ModuleType, made_up: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--reference", str(made_up / "reference.json")]
    assert bench.main([*flags, "--only", "broken", "killed", "not_here", "good_one"]) == 1
    printed = capsys.readouterr()
    for verdict in ("FAILED: wrong", "FAILED: exit code -9", "not measured: no GPU", "new"):
        assert f"| {verdict} " in printed.out
    assert "[4/4] good_one" in printed.err
    assert "not measured: the part for GPUs" in printed.err
    assert "Traceback" in printed.err
    assert bench.main([*flags, "--only", "not_here", "good_one"]) == 0


def test_stored_ratios_are_compared_with_and_replaced(
    bench: ModuleType, made_up: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = made_up / "reference.json"
    flags = ["--reference", str(reference), "--only"]
    assert bench.main([*flags, "good_one", "other_one", "--store"]) == 0
    assert list(bench.read_reference(reference)) == ["good_one", "other_one"]
    (made_up / "good_one.py").write_text(GOOD.format(values="0.6, 0.6"))
    assert bench.main([*flags, "good_one"]) == 1
    assert "WORSE, target missed" in capsys.readouterr().out
    before = bench.read_reference(reference)
    assert before["good_one"].ratios[0].values == (0.5, 0.5, 0.5)  # kept unless asked for
    assert bench.main([*flags, "good_one", "--store"]) == 1
    after = bench.read_reference(reference)
    assert after["good_one"].ratios[0].values == (0.6, 0.6)
    assert after["other_one"] == before["other_one"]
    assert bench.main([*flags, "good_one"]) == 0


def test_a_script_that_takes_too_long_is_ended_with_all_it_started(
    bench: ModuleType, made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made_up / "endless.py").write_text(ENDLESS)
    file = made_up / "endless.pid"
    # The time is up when the script has started what it leaves behind.
    wait = bench.subprocess.Popen.wait

    def short_wait(process, timeout=None):
        if timeout is None:
            return wait(process)
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        raise bench.subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(bench.subprocess.Popen, "wait", short_wait)
    found = bench.outcome("endless")
    assert (found.record, found.kind, found.reason) == (None, "FAILED", "took more than 600 s")
    deadline = time.monotonic() + 20
    while is_alive(int(file.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(file.read_text()))


def is_alive(number: int) -> bool:
    """Whether a process still runs."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_every_script_has_a_short_version(bench: ModuleType) -> None:
    for script in bench.SCRIPTS:
        tree = ast.parse((BENCHMARKS / f"{script}.py").read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == "short" for node in tree.body), script


def test_what_is_stored_can_be_read(bench: ModuleType) -> None:
    assert set(bench.read_reference(bench.REFERENCE)) <= set(bench.SCRIPTS)


# --- the short versions of the data layer


def test_throughput_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    import data_throughput

    monkeypatch.setattr(data_throughput, "SHORT_FORMATS", ("flac",))
    monkeypatch.setattr(data_throughput, "SHORT_ROUNDS", 2)
    monkeypatch.setattr(data_throughput, "SHORT_SECONDS", 0.02)
    (found,) = data_throughput.short()
    assert len(found.values) == 2 and found.better == "higher" and found.median > 0


def test_memory_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    import data_memory

    monkeypatch.setattr(data_memory, "SHORT_HOURS", 1)
    monkeypatch.setattr(data_memory, "SHORT_ROUNDS", 2)
    (found,) = data_memory.short()
    assert len(found.values) == 2 and all(0.5 < value < 2 for value in found.values)


def test_scaling_in_short(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import rounds
    import scaling

    monkeypatch.setattr(scaling, "measure", lambda *_, **__: [rounds.Round(2.0, 3.0, 2.5, 0.1)] * 3)
    monkeypatch.setattr(scaling, "available_cores", lambda: 2)
    assert scaling.short()[0].values == (1.5, 1.5, 1.5)
    monkeypatch.setattr(scaling, "available_cores", lambda: 1)
    with pytest.raises(measure.NotMeasured, match="two cores"):
        scaling.short()
