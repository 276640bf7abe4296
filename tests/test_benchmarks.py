"""The benchmark's yardstick makes the update that the trainer makes, and the script prints what it is for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def step_time(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_time

    return step_time


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plain_step

    return plain_step


def test_the_two_steps_make_the_same_update(step_time: ModuleType) -> None:
    """In double precision to its last digits, in float32 to rounding: from the same weights, on the same batch."""
    config = step_time.load_config("demo", overrides={"data": {"segment_length": 0.1}}, environment={})
    batch = step_time.make_batch(config, 2)
    assert step_time.update_difference(config, batch, torch.float64) < 1e-13
    assert step_time.update_difference(config, batch) < step_time.TOLERANCE


def test_the_comparison_can_fail(step_time: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A yardstick with other losses is noticed, and the script then leaves with exit code 1, without times."""
    original = step_time.plain_step

    def without_features(*arguments, loss_weights, sampling_rate):
        loss_weights = {**loss_weights, "feature_matching": 0.0}
        original(*arguments, loss_weights=loss_weights, sampling_rate=sampling_rate)

    monkeypatch.setattr(step_time, "plain_step", without_features)
    monkeypatch.setattr(step_time, "timed_ways", None)  # must not be reached
    threads = str(torch.get_num_threads())
    assert step_time.main(["--model", "tiny", "--seconds", "0.1", "--threads", threads]) == 1


def test_the_plain_generator_is_stock_but_for_the_losses(plain: ModuleType) -> None:
    """Upstream's own snakes everywhere, the trainer's weights, the same output."""
    from snac.layers import Snake1d

    from snac_accel.config import MODEL_CONFIGS
    from snac_accel.generator import TrainableSNAC

    ours, stock = TrainableSNAC(**MODEL_CONFIGS["tiny"]), plain.PlainSNAC(**MODEL_CONFIGS["tiny"])
    stock.load_state_dict(ours.state_dict())
    snakes = [module for module in stock.modules() if isinstance(module, Snake1d)]
    assert snakes and {type(module) for module in snakes} == {Snake1d}
    audio = torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    outputs = []
    for module in (ours, stock):
        torch.manual_seed(0)
        outputs.append(module(audio))
    assert torch.equal(outputs[0].audio, outputs[1].audio)
    assert torch.equal(outputs[0].commitment, outputs[1].commitment)


def test_each_discriminator_runs_twice_as_often_in_the_plain_step(step_time: ModuleType) -> None:
    """Four forward passes instead of two: what the shared forward saves is really spent by the yardstick."""
    config = step_time.load_config("demo", overrides={"data": {"segment_length": 0.1}}, environment={})
    batch, settings = step_time.make_batch(config, 1), step_time.step_settings(config)
    calls = []
    for models, step in zip(step_time.build(config), (step_time.our_step, step_time.their_step), strict=True):
        calls.append(0)
        for module in models.discriminators.values():
            module.register_forward_hook(lambda *_: calls.append(calls.pop() + 1))
        step(models, step_time.sgd(models), batch, settings)()
    assert calls == [4, 8]  # two families


def test_report_gives_median_and_spread(step_time: ModuleType) -> None:
    pairs = [step_time.Pair(2.0, 1.0), step_time.Pair(2.0, 1.5), step_time.Pair(4.0, 2.4)]
    assert step_time.report(pairs).endswith("ratio: median 0.600, spread 0.500 to 0.750")


def test_the_script_runs() -> None:
    flags = ["--model", "tiny", "--pairs", "2", "--seconds", "0.1", "--threads", "1"]
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / "step_time.py"), *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert "largest parameter difference" in result.stdout and torch.__version__ in result.stdout
    assert re.search(r"^ratio: median \d\.\d{3}, spread \d\.\d{3} to \d\.\d{3}$", result.stdout, re.MULTILINE)
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 + 1  # headings, pairs, medians
