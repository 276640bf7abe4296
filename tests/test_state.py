"""What a checkpoint holds of a run's progress, in JSON, and the best validation among it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from accelerate import Accelerator
from tiny import make_state

from snac_accel.balancer import Balancer
from snac_accel.state import COUNTERS, TrainState


@pytest.fixture
def state(make_accelerator: Callable[..., Accelerator]) -> TrainState:
    return make_state(make_accelerator())


def test_all_progress_comes_back(state: TrainState, make_accelerator: Callable[..., Accelerator]) -> None:
    """Every field differs from that of a fresh state, so that one that is forgotten shows."""
    fresh = state.progress()
    state.step, state.position = 7, 28
    for number, name in enumerate(COUNTERS, start=1):
        state.count(name, number)
    state.sources = {"a": {"windows": 28, "bad_clips": 1}}
    state.note_validation("mel_distance", 2.5)
    state.note_validation("mel_distance", 2.6)
    state.untouched = {"mel_distance": 2.0}
    state.balancer = Balancer()
    state.balancer.observe({"adversarial": 3.5})
    state.unlogged = [{"losses": {}}]
    state.recent_losses, state.skipped_in_a_row = [1.5, 2.5], 3
    state.collapsed = [1]
    saved: dict[str, Any] = json.loads(json.dumps(state.progress(), allow_nan=False))
    assert {name for name in saved if saved[name] == fresh[name]} == {"scaler"}  # float16 alone has one
    other = make_state(make_accelerator())
    other.balancer = Balancer()
    other.load_progress(saved)
    assert other.progress() == state.progress() == saved


def test_the_best_validation_is_the_smallest_finite_one(state: TrainState) -> None:
    for step, value, is_best in [(1, 3.0, True), (2, 2.0, True), (3, 2.0, False), (4, float("nan"), False), (5, 2.5, False)]:
        state.step = step
        assert state.note_validation("mel_distance", value) is is_best
        assert state.validated_at == step
    assert state.best == {"metric": "mel_distance", "value": 2.0, "step": 2, "better": "lower"}
    assert state.validations_since_best == 3
    assert state.note_validation("another", 9.0) and state.best["metric"] == "another"


def test_of_some_metrics_the_best_is_the_largest(state: TrainState) -> None:
    assert [state.note_validation("si_sdr_db", value, "higher") for value in (-3.0, -4.0, 5.0)] == [True, False, True]
    assert state.best["value"] == 5.0 and state.validations_since_best == 0


def test_format_2_had_no_best_and_was_written_after_its_validation(state: TrainState) -> None:
    saved = {"step": 4, "position": 8, "counters": {"bad_clips": 3}, "scaler": {}}
    state.load_progress(saved)
    assert (state.step, state.validated_at, state.best, state.counters["bad_clips"]) == (4, 4, {}, 3)
