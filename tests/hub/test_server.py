"""The loopback Hub against the real clients: what they list, read and are refused is what they would be on the Hub."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from client import Client, Failed, set_token
from faults import Fault
from repositories import OWNER, READER, Corpus
from server import LoopbackHub
from store import Repository

LIBRISPEECH = "openslr/librispeech_asr"
SHARD = "clean/train.100/0000.parquet"


def content_of(corpus: Corpus, path: str) -> bytes:
    repository = corpus.repository
    return repository.commits[repository.branches["main"]][path].content


def listing(repo_id: str, folder: str) -> dict[str, Any]:
    """What the API and the file system list."""
    from huggingface_hub import HfApi, HfFileSystem

    files = HfFileSystem(skip_instance_cache=True, use_listings_cache=False)
    api = HfApi()
    return {
        "siblings": [one.rfilename for one in api.dataset_info(repo_id, files_metadata=True).siblings or []],
        "tree": [
            (type(one).__name__, one.path)
            for one in api.list_repo_tree(repo_id, repo_type="dataset", recursive=True)
        ],
        "folder": [one.path for one in api.list_repo_tree(repo_id, folder, repo_type="dataset")],
        "found": files.find(f"datasets/{repo_id}"),
        "size": files.info(f"datasets/{repo_id}/{SHARD}")["size"],
        "paths": [
            one.path for one in api.get_paths_info(repo_id, [SHARD, folder, "nowhere"], repo_type="dataset")
        ],
        "refs": [ref.name for ref in api.list_repo_refs(repo_id, repo_type="dataset").branches],
    }


@pytest.mark.parametrize("page_size", [1000, 3])
def test_listings(
    page_size: int,
    hub: LoopbackHub,
    client: Client,
    corpora: dict[str, Corpus],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "page_size", page_size)
    repository = corpora[LIBRISPEECH].repository
    files = sorted(repository.commits[repository.branches["main"]])
    seen = client.call(listing, LIBRISPEECH, "clean/train.100")
    assert not isinstance(seen, Failed), seen
    assert seen["siblings"] == files
    assert [path for kind, path in seen["tree"] if kind == "RepoFile"] == files
    assert ("RepoFolder", "clean/train.100") in seen["tree"]
    assert seen["folder"] == [SHARD, "clean/train.100/0001.parquet"]
    assert [path.removeprefix(f"datasets/{LIBRISPEECH}/") for path in seen["found"]] == files
    assert seen["size"] == len(content_of(corpora[LIBRISPEECH], SHARD))
    assert seen["paths"] == [SHARD, "clean/train.100"]
    assert seen["refs"] == ["main"]


def download(
    path: str, revision: str | None = None, repo_id: str = LIBRISPEECH, kind: str = "dataset"
) -> bytes:
    """A file through the cache of `huggingface_hub`."""
    from huggingface_hub import hf_hub_download

    with open(
        hf_hub_download(repo_id, path, repo_type=kind, revision=revision, force_download=True), "rb"
    ) as file:
        return file.read()


def read_range(path: str, start: int, length: int) -> tuple[bytes, bytes]:
    """A range of a file, and its last 8 bytes, through the file system."""
    from huggingface_hub import HfFileSystem

    with HfFileSystem().open(f"datasets/{LIBRISPEECH}/{path}", "rb", block_size=2**14) as file:
        file.seek(start)
        piece = file.read(length)
        file.seek(-8, 2)
        return piece, file.read()


def test_files_and_ranges_of_them(hub: LoopbackHub, client: Client, corpora: dict[str, Corpus]) -> None:
    client.call(set_token, OWNER)
    shard = content_of(corpora[LIBRISPEECH], SHARD)
    assert client.call(download, "README.md") == content_of(corpora[LIBRISPEECH], "README.md")
    assert not hub.book.requests("cdn/*")
    assert client.call(download, SHARD) == shard
    assert client.call(read_range, SHARD, 70_000, 1000) == (shard[70_000:71_000], shard[-8:])
    stored = hub.book.requests(f"cdn/*/{SHARD}")
    assert [request.status for request in stored] == [200, 206, 206] and stored[1].range is not None
    assert all(request.num_bytes < 40_000 for request in stored[1:])
    assert any(request.has_token for request in hub.book.requests("hub/*"))
    assert not any(request.has_token for request in hub.book.requests("cdn/*"))


def test_revisions_and_models(hub: LoopbackHub, client: Client) -> None:
    model = hub.add(Repository("loopback/model", "models"))
    first = model.commit({"config.json": b"{}", "model.safetensors": b"one"})
    model.tags["v1"] = first
    second = model.commit({"model.safetensors": b"two"})
    model.commit({"model.safetensors": b"three", "config.json": None}, branch="trial/a")
    for revision, content in {"v1": b"one", first: b"one", second: b"two", "main": b"two"}.items():
        assert client.call(download, "model.safetensors", revision, "loopback/model", "model") == content
    trial = client.call(download, "model.safetensors", "trial/a", "loopback/model", "model")
    removed = client.call(download, "config.json", "trial/a", "loopback/model", "model")
    assert (
        trial == b"three" and isinstance(removed, Failed) and removed.kinds[0] == "RemoteEntryNotFoundError"
    )


def failure(repo_id: str, path: str, revision: str | None = None) -> str:
    """The error that asking for a file ends with."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo_id, path, repo_type="dataset", revision=revision))
    except Exception as error:
        return f"{type(error).__name__} {error.response.status_code}"  # type: ignore[attr-defined]
    return "none"


@pytest.mark.parametrize(
    ("token", "repo_id", "path", "revision", "expected"),
    [
        (None, "no/where", "README.md", None, "RepositoryNotFoundError 401"),
        (READER, "no/where", "README.md", None, "RepositoryNotFoundError 404"),
        (None, "loopback/private", "README.md", None, "RepositoryNotFoundError 401"),
        (READER, "loopback/private", "README.md", None, "RepositoryNotFoundError 404"),
        (OWNER, "loopback/private", SHARD, None, "none"),
        (None, "loopback/gated", "README.md", None, "GatedRepoError 401"),
        ("hf_reader2", "loopback/gated", "README.md", None, "HfHubHTTPError 401"),
        (READER, "loopback/gated", SHARD, None, "none"),
        (None, LIBRISPEECH, "nowhere", None, "RemoteEntryNotFoundError 404"),
        (None, LIBRISPEECH, "README.md", "v9", "RevisionNotFoundError 404"),
    ],
)
def test_refusals(
    token: str | None,
    repo_id: str,
    path: str,
    revision: str | None,
    expected: str,
    hub: LoopbackHub,
    client: Client,
) -> None:
    client.call(set_token, token)
    assert client.call(failure, repo_id, path, revision) == expected


def digest(path: str) -> str:
    """The sha256 of a download."""
    return hashlib.sha256(download(path)).hexdigest()


@pytest.mark.parametrize("kind", ["reset", "cut", "status"])
def test_faults_happen_as_scripted(
    kind: Any, hub: LoopbackHub, client: Client, corpora: dict[str, Corpus]
) -> None:
    """The download of `huggingface_hub` goes on where it was cut off; of a reset or an error of the store it may fail."""
    fault = Fault(f"cdn/*/{SHARD}", kind, after=100_000, status=503)
    hub.book.expect(fault)
    result = client.call(digest, SHARD)
    stored = hub.book.requests(f"cdn/*/{SHARD}")
    assert fault.num_met == 1
    assert (stored[0].status, stored[0].num_bytes) == ((503, 0) if kind == "status" else (200, 100_000))
    if kind == "cut" or not isinstance(result, Failed):
        assert result == hashlib.sha256(content_of(corpora[LIBRISPEECH], SHARD)).hexdigest()
        assert len(stored) == 2
    else:
        assert result.kinds[0] == {"reset": "ReadError", "status": "HfHubHTTPError"}[kind]


def fetch_link(url: str, times: int) -> list[int]:
    """The statuses of a link of the store, asked for again and again."""
    from huggingface_hub.utils import get_session

    return [get_session().get(url).status_code for _ in range(times)]


def test_links_expire(
    hub: LoopbackHub, client: Client, monkeypatch: pytest.MonkeyPatch, corpora: dict[str, Corpus]
) -> None:
    repository = corpora[LIBRISPEECH].repository
    entry = repository.commits[repository.branches["main"]][SHARD]
    link = hub.sign(repository, SHARD, entry)
    hub.book.expect(Fault(f"cdn/*/{SHARD}", "expire", first=2))
    assert client.call(fetch_link, link, 3) == [200, 403, 403]
    assert client.call(fetch_link, hub.sign(repository, SHARD, entry), 1) == [200]
    assert client.call(fetch_link, link.replace("Signature=", "Signature=0"), 1) == [403]
    monkeypatch.setattr(hub, "link_seconds", -1.0)
    assert client.call(fetch_link, hub.sign(repository, SHARD, entry), 1) == [403]
