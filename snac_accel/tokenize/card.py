"""The README of a tokenized dataset, as the Hub reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from .. import __version__
from ..inference.layouts import FlatLayout
from .columns import COLUMNS
from .settings import TokenizeSettings

DONE = "tokenized.json"


def card(
    settings: TokenizeSettings, model: Mapping[str, str], layout: FlatLayout | None, splits: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the card: a header that tells `datasets` the files of each split, and what is in them."""
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    # `datasets` takes folders of one name for the same data unless their headers differ, and then reads its cache.
    shards = " ".join(shard["sha256"] for split in splits.values() for shard in split["shards"])
    content = f"SHA-256 of the shards' {hashlib.sha256(shards.encode()).hexdigest()}"
    header = {
        "configs": [{"config_name": "default", "data_files": files, "description": content}],
        "tags": ["audio", "snac", "snac-accel", "audio-tokens"],
    }
    table = [[name, s["clips"], f"{s['seconds'] / 3600:.2f}", len(s["shards"]), s["left_out"]] for name, s in splits.items()]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header, sort_keys=False).strip(),
            "---",
            "",
            f"SNAC codes, made by `snac-accel tokenize` {__version__} from {_sources(settings)}.",
            "",
            tabulate(table, ["split", "clips", "hours", "shards", "left out"], tablefmt="github"),
            "",
            f"The model works at {model['sampling_rate']} Hz, {model['hop_length']} samples to a frame.",
            f"Its levels have a code below {model['codebook_size']} for {' / '.join(model['vq_strides'].split())} frames each.",
            f"Only it decodes them: its codebooks have the digest {model['codebooks']}.",
            "",
            *_layout(model, layout),
            "",
            "Clips that could not be read were left out; `bad_samples.jsonl` names them. The licence is that of the sources.",
            "",
            "Columns:",
            "",
            *(f"- `{name}`: {text}" for name, text in COLUMNS.items()),
            "",
        ]
    )


def _layout(model: Mapping[str, str], layout: FlatLayout | None) -> list[str]:
    if layout is None:
        return ["`codes_0`, `codes_1`, … are the codes of each level, coarse to fine, and the columns below describe the clip."]
    order = " ".join(f"c{level}" for level, _ in layout.places)
    offsets = " ".join(str(int(offset)) for offset in layout.offsets)
    return [
        f"`tokens` holds groups of {layout.group_size}: {order}. A token is the code plus the offset of its place:",
        f"{offsets}. Tokens are below {layout.vocabulary_size}.",
    ]


def _sources(settings: TokenizeSettings) -> str:
    """Return the sources in words."""
    sources = [source for members in settings.splits.values() for source in members]
    # A path on this machine says nothing to others.
    names = [source.label if Path(source.dataset_path).exists() else source.dataset_path for source in sources]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))
