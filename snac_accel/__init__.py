"""Train the SNAC neural audio codec.

Importing the package loads nothing heavy: every public name is fetched from its module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import (
        DATASET_CONFIGS,
        MODEL_CONFIGS,
        TrainingConfig,
        create_snac_24khz_config,
        create_snac_32khz_config,
        create_snac_44khz_config,
        create_training_config,
        load_config,
    )
    from .dataset import AudioDataset
    from .discriminators import (
        MultiPeriodDiscriminator,
        MultiScaleSTFTDiscriminator,
        PeriodDiscriminator,
        STFTDiscriminator,
    )
    from .hub import push_to_hub
    from .losses import (
        discriminator_loss,
        feature_matching_loss,
        generator_loss,
        mel_spectrogram_loss,
        stft_loss,
    )
    from .train import main, save_checkpoint, setup_dataset, setup_models, setup_optimizers, train_step

    train_main = main

_MODULES = {
    "config": [
        "DATASET_CONFIGS",
        "MODEL_CONFIGS",
        "TrainingConfig",
        "create_snac_24khz_config",
        "create_snac_32khz_config",
        "create_snac_44khz_config",
        "create_training_config",
        "load_config",
    ],
    "dataset": ["AudioDataset"],
    "discriminators": [
        "MultiPeriodDiscriminator",
        "MultiScaleSTFTDiscriminator",
        "PeriodDiscriminator",
        "STFTDiscriminator",
    ],
    "hub": ["push_to_hub"],
    "losses": [
        "discriminator_loss",
        "feature_matching_loss",
        "generator_loss",
        "mel_spectrogram_loss",
        "stft_loss",
    ],
    "train": ["main", "save_checkpoint", "setup_dataset", "setup_models", "setup_optimizers", "train_step"],
}
# public name -> (module, name there)
_PUBLIC = {name: (module, name) for module, names in _MODULES.items() for name in names}
_PUBLIC["train_main"] = ("train", "main")

__all__ = [
    "DATASET_CONFIGS",
    "MODEL_CONFIGS",
    "AudioDataset",
    "MultiPeriodDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "PeriodDiscriminator",
    "STFTDiscriminator",
    "TrainingConfig",
    "__version__",
    "create_snac_24khz_config",
    "create_snac_32khz_config",
    "create_snac_44khz_config",
    "create_training_config",
    "discriminator_loss",
    "feature_matching_loss",
    "generator_loss",
    "load_config",
    "main",
    "mel_spectrogram_loss",
    "push_to_hub",
    "save_checkpoint",
    "setup_dataset",
    "setup_models",
    "setup_optimizers",
    "stft_loss",
    "train_main",
    "train_step",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first asked for (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
