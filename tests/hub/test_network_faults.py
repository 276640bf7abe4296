"""What the network does wrong while a stream is read: the windows stay the same to the bit, or the run ends in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client import Client, Failed, Windows, forget, open_preset, read_on, read_preset, set_network
from faults import Fault
from repositories import restricted
from server import LoopbackHub

QUICK = {"patience": 60.0, "FIRST_WAIT_SECONDS": 0.01, "LONGEST_WAIT_SECONDS": 1.0, "STALL_SECONDS": 20.0}
SHARDS = "*/clean/train.100/*"


@pytest.fixture
def reader(client: Client, hub: LoopbackHub) -> Iterator[Client]:
    """The process, with short pauses and no memory."""
    client.call(set_network, **QUICK)
    client.call(forget)
    yield client
    hub.book.clear()


@pytest.fixture(scope="module")
def undisturbed(clients: Any, running_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """The windows as they should be."""
    running_hub.book.clear()
    windows: Windows = clients().call(read_preset, "librispeech", stream(tmp_path_factory.mktemp("cache")))
    assert isinstance(windows, Windows), windows
    return windows


def stream(cache: Path) -> dict[str, Any]:
    """A stream whose parts are not on this disk yet, with pools of one row group."""
    return {"data": {"cache_dir": str(cache), "shuffle_buffer": 3}}


def opened(reader: Client, cache: Path) -> None:
    """Open the stream; what goes wrong afterwards goes wrong while training."""
    failed = reader.call(open_preset, "librispeech", stream(cache))
    assert failed is None, failed


FAULTS = {
    "too many requests": [Fault(f"hub{SHARDS}", status=429, headers={"Retry-After": "1"})],
    "server errors": [
        Fault(f"hub{SHARDS}", status=500, times=2),
        Fault(f"cdn{SHARDS}", status=503, first=2, times=2),
    ],
    "reset": [Fault(f"cdn{SHARDS}", "reset", after=20_000, times=3)],
    "cut off": [Fault(f"cdn{SHARDS}", "cut", after=20_000, times=3)],
    "the end is missing": [Fault(f"cdn{SHARDS}", "short", after=20_000, times=3)],
    "silence": [Fault(f"cdn{SHARDS}", "stall", after=20_000, seconds=600, times=2)],
    "silence before the answer": [Fault(f"hub{SHARDS}", "stall", seconds=600)],
    "expired link": [Fault(f"cdn{SHARDS}", "expire", times=2)],
}


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in FAULTS), ("reset", 1), ("expired link", 2)]
)
def test_a_stream_goes_on_with_the_same_windows(
    kind: str, workers: int, reader: Client, hub: LoopbackHub, undisturbed: Windows, tmp_path: Path
) -> None:
    opened(reader, tmp_path)
    if "silence" in kind:
        reader.call(set_network, STALL_SECONDS=0.5)
    for fault in FAULTS[kind]:
        fault.num_seen = 0
    hub.book.expect(*FAULTS[kind])
    windows = reader.call(read_on, num_workers=workers)
    assert isinstance(windows, Windows), windows
    assert windows.names == undisturbed.names and np.array_equal(windows.audio, undisturbed.audio)
    met = sum(fault.num_met for fault in FAULTS[kind])
    assert met >= 1 and all(fault.num_met == fault.times for fault in FAULTS[kind])
    assert windows.num_retries == met


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(f"hub{SHARDS}", status=503, times=None), "503"),
        (Fault(f"cdn{SHARDS}", "reset", after=100, times=None), "reset"),
        (Fault(f"cdn{SHARDS}", "stall", after=100, seconds=600, times=None), "timed out"),
        (Fault(f"cdn{SHARDS}", "expire", times=None), "403"),
        (Fault(f"hub{SHARDS}", status=404, headers={"X-Error-Code": "EntryNotFound"}, times=None), "404"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else value,
)
def test_what_never_recovers_ends_in_one_line(
    fault: Fault, message: str, reader: Client, hub: LoopbackHub, tmp_path: Path
) -> None:
    opened(reader, tmp_path)
    reader.call(set_network, patience=0.5, STALL_SECONDS=0.3)
    hub.book.expect(fault)
    failed = reader.call(read_on)
    assert isinstance(failed, Failed) and failed.is_line, failed
    assert "hf://datasets/openslr/librispeech_asr" in failed.message
    assert (
        "clean/train.100/000" in failed.message
        and message in failed.message
        and "Signature" not in failed.message
    )
    assert fault.num_met >= 1


OPENING = {
    "server error": [Fault("hub/datasets/*", status=503, method="HEAD"), Fault("hub/api/*", status=500)],
    "too many requests": [Fault("hub/api/*", status=429, headers={"Retry-After": "1"})],
    "reset": [Fault("hub/api/*", "reset", after=10), Fault("cdn/*", "reset", after=100)],
}


@pytest.mark.parametrize("kind", OPENING)
def test_opening_is_patient_too(
    kind: str, reader: Client, hub: LoopbackHub, undisturbed: Windows, tmp_path: Path
) -> None:
    hub.book.expect(*OPENING[kind])
    windows = reader.call(read_preset, "librispeech", stream(tmp_path))
    assert isinstance(windows, Windows), windows
    assert all(fault.num_met == 1 for fault in OPENING[kind])
    assert windows.names == undisturbed.names and np.array_equal(windows.audio, undisturbed.audio)


def test_a_link_that_stays_refused_is_not_shown(reader: Client, hub: LoopbackHub, tmp_path: Path) -> None:
    """Who has a signed link can read the file."""
    hub.add(restricted("loopback/refused").repository)
    hub.book.expect(Fault("cdn/*", "expire", times=None))
    reader.call(set_network, patience=0.5)
    for streaming in (True, False):
        data = {"dataset_path": "loopback/refused", "streaming": streaming, "cache_dir": str(tmp_path)}
        failed = reader.call(read_preset, "librispeech", {"data": data})
        assert isinstance(failed, Failed) and failed.is_line and "403" in failed.message, failed
        assert "Expires" not in failed.message and "parquet?" not in failed.message


DOWNLOADS = {
    "server error": [Fault("hub/datasets/*", status=503, method="HEAD", first=2), Fault("cdn/*", status=500)],
    "reset": [Fault("cdn/*", "reset", after=50_000, times=2)],
    "expired link": [Fault("cdn/*", "expire")],
}


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_a_download_is_patient_too(kind: str, reader: Client, hub: LoopbackHub) -> None:
    """Of a map-style set, whose files are whole on the disk before training begins."""
    name = f"loopback/fresh-{kind.replace(' ', '-')}"
    hub.add(restricted(name).repository)
    hub.book.expect(*DOWNLOADS[kind])
    windows = reader.call(read_preset, "librispeech", {"data": {"dataset_path": name, "streaming": False}})
    assert isinstance(windows, Windows), windows
    assert all(fault.num_met == fault.times for fault in DOWNLOADS[kind])


def test_opening_a_silent_hub_ends(reader: Client, hub: LoopbackHub, tmp_path: Path) -> None:
    """A listing that never comes is given up, too: the client of the Hub would wait for ever."""
    reader.call(set_network, patience=0.5, STALL_SECONDS=0.3)
    hub.book.expect(Fault("hub/api/*/tree/*", "stall", seconds=600, times=None))
    failed = reader.call(open_preset, "librispeech", stream(tmp_path), seconds=20)
    assert isinstance(failed, Failed) and failed.is_line, failed
