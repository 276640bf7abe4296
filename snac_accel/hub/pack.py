"""The training pack: what others need to fine-tune a model, taken from a checkpoint.

    config.json                     model, discriminators, losses, optimiser, codebook: no folder of the machine
    generator.safetensors           the weights that were trained on, not their average
    discriminator.NAME.safetensors
    optimizer.NAME.safetensors, optimizer.NAME.json, schedule.NAME.json, codebook_usage.safetensors
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..files import write_bytes, write_json
from ..model_card import public_config
from ..stored import read_json, verify_checkpoint

PACKED = ("generator.", "discriminator.", "optimizer.", "schedule.", "codebook_usage.")
BRANCH = "training"


def write_pack(checkpoint: Path, folder: Path, repository: str) -> None:
    """Write the pack of a checkpoint, which is verified first, into a new folder."""
    names = [name for name in verify_checkpoint(checkpoint)["files"] if name.startswith(PACKED)]
    folder.mkdir()
    for name in names:
        shutil.copyfile(checkpoint / name, folder / name)
    write_json(folder / "config.json", public_config(read_json(checkpoint / "config.json")))
    write_bytes(folder / "README.md", _card(repository).encode())


def _card(repository: str) -> str:
    return (
        "---\nlibrary_name: snac\ntags: [snac, snac_accel, training]\n---\n\n"
        f"# Training pack of {repository}\n\nGenerator, discriminators, optimisers and schedules, written by `snac_accel`. "
        "Nothing in it is ever unpickled. To fine-tune from it:\n\n"
        f"```bash\nsnac-accel train --init_from {repository} --dataset_path my_recordings\n```\n"
    )
