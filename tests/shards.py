"""The demo's validation clips in the shapes that streams come in: parquet row groups, and WebDataset tars."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

FEATURES = datasets.Features(
    {"audio": datasets.Audio(decode=False), "speaker_id": datasets.Value("string"), "text": datasets.Value("string")}
)


def write_parquet(
    folder: Path, clips: Sequence[Path], *, num_files: int = 3, rows_per_group: int = 4, split: str = "train"
) -> Path:
    """Write clips as the Hub has them, `data/train-00000-of-00003.parquet` …; speakers are the clips' numbers modulo 5."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    schema = FEATURES.arrow_schema
    for number in range(num_files):
        own = range(number, len(clips), num_files)
        rows = [
            {
                "audio": {"bytes": clips[i].read_bytes(), "path": clips[i].name},
                "speaker_id": str(i % 5),
                "text": "…",
            }
            for i in own
        ]
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        name = f"{split}-{number:05d}-of-{num_files:05d}.parquet"
        pyarrow.parquet.write_table(table, folder / "data" / name, row_group_size=rows_per_group)
    return folder


def write_tars(folder: Path, clips: Sequence[Path], *, num_files: int = 3) -> str:
    """Write clips as WebDataset shards; returns the address of the folder, from where they can be read in turn only."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        with tarfile.open(folder / f"train-{number:05d}.tar", "w") as shard:
            for clip in clips[number::num_files]:
                shard.add(clip, arcname=clip.name)
    return f"file://{folder}"
