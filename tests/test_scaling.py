"""The scaling benchmark: what it counts is what a real step sends, its processes end, its arithmetic keeps its bounds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator
from test_train import TINY, tiny_config

from snac_accel.config import merge, validate
from snac_accel.train import main

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def gradients() -> ModuleType:
    import gradients

    return gradients


@pytest.fixture
def prediction() -> ModuleType:
    import prediction

    return prediction


@pytest.fixture
def rounds() -> ModuleType:
    import rounds

    return rounds


def test_counted_buckets_are_those_that_two_processes_send(rounds: ModuleType, gradients: ModuleType) -> None:
    """As many of them, and as many bytes in all; the order in which gradients come up moves some bytes between them."""
    config = rounds.timing_config(0.25, 0.13)
    with rounds.Ranks(2, threads=1, config=config, global_batch=2) as two:
        for _ in range(rounds.WARM_UP):
            assert two.seconds("step") > 0
        sent = two.ask("buckets")
        assert two.seconds("all_reduce") > 0 and two.seconds("local") > 0
    assert not any(process.is_alive() for process in two.processes)
    assert sent[0] == sent[1]
    for found, network in zip(sent[0], gradients.networks(config), strict=True):
        assert sum(found) == network.gradient_bytes == 4 * network.parameters
        assert found == pytest.approx(network.buckets, rel=0.02)


def test_a_process_that_ends_is_an_error(rounds: ModuleType) -> None:
    with rounds.Ranks(1, threads=1, config=rounds.timing_config(0.01, 0.13), global_batch=1) as one:
        with pytest.raises(RuntimeError, match="asked for 'nonsense'"):
            one.ask("nonsense")


def test_small_collectives_are_those_of_a_run(
    gradients: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a whole training step hands to `reduce`, beside DDP."""
    sizes: list[int] = []
    original = Accelerator.reduce

    def noted(self: Accelerator, tensor: torch.Tensor, **options: object) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return original(self, tensor, **options)

    monkeypatch.setattr(Accelerator, "reduce", noted)
    training = merge(TINY["training"], {"num_iterations": 1, "log_interval": 100, "save_interval": 100})
    config = tiny_config(tmp_path / "run", training=training, validation={"enabled": False})
    assert main(config) == 0
    expected = gradients.small_collectives(validate(config))
    del sizes[0]  # once, before the first step: whether to stop there
    assert sizes == [expected.verdict, expected.code_counts, expected.account]


@pytest.mark.parametrize(
    ("module", "shape", "flops"),
    [
        (torch.nn.Conv1d(3, 5, 7, padding=3), (1, 3, 10), 2 * 3 * 5 * 7 * 10),
        (torch.nn.Conv1d(4, 4, 3, groups=4, padding=1), (1, 4, 8), 2 * 4 * 3 * 8),
        (torch.nn.Linear(6, 2), (3, 6), 2 * 3 * 6 * 2),
    ],
    ids=["convolution", "depthwise", "linear"],
)
def test_operations_are_two_for_each_product(
    gradients: ModuleType, module: torch.nn.Module, shape: tuple[int, ...], flops: int
) -> None:
    assert gradients.forward_flops(module, torch.zeros(shape)) == flops


def network(gradients: ModuleType) -> object:
    """One of 100 MB in 4 buckets, 1 GFLOP forward."""
    return gradients.Network("one", 25_000_000, (25_000_000,) * 4, 10**9, 7, 4)


def cluster(prediction: ModuleType, gpus: int, rate: float = 1e10) -> object:
    inside, between = prediction.Fabric("inside", 2e11, 3e-6), prediction.Fabric("between", rate, 8e-6)
    return prediction.Cluster(gpus, inside, between)


def test_transfer_is_that_of_a_ring(prediction: ModuleType) -> None:
    """Two GPUs exchange the bytes once; very many, nearly twice."""
    assert cluster(prediction, 2).transfer(1e9) == pytest.approx(1e9 / 2e11)
    assert cluster(prediction, 8192).transfer(1e9) == pytest.approx(2 * 1e9 / 1e10, rel=1e-3)
    assert cluster(prediction, 8).ring_latency() == cluster(prediction, 8).tree_latency()  # one node
    assert cluster(prediction, 64).tree_latency() == pytest.approx(2 * (7 * 3e-6 + 3 * 8e-6))


def test_efficiency_keeps_its_bounds(prediction: ModuleType, gradients: ModuleType) -> None:
    """It lies between 0 and 1, is 1 for one GPU, and grows with the network, the overlap and the work of a step."""
    one = [network(gradients)]

    def efficiency(gpus: int, *, rate: float = 1e10, compute: float = 0.1, **options: object) -> float:
        found = prediction.predict(one, cluster(prediction, gpus, rate), compute=compute, **options)
        return float(found.efficiency)

    assert efficiency(1, small_bytes=[56]) == 1
    for gpus in (8, 64, 512):
        worst, likely = efficiency(gpus, ring_only=True), efficiency(gpus, overlap=0.5)
        assert 0 < worst < likely < 1
        assert efficiency(gpus, compute=1.0) > efficiency(gpus) >= efficiency(gpus, small_bytes=[10**6])
    assert efficiency(64, rate=1e11) > efficiency(64)


def test_nothing_hides_longer_than_the_backward_passes(prediction: ModuleType, gradients: ModuleType) -> None:
    slow = cluster(prediction, 64, 1e6)  # a hundred times slower than the step
    found = prediction.predict([network(gradients)], slow, compute=1.0, overlap=1.0)
    assert found.hidden == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("costs", "alone", "verdict"),
    [
        ([0.09, 0.10, 0.11] * 9, 0.4, "overlap: 73% to 78% of the all-reduce; averaging adds 0.100 s"),
        ([0.09, 0.10, 0.11] * 9, 0.05, "overlap: none; averaging adds 0.100 s"),
        ([-0.5, 0.1, 0.5], 0.4, "overlap: not resolved; averaging adds 0.100 s"),
    ],
)
def test_overlap_is_given_only_where_the_rounds_agree(
    rounds: ModuleType, costs: list[float], alone: float, verdict: str
) -> None:
    assert rounds.overlap([rounds.Round(2.0, 2.0 + cost, 2.0, alone) for cost in costs]).startswith(verdict)


def test_the_median_lies_in_its_interval(rounds: ModuleType) -> None:
    """In about 95 of 100 samples of uniform numbers, whose median is a half."""
    generator = torch.Generator().manual_seed(0)
    intervals = [rounds.median_interval(torch.rand(41, generator=generator).tolist()) for _ in range(500)]
    assert 0.93 < sum(lower <= 0.5 <= upper for lower, upper in intervals) / 500 < 0.99


def test_the_script_runs() -> None:
    flags = "--parts measured predicted --preset demo --rounds 1 --seconds 0.13 --width 0.02".split()
    result = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "scaling.py"),
            *flags,
            "--step_seconds",
            "0.5",
            "--batch_size",
            "8",
            "1",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    assert "MEASURED on this CPU" in result.stdout and "PREDICTED, not measured: preset demo" in result.stdout
    assert "0.5 s for 8 windows (given)" in result.stdout
    rows = re.findall(r"^\| (?:8|64|512) .*\|$", result.stdout, re.MULTILINE)
    assert len(rows) == 2 * (1 + 2 + 2)  # batch sizes; networks beyond one node
