"""Between two log lines: means, sums and rates of exactly what happened there."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from snac_accel import meter as meter_module
from snac_accel.meter import StepMeter
from snac_accel.step import StepReport


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module.time, "perf_counter", clock.perf_counter)
    return clock


def report(mel: float, *, counts: list[list[int]] | None = None, **losses: float) -> StepReport:
    result = StepReport(losses={name: torch.tensor(value) for name, value in {"mel": mel, **losses}.items()})
    result.grad_norms = {"generator": torch.tensor(2 * mel)}
    result.counts = None if counts is None else torch.tensor(counts)
    result.restarts = None if counts is None else torch.tensor([1, 0])
    return result


def own(tensor: Tensor) -> Tensor:
    """The mean over the ranks of a single process."""
    return tensor


def test_means_are_over_the_steps_that_computed_a_loss(clock: Clock) -> None:
    meter = StepMeter()
    meter.add(report(1.0), waited=0, audio_seconds=0)
    meter.add(report(3.0, stft=5.0), waited=0, audio_seconds=0)  # weight 0: at logging steps only
    clock.now += 1
    scalars = meter.flush(own)
    assert scalars["train/mel"] == 2.0
    assert scalars["train/stft"] == 5.0
    assert scalars["train/grad_norm/generator"] == 4.0


def test_names_are_paths(clock: Clock) -> None:
    meter = StepMeter()
    step = report(1.0)
    step.losses["discriminator/mpd"] = torch.tensor(0.5)
    meter.add(step, waited=0, audio_seconds=0)
    clock.now += 1
    scalars = meter.flush(own)
    assert scalars["discriminator/mpd"] == 0.5
    assert {name.split("/")[0] for name in scalars} == {"train", "discriminator", "time", "throughput"}


def test_codebook_use_is_of_all_steps_together(clock: Clock) -> None:
    """Two steps that each use one code use two between them: the mean of perplexities would say one."""
    meter = StepMeter()
    meter.add(report(1.0, counts=[[4, 0, 0, 0], [1, 1, 1, 1]]), waited=0, audio_seconds=0)
    meter.add(report(float("nan")), waited=0, audio_seconds=0)  # skipped
    meter.add(report(1.0, counts=[[0, 4, 0, 0], [1, 1, 1, 1]]), waited=0, audio_seconds=0)
    clock.now += 1
    scalars = meter.flush(own)
    assert scalars["codebook/level_0/perplexity"] == pytest.approx(2)
    assert scalars["codebook/level_0/share_used"] == 0.5
    assert scalars["codebook/level_1/perplexity"] == pytest.approx(4)
    assert (scalars["codebook/level_0/restarts"], scalars["codebook/level_1/restarts"]) == (2, 0)


def test_rates_are_of_the_time_since_the_last_flush(clock: Clock) -> None:
    meter = StepMeter()
    for _ in range(2):
        for _ in range(4):
            clock.now += 0.5
            meter.add(report(1.0), waited=0.125, audio_seconds=6.0)
        scalars = meter.flush(own)
        assert scalars["time/step_seconds"] == 0.5
        assert scalars["time/data_wait"] == 0.25
        assert scalars["throughput/audio_seconds_per_second"] == 12.0


def test_a_flush_starts_anew(clock: Clock) -> None:
    meter = StepMeter()
    meter.add(report(100.0, counts=[[9, 0], [9, 0]], stft=3.0), waited=0, audio_seconds=0)
    clock.now += 1
    meter.flush(own)
    meter.add(report(1.0), waited=0, audio_seconds=0)
    clock.now += 1
    scalars = meter.flush(own)
    assert scalars["train/mel"] == 1.0
    assert not [name for name in scalars if "stft" in name or name.startswith("codebook")]


def test_means_go_over_ranks_in_one_call(clock: Clock) -> None:
    meter = StepMeter()
    meter.add(report(1.0, stft=2.0), waited=0, audio_seconds=0)
    clock.now += 1
    calls: list[Tensor] = []

    def mean(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        return tensor + 10

    scalars = meter.flush(mean)
    assert len(calls) == 1  # a collective per log line, not per loss
    assert (scalars["train/mel"], scalars["train/stft"]) == (11.0, 12.0)


def test_a_line_of_the_log_that_was_interrupted_goes_on_exactly() -> None:
    """Through JSON, with a number that is not finite, as a skipped step leaves it."""
    straight, before = StepMeter(), StepMeter()
    for meter in (straight, before):
        meter.add(report(0.1, counts=[[3, 0], [1, 2]]), waited=0.0, audio_seconds=1.0)
    before.add(report(float("nan")), waited=0.0, audio_seconds=1.0)
    straight.add(report(float("nan")), waited=0.0, audio_seconds=1.0)
    after = StepMeter()
    after.go_on(json.loads(json.dumps(before.sums(), allow_nan=False)), torch.device("cpu"))
    assert after.sums() == before.sums()
    for meter in (straight, after):
        meter.add(report(0.7, counts=[[0, 4], [2, 2]]), waited=0.0, audio_seconds=1.0)
    assert after.sums() == straight.sums()
    ours, theirs = straight.flush(lambda means: means), after.flush(lambda means: means)
    for name in ours.keys() | theirs.keys():
        if not name.startswith(("time/", "throughput/")):
            assert ours[name] == theirs[name] or math.isnan(ours[name]) and math.isnan(theirs[name]), name
