"""What a run started from, and whether its codes still are those of that model.

The codes of a sound are decided by encoder and quantizer alone. Their weights at the start are kept as a digest in the run's
folder, so that every export can say, without the network, whether a model that was built on the old codes takes the new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .files import replace_json
from .plain_json import read_json

FILE = "started_from.json"
DECIDES_CODES = ("encoder.", "quantizer.")


class Origin(NamedTuple):
    """The model that a run started from."""

    source: str
    digest: str  # of the weights that decide the codes


def codes_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything that decides the codes: names, shapes and float32 numbers of encoder and quantizer."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name.startswith(DECIDES_CODES):
            tensor = weights[name].detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_origin(root: Path, source: str, weights: Mapping[str, Tensor]) -> None:
    """Keep what the run in `root` starts from."""
    keep(root, Origin(source, codes_digest(weights)))


def keep(root: Path, origin: Origin) -> None:
    """Write it down in the run's folder."""
    root.mkdir(parents=True, exist_ok=True)
    replace_json(root / FILE, origin._asdict())


def read_origin(root: Path) -> Origin | None:
    """What the run in `root` started from; None if it started from nothing, or if that is not known."""
    try:
        saved = read_json(root / FILE)
        return Origin(str(saved["source"]), str(saved["digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def same_codes(root: Path, weights: Mapping[str, Tensor]) -> bool | None:
    """Whether these weights give the codes of what the run started from, bit by bit; None if that is not known."""
    origin = read_origin(root)
    return None if origin is None else origin.digest == codes_digest(weights)
