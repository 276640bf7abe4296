"""A Hub on loopback, for the real clients: what `huggingface_hub` and `datasets` ask for when they read.

Two servers, as in life: the Hub itself, which knows users and repositories, and a store that gives the content of
large files to whoever has a signed link. Models and spaces are served like data sets. What the owner of a
repository may write there is in `uploads`.

    with LoopbackHub() as hub:
        hub.add(repository)
        subprocess.run(command, env=hub.environment(folder))
        hub.book.requests("cdn/*")
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from faults import Book
from handlers import HubHandler, StoreHandler
from store import Entry, Repository


class LoopbackHub:
    """Both servers, running between `with` and its end.

    `tokens` gives the user of each token. `book` holds the requests and takes the faults. A link is good for
    `link_seconds`; a page of a listing has `page_size` entries.
    """

    def __init__(
        self, tokens: Mapping[str, str] | None = None, page_size: int = 1000, link_seconds: float = 3600.0
    ) -> None:
        self.tokens = dict(tokens or {})
        self.page_size, self.link_seconds = page_size, link_seconds
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.expired: set[str] = set()  # signatures
        self.uploaded: dict[str, bytes] = {}  # by SHA-256: large files, before a commit names them
        self.writing = threading.Lock()
        self.book = Book()
        self.closing = threading.Event()
        self._key = secrets.token_hex()
        self._servers = {name: _Server(self, name) for name in ("hub", "cdn")}

    def __enter__(self) -> LoopbackHub:
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def add(self, repository: Repository) -> Repository:
        """Serve a repository."""
        self.repositories[repository.kind, repository.repo_id] = repository
        return repository

    @property
    def endpoint(self) -> str:
        """The address of the Hub, for HF_ENDPOINT."""
        return self._servers["hub"].address

    @property
    def store(self) -> str:
        """The address of the store of large files."""
        return self._servers["cdn"].address

    def environment(self, home: Path, token: str | None = None, **variables: str) -> dict[str, str]:
        """This process's environment for one whose Hub is this one: its own cache, no proxy, no token but `token`."""
        keep = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("HF_", "HUGGING"))
        }
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",  # large files go the older way, over plain HTTP
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            "RES_OPTIONS": "timeout:1 attempts:1",  # `datasets` looks up datasets-server.127.0.0.1
            "OMP_NUM_THREADS": "1",
        }
        return {**keep, **own, **({"HF_TOKEN": token} if token else {}), **variables}

    def sign(self, repository: Repository, path: str, entry: Entry) -> str:
        """Return a link to the content of a large file, good for a while; each has its own signature."""
        expires = f"{time.time() + self.link_seconds:.6f}"
        name = f"/repos/{repository.kind}/{repository.repo_id}/{entry.sha256}/{quote(path)}"
        return f"{self.store}{name}?Expires={expires}&Signature={self.signature(name, expires)}&Key-Pair-Id=loopback"

    def signature(self, name: str, expires: str) -> str:
        """Return what proves that a link was made here."""
        return hashlib.sha256(f"{self._key} {name} {expires}".encode()).hexdigest()


class _Server(ThreadingHTTPServer):
    """One of the two; its threads end with the process at the latest."""

    daemon_threads = True

    def __init__(self, hub: LoopbackHub, name: str) -> None:
        self.hub, self.name = hub, name
        super().__init__(("127.0.0.1", 0), HubHandler if name == "hub" else StoreHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"

    def shutdown_request(self, request: Any) -> None:
        """Close at once: a farewell before it would arrive before the reset of a fault."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave in the middle of an answer."""
