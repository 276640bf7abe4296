"""Presets: exact sizes of the published models, rates, complete runs, and nothing shared between callers."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import pytest
import snac
import torch

from snac_accel import presets

PUBLISHED = {
    # parameters, token rates (Hz) and kbit/s as published; padding quantum in samples
    "24khz": (19_842_914, (12, 23, 47), 0.98, 2048),
    "32khz": (54_546_338, (10, 21, 42, 83), 1.9, 12288),
    "44khz": (54_546_338, (14, 29, 57, 115), 2.6, 12288),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_model_has_its_exact_parameter_count(name: str) -> None:
    with torch.device("meta"):
        model = snac.SNAC(**presets.MODEL_CONFIGS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rates(name: str) -> None:
    facts = presets.describe_model(presets.MODEL_CONFIGS[name])
    _, rates, kilobits, quantum = PUBLISHED[name]
    assert tuple(round(rate) for rate in facts.token_rates) == rates
    assert facts.bitrate / 1000 == pytest.approx(kilobits, rel=0.02)
    assert facts.padding_quantum == quantum


@pytest.mark.parametrize("name", presets.MODEL_CONFIGS)
def test_facts_are_those_of_the_stock_model(name: str) -> None:
    """Hop as in snac, one quantum stays as long as it is, one sample more is padded to two."""
    config = presets.MODEL_CONFIGS[name]
    facts = presets.describe_model(config)
    with torch.device("meta"):
        model = snac.SNAC(**config)
        one, more = torch.zeros(1, 1, facts.padding_quantum), torch.zeros(1, 1, facts.padding_quantum + 1)
        assert model.preprocess(one).shape[-1] == facts.padding_quantum
        assert model.preprocess(more).shape[-1] == 2 * facts.padding_quantum
        codes = model.encode(one)
    assert facts.hop_length == model.hop_length
    seconds = facts.padding_quantum / config["sampling_rate"]
    assert [level.shape[-1] for level in codes] == pytest.approx(
        [rate * seconds for rate in facts.token_rates]
    )


def test_model_presets_hold_exactly_the_constructor_arguments() -> None:
    arguments = set(inspect.signature(snac.SNAC).parameters)
    assert all(set(config) == arguments for config in presets.MODEL_CONFIGS.values())


def test_tiny_fits_the_demo() -> None:
    tiny = presets.MODEL_CONFIGS["tiny"]
    assert tiny["codebook_size"] >= 256
    assert presets.describe_model(tiny).bitrate <= 2000


@pytest.mark.parametrize("name", presets.MODEL_CONFIGS)
def test_segments_are_whole_quanta(name: str) -> None:
    samples = presets.SEGMENT_SECONDS[name] * presets.MODEL_CONFIGS[name]["sampling_rate"]
    quanta = samples / presets.describe_model(presets.MODEL_CONFIGS[name]).padding_quantum
    assert quanta == pytest.approx(round(quanta), rel=1e-3)
    assert math.isclose(presets.SEGMENT_SECONDS[name], 0.8, abs_tol=0.3)


def test_results_are_fresh() -> None:
    presets.create_snac_24khz_config()["vq_strides"].append(9)
    presets.create_snac_44khz_config()["encoder_rates"].append(9)
    presets.preset_run("demo")["discriminators"]["mpd"]["channels"].append(9)
    assert presets.create_snac_24khz_config()["vq_strides"] == [4, 2, 1]
    assert presets.create_snac_32khz_config()["encoder_rates"] == [2, 3, 8, 8]
    assert 9 not in presets.preset_run("demo")["discriminators"]["mpd"]["channels"]


@pytest.mark.parametrize("name", presets.DATASET_CONFIGS)
def test_data_presets_are_complete_runs(name: str) -> None:
    preset = presets.DATASET_CONFIGS[name]
    assert {"dataset_path", "streaming", "model_config"} <= set(preset)  # of the original module
    assert {"configuration", "split", "audio_column", "segment_length", "learning_rate"} <= set(preset)
    assert preset["source"] and preset["access"]
    run = presets.preset_run(name)
    assert run["model"] == presets.MODEL_CONFIGS[preset["model_config"]]
    assert run["data"]["dataset_path"] == preset["dataset_path"]
    assert run["training"]["learning_rate"] == preset["learning_rate"]
    assert run["paths"]["run_name"] == name
    assert json.loads(json.dumps(run)) == run


@pytest.mark.parametrize("name", presets.DATASET_CONFIGS)
def test_every_key_of_a_data_preset_has_an_effect(name: str) -> None:
    for key, value in presets.DATASET_CONFIGS[name].items():
        if key not in ("model_config", "sections", "source", "access"):
            assert presets.preset_run(name)[presets._SECTION_OF_KEY[key]][key] == value


def test_no_preset_needs_a_loading_script() -> None:
    """`datasets` 4 and newer refuse the bare names and Mozilla's, which were scripts."""
    for preset in presets.DATASET_CONFIGS.values():
        assert preset["dataset_path"] not in ("vctk", "librispeech_asr")
        assert not preset["dataset_path"].startswith("mozilla-foundation/")


def test_demo_is_inside_the_package() -> None:
    assert Path(presets.DATASET_CONFIGS["demo"]["dataset_path"]) == Path(presets.__file__).parent / "demo"
    assert presets.preset_run("demo")["checkpoint"]["resume"] == "never"
