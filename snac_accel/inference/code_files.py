"""Codes in a file: safetensors, with what is needed to decode them in its metadata. Nothing in it can run.

    codes.0, codes.1, …   one row for each level, coarse to fine, uint16 (uint32 for codebooks of more than 65536)
    format                snac-codes
    version               1
    num_samples           of the clip, at `sampling_rate`: what is decoded is trimmed to that
    sampling_rate         in Hz, of the model
    hop_length            samples of a frame
    vq_strides            frames of a code, for each level: 4 2 1
    codebook_size         codes are below it
    codebooks             16 hexadecimal digits that tell models with other codebooks apart

A level's number of codes times its stride is the number of frames, the same for all; it is a multiple of what the model pads to.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from safetensors import SafetensorError

from ..errors import DataError
from ..files import TEMPORARY_PREFIX, write_bytes
from .codec import Codec, Codes

SUFFIX = ".safetensors"
FORMAT, VERSION = "snac-codes", 1
MAX_BYTES = 2**30  # of a file: more than a thousand hours of the published models


def code_type(codebook_size: int) -> type[np.unsignedinteger[Any]]:
    """The type in which codes are stored."""
    return np.uint16 if codebook_size <= 2**16 else np.uint32


def facts_of(codec: Codec) -> dict[str, str]:
    """What a file says of the model."""
    return {
        "sampling_rate": str(codec.sampling_rate),
        "hop_length": str(codec.hop),
        "vq_strides": " ".join(map(str, codec.strides)),
        "codebook_size": str(codec.codebook_size),
        "codebooks": codebooks_digest(codec),
    }


def codebooks_digest(codec: Codec) -> str:
    """16 digits that differ if the codebooks do: codes of one model mean nothing to the other."""
    digest = hashlib.blake2b(digest_size=8)
    for level in codec.network.model.quantizer.quantizers:
        digest.update(level.codebook.weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_codes(path: Path, codes: Codes, facts: dict[str, str]) -> None:
    """Write a file of codes, whole or not at all; `facts` are those of the model."""
    kind = code_type(int(facts["codebook_size"]))
    tensors = {f"codes.{level}": row.numpy().astype(kind) for level, row in enumerate(codes.levels)}
    metadata = {"format": FORMAT, "version": str(VERSION), "num_samples": str(codes.num_samples), **facts}
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(temporary, safetensors.numpy.save(tensors, metadata))
    os.replace(temporary, path)


def read_codes(path: Path, facts: dict[str, str]) -> Codes:
    """Read a file of codes made by a model of these facts; raises DataError, one line, for any other."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than any file of codes ({MAX_BYTES} bytes)")
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            _check(path, metadata, facts)
            names = [f"codes.{level}" for level in range(len(facts["vq_strides"].split()))]
            if sorted(file.keys()) != sorted(names):
                raise DataError(f"{path} should hold {', '.join(names)}, not {', '.join(sorted(file.keys()))[:100]}")
            levels = [file.get_tensor(name) for name in names]
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as a file of codes: {str(error).splitlines()[0][:200]}") from error
    if any(level.ndim != 1 or level.dtype not in (np.uint16, np.uint32) for level in levels):
        raise DataError(f"{path} should hold rows of uint16 or uint32")
    if not (length := metadata.get("num_samples", "")).isdecimal():
        raise DataError(f"{path} does not say how many samples it stands for")
    return Codes([torch.from_numpy(level.astype(np.int64)) for level in levels], int(length))


def _check(path: Path, metadata: dict[str, str], facts: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is no file of codes, as `snac-accel encode` writes them")
    if metadata.get("version") != str(VERSION):
        raise DataError(f"{path} is of version {metadata.get('version', '')[:20]}: {VERSION} is read here")
    for name, value in facts.items():
        if metadata.get(name) != value:
            there = f"{name} = {metadata.get(name, '')[:40]}, this model has {value}"
            raise DataError(f"{path} was encoded by another model ({there}): decode it with the one that encoded it")
