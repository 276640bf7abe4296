"""What a run that goes on does otherwise than before: the settings that differ, and which of them may. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .config import SETTINGS
from .config.messages import show
from .config.schema import ANYTHING

# Settings that a resumed run may change: they alter neither the model nor the order of the data.
HARMLESS = {
    "training.num_iterations", "training.save_interval", "training.log_interval", "training.validation_interval",
    "training.non_finite_limit", "training.batch_size", "training.gradient_accumulation_steps",
    "training.global_batch_size", "training.mixed_precision", "training.matmul_precision", "training.tf32_convolutions",
    "data.num_workers", "data.max_bad_fraction", "data.cache_dir", "data.cache_gigabytes", "data.steps_per_epoch",
    "validation.max_clips", "validation.max_clip_seconds", "validation.num_samples",
    "validation.metrics", "validation.without_average", "validation.best_metric", "validation.patience", "validation.export_best",
}  # fmt: skip
HARMLESS_SECTIONS = {
    "averaging", "checkpoint", "distributed", "guards", "hub", "paths", "performance", "stopping", "tracking",
}  # fmt: skip
OPTIMIZER_SETTINGS = {"training.learning_rate", "training.discriminator_learning_rate"}  # and all of optimizer
MOST_NAMED = 6
_NOT_SHOWN = {"checkpoint.resume", "checkpoint.allow_changes"}  # they say how to go on, not with what


class Change(NamedTuple):
    """A setting that differs."""

    name: str
    before: Any
    now: Any

    @property
    def harmless(self) -> bool:
        """Whether a run may change it without being asked."""
        return self.name in HARMLESS or self.name.partition(".")[0] in HARMLESS_SECTIONS

    def allowed(self, names: Collection[str]) -> bool:
        """Whether it is harmless, or among `names`, or all are allowed."""
        return self.harmless or not {self.name, self.name.partition(".")[0], *ANYTHING}.isdisjoint(names)

    def __str__(self) -> str:
        return f"{self.name} was {show(self.before)}, is {show(self.now)}"


def find_changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[Change]:
    """The settings of `config` that differ from `saved`; one that `saved` does not know yet had its default."""
    return list(_changes(saved, config))


def _changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Change]:
    for section, settings in config.items():
        before = saved.get(section)
        before = before if isinstance(before, Mapping) else {}
        for key, value in settings.items():
            name = f"{section}.{key}"
            old = before[key] if key in before else _default(name)
            if old != value:
                yield Change(name, old, value)


def _default(name: str) -> Any:
    default = SETTINGS[name].default if name in SETTINGS else None
    return list(default) if isinstance(default, tuple) else default


def refused(changes: Iterable[Change], allowed: Collection[str]) -> list[Change]:
    """Those that the run may not make."""
    return [change for change in changes if not change.allowed(allowed)]


def describe(changes: Sequence[Change]) -> str:
    """The first few in one line, and how many more there are."""
    more = len(changes) - MOST_NAMED
    return "; ".join(map(str, changes[:MOST_NAMED])) + (f"; and {more} more" if more > 0 else "")


def allowing(changes: Sequence[Change]) -> str:
    """The flag that allows them."""
    names = [change.name for change in changes] if len(changes) <= MOST_NAMED else ["true"]
    return f"--checkpoint.allow_changes {' '.join(names)}"


def shown(changes: Iterable[Change]) -> list[str]:
    """A line for each that says something about the training."""
    return [
        f"  {change.name}: {show(change.before)} -> {show(change.now)}{'' if change.harmless else '  (allowed)'}"
        for change in changes
        if change.name not in _NOT_SHOWN and not change.name.startswith("paths.")
    ]


def alters_optimizers(changes: Iterable[Change]) -> bool:
    """Whether any of them is a number that checkpoints keep beside the moments."""
    return any(
        change.name in OPTIMIZER_SETTINGS or change.name.startswith("optimizer.") for change in changes
    )
