"""The configuration of a run: schema, presets, loading. Loads no torch.

`fields`, `model`, `adversaries`, `codebook`, `sections`, `schema` say what there is; `files`, `text`, `loading` get it
from presets, JSON, YAML, environment and flags; `messages` says what is wrong with it.
"""

from ..errors import ConfigError
from ..presets import (
    DATASET_CONFIGS,
    MODEL_CONFIGS,
    ModelFacts,
    create_snac_24khz_config,
    create_snac_32khz_config,
    create_snac_44khz_config,
    describe_model,
    preset_run,
)
from .adversaries import DiscriminatorSettings, PeriodSettings, STFTSettings
from .codebook import CodebookSettings
from .data import DataSettings, SourceSettings
from .files import read_config_file, to_yaml
from .loading import config_hash, create_training_config, load_config, merge, save_config, to_dict, validate
from .model import ModelSettings
from .schema import SETTINGS, TrainingConfig
from .sections import (
    CheckpointSettings,
    LossSettings,
    OptimizerSettings,
    PathSettings,
    TrackingSettings,
    TrainingSettings,
)
from .validation import ValidationSettings

__all__ = [
    "DATASET_CONFIGS",
    "MODEL_CONFIGS",
    "SETTINGS",
    "CheckpointSettings",
    "CodebookSettings",
    "ConfigError",
    "DataSettings",
    "DiscriminatorSettings",
    "LossSettings",
    "ModelFacts",
    "ModelSettings",
    "OptimizerSettings",
    "PathSettings",
    "PeriodSettings",
    "STFTSettings",
    "SourceSettings",
    "TrackingSettings",
    "TrainingConfig",
    "TrainingSettings",
    "ValidationSettings",
    "config_hash",
    "create_snac_24khz_config",
    "create_snac_32khz_config",
    "create_snac_44khz_config",
    "create_training_config",
    "describe_model",
    "load_config",
    "merge",
    "preset_run",
    "read_config_file",
    "save_config",
    "to_dict",
    "to_yaml",
    "validate",
]
