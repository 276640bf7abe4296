"""What a loopback server sends back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from store import Entry


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class Refusal(Exception):
    """A request that is answered with an error, in the Hub's way."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:  # noqa: B042
        super().__init__(message)
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
        self.answer = Answer(status, json.dumps({"error": message}).encode(), named)


def ranged(entry: Entry, asked: str | None) -> Answer:
    """Return the content of a file, or the range (bytes=first-last, either may be missing) that was asked for."""
    headers, size = {"ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}, len(entry.content)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (asked or "").strip())
    if match is None:
        return Answer(200, entry.content, headers)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1 if first and last else size, size)
    if start >= size:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    return Answer(
        206, entry.content[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    )


def as_json(value: Any, **headers: str) -> Answer:
    """Return what the API says."""
    return Answer(
        200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **headers}
    )


def denied(code: str, message: str) -> Answer:
    """Return how the store refuses a link."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(403, body.encode(), {"Content-Type": "application/xml"})
