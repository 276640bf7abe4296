"""Clips held out for validation, chosen by a hash of the clip's name or of its speaker's.

The choice depends on the names alone: adding clips to a set moves none of the old ones, and the order and
number of files do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


def name_hash(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def is_held_out(name: str, fraction: float) -> bool:
    """Return whether a clip (or speaker) of this name belongs to the held-out share."""
    return name_hash(name) < fraction


def hold_out(names: Sequence[str], fraction: float, groups: Sequence[str] | None = None) -> NDArray[np.bool_]:
    """Return a mask (len(names),) of the clips held out: about `fraction` of them, at least one, never all.

    With `groups` (the speaker of each clip) whole groups are held out. Raises DataError if there are not two
    different names.
    """
    keys = names if groups is None else groups
    hashes = {key: name_hash(key) for key in set(keys)}
    if len(hashes) < 2:
        what = "clip names" if groups is None else "speakers"
        raise DataError(
            f"validation clips cannot be held out of {len(names)} clips with {len(hashes)} different {what}: "
            "name a validation split or a second source"
        )
    ordered = sorted(hashes, key=lambda key: hashes[key])
    held = {key for key in ordered[:-1] if hashes[key] < fraction} | {ordered[0]}
    return np.fromiter((key in held for key in keys), dtype=bool, count=len(keys))
