"""The README of a prepared dataset, as the Hub reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from .. import __version__
from .settings import PrepareSettings

COLUMNS = {
    "audio": "the file: bytes, and the name by which it goes here",
    "name": "its name in the source; #0001 is the second part of a recording that was cut",
    "source": "which source it comes from",
    "speaker": "who speaks, if the source was asked for that",
    "seconds": "its length",
    "sampling_rate": "in Hz",
}


def card(settings: PrepareSettings, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the card: a header that tells `datasets` the files of each split, and what is in them."""
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    # `datasets` takes folders of one name for the same data unless their headers differ, and then reads its cache.
    shards = [shard["sha256"] for split in splits.values() for shard in split["shards"]]
    content = f"SHA-256 of the shards' {hashlib.sha256(' '.join(shards).encode()).hexdigest()}"
    header = {
        "configs": [{"config_name": "default", "data_files": files, "description": content}],
        "tags": ["audio", "snac-accel"],
    }
    table = [
        [
            name,
            split["clips"],
            f"{split['seconds'] / 3600:.2f}",
            f"{split['bytes'] / 1e6:.1f}",
            len(split["shards"]),
            split["left_out"],
        ]
        for name, split in splits.items()
    ]
    columns = (
        COLUMNS
        if settings.format == "parquet"
        else {name: text for name, text in COLUMNS.items() if name != "audio"}
    )
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header, sort_keys=False).strip(),
            "---",
            "",
            f"Made by `snac-accel prepare` {__version__} from {_sources(settings)}.",
            "",
            tabulate(table, ["split", "clips", "hours", "MB", "shards", "left out"], tablefmt="github"),
            "",
            _sound(settings),
            f"The clips are in the random order of seed {settings.seed}; the shards of a split differ by at most one clip.",
            "Clips that could not be decoded were left out; `bad_samples.jsonl` names them. `prepared.json` holds the",
            "settings and the SHA-256 of every shard. The licence is that of the sources.",
            "",
            "Columns:"
            if settings.format == "parquet"
            else "Beside each sound lies a JSON file with the fields:",
            "",
            *(f"- `{name}`: {text}" for name, text in columns.items()),
            "",
        ]
    )


def _sources(settings: PrepareSettings) -> str:
    """Return the sources in words."""
    sources = [source for members in settings.splits.values() for source in members]
    # A path on this machine says nothing to others.
    names = dict.fromkeys(
        source.label if Path(source.dataset_path).exists() else source.dataset_path for source in sources
    )
    return ", ".join(f"`{name}`" for name in names)


def _sound(settings: PrepareSettings) -> str:
    """Return what was done to the sound, in words."""
    cut = (
        f" Clips longer than {settings.max_clip_seconds:g} s were cut into equal parts."
        if settings.max_clip_seconds
        else ""
    )
    if settings.encode:
        return f"The sound is mono FLAC of 16 bits at {settings.sampling_rate} Hz, encoded from the sources.{cut}"
    return "The files are those of the sources, byte for byte." + (f"{cut[:-1]}, as FLAC." if cut else "")
