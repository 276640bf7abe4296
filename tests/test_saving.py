"""Saving in the background: training goes on at once, one write at a time, nothing is lost at the end, failures are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import differences, make_state, snapshot

from snac_accel.checkpoint import Retention, Snapshot, load_checkpoint, write_snapshot
from snac_accel.errors import CheckpointError
from snac_accel.saving import Outcome, Saver
from snac_accel.state import TrainState
from snac_accel.stored import newest_checkpoint

FACTS = {"config_hash": "", "world_size": 1, "global_batch_size": 1}


class Disk:
    """Writes when it is let, and fails when it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.free, self.writing = threading.Event(), threading.Event()
        self.problem: BaseException | None = None
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def write(self, taken: Snapshot) -> Path:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.writing.set()
        try:
            assert self.free.wait(20)
            if self.problem is not None:
                raise self.problem
            return write_snapshot(self.folder, taken, {}, FACTS, Retention(2))
        finally:
            with self.lock:
                self.at_once -= 1


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


@pytest.fixture
def outcomes() -> list[Outcome]:
    return []


@pytest.fixture
def saver(disk: Disk, outcomes: list[Outcome]) -> Saver:
    return Saver(disk.write, outcomes.append, max_failed=3)


@pytest.fixture
def state(make_accelerator: Callable[..., Accelerator]) -> TrainState:
    return make_state(make_accelerator())


def change(state: TrainState) -> None:
    """What a step does: every tensor in place."""
    with torch.no_grad():
        for module in state.models():
            for tensor in module.state_dict().values():
                tensor.add_(1)
    state.usage.counts += 1
    state.step += 1
    state.count("bad_clips")


def test_training_goes_on_while_the_disk_is_slow(
    saver: Saver, disk: Disk, state: TrainState, outcomes: list[Outcome], make_accelerator: Callable[..., Accelerator]
) -> None:
    saved = snapshot(state)
    saver.start(state)  # would wait for ever, were it not in the background
    assert disk.writing.wait(20)
    change(state)
    saver.poll()
    assert outcomes == []
    disk.free.set()
    saver.wait()
    (outcome,) = outcomes
    assert outcome.path is not None and (outcome.step, outcome.problem) == (0, None)
    fresh = make_state(make_accelerator(), seed=5)
    load_checkpoint(outcome.path, fresh)
    assert differences(saved, snapshot(fresh)) == []


def test_one_write_at_a_time_and_the_wait_is_part_of_the_stall(
    saver: Saver, disk: Disk, state: TrainState, outcomes: list[Outcome]
) -> None:
    threading.Timer(0.3, disk.free.set).start()
    for _ in range(4):
        saver.start(state)
        change(state)
    saver.wait()
    assert disk.most_at_once == 1
    assert [outcome.step for outcome in outcomes] == [0, 1, 2, 3]
    assert outcomes[0].write_seconds > 0.2 and outcomes[1].stall_seconds > 0.2
    assert outcomes[0].stall_seconds < 0.2


def test_failed_saves_are_counted_and_one_that_succeeds_forgives_them(
    saver: Saver, disk: Disk, state: TrainState, outcomes: list[Outcome]
) -> None:
    disk.free.set()
    for problem in (True, True, False, True, True, True):
        disk.problem = CheckpointError("no room") if problem else None
        saver.start(state)
        saver.wait()
        state.step += 1
    assert [outcome.failed_in_a_row for outcome in outcomes] == [1, 2, 0, 1, 2, 3]
    assert saver.given_up and saver.problem == "no room" and saver.saved_step == 2
    assert newest_checkpoint(disk.folder) == disk.folder / "step_00000002"


def test_the_last_save_is_tried_twice_and_then_said(saver: Saver, disk: Disk, state: TrainState, outcomes: list[Outcome]) -> None:
    disk.free.set()
    disk.problem = CheckpointError("no room")
    saver.start(state)
    with pytest.raises(CheckpointError, match="no room"):
        saver.finish(state)
    assert len(outcomes) == 2
    disk.problem = None
    saver.finish(state)
    saver.finish(state)  # it is there already
    assert len(outcomes) == 3 and newest_checkpoint(disk.folder) is not None


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_disk(saver: Saver, disk: Disk, state: TrainState) -> None:
    disk.free.set()
    disk.problem = ZeroDivisionError("a bug")
    saver.start(state)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        saver.wait()
    saver.wait()


def test_the_program_does_not_end_in_the_middle_of_a_write(saver: Saver, disk: Disk, state: TrainState) -> None:
    """Threads that are no daemons are joined at the end of Python, whatever ends it."""
    saver.start(state)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    assert not thread.daemon
    disk.free.set()
    saver.wait()
    assert not thread.is_alive()


def test_the_stall_is_that_of_the_copy(saver: Saver, disk: Disk, state: TrainState, outcomes: list[Outcome]) -> None:
    begun = time.perf_counter()
    saver.start(state)
    passed = time.perf_counter() - begun
    disk.free.set()
    saver.wait()
    assert 0 < outcomes[0].stall_seconds <= passed


def test_scores_travel_with_the_snapshot(disk: Disk, state: TrainState) -> None:
    seen: list[Any] = []
    disk.free.set()
    saver = Saver(lambda taken: seen.append(taken.score) or disk.write(taken), lambda outcome: None)
    saver.start(state, {"metric": "mel_distance", "value": 1.0})
    saver.wait()
    assert seen == [{"metric": "mel_distance", "value": 1.0}]
