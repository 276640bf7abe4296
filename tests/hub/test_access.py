"""Private and gated repositories: the token is taken as the ecosystem does, and stands nowhere afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Client, Failed, Windows, forget, open_preset, read_preset, set_token
from repositories import OWNER, READER
from server import LoopbackHub

BIN = Path(sys.executable).parent
TWO_STEPS: dict[str, Any] = {
    "model": {"encoder_dim": 4, "decoder_dim": 32, "codebook_size": 16},
    "training": {
        "batch_size": 2,
        "num_iterations": 2,
        "log_interval": 1,
        "validation_interval": 2,
        "warmup_steps": 0,
    },
    "validation": {"max_clips": 1, "max_clip_seconds": 1.0, "num_samples": 1},
    "discriminators": {"mpd": {"periods": [2, 3], "channels": [4, 8]}, "msstftd": None},
    "codebook": {"initialization_clips": 4, "hold_steps": 1, "release_steps": 1},
    "tracking": {"progress_bar": False, "trackers": []},
}


def restricted(repo_id: str, cache: Path) -> dict[str, Any]:
    return {"data": {"dataset_path": repo_id, "cache_dir": str(cache)}}


@pytest.fixture
def stranger(client: Client, hub: LoopbackHub) -> Iterator[Client]:
    """The process, logged out and without memory."""
    client.call(forget)
    yield client
    client.call(set_token, None)


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "loopback/private", "log in with `hf auth login` if it is private"),
        (READER, "loopback/private", "log in with `hf auth login` if it is private"),
        (None, "loopback/gated", "is gated: accept its terms at"),
        ("hf_loopbackUnknownToken0123456789", "loopback/gated", "loopback/gated"),
    ],
)
def test_no_access_is_one_line(
    token: str | None, repo_id: str, message: str, stranger: Client, tmp_path: Path
) -> None:
    stranger.call(set_token, token)
    for streaming in (True, False):
        settings = restricted(repo_id, tmp_path)
        settings["data"]["streaming"] = streaming
        failed = stranger.call(open_preset, "librispeech", settings)
        assert isinstance(failed, Failed) and failed.is_line and message in failed.message, failed
        assert token is None or token not in failed.message + failed.trace


@pytest.mark.parametrize("place", ["variable", "file"])
@pytest.mark.parametrize(("token", "repo_id"), [(OWNER, "loopback/private"), (READER, "loopback/gated")])
def test_a_token_opens_it(
    token: str, repo_id: str, place: str, stranger: Client, hub: LoopbackHub, tmp_path: Path
) -> None:
    """From HF_TOKEN, or from the file that `hf auth login` writes; the store of large files never sees it."""
    stranger.call(set_token, token, in_file=place == "file")
    windows = stranger.call(read_preset, "librispeech", restricted(repo_id, tmp_path), num_windows=4)
    assert isinstance(windows, Windows), windows
    assert any(request.has_token for request in hub.book.requests("hub/*"))
    assert not any(request.has_token for request in hub.book.requests("cdn/*"))


def tiny_run(folder: Path, **data: Any) -> tuple[list[str], Path]:
    """The command of a run of two steps on the stream of LibriSpeech."""
    settings = {**TWO_STEPS, "data": {"segment_length": 0.256, "num_workers": 1, **data}}
    (folder / "tiny.json").write_text(json.dumps(settings))
    flags = [
        "--dataset",
        "librispeech",
        "--preset",
        "tiny",
        "--config",
        "tiny.json",
        "--paths.run_dir",
        "run",
    ]
    return [str(BIN / "snac-accel"), "train", *flags], folder / "run"


def test_a_run_trains_on_a_private_stream_and_keeps_its_token_secret(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """Two steps of the real command, saying everything that can be said."""
    command, run = tiny_run(tmp_path, dataset_path="loopback/private")
    talkative = {"HF_HUB_VERBOSITY": "debug", "DATASETS_VERBOSITY": "debug", "HF_DEBUG": "1"}
    environment = hub.environment(tmp_path / "home", OWNER, **talkative)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DEBUG" in done.stderr or "Request" in done.stderr
    assert any(request.has_token for request in hub.book.requests("hub/*"))
    assert (run / "export" / "model.safetensors").exists()
    logged = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in logged}) == [0, 1, 2]
    assert OWNER not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert OWNER.encode() not in content and (run not in path.parents or b"Signature=" not in content), (
            path
        )


def test_a_gated_set_without_a_token_ends_a_run_in_one_line(hub: LoopbackHub, tmp_path: Path) -> None:
    command, run = tiny_run(tmp_path, dataset_path="loopback/gated")
    environment = hub.environment(tmp_path / "home")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and not run.exists()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "is gated: accept its terms" in errors[0] and "Traceback" not in done.stderr
