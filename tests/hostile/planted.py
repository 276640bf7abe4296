"""Planted files: pickles that would leave a trace, checkpoints whose manifest agrees with them, and what a reader may cost."""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from snac_accel.files import sha256
from snac_accel.stored import MANIFEST, sealed

SECONDS, MEGABYTES = 20.0, 300.0  # that refusing one file may take; a giant one would take minutes and gigabytes
MOST_BYTES = 4 * 2**30  # that a test may ask for before it fails, so that it does not take the whole machine


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.write_text, (self.trace, "executed"))


def pickles(trace: Path) -> dict[str, bytes]:
    """The payload in every form that a file of weights may have."""
    forms = {"pickle": pickle.dumps(Payload(trace))}
    for name, value in {"torch": Payload(trace), "weights": {"weight": Payload(trace)}}.items():
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=zipped)
            forms[name if zipped else f"{name}, older form"] = file.getvalue()
    return forms


def safetensors(header: Any, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, and a length of it that may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def _tensor(shape: list[int], end: int, start: int = 0, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LYING_TENSORS = {
    "a header of 2**63 bytes": safetensors({}, length=2**63 - 1),
    "a header of a gigabyte": safetensors({}, length=2**30),
    "a header longer than the file": safetensors({}, length=4096),
    "no header": b"",
    "half a length": b"\x10\x00\x00",
    "a header that is no JSON": safetensors(b"{" * 64),
    "a header nested deeply": safetensors(b'{"a":' * 100_000),
    "a list as header": safetensors([]),
    "bytes that are not there": safetensors({"weight": _tensor([2**28], 2**30)}, b"\x00" * 16),
    "a shape whose product overflows": safetensors({"weight": _tensor([2**62, 2**62], 16)}, b"\x00" * 16),
    "a shape that is not its bytes": safetensors({"weight": _tensor([1000], 16)}, b"\x00" * 16),
    "an end before the start": safetensors({"weight": _tensor([4], 0, start=16)}, b"\x00" * 16),
    "negative offsets": safetensors({"weight": _tensor([4], 16, start=-16)}, b"\x00" * 16),
    "tensors over each other": safetensors({"a": _tensor([4], 16), "b": _tensor([4], 16)}, b"\x00" * 16),
    "an unknown type": safetensors({"weight": _tensor([4], 16, dtype="pickle")}, b"\x00" * 16),
    "thousands of empty tensors": safetensors({str(i): _tensor([0], 0) for i in range(20_000)}),
}


def grow(path: Path, num_bytes: int) -> Path:
    """Make a file that large; it takes no room on the disk."""
    with open(path, "ab") as file:
        file.truncate(num_bytes)
    return path


def reseal(checkpoint: Path) -> None:
    """Let the manifest agree with whatever the files hold by now, as somebody who made the checkpoint would."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for name in manifest["files"]:
        file = checkpoint / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    rewrite(checkpoint, manifest)


def rewrite(checkpoint: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a right seal."""
    manifest.pop("seal", None)
    (checkpoint / MANIFEST).write_bytes(sealed(manifest))


@contextmanager
def bounded(seconds: float = SECONDS, megabytes: float = MEGABYTES, maps_files: bool = False) -> Iterator[None]:
    """Fail if what is inside takes longer, or at any moment more memory than before. Files mapped into memory take none."""
    status = Path("/proc/self/status")
    begun, before = time.monotonic(), _reset_peak(status)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if before is not None and not maps_files:
        most = _field(status, "VmSize") * 1024 + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - begun < seconds
    if before is not None:
        assert (_field(status, "VmHWM") - before) / 1024 < megabytes


def _reset_peak(status: Path) -> int | None:
    """Forget the largest memory so far; None where Linux does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _field(status, "VmRSS")


def _field(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
