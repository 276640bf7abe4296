"""The account of a run's time: buckets without gaps or overlaps, over restarts and kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snac_accel import clock as clock_module
from snac_accel.clock import BUCKETS, LARGEST_FILE, Clock, read_account, read_small, write_small


class Time:
    """A clock that goes when it is told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock_module.time, "time", lambda: time.now)
    return time


def started(time: Time, started: float | None = None) -> Clock:
    return Clock(started, monotonic=lambda: time.now)


def nonzero(clock: Clock) -> dict[str, float]:
    return {name: value for name, value in clock.account()["seconds"].items() if value}


def adds_up(clock: Clock) -> bool:
    account = clock.account()
    return sum(account["seconds"].values()) == pytest.approx(account["wall_seconds"], abs=1e-6)


def run_steps(clock: Clock, time: Time, first: int, last: int) -> None:
    for step in range(first, last):
        clock.enter("data", step)
        time.now += 1
        clock.enter("step", step)
        time.now += 3
    clock.enter("data", last)


def test_time_goes_to_the_bucket_that_is_open(time: Time) -> None:
    clock = started(time, 990.0)
    run_steps(clock, time, 0, 5)
    clock.enter("validation", 5)
    time.now += 7
    clock.enter("saving", 5)
    time.now += 2
    assert nonzero(clock) == {"start": 10.0, "data": 5.0, "step": 15.0, "validation": 7.0, "saving": 2.0}
    assert clock.scalars()["goodput/share"] == pytest.approx(15 / 39)
    assert adds_up(clock)


def test_steps_made_again_after_a_kill_are_recomputed_and_the_pause_is_down(time: Time, tmp_path: Path) -> None:
    file = tmp_path / "goodput.json"
    first = started(time)
    first.go_on(file)
    run_steps(first, time, 0, 10)
    first.save()  # the last heartbeat; then it is killed
    time.now += 100
    second = started(time)
    time.now += 5
    second.go_on(file)
    run_steps(second, time, 6, 12)  # the newest checkpoint was that of step 6
    assert nonzero(second) == {"step": 36.0, "data": 16.0, "recomputed": 12.0, "start": 5.0, "down": 100.0}
    account = second.account()
    assert account["wall_seconds"] == 169.0 and account["goodput"] == pytest.approx(36 / 169)
    assert adds_up(second)


def test_steps_made_again_after_a_rollback_are_recomputed(time: Time) -> None:
    clock = started(time)
    run_steps(clock, time, 0, 10)
    run_steps(clock, time, 5, 12)
    assert nonzero(clock)["recomputed"] == 15.0 and nonzero(clock)["step"] == 36.0


def test_a_hang_is_taken_out_of_the_bucket_in_which_it_was(time: Time) -> None:
    clock = started(time)
    clock.enter("step", 3)
    time.now += 50
    clock.lost(45)
    assert nonzero(clock) == {"step": 5.0, "hang": 45.0}
    clock.lost(1000)  # never more than there was
    assert nonzero(clock) == {"hang": 50.0} and adds_up(clock)


def test_a_machine_whose_clock_is_late_counts_nothing_twice(time: Time, tmp_path: Path) -> None:
    file = tmp_path / "goodput.json"
    first = started(time)
    first.go_on(file)
    time.now += 50
    first.save()
    time.now -= 20
    second = started(time)
    second.go_on(file)
    time.now += 30
    assert second.account()["wall_seconds"] == 60.0 and adds_up(second)
    assert nonzero(second) == {"start": 60.0}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "{}", '{"seconds": 3}', "[" * 100_000, '{"first_start": "x", "until": 2, "seconds": {}}'],
)
def test_a_file_that_is_something_else_is_no_account(text: str, tmp_path: Path, time: Time) -> None:
    file = tmp_path / "goodput.json"
    file.write_text(text)
    assert read_account(file) is None
    clock = started(time)
    clock.go_on(file)
    time.now += 1
    assert adds_up(clock)


@pytest.mark.parametrize("value", [-5.0, float("nan"), 1e300])
def test_impossible_numbers_are_no_account(value: float, tmp_path: Path) -> None:
    file = tmp_path / "goodput.json"
    account = Clock().account()
    assert read_account(file) is None
    file.write_text(json.dumps(account))
    assert read_account(file) is not None
    file.write_text(json.dumps({**account, "seconds": {**dict.fromkeys(BUCKETS, 0.0), "step": value}}))
    assert read_account(file) is None


def test_small_files_are_whole_or_absent_and_read_in_bounds(tmp_path: Path) -> None:
    write_small(tmp_path / "a.json", {"x": 1})
    assert read_small(tmp_path / "a.json") == {"x": 1}
    write_small(tmp_path / "missing" / "a.json", {"x": 1})  # no reason to stop
    write_small(tmp_path / "b.json", {"x": "y" * LARGEST_FILE})
    assert read_small(tmp_path / "b.json") is None
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.json", "b.json"]
