"""What a loopback server was asked, and what it shall do wrong."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

Kind = Literal["status", "reset", "cut", "short", "stall", "expire", "drop"]


class Request(NamedTuple):
    """One request, and what became of it."""

    method: str
    path: str  # "hub" or "cdn", and the path as it was sent, without query
    range: str | None  # as sent: bytes=0-99
    has_token: bool
    status: int
    num_bytes: int  # of the body, sent


@dataclass
class Fault:
    """What happens to some requests in place of the right answer.

    status   this status and these headers
    reset    `after` bytes of the body, then the connection is reset
    cut      `after` bytes of the body, then it ends, though more was announced
    short    a body of `after` bytes, announced as such: a proxy that loses the end
    stall    `after` bytes of the body, `seconds` of silence, then the rest
    drop     the connection ends, and nothing was done
    expire   the signed link is refused from now on; a fresh one works
    """

    pattern: str  # of Request.path, such as "cdn/*/train-00001-*"
    kind: Kind = "status"
    first: int = 1  # the first request that meets it, among those that match
    times: int | None = 1  # how many do; None: all from the first on
    method: str = "GET"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int = 0
    seconds: float = 0.0
    num_seen: int = 0  # requests that matched

    @property
    def num_met(self) -> int:
        """Return how many requests met it."""
        return max(
            0, min(self.num_seen - self.first + 1, self.num_seen if self.times is None else self.times)
        )

    def meets(self, method: str, path: str) -> bool:
        """Count a request; return whether it meets the fault."""
        if method != self.method or not fnmatchcase(path, self.pattern):
            return False
        before = self.num_met
        self.num_seen += 1
        return self.num_met > before


class Book:
    """The requests of a server and its faults, for tests to read and to write; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._faults: list[Fault] = []

    def add(self, request: Request) -> None:
        """Keep a request."""
        with self._lock:
            self._requests.append(request)

    def requests(self, pattern: str = "*", method: str = "GET") -> list[Request]:
        """Return the requests of a method whose path matches, in order."""
        with self._lock:
            return [one for one in self._requests if one.method == method and fnmatchcase(one.path, pattern)]

    def all_requests(self) -> list[Request]:
        """Return every request."""
        with self._lock:
            return list(self._requests)

    def expect(self, *faults: Fault) -> None:
        """Let these faults happen, and no others."""
        with self._lock:
            self._faults = list(faults)

    def clear(self) -> None:
        """Forget requests and faults."""
        with self._lock:
            self._requests, self._faults = [], []

    def fault(self, method: str, path: str) -> Fault | None:
        """Return what shall happen to this request."""
        with self._lock:
            met = [fault for fault in self._faults if fault.meets(method, path)]  # each counts for itself
            return met[0] if met else None
