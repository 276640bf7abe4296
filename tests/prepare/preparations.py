"""What the tests of `prepare` share: real clips, settings, and readers of what comes out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets

from snac_accel.config.data import SourceSettings
from snac_accel.prepare import (
    PrepareSettings,
)


SECONDS = 60.0  # every wait ends then


def settings(tmp_path: Path, output: str = "out", path: str = "sound", **options: Any) -> PrepareSettings:
    source = SourceSettings(
        dataset_path=str(tmp_path / path), split="train", audio_column="audio", streaming=False
    )
    defaults: dict[str, Any] = {
        "splits": {"train": [source]},
        "num_shards": 4,
        "progress_bar": False,
        "workers": 2,
    }
    return PrepareSettings(tmp_path / output, **{**defaults, **options})


def read(folder: Path, split: str = "train", streaming: bool = False) -> list[dict[str, Any]]:
    """Return the rows that plain `datasets` gives, in its order, with the file undecoded."""
    rows = datasets.load_dataset(str(folder), split=split, streaming=streaming)
    column = next(name for name, kind in rows.features.items() if isinstance(kind, datasets.Audio))
    return [{**row, "audio": row[column]} for row in rows.cast_column(column, datasets.Audio(decode=False))]


def sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "data").iterdir())
    }


def left_out(folder: Path) -> dict[str, str]:
    lines = (folder / "bad_samples.jsonl").read_text().splitlines()
    return {record["name"]: record["reason"] for record in map(json.loads, lines)}
