"""Memory: activation checkpointing changes no bit, and the doctor's estimate is what the step then needs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import WINDOW, differences, make_generator, make_state, snapshot, step_settings
from torch import Tensor

from snac_accel.activations import RECOMPUTED, checkpoint_activations
from snac_accel.audio import spectra
from snac_accel.cli import main
from snac_accel.config import TrainingConfig, load_config
from snac_accel.doctor.fitting import GIB, fit
from snac_accel.doctor.live_bytes import LiveBytes
from snac_accel.doctor.memory import FakeStep
from snac_accel.step import train_step

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ONE_OF_EACH: dict[str, Any] = {
    "mpd": {"periods": [3], "channels": [8, 16]},
    "msstftd": {"fft_sizes": [256], "hop_lengths": [64], "win_lengths": [256], "channels": [8, 16]},
}
TINY: dict[str, dict[str, Any]] = {
    "model": {"encoder_rates": [4, 8], "decoder_rates": [8, 4], "vq_strides": [2, 1]},
    "discriminators": ONE_OF_EACH,
    "data": {"segment_length": 0.128},
    "losses": {"multi_scale_mel": 0.0, "mel": 1.0},
}
MIDDLE: dict[str, dict[str, Any]] = {
    "model": {"encoder_dim": 48, "decoder_dim": 512},  # most of the published 24 kHz model
    "discriminators": {**ONE_OF_EACH, "mpd": {"periods": [2, 3], "channels": [32, 128, 256]}},
    "data": {"segment_length": 0.128},
}


def config_of(changes: dict[str, dict[str, Any]], **training: Any) -> TrainingConfig:
    return load_config(
        "demo", overrides={**changes, "training": {"batch_size": 2, **training}}, environment={}
    )


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, which counts real allocations."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    return memory


def test_checkpointing_changes_no_bit(make_accelerator: Callable[..., Accelerator], speech: Tensor) -> None:
    """Weights, moments and noise after two steps of two micro-batches."""
    states = []
    for checkpointing in (False, True):
        accelerator = make_accelerator(2)
        state = make_state(accelerator)
        names = list(state.generator.state_dict())
        if checkpointing:
            assert checkpoint_activations(state.generator) == 6
            assert checkpoint_activations(state.generator) == 0  # there is nothing left to do
        for step in range(2):
            batches = [speech[4 * step + i : 4 * step + i + 2, :, :WINDOW] for i in (0, 2)]
            train_step(batches, state, accelerator, step_settings())
        assert list(state.generator.state_dict()) == names
        states.append(snapshot(state))
    assert not differences(*states)


def test_a_copy_of_a_checkpointed_generator_is_its_own(speech: Tensor) -> None:
    generator = make_generator().train()
    checkpoint_activations(generator)
    other = copy.deepcopy(generator)
    assert {type(module) for module in other.modules()} >= set(RECOMPUTED.values())
    (other(speech[:1, :, :WINDOW]).audio.square().sum()).backward()
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_bytes_are_counted_while_they_live() -> None:
    with LiveBytes() as live:
        one = torch.zeros(1000)
        view = one[10:]
        with torch.profiler.record_function("both"):
            other = one + 1
        del one, other
        assert live.live == 4000  # the view holds them
        del view
    assert (live.live, live.peak) == (0, 8000)
    assert [(found.name, found.before, found.peak, found.after) for found in live.ranges] == [
        ("both", 4000, 8000, 8000)
    ]


@pytest.mark.parametrize(("changes", "name"), [(TINY, "tiny"), (MIDDLE, "middle")])
def test_the_estimate_is_what_a_step_needs(memory: ModuleType, changes: dict[str, Any], name: str) -> None:
    """Against every allocation of a real step, with and without checkpointing: promised are 15 %."""
    config = config_of(changes)
    peaks = []
    for checkpointing, way_name in memory.OURS.items():
        way = memory.make_way(way_name, config, memory.make_batch(config, 2))
        way.step()
        real = memory.peak_of_step(way)
        estimate = memory.expected(config, 2, checkpointing)
        assert estimate == pytest.approx(real, rel=0.15)
        peaks.append(real)
    assert peaks[1] < 0.8 * peaks[0]


def test_the_estimate_knows_about_accumulation_precision_and_processes() -> None:
    config = config_of(TINY)
    samples = config.segment_samples

    def peak(**options: Any) -> float:
        return FakeStep(config, checkpointing=False, **options).run(2, samples).peak

    plain = peak()
    assert peak(accumulates=True) > plain
    assert peak(precision="bf16") < 0.85 * plain
    buckets = sum(p.nbytes for p in FakeStep(config, checkpointing=False).parameters)
    assert peak(num_processes=2) == plain + buckets


def test_the_parts_make_up_the_peak_and_nothing_is_left_behind(speech: Tensor) -> None:
    config = config_of(TINY)
    step = FakeStep(config, checkpointing=False).run(2, config.segment_samples)
    names = [moment.name for moment in step.moments]
    assert names[:3] == ["generator forward", "discriminator mpd", "discriminator msstftd"]
    assert {"spectral losses", "generator backward", "optimizers"} <= set(names)
    for moment in step.moments:
        *parts, work = moment[2:], moment.work
        assert sum(parts[0]) + work == pytest.approx(moment.peak) and work >= 0, moment
    # What a real step takes from caches afterwards is real.
    assert torch.isfinite(spectra.mel_spectrogram(speech[:1], 16000, 512, 128, 40)).all()


def test_what_is_said_to_fit_fits() -> None:
    """At the longest window and at the largest batch the step stays below the limit, and with a little more it does not."""
    config, limit = config_of(TINY), 0.1 * GIB
    step = FakeStep(config, checkpointing=False)
    found = fit(step, config, limit)
    quantum = config.model.facts.padding_quantum
    assert step.run(2, found.longest_samples).peak <= 1.01 * limit
    assert step.run(2, found.longest_samples + 2 * quantum).peak > 0.99 * limit
    assert step.run(found.largest_batch, config.segment_samples).peak <= 1.001 * limit
    assert step.run(found.largest_batch + 1, config.segment_samples).peak > 0.999 * limit


def test_the_doctor_says_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No data are needed; a step that does not fit is exit code 1."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(TINY))
    flags = [
        "doctor",
        "--preset",
        "demo",
        "--config",
        str(file),
        "--dataset_path",
        "nowhere",
        "--batch_size",
        "1",
    ]
    assert main([*flags, "--memory", "--performance.activation_checkpointing"]) == 0
    printed = capsys.readouterr().out
    assert "activation checkpointing (chosen)" in printed and "fits into" in printed
    assert "discriminator msstftd" in printed and "longest window at this batch" in printed
    rows = [re.split(r"  +", line) for line in printed.splitlines()]
    windows = next(
        [float(cell.split()[0]) for cell in row[1:]] for row in rows if row[0].startswith("longest window")
    )
    assert windows[1] > 1.3 * windows[0] > 0
    assert main([*flags, "--memory", "0.0001", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["kept"]["largest_batch"] == 0 == report["kept"]["longest_window_samples"]
    assert report["kept"]["peak_bytes"] > report["available_bytes"] == 0.0001 * GIB


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--memory", "0"], "error: --memory 0: should be above 0 (GiB)"),
        (["--memory", "much"], "error: --memory: invalid float value: 'much'"),
        (["--memory", "--all"], "error: --memory looks at no data: leave out --output and --all"),
    ],
)
def test_wrong_flags_are_one_line(flags: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *flags]) == 2
    assert capsys.readouterr().err.strip() == line
