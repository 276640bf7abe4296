"""Weight normalisation by other names: the two of older torch, and the plain weight that both stand for.

snac writes `NAME.parametrizations.weight.original0` (length g) and `original1` (direction v); torch before 2.0, and many
converters, `NAME.weight_g` and `NAME.weight_v`. The weight itself is g · v / ‖v‖, the norm over all but the first dimension:
"folded" it is one tensor, `NAME.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

LENGTH, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
OLD_LENGTH, OLD_DIRECTION = ".weight_g", ".weight_v"


def with_old_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, weight normalisation under the names of older torch."""
    return {_renamed(name, {LENGTH: OLD_LENGTH, DIRECTION: OLD_DIRECTION}): tensor for name, tensor in weights.items()}


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with each pair of length and direction as the one tensor that a convolution takes."""
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stem = name.removesuffix(DIRECTION)
        if name.endswith(LENGTH):
            continue
        plain[name if stem == name else f"{stem}.weight"] = (
            tensor if stem == name else torch._weight_norm(tensor, weights[stem + LENGTH], 0)
        )
    return plain


def with_current_names(weights: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The weights by the names that are `expected`, whichever of the three ways they are written in.

    A folded weight becomes its own direction, with its norm as the length: the same weight but for rounding. What has no
    place among the expected names keeps its own, for `load_state_dict` to complain of.
    """
    current = {_renamed(name, {OLD_LENGTH: LENGTH, OLD_DIRECTION: DIRECTION}): tensor for name, tensor in weights.items()}
    for name in expected:
        stem = name.removesuffix(DIRECTION)
        if stem != name and name not in current and (weight := current.get(f"{stem}.weight")) is not None and weight.dim():
            del current[f"{stem}.weight"]
            current[stem + LENGTH] = torch.norm_except_dim(weight, 2, 0)
            current[name] = weight
    return current


def _renamed(name: str, endings: Mapping[str, str]) -> str:
    for old, new in endings.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
