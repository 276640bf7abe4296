"""Local sources: a file, or a folder of audio files, tables, manifests or tars, or in the layout of Common Voice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.parquet.parquet import Parquet

from ..errors import DataError
from ..plain_json import read_json
from .clips import Clips
from .common_voice import is_common_voice, open_common_voice
from .folder import is_audio, list_files, open_audio_folder
from .manifests import SUFFIXES as MANIFEST_SUFFIXES
from .manifests import open_manifest
from .opening import Request, as_table, open_parquet, pick_loaded, prepare_split
from .tars import open_tars

BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
MAX_STATE_BYTES = 64 * 2**20  # of the list of files of `save_to_disk`
FILE_SUFFIXES = (*BUILDERS, *MANIFEST_SUFFIXES, ".tar")


def open_local(request: Request, local: Path) -> Clips:
    """Open a local file or folder."""
    if local.is_file():
        return _open_file(request, local)
    if (local / "state.json").exists() or (local / "dataset_dict.json").exists():
        _check_saved(local)
        return as_table(request, pick_loaded(request, datasets.load_from_disk(str(local))), str(local))
    if is_common_voice(local):
        rows = open_common_voice(local, request.split, request.configuration)
        return as_table(request, rows, str(local))
    return _open_folder(request, local, list_files(local))


def _open_file(request: Request, file: Path) -> Clips:
    """Open one file: a table, a manifest or a tar."""
    suffix, root = file.suffix.lower(), str(file.parent)
    if suffix == ".tar":
        return open_tars(file, [file.name], request.split, request.audio_column, request.speaker_column)
    if suffix in MANIFEST_SUFFIXES:
        return as_table(request, open_manifest(str(file), request.split, request.audio_column), root, is_manifest=True)
    if suffix not in BUILDERS:
        raise DataError(
            f"{request.path!r} is a file, but none of {' '.join(FILE_SUFFIXES)}: give the folder it lies in"
        )
    return _open_tables(request, datasets.load_dataset_builder(BUILDERS[suffix], data_files=str(file)), root)


def _open_folder(request: Request, folder: Path, files: list[str]) -> Clips:
    """Open a folder by what most of its files are; manifests and tables count where there is nothing else."""
    suffixes = [Path(name).suffix.lower() for name in files]
    num_tables, num_tars = sum(suffix in BUILDERS for suffix in suffixes), suffixes.count(".tar")
    if sum(map(is_audio, files)) > max(num_tables, num_tars):
        return as_table(request, request.pick(open_audio_folder(folder, files)), str(folder))
    if num_tars > num_tables:
        return open_tars(folder, files, request.split, request.audio_column, request.speaker_column)
    if not any(suffix in FILE_SUFFIXES for suffix in suffixes):
        raise DataError(
            f"{request.path!r} holds no audio files (wav, flac, ogg, opus, mp3 …), parquet, arrow, tar or JSON lines"
        )
    builder = datasets.load_dataset_builder(str(folder), name=request.configuration)
    for names in (builder.config.data_files or {}).values():  # the README of a folder may list others
        _check_inside(folder, [os.path.relpath(name, folder) for name in names])
    return _open_tables(request, builder, str(folder))


def _check_saved(folder: Path) -> None:
    """Raise DataError unless what `save_to_disk` wrote names files in its own folders alone."""
    try:
        splits = [folder]
        if (folder / "dataset_dict.json").is_file():
            names = [str(name) for name in read_json(folder / "dataset_dict.json")["splits"]]
            _check_inside(folder, names)
            splits = [folder / name for name in names]
        for split in splits:
            files = read_json(split / "state.json", MAX_STATE_BYTES)["_data_files"]
            _check_inside(split, [str(file["filename"]) for file in files])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(folder)!r} is no folder of `save_to_disk`: {' '.join(str(error).split())[:100]}") from error


def _check_inside(folder: Path, names: list[str]) -> None:
    """Raise DataError for a relative name that leads out of the folder."""
    for name in names:
        if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == "..":
            raise DataError(f"{str(folder)!r} names {name[:60]!r}, which lies outside of it")


def _open_tables(request: Request, builder: Any, root: str) -> Clips:
    """Open local data files: parquet row group by row group if it is streamed, else as `load_dataset` does."""
    if request.streaming and isinstance(builder, Parquet):
        return open_parquet(request, builder, root)
    return as_table(request, prepare_split(builder, request), root)
