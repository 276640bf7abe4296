"""Discriminators to fine-tune from, where somebody left them beside a model: in its folder, its branch, its repository."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .export import download, read_tensors

BRANCH, SUFFIX = "training", "-training"  # of a repository: where `hub` pushes the pack


class Discriminators(NamedTuple):
    """What was found."""

    place: str  # "" if there was nothing
    tensors: dict[str, dict[str, Tensor]]  # by name of the discriminator


def read_discriminators(source: str, names: Sequence[str]) -> Discriminators:
    """The weights of these discriminators beside `source`: a checkpoint, a folder with a pack, or a Hub repository.

    What is not there is left out. Raises CheckpointError for a file that is there and cannot be read.
    """
    places = _folders(Path(source)) if Path(source).is_dir() else _repositories(source)
    for place in places:
        found = {name: file for name in names if (file := _file(place, f"discriminator.{name}.safetensors")) is not None}
        if found:
            return Discriminators(str(place), {name: read_tensors(file) for name, file in found.items()})
    return Discriminators("", {})


def _folders(folder: Path) -> Iterator[Path]:
    yield from (folder, folder / BRANCH)


def _repositories(source: str) -> Iterator[str]:
    """The pack of a repository: its branch, the repository beside it, or the revision itself."""
    name, _, revision = source.partition("@")
    if not revision:
        yield from (f"{name}@{BRANCH}", f"{name}{SUFFIX}")
    yield source


def _file(place: Path | str, name: str) -> Path | None:
    if isinstance(place, Path):
        return place / name if (place / name).is_file() else None
    try:
        return download(place, name)
    except Exception:  # not there, or not for us: discriminators are an extra
        return None
