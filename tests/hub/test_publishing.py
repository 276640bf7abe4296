"""Pushing through the real client to a Hub on this machine: what arrives, what is made twice, what a refusal does."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Client, Failed, set_network, set_token
from faults import Fault
from repositories import OWNER, READER
from server import LoopbackHub
from store import Repository, card_data

from snac_accel.config.loading import merge
from snac_accel.presets import DATASET_CONFIGS
from test_access import TWO_STEPS

COMMIT = "hub/api/models/loopback/*/commit/*"


def quick() -> None:
    """No pauses worth the name."""
    from snac_accel.hub import trouble

    set_network()
    trouble.FIRST_WAIT_SECONDS, trouble.LONGEST_WAIT_SECONDS = 0.02, 0.1


@pytest.fixture
def writer(client: Client, hub: LoopbackHub) -> Iterator[Client]:
    """The process, logged in as the owner."""
    client.call(set_token, OWNER)
    client.call(quick)
    yield client
    client.call(set_token, None)


def files_of(repository: Repository, revision: str = "main") -> dict[str, bytes]:
    commit = repository.find(revision)
    assert commit is not None
    return {path: entry.content for path, entry in repository.commits[commit].items()}


def push(folder: str, repository: str, patience: float = 20.0, **options: Any) -> str:
    from snac_accel.hub import Job
    from snac_accel.hub.pushing import push_job

    return push_job(Path(folder), Job(repository, 1, "Step 1", **options), patience_seconds=patience)


def publisher(queue: str, jobs: list[tuple[int, str]], repository: str, wait: float) -> list[str]:
    """Offer jobs one after the other, as a run does; returns what was said."""
    from snac_accel.hub import Job, Publisher

    said: list[str] = []
    one = Publisher(Path(queue), said.append)
    for step, folder in jobs:
        job = Job(repository, step, f"Step {step}")
        one.offer(lambda places, job=job, folder=folder: places.put_copy(job, Path(folder)) and None)
        time.sleep(0.1)
    one.close(wait)
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of the two kinds: small ones, and one that is stored as a large one."""
    (tmp_path / "model" / "samples").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    (tmp_path / "model" / "model.safetensors").write_bytes(os.urandom(3000))
    (tmp_path / "model" / "samples" / "one.wav").write_bytes(os.urandom(200))
    return tmp_path / "model"


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FAULTS = {
    "500": Fault(COMMIT, method="POST", status=500, times=2),
    "429": Fault(COMMIT, method="POST", status=429, headers={"Retry-After": "1"}),
    "409": Fault(COMMIT, method="POST", status=409),
    "412": Fault(COMMIT, method="POST", status=412),
    "dropped": Fault(COMMIT, "drop", method="POST", times=3),
    "lost reply": Fault(COMMIT, "reset", method="POST"),
    "upload": Fault("cdn/uploads/*", method="PUT", status=500),
    "repository": Fault("hub/api/repos/create", "reset", method="POST"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_arrives_once_whatever_happens(name: str, writer: Client, hub: LoopbackHub, folder: Path) -> None:
    repo_id = f"loopback/fault-{name.replace(' ', '-')}"
    hub.book.expect(FAULTS[name])
    started = time.monotonic()
    address = writer.call(push, str(folder), repo_id, tag="step-1")
    assert not isinstance(address, Failed), address.trace
    assert FAULTS[name].num_met >= 1
    assert name != "429" or time.monotonic() - started >= 1  # as the server asked
    repository = hub.repositories["models", repo_id]
    assert repository.messages == [("main", "Step 1")]
    there = files_of(repository, "step-1")
    assert {path: there[path] for path in local_files(folder)} == local_files(folder)
    assert address.endswith(repository.branches["main"])


def test_a_second_push_of_the_same_changes_nothing_and_stale_samples_go(
    writer: Client, hub: LoopbackHub, folder: Path
) -> None:
    first = writer.call(push, str(folder), "again", replaced="samples", private=True)
    repository = hub.repositories["models", "loopback/again"]
    assert repository.private and writer.call(push, str(folder), "loopback/again", replaced="samples") == first
    assert len(repository.messages) == 1
    (folder / "samples" / "one.wav").rename(folder / "samples" / "two.wav")
    writer.call(push, str(folder), "loopback/again", replaced="samples")
    assert set(files_of(repository)) == {".gitattributes", *local_files(folder)}


def test_somebody_else_commits_in_between(writer: Client, hub: LoopbackHub, folder: Path) -> None:
    """The commit names its parent, so it is refused and made again on what is there then; nothing of theirs is lost."""
    repository = hub.add(Repository("loopback/shared", "models"))
    repository.commit({".gitattributes": b"*"})
    theirs = threading.Event()

    def interfere() -> None:
        while not hub.book.requests("hub/*.git/info/lfs/objects/batch", "POST"):
            time.sleep(0.002)
        repository.commit({"theirs.txt": b"1"})
        theirs.set()

    hub.book.expect(Fault("cdn/uploads/*", "stall", method="PUT", seconds=0.5))
    threading.Thread(target=interfere, daemon=True).start()
    address = writer.call(push, str(folder), "loopback/shared")
    assert theirs.is_set() and not isinstance(address, Failed)
    assert 412 in [request.status for request in hub.book.requests(COMMIT, "POST")]
    assert set(files_of(repository)) == {".gitattributes", "theirs.txt", *local_files(folder)}


@pytest.mark.parametrize(("token", "repository"), [(None, "x"), ("hf_loopbackUnknownToken0123", "x"), (READER, "loopback/x")])
def test_a_refusal_switches_pushing_off_with_one_line(
    token: str | None, repository: str, writer: Client, hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    writer.call(set_token, token)
    said = writer.call(publisher, str(tmp_path / "queue"), [(1, str(folder)), (2, str(folder))], repository, 5.0)
    assert len(said) == 1 and "log in with `hf auth login`" in said[0] and "training goes on" in said[0]
    assert "\n" not in said[0] and (token is None or token not in said[0])
    assert list((tmp_path / "queue").iterdir())  # it can still be sent


def test_after_an_outage_the_newest_arrives_and_older_ones_are_dropped(
    writer: Client, hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    hub.book.expect(Fault("hub/*", "drop", method="POST", times=25))
    said = writer.call(publisher, str(tmp_path / "queue"), [(n, str(folder)) for n in (1, 2, 3)], "loopback/outage", 30.0)
    assert not isinstance(said, Failed), said.trace
    messages = hub.repositories["models", "loopback/outage"].messages
    assert messages == [("main", "Step 3")]
    assert [line for line in said if "warning" in line] == [line for line in said if "tried again in the background" in line]
    assert not list((tmp_path / "queue").iterdir())


def test_killed_in_a_push_it_arrives_once_with_the_next_process(
    clients: Callable[[], Client], hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    """Killed with SIGKILL after the Hub made the commit, before its answer."""
    victim, queue = Client(hub.environment(tmp_path / "home", OWNER), tmp_path / "log.txt"), str(tmp_path / "queue")
    hub.book.expect(Fault(COMMIT, "stall", method="POST", seconds=30))
    victim._connection.send((publisher, (queue, [(7, str(folder))], "loopback/killed", 30.0), {}))
    deadline = time.monotonic() + 60
    while not (found := hub.repositories.get(("models", "loopback/killed"))) or not found.messages:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert victim.process.pid is not None
    os.kill(victim.process.pid, signal.SIGKILL)
    victim.close()
    assert list(Path(queue).iterdir())
    hub.book.expect()
    other = clients()
    other.call(set_token, OWNER)
    other.call(quick)
    said = other.call(publisher, queue, [], "loopback/killed", 30.0)
    other.call(set_token, None)
    assert found.messages == [("main", "Step 7")] and "step 7: pushed" in said[0]
    assert not list(Path(queue).iterdir())


# A whole run


def train(settings: dict[str, Any]) -> int:
    from snac_accel.train import main

    return main(settings)


def load(repository: str, revision: str | None = None) -> list[str]:
    """A model of the Hub by the stock package; returns a digest of the codes of each level for a fixed sound."""
    import hashlib

    import torch
    from snac import SNAC

    audio = 0.1 * torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0))
    codes = SNAC.from_pretrained(repository).eval().encode(audio)
    return [hashlib.sha256(level.numpy().tobytes()).hexdigest() for level in codes]


def run_text(code: str) -> None:
    """Run a snippet, as whoever copies it from the card does."""
    exec(compile(code, "snippet", "exec"), {})


@pytest.fixture
def settings(tmp_path: Path, demo_folder: Path) -> dict[str, Any]:
    model = dict(sampling_rate=16000, encoder_rates=[2, 4, 4], decoder_rates=[4, 4, 2], vq_strides=[4, 2, 1])
    own = {
        "model": {**model, "attn_window_size": None, "codebook_dim": 4},
        "training": {"save_interval": 1},
        "data": {"dataset_path": str(demo_folder), "segment_length": 0.1, "num_workers": 0},
        "paths": {"run_dir": str(tmp_path / "run")},
        "hub": {"repository": "loopback/tiny", "push": "save", "revisions": "tag", "license": "mit", "private": True},
    }
    return merge(TWO_STEPS, own)


def test_a_run_is_pushed_and_loads_with_the_same_codes(
    writer: Client, hub: LoopbackHub, settings: dict[str, Any], tmp_path: Path
) -> None:
    code = writer.call(train, settings)
    assert code == 0, code.trace if isinstance(code, Failed) else code
    repository = hub.repositories["models", "loopback/tiny"]
    assert repository.private and "step-00000002" in repository.tags
    assert writer.call(load, "loopback/tiny") == writer.call(load, str(tmp_path / "run" / "export"))
    there = files_of(repository)
    assert {"config.json", "model.safetensors", "pytorch_model.bin", "README.md"} < set(there)
    assert any(path.startswith("samples/") and path.endswith("original.wav") for path in there)
    pack = files_of(repository, "training")
    assert {"generator.safetensors", "discriminator.mpd.safetensors", "optimizer.generator.safetensors"} < set(pack)
    everything = b"".join([*there.values(), *pack.values()])
    assert str(tmp_path).encode() not in everything  # no folder of this machine
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(OWNER.encode() in content for content in [everything, *written])
    check_card(writer, repository)


def check_card(writer: Client, repository: Repository) -> None:
    text = files_of(repository)["README.md"].decode()
    data = card_data(repository.commits[repository.branches["main"]])
    assert data["library_name"] == "snac" and data["license"] == "mit" and data["sampling_rate"] == 16000
    metrics = [metric for result in data["model-index"][0]["results"] for metric in result["metrics"]]
    assert {"mel_distance", "si_sdr_db"} <= {metric["type"] for metric in metrics}
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "loopback/tiny" in snippet
    assert writer.call(run_text, snippet) is None
    assert json.dumps(DATASET_CONFIGS["demo"]["dataset_path"]) not in text
