"""What a tokenization is asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config.data import SourceSettings
from ..errors import ConfigError
from ..inference.layouts import FlatLayout, Offsets
from ..prepare.settings import MAX_NUMBER, check_splits

Layout = Literal["levels", "flat"]
LAYOUTS: tuple[Layout, ...] = ("levels", "flat")
DEFAULT_SHARD_BYTES = 128 * 10**6  # of codes, if shards are not counted


@dataclass(frozen=True)
class TokenizeSettings:
    """Sources, model and what becomes of them. Raises ConfigError if they contradict each other."""

    output: Path
    splits: Mapping[str, Sequence[SourceSettings]]  # the name a split is given, and where it comes from
    layout: Layout = "levels"
    offsets: Offsets = "slot"
    base: int = 0  # added to all tokens
    num_shards: int | None = None  # of each split
    workers: int = 1  # processes
    device: str = "auto"
    batch_size: int = 4
    chunk_seconds: float = 10.0
    cache_dir: str | None = None  # of what is read from an address
    cache_gigabytes: float = 10.0
    progress_bar: bool = True

    def __post_init__(self) -> None:
        for flag, limit in {"num_shards": MAX_NUMBER, "workers": 1024}.items():
            value = getattr(self, flag)
            if value is not None and not 1 <= value <= limit:
                raise ConfigError(f"--{flag} = {value}: should lie in 1..{limit}")
        if self.layout == "levels" and (self.base or self.offsets != "slot"):
            raise ConfigError("--base and --offsets: belong to --layout flat")
        check_splits(self.splits, self.output)

    def flat_layout(self, strides: Sequence[int], codebook_size: int) -> FlatLayout | None:
        """The layout of one row, if that is wanted."""
        if self.layout == "levels":
            return None
        return FlatLayout(strides, codebook_size, offsets=self.offsets, base=self.base)

    def identity(self) -> dict[str, Any]:
        """Return everything that the codes and their shards depend on but the model, as plain values."""
        sources = {
            name: [
                {**source.model_dump(exclude={"weight", "max_passes"}, mode="json"), "name": source.label}
                for source in members
            ]
            for name, members in self.splits.items()
        }
        layout = {"layout": self.layout, "offsets": self.offsets, "base": self.base}
        return {"splits": sources, **layout, "num_shards": self.num_shards}
