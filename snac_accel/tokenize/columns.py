"""What a row of a tokenized dataset is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow

from ..inference.codec import Codes
from ..inference.code_files import code_type
from ..inference.layouts import FlatLayout

COLUMNS = {
    "name": "the clip's name in its source",
    "source": "which source it comes from",
    "speaker": "who speaks, if the source was asked for that",
    "seconds": "its length",
    "num_samples": "its length in samples at the model's rate: what is decoded is trimmed to that",
}
TOKENS = "tokens"


def code_columns(num_levels: int, layout: FlatLayout | None) -> list[str]:
    """Names of the columns that hold codes."""
    return [TOKENS] if layout is not None else [f"codes_{level}" for level in range(num_levels)]


def features(num_levels: int, codebook_size: int, layout: FlatLayout | None) -> datasets.Features:
    """The columns as `datasets` knows them."""
    kind = "int32" if layout is not None else code_type(codebook_size).__name__
    codes = {name: datasets.Sequence(datasets.Value(kind)) for name in code_columns(num_levels, layout)}
    text = datasets.Value("string")
    plain = {"name": text, "source": text, "speaker": text, "seconds": datasets.Value("float64")}
    return datasets.Features({**plain, "num_samples": datasets.Value("int64"), **codes})


def step_schema(shard_schema: pyarrow.Schema) -> pyarrow.Schema:
    """The table of a step: also which clip of which source a row is, and why it has no codes."""
    extra = [("part", pyarrow.int32()), ("clip", pyarrow.int64()), ("reason", pyarrow.string())]
    return pyarrow.schema([*extra, *((field.name, field.type) for field in shard_schema)])


def code_values(codes: Codes, layout: FlatLayout | None) -> dict[str, Any]:
    """The columns of a clip's codes."""
    rows: Sequence[Any] = codes.levels if layout is None else [layout.flatten(codes.levels)]
    return dict(zip(code_columns(len(codes.levels), layout), (row.numpy() for row in rows), strict=True))
