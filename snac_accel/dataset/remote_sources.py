"""Sources that are elsewhere: repositories of the Hub, and files at an address."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ..errors import DataError
from .clips import Clips
from .folder import METADATA_NAMES, is_audio, split_of
from .manifests import SUFFIXES as MANIFEST_SUFFIXES
from .manifests import open_manifest
from .network import list_addresses, without_protocol
from .opening import (
    Request,
    as_stream,
    as_table,
    files_of_split,
    open_parquet,
    open_parquet_files,
    pick_loaded,
    prepare_split,
)
from .source_errors import no_split
from .streams import StreamedClips
from .tables import StoredAudio
from .tars import TarClips


def open_hub(request: Request) -> Clips | StreamedClips:
    """Open a repository of the Hub: downloaded, or read while training."""
    builder = datasets.load_dataset_builder(
        request.path, name=request.configuration, revision=request.revision
    )
    if isinstance(builder, Csv | Json):  # small beside the audio they name, which is read while training
        return _open_manifests(request, files_of_split(request, builder))
    if isinstance(builder, WebDataset) and not request.streaming:  # its own reader needs torchcodec
        return _open_downloaded_tars(request, files_of_split(request, builder))
    is_folder = isinstance(builder, FolderBasedBuilder)  # whose paths are those of the files themselves
    if not request.streaming:
        return as_table(request, prepare_split(builder, request), None, is_foreign=not is_folder)
    if isinstance(builder, Parquet):
        return open_parquet(request, builder, None)
    if isinstance(builder, FolderBasedBuilder):
        files = files_of_split(request, builder)
        if all(map(is_audio, files)):
            return as_table(request, _addresses(files), None)
        builder.BASE_FEATURE = StoredAudio
    return as_stream(request, builder.as_streaming_dataset(split=request.split), is_foreign=not is_folder)


def _open_downloaded_tars(request: Request, addresses: Sequence[str]) -> Clips:
    paths = datasets.DownloadManager().download(list(addresses))
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    files = [os.path.relpath(path, root) for path in paths]
    return TarClips(Path(root), files, request.audio_column, request.speaker_column)


def open_address_folder(request: Request) -> Clips | StreamedClips:
    """Open files at an address, by what most of them are."""
    files = list_addresses(request.path)
    is_file = Path(request.path).suffix in MANIFEST_SUFFIXES
    root = os.path.dirname(request.path) if is_file else request.path.rstrip("/")
    kinds: dict[str, Callable[[str], bool]] = {
        "audio": is_audio,
        "parquet": lambda file: file.endswith(".parquet"),
        "tar": lambda file: file.endswith(".tar"),
        "table": lambda file: Path(file).suffix in MANIFEST_SUFFIXES,
    }
    if any(file.endswith("/state.json") for file in files):
        return as_table(request, pick_loaded(request, datasets.load_from_disk(request.path)), None)
    by_kind = {kind: [file for file in files if test(file)] for kind, test in kinds.items()}
    kind = max(by_kind, key=lambda kind: len(by_kind[kind]) if kind != "table" else 0.5 * bool(by_kind[kind]))
    if not by_kind[kind]:
        raise DataError(f"{request.path!r} holds no audio files, parquet, tar, JSON lines or CSV")
    chosen = _of_split(request, by_kind[kind])
    if kind == "audio" and (listing := _listing_of(request, files)):
        return _open_manifests(request, [listing], root)
    if kind == "audio":
        return as_table(request, _addresses(chosen), root)
    if kind == "parquet":
        return open_parquet_files(request, chosen, request.path)
    if kind == "tar":
        builder = datasets.load_dataset_builder("webdataset", data_files={request.split: chosen})
        return as_stream(request, builder.as_streaming_dataset(split=request.split))
    return _open_manifests(request, chosen, root)


def _open_manifests(request: Request, files: Sequence[str], root: str | None = None) -> Clips:
    """Open manifests at addresses; relative names in them become addresses, and clips are called as below `root`."""
    rows = [
        open_manifest(file, split_of(f"{Path(file).stem}/x") or "train", request.audio_column)
        for file in files
    ]
    return as_table(request, datasets.concatenate_datasets(rows), root, is_manifest=True)


def _listing_of(request: Request, files: Sequence[str]) -> str | None:
    """Return the metadata that say which of the audio files there are; raise DataError for those not read there."""
    tables = [file for file in files if re.search(r"/(train|dev|test|validated)\.tsv$", file)]
    metadata = [file for file in files if os.path.basename(file) in METADATA_NAMES]
    if tables and any("/clips/" in file for file in files):
        raise DataError(
            f"{request.path!r} is laid out as Common Voice, which is read from the disk only: download it, and "
            "`snac-accel prepare` it for streaming"
        )
    if len(metadata) > 1 or any(file.endswith(".parquet") for file in metadata):
        raise DataError(
            f"{request.path!r} has metadata that are read on the disk only, {metadata[0]}: download it, or give a "
            "manifest of JSON lines or CSV"
        )
    return metadata[0] if metadata else None


def _of_split(request: Request, files: Sequence[str]) -> list[str]:
    """Return the files of the split, by the names of folders and of tables; "train" also has those of no split."""
    splits = {}
    for file in files:
        relative = without_protocol(file).removeprefix(without_protocol(request.path))
        splits[file] = split_of(relative if is_audio(file) else f"{relative}/x") or "train"
    if request.split not in splits.values():
        raise no_split(request.path, request.split, ", ".join(sorted(set(splits.values()))))
    return [file for file, split in splits.items() if split == request.split]


def _addresses(files: Sequence[str]) -> Any:
    return datasets.Dataset.from_dict({"audio": list(files)})
