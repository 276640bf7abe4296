"""Starting from a model that is already good: what stays, what moves and how fast, and what the export says of the codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from snac import SNAC
from torch import Tensor

from snac_accel.checkpoint import list_checkpoints
from snac_accel.config import load_config, merge, preset_run, to_dict, validate
from snac_accel.errors import CheckpointError, ConfigError
from snac_accel.export import write_export
from snac_accel.generator import TrainableSNAC
from snac_accel.lineage import DECIDES_CODES, FILE
from snac_accel.presets import MODEL_CONFIGS
from snac_accel.rates import generator_groups
from snac_accel.run_card import run_card
from snac_accel.train import main, setup_models, setup_optimizers
from test_train import tiny_config

MOST = {"learning_rate": 1e-2, "num_iterations": 2, "save_interval": 1, "validation_interval": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from."""
    config = tiny_config()["model"]
    torch.manual_seed(7)
    return write_export(tmp_path_factory.mktemp("base") / "export", config, TrainableSNAC(**config).state_dict())


def tensors(run: Path, step: int, name: str = "generator") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08}" / f"{name}.safetensors")


def moved(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The parts of the generator in which anything differs."""
    return {name.partition(".")[0] for name, tensor in one.items() if not torch.equal(tensor, other[name])}


def finetune(base: Path, run: Path, **training: Any) -> dict[str, Tensor]:
    config = tiny_config(run, training={**MOST, "init_from": str(base), **training}, codebook={"hold_steps": 0})
    assert main(config) == 0
    return load_file(base / "model.safetensors")


def test_with_encoder_and_quantizer_frozen_the_codes_stay_bit_by_bit(
    base: Path, tmp_path: Path, speech: Tensor
) -> None:
    before = finetune(base, tmp_path / "run", freeze=["encoder", "quantizer"])
    export = tmp_path / "run" / "export"
    assert moved(before, load_file(export / "model.safetensors")) == {"decoder"}
    untouched, tuned = SNAC.from_pretrained(str(base)), SNAC.from_pretrained(str(export))
    pairs = zip(untouched.encode(speech), tuned.encode(speech), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    card = (export / "README.md").read_text()
    assert "**Yes: the codes are those of" in card and "code_compatible_with_base_model: true" in card
    assert str(base.parent) not in card


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything moves, the generator one step later than the discriminators."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    finetune(base, run, generator_wait_steps=1)
    return run


def test_with_everything_moving_the_card_says_that_the_codes_differ(base: Path, tuned: Path) -> None:
    export = tuned / "export"
    before = load_file(base / "model.safetensors")
    assert moved(before, load_file(export / "model.safetensors")) == {"encoder", "quantizer", "decoder"}
    assert "**No: the codes differ from those of" in (export / "README.md").read_text()


def test_an_export_that_breaks_the_promise_is_refused(base: Path, tmp_path: Path) -> None:
    config = to_dict(validate(tiny_config(training={"init_from": str(base), "freeze": ["encoder", "quantizer"]})))
    weights = load_file(base / "model.safetensors")
    (tmp_path / FILE).write_text(json.dumps({"source": str(base), "digest": "0" * 64}))
    with pytest.raises(CheckpointError, match="were frozen, and yet differ from those of"):
        run_card(tmp_path, config, 1, weights)


def test_the_generator_waits_while_fresh_discriminators_learn(base: Path, tuned: Path) -> None:
    before = load_file(base / "model.safetensors")
    assert not moved(before, tensors(tuned, 1))
    assert moved(before, tensors(tuned, 2)) == {"encoder", "quantizer", "decoder"}
    first, second = (tensors(tuned, step, "discriminator.mpd") for step in (1, 2))
    _, fresh = setup_models(tiny_config(training={"init_from": str(base)}))
    assert moved(first, dict(fresh["mpd"].state_dict())) and moved(first, second)


def test_discriminators_beside_the_weights_are_taken_and_others_are_said_to_be_fresh(tuned: Path) -> None:
    checkpoint = list_checkpoints(tuned / "checkpoints")[-1]
    said: list[str] = []
    config = tiny_config(training={"init_from": str(checkpoint)}, discriminators={"msstftd": {"channels": [4, 4]}})
    generator, discriminators = setup_models(config, say=said.append)
    there = load_file(checkpoint / "discriminator.mpd.safetensors")
    assert all(torch.equal(tensor, there[name]) for name, tensor in discriminators["mpd"].state_dict().items())
    assert not moved(tensors(tuned, 2), dict(generator.state_dict()))
    assert said == [
        f"discriminators from {checkpoint}: mpd; discriminators with random weights: msstftd (that one has other options)"
    ]


# Rates


def groups(**training: Any) -> tuple[TrainableSNAC, list[tuple[set[str], float]]]:
    """Parts and learning rate of each group of the generator's optimiser, at a step after every warm-up."""
    config = validate(tiny_config(training={"warmup_steps": 0, "learning_rate": 1e-3, **training}, codebook={"hold_steps": 0}))
    generator, discriminators = setup_models(config)
    optimizers, _ = setup_optimizers(generator, discriminators, config)
    names = {id(parameter): name for name, parameter in generator.named_parameters()}
    found = optimizers["generator"].param_groups
    return generator, [({names[id(p)].split(".")[0] for p in group["params"]}, group["lr"]) for group in found]


def test_without_factors_there_are_the_two_groups_of_every_checkpoint() -> None:
    assert len(groups()[1]) == 2


def test_each_part_has_its_rate() -> None:
    _, found = groups(encoder_rate=0.1, quantizer_rate=0.5, decoder_rate=2.0)
    rates = {part: sorted(rate for parts, rate in found if part in parts) for part in ("encoder", "quantizer", "decoder")}
    release = 1 / 2  # the first of two steps of the release, for what encodes
    assert rates["encoder"] == pytest.approx([1e-4 * release]) and rates["decoder"] == pytest.approx([2e-3])
    assert rates["quantizer"] == pytest.approx([5e-4 * release, 5e-4])


def test_rates_fall_from_layer_to_layer_away_from_the_output() -> None:
    config = validate(tiny_config(training={"layer_decay": 0.5}))
    generator = TrainableSNAC(**to_dict(config)["model"])
    factors = {id(p): group.factor for group in generator_groups(generator, config.training) for p in group.parameters}
    assert len(factors) == len(list(generator.parameters()))
    blocks = [*generator.encoder.block, generator.quantizer, *generator.decoder.model]
    along = [{factors[id(p)] for p in block.parameters()} for block in blocks]
    steps = [one.pop() for one in along if len(one) == 1]
    assert steps == sorted(steps) and steps[-1] == 1.0 and all(b == 2 * a for a, b in zip(steps, steps[1:], strict=False))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"freeze": ["quantizer"], "init_from": "a/b", "method": "moving_average"}, "codebook.method .*should be gradient"),
        ({"freeze": ["encoder"]}, "training.freeze = .*should come with training.init_from"),
        ({"freeze": ["encoder", "quantizer", "decoder"], "init_from": "a/b"}, "leaves nothing to train"),
        ({"freeze": ["vocoder"]}, "encoder"),
    ],
)
def test_mistakes_are_named(training: dict[str, Any], message: str) -> None:
    training = dict(training)
    codebook = {"method": training.pop("method", "gradient")}
    with pytest.raises(ConfigError, match=message):
        validate(tiny_config(training=training, codebook=codebook))


@pytest.mark.parametrize("preset", ["finetune_24khz_decoder", "finetune_24khz_full"])
def test_the_presets_run_on_the_shipped_speech_from_weights_of_the_published_shape(preset: str, tmp_path: Path) -> None:
    model = MODEL_CONFIGS["24khz"]
    torch.manual_seed(0)
    published = write_export(tmp_path / "published", model, SNAC(**model).state_dict())
    assert load_config(preset, environment={}).training.init_from == "hubertsiuzdak/snac_24khz"
    small = {
        "training": {"init_from": str(published), "num_iterations": 2, "batch_size": 1, "generator_wait_steps": 1},
        "data": {"num_workers": 0},
        "validation": {"max_clips": 1, "max_clip_seconds": 1.0, "num_samples": 0},
        "discriminators": {"mpd": {"periods": [2], "channels": [4]}, "msstftd": None},
        "tracking": {"trackers": [], "progress_bar": False},
        "paths": {"run_dir": str(tmp_path / "run")},
    }
    assert main(merge(preset_run(preset), small)) == 0
    before, after = load_file(published / "model.safetensors"), load_file(tmp_path / "run" / "export" / "model.safetensors")
    kept = {"encoder", "quantizer"} if preset == "finetune_24khz_decoder" else set()
    assert moved(before, after) == {"encoder", "quantizer", "decoder"} - kept
    assert {name.partition(".")[0] + "." for name in before if name.startswith(DECIDES_CODES)} == set(DECIDES_CODES)
