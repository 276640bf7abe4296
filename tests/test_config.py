"""The configuration: what is refused and how, layers, files, and the original module's way of use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import snac
import torch
from pydantic import ValidationError

from snac_accel import config as package
from snac_accel.config import (
    DATASET_CONFIGS,
    MODEL_CONFIGS,
    SETTINGS,
    TrainingConfig,
    config_hash,
    create_snac_24khz_config,
    create_snac_32khz_config,
    create_snac_44khz_config,
    create_training_config,
    load_config,
    merge,
    read_config_file,
    save_config,
    to_dict,
    to_yaml,
    validate,
)
from snac_accel.config.schema import section_of
from snac_accel.config.text import nest, parse_setting
from snac_accel.errors import ConfigError

NO_DISCRIMINATORS = {"mpd": None, "msstftd": None}

# settings, and the whole line that the person gets
REFUSED: list[tuple[dict[Any, Any], str]] = [
    (
        {"training": {"learnig_rate": 1}},
        "training.learnig_rate = 1: unknown setting; did you mean training.learning_rate?",
    ),
    (
        {"training": {"segment_length": 1}},
        "training.segment_length = 1: unknown setting; did you mean data.segment_length?",
    ),
    ({"trainin": {}}, "trainin = {}: unknown setting; did you mean training?"),
    (
        {"discriminators": {"mdp": None}},
        "discriminators.mdp = null: unknown setting; did you mean discriminators.mpd?",
    ),
    (
        {"codebook": {"zzz": 1}},
        "codebook.zzz = 1: unknown setting; codebook has initialization, initialization_clips, method, decay, "
        "hold_steps, release_steps, restart, restart_after",
    ),
    ({"training": {"batch_size": "eight"}}, 'training.batch_size = "eight": should be an integer'),
    ({"training": {"batch_size": "8"}}, 'training.batch_size = "8": should be an integer'),
    ({"training": {"batch_size": True}}, "training.batch_size = true: should be an integer"),
    ({"training": {"batch_size": 8.0}}, "training.batch_size = 8.0: should be an integer"),
    ({"training": {"batch_size": 0}}, "training.batch_size = 0: should be greater than or equal to 1"),
    (
        {"training": {"num_iterations": 2**31}},
        "training.num_iterations = 2147483648: should be less than 2147483648",
    ),
    ({"training": {"learning_rate": "1e-4"}}, 'training.learning_rate = "1e-4": should be a number'),
    ({"training": {"learning_rate": True}}, "training.learning_rate = true: should be a number"),
    (
        {"training": {"learning_rate": float("nan")}},
        "training.learning_rate = NaN: should be a finite number",
    ),
    ({"losses": {"mel": float("inf")}}, "losses.mel = Infinity: should be a finite number"),
    ({"losses": {"mel": -1}}, "losses.mel = -1: should be greater than or equal to 0"),
    ({"data": {"streaming": 1}}, "data.streaming = 1: should be true or false"),
    ({"data": {"streaming": "yes"}}, 'data.streaming = "yes": should be true or false'),
    ({"data": {"segment_length": 0}}, "data.segment_length = 0: should be greater than 0"),
    ({"data": {"segment_length": 61}}, "data.segment_length = 61: should be less than or equal to 60"),
    ({"data": {"dataset_path": ""}}, 'data.dataset_path = "": should not be empty'),
    ({"data": {"dataset_path": 7}}, "data.dataset_path = 7: should be text"),
    (
        {"data": {"dataset_path": "a\nb"}},
        r'data.dataset_path = "a\nb": should be a plain name without control characters',
    ),
    ({"data": {"gain_db": [3, -3]}}, "data.gain_db = [3.0, -3.0]: should be [lowest, highest]"),
    ({"data": {"gain_db": [3]}}, "data.gain_db = [3]: should have two entries"),
    ({"data": {"gain_db": 3}}, "data.gain_db = 3: should be a list"),
    ({"training": None}, "training = null: should be a section with settings"),
    ({"training": [1]}, "training = [1]: should be a section with settings"),
    (
        {"training": {"mixed_precision": "fp8"}},
        "training.mixed_precision = \"fp8\": should be 'no', 'bf16' or 'fp16'",
    ),
    (
        {"training": {"batch_size": 6, "global_batch_size": 16}},
        "training.global_batch_size = 16: should be a multiple of training.batch_size, 6",
    ),
    (
        {"training": {"global_batch_size": 32, "gradient_accumulation_steps": 2}},
        "training.gradient_accumulation_steps = 2: should be left out: it is "
        "derived from training.global_batch_size",
    ),
    (
        {"paths": {"run_name": "../x"}},
        "paths.run_name = \"../x\": should be letters, digits, '_', '-' or '.', no folders",
    ),
    ({"model": {"sampling_rate": 0}}, "model.sampling_rate = 0: should be greater than or equal to 1000"),
    ({"model": {"vq_strides": []}}, "model.vq_strides = []: should not be empty"),
    (
        {"model": {"vq_strides": [1, 2]}},
        "model.vq_strides = [1, 2]: should descend from coarse to fine, each "
        "dividing the first, for example [4, 2, 1]",
    ),
    (
        {"model": {"vq_strides": [4, 3, 1]}},
        "model.vq_strides = [4, 3, 1]: should descend from coarse to fine, each "
        "dividing the first, for example [4, 2, 1]",
    ),
    (
        {"model": {"decoder_rates": [8, 8]}},
        "model.decoder_rates = [8, 8]: should have the product of encoder_rates, 512, but has 64",
    ),
    (
        {"model": {"encoder_rates": [1, 512]}},
        "model.encoder_rates[0] = 1: should be greater than or equal to 2",
    ),
    (
        {"model": {"latent_dim": 512}},
        "model.latent_dim = 512: should be null or 768, which is encoder_dim * 2 ** len(encoder_rates)",
    ),
    (
        {"model": {"decoder_dim": 1000}},
        "model.decoder_dim = 1000: should be a multiple of 16: it is halved at each of decoder_rates",
    ),
    (
        {"model": {"attn_window_size": 32, "decoder_dim": 1040}},
        "model.decoder_dim = 1040: gives attention 1040 channels; should give a "
        "multiple of 64, the size of a head",
    ),
    (
        {"discriminators": {"mpd": {"channels": [1, "x"]}}},
        'discriminators.mpd.channels[1] = "x": should be an integer',
    ),
    (
        {"discriminators": {"msstftd": {"fft_sizes": [1024]}}},
        "discriminators.msstftd.hop_lengths = [120, 240, 50]: should have one entry per FFT size, 1",
    ),
    (
        {"discriminators": {"msstftd": {"win_lengths": [600, 1200, 600]}}},
        "discriminators.msstftd.win_lengths = [600, 1200, 600]: has 600, more than its FFT size, 512",
    ),
    (
        {"discriminators": {"msstftd": {"bands": [[0, 0.5], [0.5, 0.5]]}}},
        "discriminators.msstftd.bands = [[0.0, 0.5], [0.5, 0.5]]: has [0.5, 0.5]; should be [low, high], "
        "a bin of the smallest FFT wide",
    ),
    (
        {"discriminators": NO_DISCRIMINATORS},
        "losses.adversarial = 1.0: should be 0 when all discriminators are null",
    ),
    (
        {"discriminators": NO_DISCRIMINATORS, "losses": {"adversarial": 0}},
        "losses.feature_matching = 2.0: should be 0 when all discriminators are null",
    ),
    (
        {"losses": {"adversarial": 0, "feature_matching": 0, "multi_scale_mel": 0}},
        "losses.multi_scale_mel = 0.0: should be above 0, or another of adversarial, feature_matching, "
        "multi_scale_mel, mel, stft: nothing would train the generator",
    ),
    ({"validation": {"by": "speaker"}}, 'validation.by = "speaker": should come with data.speaker_column'),
    (
        {"validation": {"split": "train"}},
        'validation.split = "train": is what is trained on; should be another split '
        "or source, or null for a held-out share",
    ),
    (
        {"validation": {"dataset_path": "bad49wolf/ljspeech-simple"}},
        'validation.dataset_path = "bad49wolf/ljspeech-simple": is what is trained '
        "on; should be another split or source, "
        "or null for a held-out share",
    ),
    (
        {"validation": {"configuration": "de"}},
        'validation.configuration = "de": should come with validation.dataset_path or validation.split',
    ),
    (
        {"model": MODEL_CONFIGS["tiny"], "data": {"segment_length": 0.01}},
        "data.segment_length = 0.01: gives 256 samples; the spectral losses need at least 1025",
    ),
    (
        {"discriminators": {"msstftd": {"fft_sizes": [1024, 65536, 512]}}, "data": {"segment_length": 0.768}},
        "data.segment_length = 0.768: gives 18432 samples; discriminators.msstftd needs at least 32769",
    ),
    (
        {"tracking": {"trackers": ["tensorbord"]}},
        "tracking.trackers[0] = \"tensorbord\": should be 'aim', 'clearml', "
        "'comet_ml', 'dvclive', 'mlflow', 'swanlab', "
        "'tensorboard', 'trackio' or 'wandb'",
    ),
    (
        {"data": {"x": 1}, "training": {"batch_size": 0, "seed": -1}},
        "training.batch_size = 0: should be greater than or equal to 1 (and 2 more)",
    ),
    ({"tr\nain": 1}, r"tr\nain = 1: unknown setting; did you mean training?"),
]


@pytest.mark.parametrize(("settings", "line"), REFUSED, ids=[line[:45] for _, line in REFUSED])
def test_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(settings)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "settings", [None, 3, "x", [1], {1: 2}, {"data": {2: 3}}, {"data": {"split": "\ud800"}}]
)
def test_nonsense_is_refused_in_one_line(settings: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(settings)
    assert str(caught.value).isprintable()


def test_every_setting_is_described_and_strict() -> None:
    for name, field in SETTINGS.items():
        assert field.description, name
        if section_of(field.annotation) is None:
            with pytest.raises(ConfigError, match=f"^{re.escape(name)}"):
                validate(nest({name: object()}))


def test_frozen_to_the_bottom() -> None:
    config = validate({})
    with pytest.raises(ValidationError):
        config.training.batch_size = 3  # type: ignore[misc]
    assert hash(config) == hash(validate({}))


def test_integers_may_stand_for_floats_and_hash_the_same() -> None:
    whole, fraction = validate({"losses": {"mel": 1}}), validate({"losses": {"mel": 1.0}})
    assert isinstance(whole.losses.mel, float)
    assert config_hash(whole) == config_hash(fraction)


@pytest.mark.parametrize("name", [*DATASET_CONFIGS, *MODEL_CONFIGS])
def test_resolved_presets_load_again(name: str, tmp_path: Path) -> None:
    config = load_config(name, environment={})
    assert config.segment_note is None
    save_config(config, tmp_path / "config.json")
    (tmp_path / "config.yaml").write_text(to_yaml(to_dict(config)), encoding="utf-8")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["config.json", "config.yaml"]
    for file in ("config.json", "config.yaml"):
        again = load_config(file=tmp_path / file, environment={})
        assert again == config
        assert config_hash(again) == config_hash(config)


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_model_section_is_what_snac_takes(name: str) -> None:
    settings = to_dict(load_config(name, environment={}))["model"]
    assert settings == MODEL_CONFIGS[name]
    with torch.device("meta"):
        snac.SNAC(**settings)


def test_defaults_are_the_published_24khz_model() -> None:
    assert to_dict(validate({}))["model"] == create_snac_24khz_config()


def test_hash_sees_every_setting_and_only_settings() -> None:
    base = config_hash(validate({}))
    assert config_hash(validate({"training": {"seed": 1}})) != base
    assert config_hash(validate({"data": {"split": "train"}, "training": {}})) == base
    assert re.fullmatch("[0-9a-f]{64}", base)


@pytest.mark.parametrize(
    ("model", "seconds", "samples", "noted"),
    [
        ("24khz", 0.8, 18432, True),
        ("24khz", 0.768, 18432, False),
        ("24khz", 0.001, 2048, True),
        ("32khz", 0.8, 24576, True),
        ("44khz", 0.836, 36864, False),
    ],
)
def test_segment_is_the_nearest_whole_quantum(model: str, seconds: float, samples: int, noted: bool) -> None:
    config = load_config(model, overrides={"data": {"segment_length": seconds}}, environment={})
    assert config.segment_samples == samples
    assert (config.segment_note is not None) == noted
    if config.segment_note:
        assert str(samples) in config.segment_note


# The original module


def test_create_training_config_is_the_original() -> None:
    config = create_training_config("bad49wolf/ljspeech-simple", 16, 6e-4, 800000, False)
    assert config == create_training_config()
    assert json.loads(json.dumps(config)) == config
    assert config["training"] == {
        "batch_size": 16,
        "learning_rate": 6e-4,
        "lr_decay": 0.999994,
        "num_iterations": 800000,
        "save_interval": 10000,
        "log_interval": 100,
        "validation_interval": 1000,
    }
    assert config["data"] == {
        "dataset_path": "bad49wolf/ljspeech-simple",
        "audio_column": "audio",
        "split": "train",
        "streaming": False,
        "segment_length": 0.8,
    }
    assert config["paths"] == {"checkpoint_dir": "./checkpoints", "log_dir": "./logs"}


def test_original_config_file_loads_unchanged(tmp_path: Path) -> None:
    settings = create_training_config(dataset_path="some/set", batch_size=12, learning_rate=4e-4)
    settings["training"]["num_iterations"] = 1000
    path = tmp_path / "my_config.json"
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    resolved = to_dict(load_config(file=path, environment={}))
    for section, values in settings.items():
        assert resolved[section] | values == resolved[section]


def test_edited_model_config_goes_into_a_run() -> None:
    """As the original's examples do; its own models have the rates of snac's constructor."""
    for create in (create_snac_24khz_config, create_snac_32khz_config, create_snac_44khz_config):
        model = create()
        model["codebook_size"], model["encoder_dim"] = 8192, 128
        config = validate({"model": model, "training": {"batch_size": 8}, "data": {"streaming": False}})
        assert config.model.codebook_size == 8192
    rates = {"encoder_rates": [3, 3, 7, 7], "decoder_rates": [7, 7, 3, 3]}
    assert validate({"model": {**create_snac_44khz_config(), **rates}}).model.facts.hop_length == 441


def test_data_preset_the_original_way() -> None:
    preset = DATASET_CONFIGS["librispeech"]
    config = create_training_config(dataset_path=preset["dataset_path"], streaming=preset["streaming"])
    config["data"]["split"] = preset["split"]
    assert validate(config).data.streaming is True


# Layers


def test_layers_lie_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("training: {seed: 1, log_interval: 1, save_interval: 1}\n", encoding="utf-8")
    environment = {"SNAC_ACCEL_TRAINING__LOG_INTERVAL": "2", "SNAC_ACCEL_TRAINING__SAVE_INTERVAL": "2"}
    overrides = {"training": {"save_interval": 3}}
    training = load_config("demo", path, overrides, environment).training
    assert (training.seed, training.log_interval, training.save_interval) == (1, 2, 3)
    assert training.batch_size == DATASET_CONFIGS["demo"]["batch_size"]


def test_upper_layers_keep_the_rest_of_a_section() -> None:
    lower = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": 1}
    assert merge(lower, {"a": {"c": {"d": [3]}}}) == {"a": {"b": 1, "c": {"d": [3]}}, "e": 1}
    assert merge(lower, {"a": None}) == {"a": None, "e": 1}
    assert lower == {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": 1}


def test_model_preset_on_a_dataset() -> None:
    config = load_config("44khz", dataset="vctk", environment={})
    assert (config.model.sampling_rate, config.data.dataset_path) == (
        44100,
        DATASET_CONFIGS["vctk"]["dataset_path"],
    )
    assert config.segment_note is None
    with pytest.raises(ConfigError, match="two runs"):
        load_config("demo", dataset="vctk", environment={})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"preset": "demoo"}, 'preset "demoo": unknown; did you mean demo?'),
        ({"preset": "24kHz_"}, 'preset "24kHz_": unknown; did you mean 24khz?'),
        ({"dataset": "libri-speech"}, 'dataset "libri-speech": unknown; did you mean librispeech?'),
        ({"dataset": "zzz"}, 'dataset "zzz": unknown; There are ljspeech'),
    ],
)
def test_unknown_presets(arguments: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}"):
        load_config(**arguments, environment={})  # type: ignore[arg-type]


def test_environment() -> None:
    environment = {
        "SNAC_ACCEL_MODEL__VQ_STRIDES": "[4, 2]",
        "SNAC_ACCEL_DATA__REVISION": "007",
        "SNAC_ACCEL_DISCRIMINATORS__MPD": "null",
        "SNAC_ACCEL_TRAINING__LEARNING_RATE": "1e-4",
        "SNAC_ACCEL_CACHE": "not a setting",
        "HOME": "x",
    }
    config = load_config(environment=environment)
    assert (config.model.vq_strides, config.data.revision, config.discriminators.mpd) == ((4, 2), "007", None)
    assert config.training.learning_rate == 1e-4


def test_unknown_environment_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"SNAC_ACCEL_TRAINING__SEEED: .*did you mean training.seed"):
        load_config(environment={"SNAC_ACCEL_TRAINING__SEEED": "1"})


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("training.learning_rate", ["1e-4"], 1e-4),
        ("training.learning_rate", ["fast"], "fast"),
        ("training.seed", ["0123"], 123),
        ("training.mixed_precision", ["no"], "no"),
        ("training.mixed_precision", ["null"], None),
        ("training.init_from", ["null"], None),
        ("data.dataset_path", ["null"], "null"),
        ("data.dataset_path", ["1.5"], "1.5"),
        ("data.dataset_path", ["a b: [c"], "a b: [c"),
        ("data.streaming", ["true"], True),
        ("data.streaming", ["no"], "no"),
        ("data.gain_db", ["-3", "3"], [-3, 3]),
        ("data.gain_db", ["-3,3"], [-3, 3]),
        ("model.vq_strides", ["4", "2", "1"], [4, 2, 1]),
        ("model.vq_strides", ["[4,2,1]"], [4, 2, 1]),
        ("model.vq_strides", ["4"], [4]),
        ("tracking.trackers", ["wandb", "tensorboard"], ["wandb", "tensorboard"]),
        ("tracking.trackers", ["[]"], []),
        ("discriminators.mpd", ["null"], None),
        ("discriminators.mpd", ["{periods: [2, 3]}"], {"periods": [2, 3]}),
        ("discriminators.msstftd.bands", ["null"], None),
        ("discriminators.msstftd.bands", ["[[0, 0.5], [0.5, 1]]"], [[0, 0.5], [0.5, 1]]),
        ("discriminators.msstftd.bands", ["[0,0.5]", "[0.5,1]"], [[0, 0.5], [0.5, 1]]),
    ],
)
def test_words_become_values_by_the_type_of_their_setting(name: str, words: list[str], value: Any) -> None:
    assert parse_setting(name, words) == value


def test_a_section_cannot_be_switched_off_and_set() -> None:
    with pytest.raises(ConfigError, match=r"contradicts discriminators\.mpd = null"):
        nest({"discriminators.mpd": None, "discriminators.mpd.periods": [2]})


# Files


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_yaml_means_what_it_says(tmp_path: Path) -> None:
    """YAML 1.1 would give text, false, 8 (octal), a date and true here."""
    text = "a: 1e-4\nb: no\nc: 010\nd: 2024-01-01\ne: on\nf: ~\ng: -.5\nh: true\ni:\nj: '1'\n"
    values = read_config_file(write(tmp_path / "a.yml", text))
    expected = [1e-4, "no", 10, "2024-01-01", "on", None, -0.5, True, None, "1"]
    assert list(values.values()) == expected
    assert [type(value) for value in values.values()] == [type(value) for value in expected]
    assert read_config_file(write(tmp_path / "b.yaml", to_yaml(values))) == values


def test_yaml_round_trip_of_awkward_values(tmp_path: Path) -> None:
    words = [
        "1e-4",
        "no",
        "null",
        "~",
        "true",
        "010",
        "1:30",
        "",
        " x",
        "a: b",
        "#",
        "-",
        "[",
        "ключ",
        "a\nb",
        "<<",
        "=",
        ".5",
    ]
    content = {
        "words": words,
        "numbers": [1e-8, 1e300, -0.0, 0, 5e-324],
        "none": None,
        "deep": {"x": [[1], []]},
    }
    assert read_config_file(write(tmp_path / "a.yaml", to_yaml(content))) == content


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
BROKEN: list[tuple[str, str | bytes, str]] = [
    ("a.json", '{"training": {\n "seed": }', "line 2: not JSON"),
    ("a.json", '{"training": {}, "training": {}}', '"training" is given twice'),
    ("a.json", "[1]", "should hold sections with settings, holds [1]"),
    ("a.json", "", "line 1: not JSON"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.json", f'{{"a": {"9" * 5000}}}', "not usable JSON"),
    ("a.json", b"\xff\xfe", "not UTF-8"),
    ("a.json", "[" + "1," * 10_000 + "1]", "more than 10000 values"),
    ("a.yaml", "training:\n  seed: 1\n  seed: 2\n", "line 3: not usable YAML: seed is given twice"),
    ("a.yaml", "training:\n  seed: [1\n", "line 3: not usable YAML"),
    ("a.yaml", "training:\n\tseed: 1\n", "line 2: not usable YAML"),
    ("a.yaml", "1: 2\n", "line 1: not usable YAML: names of settings should be text"),
    ("a.yaml", "a: !!python/object/apply:os.system [ls]\n", "line 1: not usable YAML"),
    ("a.yaml", "a: *b\n", "line 1: not usable YAML"),
    ("a.yaml", "a: \x00\n", "not usable YAML"),
    ("a.yaml", "just words\n", 'holds "just words"'),
    ("a.yaml", "", "holds null"),
    ("a.yaml", "[" * 5000, "nested too deeply"),
    ("a.yaml", f"a: {'9' * 5000}", "not usable YAML"),
    ("a.yaml", BOMB, "more than 10000 values"),
    ("a.yaml", "a: &a [*a]\n", "more than 10000 values"),
    ("a.toml", "a = 1", "should end in .json, .yaml or .yml"),
    ("a.yaml", "#" * 1_000_001, "1000001 bytes, should be at most 1000000"),
]


@pytest.mark.parametrize(("name", "content", "problem"), BROKEN, ids=[f"{n} {p[:30]}" for n, _, p in BROKEN])
def test_broken_files_are_refused_in_one_line(tmp_path: Path, name: str, content: str, problem: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ConfigError) as caught:
        read_config_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and problem in message
    assert message.isprintable() and len(message) < 300 + len(str(path))


@pytest.mark.parametrize("name", ["missing.json", ".json", "x" * 300 + ".json", "nul\0.json"])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config_file(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ConfigError, match="no such configuration file"):
        read_config_file(tmp_path / "a.json")


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read_config_file(write(tmp_path / "a.json", b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


def test_public_names_exist() -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    assert isinstance(validate(validate({})), TrainingConfig)
