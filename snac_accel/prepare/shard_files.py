"""One shard as a file: parquet with an audio column that plain `datasets` knows, or a WebDataset tar. Same clips, same bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow
import pyarrow.parquet

ROW_GROUP_CLIPS, ROW_GROUP_BYTES = (
    100,
    16 * 10**6,
)  # what is read together to have one clip: whichever is fewer


class Row(NamedTuple):
    """A clip in a shard."""

    path: str  # what the trainer and `datasets` call it
    name: str  # what its source called it
    source: str
    speaker: str
    seconds: float
    sampling_rate: int  # Hz
    suffix: str
    content: bytes


def features() -> datasets.Features:
    """Return the columns of a parquet shard as `datasets` knows them."""
    text = datasets.Value("string")
    return datasets.Features(
        {
            "audio": datasets.Audio(),
            "name": text,
            "source": text,
            "speaker": text,
            "seconds": datasets.Value("float64"),
            "sampling_rate": datasets.Value("int32"),
        }
    )


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Write a shard whose row groups can be had alone: small ones, their audio neither compressed nor in a dictionary."""
    schema = features().arrow_schema
    options = {
        "compression": "NONE",
        "use_dictionary": ["source", "speaker"],
        "write_statistics": ["name", "source", "speaker", "seconds"],
        "write_page_index": True,
    }
    with pyarrow.parquet.ParquetWriter(path, schema, **options) as writer:
        for group in _groups(rows):
            columns = {
                "audio": [{"bytes": row.content, "path": row.path} for row in group],
                **{name: [getattr(row, name) for row in group] for name in schema.names if name != "audio"},
            }
            writer.write_table(pyarrow.table(columns, schema=schema), row_group_size=len(group))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each row group."""
    group: list[Row] = []
    num_bytes = 0
    for row in rows:
        if group and (len(group) == ROW_GROUP_CLIPS or num_bytes + len(row.content) > ROW_GROUP_BYTES):
            yield group
            group, num_bytes = [], 0
        group.append(row)
        num_bytes += len(row.content)
    if group:
        yield group


def write_tar(path: Path, rows: Iterable[Row]) -> None:
    """Write a WebDataset shard: for each clip its file and a JSON file. Nothing in it depends on clock or user."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, row in enumerate(rows):
            fields = row._asdict()
            del fields["content"], fields["suffix"]
            # No dot: with the first one begins what WebDataset takes for the kind of a file.
            key = f"{path.name.removesuffix('.tar').replace('.', '_')}-{number:06d}"
            _add(archive, f"{key}.{row.suffix}", row.content)
            _add(archive, f"{key}.json", json.dumps(fields, ensure_ascii=False).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))


WRITERS = {"parquet": write_parquet, "webdataset": write_tar}
