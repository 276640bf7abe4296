"""The shipped recordings in other encodings, and files made of them as the Hub has them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import torch
import torchaudio
import yaml
from store import Repository

DEMO = Path(__file__).parents[2] / "snac_accel" / "demo"
SECONDS = (1.2, 3.0)  # of the recordings taken: longer than a window, short enough to be quick
FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}
GROUP_ROWS = 3
SHARDS = 2
Row = dict[str, Any]


class Recording(NamedTuple):
    """A clip as it is stored."""

    name: str  # of its file
    content: bytes


@dataclass(frozen=True, repr=False)
class Corpus:
    """A repository, and the recordings that were put into it."""

    repository: Repository
    recordings: dict[str, Recording]  # by configuration/split/name


@lru_cache(maxsize=1)
def speech() -> list[Path]:
    """The shipped recordings that are neither too short nor too long, in the order of their names."""
    found = sorted([*DEMO.glob("train/*.ogg"), *DEMO.glob("validation/*.flac")])
    return [path for path in found if SECONDS[0] < soundfile.info(str(path)).duration < SECONDS[1]]


@lru_cache(maxsize=None)
def encoded(number: int, kind: str, rate: int) -> bytes:
    """Recording `number`, resampled to `rate` and encoded."""
    samples, own_rate = soundfile.read(str(speech()[number % len(speech())]), dtype="float32")
    audio = torchaudio.functional.resample(torch.from_numpy(samples), own_rate, rate).clamp(-1, 1).numpy()
    container, subtype = FORMATS[kind]
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=container, subtype=subtype)
    return file.getvalue()


def text(column: str = "string") -> datasets.Value:
    """The feature of a plain column."""
    return datasets.Value(column)


def parquet(rows: Sequence[Row], features: datasets.Features, group_rows: int = GROUP_ROWS) -> bytes:
    """Rows as `push_to_hub` writes them: the features stand in the schema's metadata."""
    table = pyarrow.Table.from_pylist(list(rows), schema=features.arrow_schema)
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, file, row_group_size=group_rows)
    return bytes(file.getvalue())


def shards(
    rows: Sequence[Row], features: datasets.Features, pattern: str, count: int = SHARDS
) -> dict[str, bytes]:
    """Files with equal parts of the rows; `pattern` takes the number of the shard, and how many there are."""
    parts = np.array_split(np.arange(len(rows)), count)
    return {
        pattern.format(number=number, count=count): parquet([rows[i] for i in part], features)
        for number, part in enumerate(parts)
    }


def card(
    where: Mapping[str, Mapping[str, str]], features: datasets.Features, files: Mapping[str, bytes]
) -> bytes:
    """README.md with the YAML that tells `datasets` what each configuration holds, and where its splits lie."""
    infos, configurations = [], []
    for name, splits in where.items():
        sizes = {
            split: [_facts(files[path]) for path in files if fnmatchcase(path, splits[split])]
            for split in splits
        }
        counted = [
            {
                "name": split,
                "num_bytes": sum(size for size, _ in facts),
                "num_examples": sum(rows for _, rows in facts),
            }
            for split, facts in sizes.items()
        ]
        infos.append({"config_name": name, "features": features._to_yaml_list(), "splits": counted})
        data_files = [{"split": split, "path": path} for split, path in splits.items()]
        configurations.append({"config_name": name, "data_files": data_files})
    head = {"dataset_info": infos if len(infos) > 1 else infos[0], "configs": configurations}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# A corpus of speech\n".encode()


def _facts(content: bytes) -> tuple[int, int]:
    """Return bytes and rows of a parquet file."""
    return len(content), pyarrow.parquet.read_metadata(pyarrow.BufferReader(content)).num_rows


def audio(one: Recording) -> dict[str, Any]:
    """Return the value of an audio column."""
    return {"bytes": one.content, "path": one.name}


def corpus(
    repo_id: str, files: Mapping[str, bytes], recordings: dict[str, Recording], **access: Any
) -> Corpus:
    """Return a repository with these files."""
    repository = Repository(repo_id, **access)
    repository.commit(files)
    return Corpus(repository, recordings)
