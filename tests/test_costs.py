"""What a step costs: the count agrees with a real step, with torch's own counter, with arithmetic, and with the log."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_train import TINY, tiny_config
from tiny import (
    ATTENTION_MODEL,
    MODEL,
    ODD_MODEL,
    WEIGHTS,
    WINDOW,
    make_discriminators,
    make_generator,
    make_state,
    stock_twin,
    step_settings,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from snac_accel import meter as meter_module
from snac_accel.audio import stft
from snac_accel.config import load_config, merge, validate
from snac_accel.costs import (
    OPTIMIZER_BYTES,
    OPTIMIZER_FLOPS,
    Cost,
    Counter,
    forward_flops,
    on_meta,
    step_cost,
    total_cost,
)
from snac_accel.meter import Counted, StepMeter, count_step
from snac_accel.peaks import PEAKS, peak_flops
from snac_accel.step import train_step
from snac_accel.tracking import METRICS_FILE
from snac_accel.train import main, setup_dataset, setup_models

RATE = MODEL["sampling_rate"]
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PARTS = ("generator", "mpd", "msstftd", "spectral losses", "optimizers")


def tiny_cost(
    batch_size: int = 2,
    weights: dict[str, float] | None = None,
    *,
    depthwise: bool = True,
    accumulation_steps: int = 1,
    product_bytes: int = 4,
) -> dict[str, Cost]:
    """Of a step of the tests' tiny networks."""
    return step_cost(
        make_generator(depthwise=depthwise).train(),
        make_discriminators(),
        (batch_size, 1, WINDOW),
        loss_weights={**WEIGHTS, **(weights or {})},
        sampling_rate=RATE,
        accumulation_steps=accumulation_steps,
        product_bytes=product_bytes,
    )


def by_torch(work: Callable[[], object]) -> int:
    """Operations that torch's own counter finds."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "weights", [{}, {"stft": 0.0, "adversarial": 0.0}, {"adversarial": 0.0, "feature_matching": 0.0}]
)
def test_the_count_is_that_of_a_real_step(weights: dict[str, float]) -> None:
    """The trainer's own step, with numbers: every product of it is in the count, and nothing else."""
    accelerator = Accelerator(cpu=True)
    state, settings = make_state(accelerator, depthwise=False), step_settings(weights)
    real = 0.1 * torch.randn(2, 1, WINDOW, generator=torch.Generator().manual_seed(0))
    with Counter() as counter:
        train_step([real], state, accelerator, settings)
    parts = tiny_cost(weights=weights, depthwise=False)
    assert tuple(parts) == PARTS
    assert counter.cost.flops == total_cost(parts).flops - parts["optimizers"].flops


def test_a_dense_generator_costs_what_torch_counts_in_both_directions() -> None:
    """torch's counter forgets the groups of depthwise weights, so it can be asked about others only."""
    generator, real = make_generator(model=ODD_MODEL).train(), torch.randn(2, 1, 15 * 60)

    def both_ways() -> None:
        output = generator(real)
        (output.audio.sum() + output.commitment + output.codebook).backward()

    parts = step_cost(generator, {}, real.shape, loss_weights={}, sampling_rate=RATE)
    assert parts["generator"].flops == by_torch(both_ways)


@pytest.mark.parametrize("model", [MODEL, ATTENTION_MODEL], ids=["depthwise", "attention"])
def test_a_forward_pass_costs_what_torch_counts(model: dict[str, Any]) -> None:
    """Of the stock package's model; attention in its plain form, because torch does not see into the fused one of a CPU."""
    real, generator = torch.randn(2, 1, WINDOW), make_generator(model=model)
    with sdpa_kernel(SDPBackend.MATH):
        stock = by_torch(lambda: stock_twin(generator, model)(real))
    assert forward_flops(generator, real) == stock


def test_discriminators_cost_seven_forward_passes_but_for_their_first_layers() -> None:
    """Two forward, the verdict back to the audio, twice back to weights and inputs; no gradient of real or fake audio there."""
    real = torch.zeros(2, 1, WINDOW)
    discriminator = make_discriminators()["mpd"]
    first = sum(forward_flops(part.convs[0], part.fold(real)) for part in discriminator.discriminators)
    assert tiny_cost()["mpd"].flops == 7 * forward_flops(discriminator, real) - 2 * first
    alone = tiny_cost(weights={"adversarial": 0.0, "feature_matching": 0.0})["mpd"].flops
    assert alone == 6 * forward_flops(discriminator, real) - 2 * first


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (4, False), (2, False), (1, True), (4, True)])
def test_each_gradient_of_a_convolution_costs_what_its_forward_pass_does(
    groups: int, transposed: bool
) -> None:
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    conv = kind(4, 8, 4, stride=2, padding=1, groups=groups, device="meta")
    audio = torch.empty(3, 4, 16, device="meta", requires_grad=True)
    forward = 2 * 3 * 4 * (8 // groups) * 4 * (16 if transposed else 8)  # B, C in, C out, kernel, positions
    for inputs, times in (([audio], 2), ([conv.weight], 2), ([audio, conv.weight], 3)):
        with Counter() as counter:
            torch.autograd.grad(conv(audio).sum(), inputs)
        assert counter.cost.flops == times * forward


def test_bytes_are_operands_and_results_once() -> None:
    """Forward: input, weight, output; the input's gradient: weight and two activations; nothing that is not used."""
    conv = nn.Conv1d(2, 3, 1, bias=False, device="meta")
    audio = torch.empty(5, 2, 7, device="meta", requires_grad=True)
    inputs, weight, outputs = 5 * 2 * 7, 2 * 3, 5 * 3 * 7
    for width in (4, 2):
        with Counter(width) as counter:
            output = conv(audio)
        assert counter.cost.num_bytes == width * (inputs + weight + outputs)
        with Counter(width) as counter:
            torch.autograd.grad(output, audio, torch.empty_like(output))
        assert counter.cost.num_bytes == width * (outputs + weight + inputs)


def test_a_fourier_transform_costs_n_log_n() -> None:
    """Real numbers half of 5 N log2 N; 8 samples a hop, so that there are WINDOW / 8 + 1 frames."""
    with Counter() as counter:
        stft(torch.zeros(2, 1, WINDOW), 64, 8)
    assert counter.cost.flops == 2 * (WINDOW // 8 + 1) * 2.5 * 64 * math.log2(64)


def test_the_optimizers_cost_what_adamw_does_to_each_number() -> None:
    """Element by element: the operations of torch's plain AdamW, and square and sum for the norm."""
    operations = {"mul_": 1, "lerp_": 3, "addcmul_": 3, "sqrt": 1, "div": 1, "add_": 1, "addcdiv_": 3}
    found: list[int] = []

    class Elements(Counter):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if args and isinstance(args[0], torch.Tensor) and args[0].numel() == 7:
                found.append(operations[func._overloadpacket.__name__])
            return super().__torch_dispatch__(func, types, args, kwargs)

    weight = nn.Parameter(torch.ones(7))
    weight.grad = torch.ones(7)
    optimizer = torch.optim.AdamW([weight], foreach=False)
    optimizer.step()  # makes the moments
    with Elements():
        optimizer.step()
    assert sum(found) + 2 == OPTIMIZER_FLOPS
    parameters = sum(
        p.numel()
        for module in (make_generator(), *make_discriminators().values())
        for p in module.parameters()
    )
    assert tiny_cost()["optimizers"] == Cost(OPTIMIZER_FLOPS * parameters, OPTIMIZER_BYTES * parameters)


def test_work_grows_with_batch_and_accumulation_but_weights_do_not() -> None:
    one, four, twice = tiny_cost(1), tiny_cost(4), tiny_cost(1, accumulation_steps=2)
    for part in PARTS[:-1]:
        assert four[part].flops == 4 * one[part].flops
        assert four[part].num_bytes < 4 * one[part].num_bytes or part == "spectral losses"
        assert twice[part] == one[part] * 2
    assert one["optimizers"] == four["optimizers"] == twice["optimizers"]
    half = tiny_cost(1, product_bytes=2)
    assert half["generator"].num_bytes < 0.51 * one["generator"].num_bytes
    assert half["spectral losses"] == one["spectral losses"]  # float32 whatever the autocast type


def test_counting_leaves_the_networks_and_the_random_numbers_alone() -> None:
    generator = make_generator().train()
    before, numbers = {name: t.clone() for name, t in generator.state_dict().items()}, torch.get_rng_state()
    step_cost(generator, {}, (1, 1, WINDOW), loss_weights=WEIGHTS, sampling_rate=RATE)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert torch.autocast("cpu", enabled=False)  # torch's own again
    ghost = on_meta(generator)
    assert ghost.state_dict().keys() == before.keys()
    assert {tensor.device.type for tensor in ghost.state_dict().values()} == {"meta"}


def test_a_network_that_must_see_its_numbers_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on; a line says what is missing."""

    class Curious(nn.Module):
        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return audio * float(audio.abs().max())

    config = validate(tiny_config())
    assert count_step(config, Accelerator(cpu=True), 1, Curious(), {}) == Counted()
    assert "FLOP/s are not logged" in caplog.text


def test_the_log_has_the_counted_operations_over_the_measured_seconds(tmp_path: Path) -> None:
    training = merge(TINY["training"], {"log_interval": 2, "gradient_accumulation_steps": 2})
    config = tiny_config(tmp_path / "run", training=training, validation={"enabled": False})
    assert main(config) == 0
    settings = validate(config)
    parts = step_cost(
        *setup_models(settings),
        (settings.training.batch_size, 1, settings.segment_samples),
        loss_weights=settings.losses.model_dump(),
        sampling_rate=RATE,
        accumulation_steps=2,
    )
    lines = [json.loads(line) for line in (tmp_path / "run/logs" / METRICS_FILE).read_text().splitlines()]
    measured = [line for line in lines if "time/step_seconds" in line]  # saving has lines of its own
    assert len(measured) == 2
    for line in measured:
        rate = total_cost(parts).flops / line["time/step_seconds"]
        assert line["throughput/tflop_per_second"] == pytest.approx(rate / 1e12)
        assert "throughput/mfu" not in line  # nobody promises anything of this CPU


def test_mfu_is_the_share_of_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 4.0, 4.0, 6.0, 6.0])
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: next(now))
    meter = StepMeter(Counted(step_flops=2e12, peak_flops=1e13))
    for seconds in (4.0, 2.0):
        for _ in range(8):
            meter.add(meter_module.StepReport(), waited=0, audio_seconds=0)
        scalars = meter.flush(lambda tensor: tensor)
        assert scalars["throughput/tflop_per_second"] == pytest.approx(8 * 2 / seconds)
        assert scalars["throughput/mfu"] == pytest.approx(8 * 2 / seconds / 10)


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "tf32", 494.5),
        ("NVIDIA GeForce RTX 4090", "fp32", 82.6),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla T4", "tf32", 8.1),  # it has none: float32 stays float32
    ],
)
def test_promises_of_known_gpus(name: str, precision: Any, teraflops: float) -> None:
    assert peak_flops(name, precision) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A10G",
        "cpu",
        "",
    ],
)
def test_what_is_not_known_is_not_guessed(name: str) -> None:
    assert peak_flops(name, "fp16") is None


def test_promises_are_consistent() -> None:
    assert peak_flops("Tesla T4", "bf16") is None
    for peaks in PEAKS.values():
        assert peaks.fp32 <= peaks.tf32 <= peaks.fp16
        assert peaks.bf16 in (None, peaks.fp16)


def test_the_roofline_prints_every_part_over_its_floor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import limits
    import roofline

    monkeypatch.setattr(limits, "SIZES", {"cpu": (64, 2**12)})
    threads = str(torch.get_num_threads())
    flags = [
        "--preset",
        "demo",
        "--rounds",
        "1",
        "--seconds",
        "0.13",
        "--batch_size",
        "1",
        "--threads",
        threads,
    ]
    assert roofline.main(flags) == 0
    printed = capsys.readouterr().out
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in printed.splitlines()
        if line.startswith("| ")
    }
    assert {*PARTS, "step"} <= rows.keys()
    *_, floor, _, measured, over = (cell.strip() for cell in rows["step"])
    assert float(over) == pytest.approx(float(measured) / float(floor), rel=0.2)  # of rounded numbers
    assert sum(float(rows[part][0]) for part in PARTS) == pytest.approx(float(rows["step"][0]), abs=0.03)


def test_a_part_needs_the_longer_of_arithmetic_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from limits import Peaks

    peaks, cost = Peaks(no=1e9, bf16=4e9, memory=1e8), Cost(flops=2 * 10**9, num_bytes=10**8)
    assert peaks.floor("mpd", cost, "no") == 2.0
    assert peaks.floor("mpd", cost, "bf16") == 1.0  # memory
    assert peaks.floor("spectral losses", cost, "bf16") == 2.0  # float32 whatever the precision


def test_the_parts_of_a_real_step_are_all_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step marks them; what torch marks inside of them is not counted twice."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from limits import Clock

    clock, accelerator = Clock(torch.device("cpu")), Accelerator(cpu=True)
    state, real = make_state(accelerator), torch.zeros(1, 1, WINDOW)
    with clock.listening():
        whole = clock.seconds(lambda: train_step([real], state, accelerator, step_settings()))
    assert clock.parts.keys() == {*PARTS, "codebooks"}
    assert sum(clock.parts.values()) <= whole
    train_step([real], state, accelerator, step_settings())
    assert sum(clock.parts.values()) <= whole  # it does not listen any more


def test_growth_is_told_by_lines_and_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import growth
    from manifest_runs import run_of, write_manifest

    straight = growth.linear_table({size: [0.5 + 0.25 * size] for size in (1, 2, 8)}, "windows")
    assert "fixed 0.5000 s, 0.2500 s for each unit" in straight and straight.count("+0%") == 3
    flat = growth.flat_table(
        {100: [1.0, 2.0, 3.0], 1000: [2.0, 4.0, 6.0]}, "rows", {100: 0.1, 1000: 0.2}, "to open"
    )
    assert "| 1,000" in flat and "2.00" in flat
    counted = growth.by_batch("demo", [1, 2], 1)
    assert list(counted) == [1, 2] and all(len(times) == 1 for times in counted.values())
    data, _ = setup_dataset(run_of(write_manifest(tmp_path / "rows.csv", 1000), tmp_path / "run"))
    assert data.num_clips == 1000
    assert data.sample_at(999).audio.abs().max() > 0


def test_the_table_in_the_docs_is_what_is_counted() -> None:
    """Of the published 24 kHz networks, one window a step: rounded as printed there."""
    with torch.device("meta"):
        config = load_config("24khz", environment={})
        networks = setup_models(config, "meta")
    parts = step_cost(
        *networks,
        (1, 1, config.segment_samples),
        loss_weights=config.losses.model_dump(),
        sampling_rate=config.model.sampling_rate,
    )
    rows: dict[str, str] = {}
    for line in (BENCHMARKS.parent / "docs/speed/README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            rows.setdefault(
                *(cell.strip() for cell in line.split("|")[1:3])
            )  # of the first table with such a row
    for part, cost in {**parts, "step": total_cost(parts)}.items():
        assert rows[part] == f"{cost.flops / 1e9:.1f} / {cost.num_bytes / 1e9:.2f}"
