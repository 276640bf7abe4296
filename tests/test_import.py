"""What importing costs and offers: no torch before it is needed, all public names in their modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import snac_accel

HEAVY = ("torch", "torchaudio", "numpy", "accelerate", "datasets", "snac")
ORIGINAL_NAMES = {  # of the SNAC training module that people know; frozen
    "dataset": ["AudioDataset"],
    "discriminators": [
        "PeriodDiscriminator",
        "MultiPeriodDiscriminator",
        "STFTDiscriminator",
        "MultiScaleSTFTDiscriminator",
    ],
    "losses": [
        "feature_matching_loss",
        "discriminator_loss",
        "generator_loss",
        "mel_spectrogram_loss",
        "stft_loss",
    ],
    "config": [
        "create_snac_24khz_config",
        "create_snac_32khz_config",
        "create_snac_44khz_config",
        "create_training_config",
        "DATASET_CONFIGS",
    ],
    "train": ["main", "setup_models", "setup_optimizers", "setup_dataset", "train_step", "save_checkpoint"],
}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after `statement` in a fresh interpreter."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import snac_accel",
        "import snac_accel.presets",
        "import snac_accel.config; snac_accel.config.load_config('demo', environment={})",
        "import snac_accel; snac_accel.create_training_config(); snac_accel.DATASET_CONFIGS",
        "from snac_accel.cli import main; main(['show-config', '--preset', 'demo'])",
    ],
)
def test_nothing_heavy_is_loaded(statement: str) -> None:
    assert not loaded_by(statement) & set(HEAVY)


def test_the_package_alone_loads_no_pydantic() -> None:
    assert not loaded_by("import snac_accel; dir(snac_accel); snac_accel.__version__") & {"pydantic", "yaml"}


def test_the_check_for_heavy_modules_can_fail() -> None:
    assert "numpy" in loaded_by("import numpy")


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in ORIGINAL_NAMES.items() for name in names]
)
def test_original_name_is_the_real_thing(module: str, name: str) -> None:
    home = __import__(f"snac_accel.{module}", fromlist=[name])
    assert getattr(snac_accel, name) is getattr(home, name)


def test_train_main_is_train_main() -> None:
    from snac_accel import train, train_main

    assert train_main is train.main


def test_lazy_names_and_typed_names_agree() -> None:
    """The names that type checkers see, the lazy table and `__all__` are one list."""
    tree = ast.parse(Path(snac_accel.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name) for node in imports for alias in node.names}
    assert seen == {place for name, place in snac_accel._PUBLIC.items() if name != "train_main"}
    assert set(snac_accel.__all__) == {*snac_accel._PUBLIC, "__version__"}
    assert set(snac_accel.__all__) <= set(dir(snac_accel))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train_mian'"):
        _ = snac_accel.train_mian
