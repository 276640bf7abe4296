"""How the two loopback servers answer a request: the Hub, and the store of large files."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import uploads
from answers import Answer, Refusal, as_json, denied, ranged
from faults import Fault, Request
from store import Repository

if TYPE_CHECKING:
    from server import LoopbackHub

PIECE_BYTES = 65536  # sent at a time


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault happen to it or answers it, and notes it."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: Any  # knows `hub`, and the `name` of its own part
    hub: LoopbackHub

    def answer(self, url_path: str, query: dict[str, str]) -> Answer:
        """Return the right answer; raise Refusal."""
        raise NotImplementedError

    def handle_any(self) -> None:
        """Answer one request."""
        self.hub = self.server.hub
        self.sent = self._read_body()
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.place, self.num_sent = f"{self.server.name}{url.path}", 0
        answer, fault = Answer(500, b""), self.hub.book.fault(self.command, self.place)
        if fault is not None and fault.kind == "drop":
            self.close_connection = True
            self.hub.book.add(Request(self.command, self.place, None, "Authorization" in self.headers, 0, 0))
            return
        if fault is not None and fault.kind == "expire":
            self.hub.expired.add(self.query.get("Signature", ""))
            fault = None
        try:
            answer = (
                Answer(fault.status, b"", fault.headers)
                if fault and fault.kind == "status"
                else self.right(url.path)
            )
            self.send(answer, fault)
        except OSError:
            self.close_connection = True
        finally:
            has_token = "Authorization" in self.headers
            self.hub.book.add(
                Request(
                    self.command,
                    self.place,
                    self.headers.get("Range"),
                    has_token,
                    answer.status,
                    self.num_sent,
                )
            )

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    @property
    def form(self) -> str:
        """The body as text."""
        return self.sent.decode()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def right(self, path: str) -> Answer:
        """Return the right answer, or the refusal."""
        try:
            return self.answer(path, self.query)
        except Refusal as refusal:
            return refusal.answer

    def send(self, answer: Answer, fault: Fault | None) -> None:
        """Send an answer, with the fault in its body."""
        body, kind = answer.body, fault.kind if fault else None
        if fault and kind == "short":
            body = body[: fault.after]
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        whole = len(body) if fault is None or kind in ("status", "short") else fault.after
        self.write(body[:whole])
        if fault and kind in ("reset", "cut"):
            self.close_connection = True
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)  # closing then sends a reset
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif fault and kind == "stall":
            self.wfile.flush()
            self.hub.closing.wait(fault.seconds)
            self.write(body[whole:])

    def write(self, body: bytes) -> None:
        """Send a part of the body."""
        for start in range(0, len(body), PIECE_BYTES):
            self.num_sent += self.wfile.write(body[start : start + PIECE_BYTES])

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""


class StoreHandler(Handler):
    """Gives the content of a large file, or a range of it, for a signed link."""

    def answer(self, url_path: str, query: dict[str, str]) -> Answer:
        """Return the content."""
        if self.command == "PUT":
            return uploads.take(self.hub, url_path, query, self.sent)
        expires, signature = query.get("Expires", "0"), query.get("Signature", "")
        if signature != self.hub.signature(url_path, expires):
            return denied("SignatureDoesNotMatch", "The request signature does not match")
        if signature in self.hub.expired or float(expires) < time.time():
            return denied("AccessDenied", "Request has expired")
        _, _, kind, owner, name, sha256, *parts = url_path.split("/")
        repository = self.hub.repositories[kind, f"{owner}/{name}"]
        path = unquote("/".join(parts))
        entries = [files[path] for files in repository.commits.values() if path in files]
        return ranged(next(entry for entry in entries if entry.sha256 == sha256), self.headers.get("Range"))


class HubHandler(Handler):
    """Knows users and repositories."""

    def answer(self, url_path: str, query: dict[str, str]) -> Answer:
        """Return what the API says, a small file, or a link to a large one."""
        self.user = self._user()
        if url_path == "/api/whoami-v2":
            if self.user is None:
                raise Refusal(401, "", "Invalid username or password.")
            return as_json({"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})
        if (written := uploads.write(self, url_path)) is not None:
            return written
        if match := re.fullmatch(r"/api/(\w+)/([^/]+/[^/]+)(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?", url_path):
            kind, repo_id, verb, revision, rest = match.groups()
            return self._api(
                self._repository(kind, repo_id), verb, unquote(revision or "main"), unquote(rest or "")
            )
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url_path):
            kind, repo_id, revision, path = match.groups()
            return self._file(self._repository(kind or "models", repo_id), unquote(revision), unquote(path))
        raise Refusal(404, "", "Sorry, we can't find the page you are looking for.")

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def _repository(self, kind: str, repo_id: str) -> Repository:
        """Return a repository that the user may see; without a token the Hub does not say whether it exists."""
        repository = self.hub.repositories.get((kind, unquote(repo_id)))
        if repository is None or not repository.may_see(self.user):
            raise Refusal(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, repository: Repository, verb: str | None, revision: str, rest: str) -> Answer:
        if verb == "refs":
            return as_json(
                {**_refs("branches", repository.branches), **_refs("tags", repository.tags), "converts": []}
            )
        commit = self._commit(repository, revision)
        if verb in (None, "revision"):
            return as_json(repository.info(commit, with_blobs=self.query.get("blobs", "").lower() == "true"))
        if verb == "tree":
            return self._tree(repository, commit, rest)
        if verb == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            asked = json.loads(self.form)["paths"] if is_json else parse_qs(self.form)["paths"]
            return as_json(
                [info for path in asked if (info := repository.path_info(commit, path)) is not None]
            )
        raise Refusal(404, "", "Sorry, we can't find the page you are looking for.")

    def _tree(self, repository: Repository, commit: str, folder: str) -> Answer:
        """Return a page of a listing, and where the next one is."""
        entries = repository.tree(
            commit, folder.rstrip("/"), self.query.get("recursive", "").lower() in ("true", "1")
        )
        if entries is None:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {commit!r}")
        start, size = (
            int(self.query.get("cursor", 0)),
            min(self.hub.page_size, int(self.query.get("limit", 1000))),
        )
        headers = {}
        if start + size < len(entries):
            query = "&".join(
                f"{name}={quote(value)}"
                for name, value in {**self.query, "cursor": str(start + size)}.items()
            )
            headers["Link"] = f'<{self.hub.endpoint}{urlsplit(self.path).path}?{query}>; rel="next"'
        return as_json(entries[start : start + size], **headers)

    def _file(self, repository: Repository, revision: str, path: str) -> Answer:
        if not repository.may_read(self.user):
            how = "Please log in." if self.user is None else "Visit its page to ask for access."
            raise Refusal(
                401 if self.user is None else 403, "GatedRepo",
                f"Access to {repository.kind[:-1]} {repository.repo_id} is restricted. "
                f"You must have access to it and be authenticated to access it. {how}",
            )  # fmt: skip
        commit = self._commit(repository, revision)
        entry = repository.commits[commit].get(path)
        if entry is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not entry.is_large:
            answer = ranged(entry, self.headers.get("Range"))
            return answer._replace(headers={**answer.headers, **headers})
        headers |= {"X-Linked-Size": str(len(entry.content)), "X-Linked-Etag": f'"{entry.etag}"'}
        return Answer(302, b"", {**headers, "Location": self.hub.sign(repository, path, entry)})


def _refs(kind: str, commits: Mapping[str, str]) -> dict[str, Any]:
    """Return what the API says of branches or of tags."""
    folder = "heads" if kind == "branches" else kind
    refs = [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commits[name]} for name in commits]
    return {kind: refs}
