"""A slow rank is found by what it spends before it meets the others."""

from __future__ import annotations

import pytest
import torch

from snac_accel.pace import SAID_AGAIN, Pace, SlowRank, Span, slowest


def test_the_slowest_rank_is_measured_by_the_median_of_the_others() -> None:
    found = slowest([0.1, 0.5, 0.1, 0.12], 1.0)
    assert found is not None and found.rank == 1 and found.usual == pytest.approx(0.1)
    assert found.lag == pytest.approx(0.4) and found.is_slow
    assert found.scalars() == {"time/slowest_rank": 1, "time/slowest_rank_lag": pytest.approx(0.4)}


@pytest.mark.parametrize(("own", "step"), [([0.1, 0.12], 0.3), ([0.001, 0.01], 1.0), ([0.1, 0.1], 0.1)])
def test_a_small_lag_is_not_worth_a_line(own: list[float], step: float) -> None:
    found = slowest(own, step)
    assert found is not None and not found.is_slow


def test_one_rank_alone_is_not_slow() -> None:
    assert slowest([3.0], 1.0) is None


def test_means_are_over_the_steps_since_the_last_flush() -> None:
    pace = Pace()
    pace.add(1.0, Span(torch.device("cpu")))
    pace.add(3.0)
    assert pace.flush() == 2.0
    assert pace.flush() == 0.0


def test_a_slow_rank_is_named_at_once_then_now_and_then() -> None:
    pace, slow, other = Pace(), SlowRank(1, 1.0, 0.1, 1.0), SlowRank(2, 1.0, 0.1, 1.0)
    fine = SlowRank(1, 0.1, 0.1, 1.0)
    said = [pace.is_news(slow) for _ in range(2 * SAID_AGAIN + 1)]
    assert [number for number, news in enumerate(said) if news] == [0, SAID_AGAIN, 2 * SAID_AGAIN]
    assert pace.is_news(other) and not pace.is_news(other)
    assert not pace.is_news(fine) and pace.is_news(other)
