"""From presets, files, environment and flags to one validated configuration, and back to files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .. import presets
from ..errors import ConfigError
from ..files import replace_json
from .files import read_config_file
from .messages import describe, nearest, one_line, show
from .schema import TrainingConfig
from .text import settings_from_environment


def create_training_config(
    dataset_path: str = "bad49wolf/ljspeech-simple",
    batch_size: int = 16,
    learning_rate: float = 6e-4,
    num_iterations: int = 800_000,
    streaming: bool = False,
) -> dict[str, Any]:
    """A configuration to edit and hand to `train_main`: the 24 kHz model on `dataset_path`.

    Holds the sections and keys of the original training module; everything else keeps its default.
    """
    return {
        "model": presets.create_snac_24khz_config(),
        "training": {
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "lr_decay": 0.999994,
            "num_iterations": num_iterations,
            "save_interval": 10_000,
            "log_interval": 100,
            "validation_interval": 1_000,
        },
        "data": {
            "dataset_path": dataset_path,
            "audio_column": "audio",
            "split": "train",
            "streaming": streaming,
            "segment_length": 0.8,
        },
        "paths": {"checkpoint_dir": "./checkpoints", "log_dir": "./logs"},
    }


def validate(settings: Mapping[str, Any] | TrainingConfig) -> TrainingConfig:
    """The configuration with all defaults filled in; raises ConfigError, one line, for anything wrong."""
    if isinstance(settings, TrainingConfig):
        return settings
    if not isinstance(settings, Mapping):
        raise ConfigError(one_line(f"configuration: should be a mapping of sections, is {show(settings)}"))
    try:
        return TrainingConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def load_config(
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    dataset: str | None = None,
) -> TrainingConfig:
    """One configuration from its layers, each above the one before: preset, file, environment, overrides.

    Args:
        preset: name of a run or of a model; a model may be combined with `dataset`.
        file: JSON or YAML file with sections.
        overrides: nested settings.
        environment: variables such as SNAC_ACCEL_TRAINING__SEED; None: those of the process.
        dataset: name of a run, whose model `preset` may replace.
    """
    layers = [
        _preset_layer(dataset, preset),
        read_config_file(file) if file is not None else {},
        settings_from_environment(os.environ if environment is None else environment),
        overrides or {},
    ]
    settings: Mapping[str, Any] = {}
    for layer in layers:
        settings = merge(settings, layer)
    return validate(settings)


def _preset_layer(dataset: str | None, preset: str | None) -> dict[str, Any]:
    if dataset is not None and dataset not in presets.DATASET_CONFIGS:
        raise ConfigError(_unknown_name("dataset", dataset, list(presets.DATASET_CONFIGS)))
    if preset is None:
        return presets.preset_run(dataset) if dataset is not None else {}
    known = [*presets.DATASET_CONFIGS, *presets.MODEL_CONFIGS]
    if preset not in known:
        raise ConfigError(_unknown_name("preset", preset, known))
    if dataset is None or dataset == preset:
        return presets.preset_run(preset)
    if preset in presets.DATASET_CONFIGS:
        raise ConfigError(f"preset {preset} and dataset {dataset} are two runs: give one of them")
    return merge(presets.preset_run(dataset), presets.preset_run(preset))


def _unknown_name(kind: str, name: str, known: list[str]) -> str:
    near = nearest(name.lower(), known)
    guess = f"did you mean {near}? " if near else ""
    way_out = " (for another one use --dataset_path)" if kind == "dataset" else ""
    return one_line(f"{kind} {show(name)}: unknown; {guess}There are {', '.join(known)}{way_out}")


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` with the settings of `upper` put over it; sections are merged, everything else is replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        both_sections = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both_sections else value  # type: ignore[arg-type]
    return merged


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Nested plain values that JSON and YAML can write and `validate` accepts."""
    return config.model_dump(mode="json")


def save_config(config: TrainingConfig, path: str | Path) -> None:
    """Write the resolved configuration as JSON; it runs again with --config. Never leaves half a file."""
    replace_json(Path(path), to_dict(config))


def config_hash(config: TrainingConfig) -> str:
    """sha256 of the resolved configuration: equal settings give an equal hash, however they were written."""
    canonical = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
