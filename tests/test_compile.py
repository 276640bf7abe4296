"""torch.compile in the step: the same training, nothing compiled twice, and plain networks wherever the compiler is not wanted.

What the compiler makes of the graphs is not ours to test, so most tests let it trace them, forward and backward, and run the
result with torch's own operations ("aot_eager"): seconds instead of minutes. The marked ones compile to machine code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from snac import SNAC
from test_train import TINY, losses, tiny_config
from tiny import MODEL, WINDOW, differences, make_state, snapshot, step_settings
from torch import Tensor, nn

from snac_accel import compiling
from snac_accel.activations import checkpoint_activations
from snac_accel.checkpoint import load_checkpoint, save_checkpoint
from snac_accel.compiling import Compilation, Compiled, check_compiler, compile_networks
from snac_accel.config import load_config, merge
from snac_accel.discriminators import MultiPeriodDiscriminator, MultiScaleSTFTDiscriminator
from snac_accel.errors import ConfigError
from snac_accel.evaluate import evaluation_mode
from snac_accel.export import write_export
from snac_accel.state import TrainState
from snac_accel.step import train_step
from snac_accel.train import main

SMALL: dict[str, Any] = {"encoder_rates": [16], "decoder_rates": [16], "encoder_dim": 4, "decoder_dim": 16}
NUM_STEPS = 3


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile to torch's own operations."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def small_state(accelerator: Accelerator) -> TrainState:
    """One block, one period, one resolution."""
    torch.manual_seed(1)
    critics: dict[str, nn.Module] = {
        "mpd": MultiPeriodDiscriminator(periods=(2,), channels=(4, 8)),
        "msstftd": MultiScaleSTFTDiscriminator((64,), (16,), (48,), channels=(4, 8)),
    }
    return make_state(accelerator, discriminators=critics, **SMALL)


class Trained(NamedTuple):
    """Two runs from the same weights on the same speech, as they were after some steps."""

    plain: TrainState
    compiled: TrainState
    compilation: Compilation
    losses: list[list[dict[str, float]]]  # of each run and step
    graphs: list[int]  # compiled after each step
    notes: list[str | None]
    other_lengths: list[int]  # graphs after the plain way was asked for other lengths


@pytest.fixture(scope="module")
def trained(speech: Tensor) -> Iterator[Trained]:
    """Generator and discriminators compiled, beside the same without; other lengths are reconstructed in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "BACKEND", "aot_eager")
        accelerator = Accelerator(cpu=True)
        plain, compiled = small_state(accelerator), small_state(accelerator)
        compilation = compile_networks(compiled.generator, compiled.discriminators, "all")  # type: ignore[arg-type]
        assert compilation is not None
        reports, graphs, notes, others = [], [], [], []
        for step in range(NUM_STEPS):
            batch = [speech[4 * step : 4 * step + 4, :, :WINDOW]]
            pair = [train_step(batch, state, accelerator, step_settings()) for state in (plain, compiled)]
            reports.append([{name: float(value) for name, value in report.losses.items()} for report in pair])
            notes.append(compilation.after_step())
            graphs.append(compilation.graphs)
            with torch.no_grad(), evaluation_mode(compiled.generator):
                compiled.generator(speech[:1, :, : 2000 + 300 * step])
            others.append(compilation.graphs)
        yield Trained(plain, compiled, compilation, reports, graphs, notes, others)
    torch._dynamo.reset()


def test_losses_are_the_same(trained: Trained) -> None:
    """Up to the rounding of sums that are added in another order, which training makes grow."""
    for step, (plain, compiled) in enumerate(trained.losses):
        assert compiled == pytest.approx(plain, rel=1e-5 * 20**step), step
    assert not trained.compilation.failed


def test_nothing_is_compiled_after_the_first_step(trained: Trained) -> None:
    """Encoder, decoder, and each discriminator on real and on fake audio; the lengths of validation compile nothing."""
    assert trained.graphs == trained.other_lengths == [6] * NUM_STEPS
    assert trained.compilation.recompilations == 0
    first, *later = trained.notes
    assert first is not None and first.endswith("6 graphs") and later == [None] * (NUM_STEPS - 1)
    assert (
        trained.compilation.beginning()
        == "compiling the generator and mpd and msstftd: the first step waits for it"
    )


def test_names_are_the_same(trained: Trained) -> None:
    for plain, compiled in zip(trained.plain.models(), trained.compiled.models(), strict=True):
        assert list(plain.state_dict()) == list(compiled.state_dict())


def test_checkpoints_go_both_ways(trained: Trained, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    for name, state in (("plain", trained.plain), ("compiled", trained.compiled)):
        path = save_checkpoint(tmp_path / name, state, config={}, config_hash="")
        other = small_state(accelerator)
        if name == "plain":
            compile_networks(other.generator, other.discriminators, "all")  # type: ignore[arg-type]
        load_checkpoint(path, other)
        assert not differences(snapshot(state), snapshot(other))


def test_the_export_is_stock(trained: Trained, tmp_path: Path, speech: Tensor) -> None:
    generator = trained.compiled.generator
    write_export(tmp_path / "export", {**MODEL, **SMALL}, generator.state_dict())
    stock = SNAC.from_pretrained(str(tmp_path / "export")).eval()
    with torch.no_grad(), evaluation_mode(generator):
        torch.manual_seed(0)
        ours = generator(speech[:1]).audio
        torch.manual_seed(0)
        assert torch.equal(ours, stock(speech[:1])[0])


def test_a_run_goes_on_compiled_or_not(tmp_path: Path, traced: None) -> None:
    """Two steps compiled, then one without, in the same folder; the log says what was compiled."""
    run = tmp_path / "run"
    for steps, performance in ((2, {"compile": "generator"}), (3, {})):
        changes = {"performance": performance, "model": SMALL, "validation": {"enabled": False}}
        training = {"num_iterations": steps, "log_interval": 1}
        assert main(tiny_config(run, training=training, data={"segment_length": 0.15}, **changes)) == 0
    logged = losses(run)
    assert [step for step, values in logged.items() if values.get("compile/graphs") == 2] == [1, 2]
    assert [step for step, values in logged.items() if values.get("compile/recompilations") == 0] == [1, 2]
    assert "compile/graphs" not in logged[3]


def test_without_a_compiler_the_run_does_not_begin(tmp_path: Path) -> None:
    import torch._inductor.config as inductor

    expected = "needs a C[+][+] compiler, and there is none: .* CXX, or set performance.compile"
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ConfigError, match=expected):
        main(tiny_config(tmp_path / "run", performance={"compile": "generator"}))
    assert not (tmp_path / "run").exists()
    check_compiler("none", "cpu")
    with pytest.raises(
        ConfigError, match="performance.compile = all: needs a CPU or an NVIDIA or AMD GPU, not mps"
    ):
        check_compiler("all", "mps")


def test_a_compiler_that_fails_is_done_without(
    make_accelerator: Callable[..., Accelerator],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    speech: Tensor,
) -> None:
    """One line, and the very same step as without."""

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("out of\nregisters")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    accelerator = make_accelerator()
    plain, compiled = small_state(accelerator), small_state(accelerator)
    compilation = compile_networks(compiled.generator, {}, "generator")  # type: ignore[arg-type]
    assert compilation is not None
    with caplog.at_level(logging.WARNING, logger="snac_accel.compiling"):
        for state in (plain, compiled):
            train_step([speech[:2, :, :WINDOW]], state, accelerator, step_settings())
    assert not differences(snapshot(plain), snapshot(compiled))
    assert compilation.failed == ["the encoder", "the decoder"]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "out of registers" in messages[0] and "\n" not in messages[0]


def test_shapes_that_change_are_said_once(traced: None) -> None:
    layer, compilation = nn.Linear(3, 3), Compilation(["a layer"])
    function = Compiled(layer.forward, "a layer", compilation)
    notes = []
    for length in (2, 2, 3, 3, 4):
        function(torch.zeros(length, 3))
        notes.append(compilation.after_step())
    assert notes[0] is not None and notes[0].endswith("1 graphs")
    assert notes[2] is not None and notes[2].startswith("warning: step 3 compiled again")
    assert [notes[1], *notes[3:]] == [None] * 3
    assert compilation.scalars()["compile/recompilations"] == 2


def test_the_benchmark_compares(traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import compile_time

    config = load_config("demo", overrides=merge(TINY, {"model": SMALL}), environment={})
    found = compile_time.compare(config, "generator", compile_time.make_batch(config, 1), rounds=2)
    assert len(found.ratio.values) == 2 and found.ratio.median > 0
    row = compile_time.report([found]).splitlines()[-1]
    assert re.fullmatch(r"\| generator +\| .* \| \d+ +\| 2 +\| 0 +\| none +\|", row), row


def machine_code(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the compiler write into an empty folder; skip where there is none."""
    try:
        check_compiler("generator", "cpu")
    except ConfigError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))


def test_machine_code_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Activation, weight-normed convolution and noise of the same seed: values and gradients."""
    from snac.layers import NoiseBlock

    from snac_accel.snake import FastSnake1d

    machine_code(monkeypatch, tmp_path)
    compiling._configure(keep_graphs=False)
    layers = nn.Sequential(FastSnake1d(4), NoiseBlock(4))
    compilation = Compilation(["layers"])
    results = []
    quick = torch._inductor.config.patch(
        cpp_cache_precompile_headers=False, compile_threads=1
    )  # for a few kernels
    for function in (layers.forward, Compiled(layers.forward, "layers", compilation)):
        torch.manual_seed(0)
        x = torch.randn(2, 4, 64, requires_grad=True)
        with quick:
            function(x).square().sum().backward()
        results.append([x.grad, *(parameter.grad for parameter in layers.parameters())])
        layers.zero_grad()
    assert compilation.graphs == 1 and not compilation.failed
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_whole_step_in_machine_code(
    make_accelerator: Callable[..., Accelerator],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    speech: Tensor,
    checkpointing: bool,
) -> None:
    machine_code(monkeypatch, tmp_path)
    accelerator = make_accelerator()
    plain, compiled = make_state(accelerator), make_state(accelerator)
    if checkpointing:
        checkpoint_activations(compiled.generator)
    compilation = compile_networks(compiled.generator, compiled.discriminators, "all")  # type: ignore[arg-type]
    assert compilation is not None
    for step in range(3):
        batch = [speech[4 * step : 4 * step + 4, :, :WINDOW]]
        pair = [train_step(batch, state, accelerator, step_settings()) for state in (plain, compiled)]
        compilation.after_step()
        values = [{name: float(value) for name, value in report.losses.items()} for report in pair]
        assert values[1] == pytest.approx(values[0], rel=1e-4 * 20**step), step
    assert not compilation.failed and compilation.recompilations == 0
