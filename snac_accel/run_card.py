"""The model card of a run: what its folder, its log and its configuration say about the weights that are exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import CheckpointError
from .lineage import same_codes
from .model_card import CardFacts, held_out_results, write_card
from .run_folder import layout
from .tracking import validations

CODES_STAND = {"encoder", "quantizer"}  # frozen, the codes stay as they are
SAMPLES = "samples"


def run_card(
    root: Path,
    config: Mapping[str, Any],
    step: int,
    weights: Mapping[str, Tensor],
    *,
    repository: str | None = None,
    averaged: bool = False,
    samples: Sequence[str] = (),
) -> str:
    """The card of `weights`, which the run in `root` had at `step`.

    Raises CheckpointError if encoder and quantizer were frozen and yet are others than at the start.
    """
    hub = config.get("hub") or {}
    repository = repository or hub.get("repository")
    facts = CardFacts(
        model=config["model"],
        config=config,
        repository=repository,
        step=step,
        averaged=averaged,
        codes_unchanged=codes_unchanged(root, config, weights),
        results=_results(root, config, step),
        samples=samples,
        has_pack=pack_place(repository, hub.get("training_pack", "none")),
    )
    return write_card(facts)


def codes_unchanged(root: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bool | None:
    """`lineage.same_codes`, which must not be False where encoder and quantizer were frozen."""
    same = same_codes(root, weights)
    if same is False and CODES_STAND <= set((config.get("training") or {}).get("freeze") or ()):
        source = config["training"]["init_from"]
        raise CheckpointError(f"encoder and quantizer were frozen, and yet differ from those of {source}: nothing is exported")
    return same


def pack_place(repository: str | None, kind: str) -> str | None:
    """Where the training pack of a repository is, in words; None: nowhere."""
    if repository is None or kind == "none":
        return None
    return "the branch `training`" if kind == "branch" else f"`{repository}-training`"


def _results(root: Path, config: Mapping[str, Any], step: int) -> dict[str, float]:
    """The held-out metrics of this step, or of the last validation before it."""
    rows = [row for row in validations(layout(root, config.get("paths") or {}).logs) if row.get("step", step + 1) <= step]
    return held_out_results(rows[-1]) if rows else {}
