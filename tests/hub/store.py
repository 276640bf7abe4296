"""Repositories in memory, with what git and the Hub know of them: commits, branches, tags, who may read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

# What the Hub keeps outside of git and sends from other servers, by its default .gitattributes.
LARGE = (".parquet", ".tar", ".zip", ".wav", ".flac", ".mp3", ".ogg", ".bin", ".safetensors", ".arrow")
DATE = "2024-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Entry:
    """One file."""

    content: bytes
    is_large: bool

    @property
    def blob_id(self) -> str:
        """The name of the file in git: of its content, or of the pointer that stands for it."""
        return _git_hash(self.pointer if self.is_large else self.content)

    @property
    def sha256(self) -> str:
        """The name of the content where large files are kept."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds of a large file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        """The name by which clients cache the content."""
        return self.sha256 if self.is_large else self.blob_id


Files = Mapping[str, Entry]


@dataclass
class Repository:
    """A repository of `kind` "datasets", "models" or "spaces".

    A private one is seen only by the users in `readers`, and by its owner; a gated one is listed for everybody, and
    its files are given to those in `readers`.
    """

    repo_id: str
    kind: str = "datasets"
    private: bool = False
    gated: Literal[False, "auto", "manual"] = False
    readers: frozenset[str] = frozenset()
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)  # by hash
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[tuple[str, str]] = field(default_factory=list)  # of commits that clients made: branch, summary

    def commit(self, changes: Mapping[str, bytes | None], branch: str = "main") -> str:
        """Add, replace or (None) remove files on a branch, a new one starts from main; return the hash of the new commit."""
        parent = self.branches.get(branch) or self.branches.get("main", "")
        files = dict(self.commits.get(parent, {}))
        for path, content in changes.items():
            if content is None:
                del files[path]
            else:
                files[path] = Entry(content, path.lower().endswith(LARGE))
        listing = "".join(f"{path} {entry.blob_id}\n" for path, entry in sorted(files.items()))
        commit = _git_hash(f"{self.kind}/{self.repo_id} {parent}\n{listing}".encode())
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag, a hash or the beginning of one names."""
        named = self.branches.get(revision) or self.tags.get(revision)
        if named is None and len(revision) >= 7:
            named = next((commit for commit in self.commits if commit.startswith(revision)), None)
        return named

    def may_see(self, user: str | None) -> bool:
        """Return whether a user (None: nobody in particular) may know that the repository exists."""
        return not self.private or self._is_reader(user)

    def may_read(self, user: str | None) -> bool:
        """Return whether a user may have its files."""
        return (not self.private and not self.gated) or self._is_reader(user)

    def _is_reader(self, user: str | None) -> bool:
        return user is not None and (user in self.readers or user == self.repo_id.partition("/")[0])

    def info(self, commit: str, with_blobs: bool = False) -> dict[str, Any]:
        """Return what the API says of the repository at a commit."""
        files = self.commits[commit]
        siblings = [
            {"rfilename": path, **(_facts(entry, "blobId", "sha256") if with_blobs else {})}
            for path, entry in sorted(files.items())
        ]
        return {
            "_id": commit[:24],
            "id": self.repo_id,
            "author": self.repo_id.partition("/")[0],
            "sha": commit,
            "createdAt": DATE,
            "lastModified": DATE,
            "private": self.private,
            "gated": self.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": card_data(files),
            "siblings": siblings,
            **({"modelId": self.repo_id} if self.kind == "models" else {}),
        }

    def tree(self, commit: str, folder: str, recursive: bool) -> list[dict[str, Any]] | None:
        """Return files and folders below a folder ("" is the root), sorted; None if there is no such folder."""
        files = self.commits[commit]
        prefix = f"{folder}/" if folder else ""
        if folder and not any(path.startswith(prefix) for path in files):
            return None
        found: dict[str, dict[str, Any]] = {}
        for path, entry in files.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                found[name] = {"type": "directory", "oid": _git_hash(name.encode()), "size": 0, "path": name}
            if recursive or len(parts) == 1:
                found[path] = {"type": "file", "path": path, **_facts(entry, "oid", "oid")}
        return [found[name] for name in sorted(found)]

    def path_info(self, commit: str, path: str) -> dict[str, Any] | None:
        """Return what the tree says of one path."""
        parent = path.rpartition("/")[0]
        return next((item for item in self.tree(commit, parent, False) or [] if item["path"] == path), None)


def card_data(files: Files) -> dict[str, Any]:
    """Return the YAML at the head of README.md."""
    readme = files["README.md"].content.decode() if "README.md" in files else ""
    parts = readme.split("---\n", 2)
    return (yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0] else {}


def _facts(entry: Entry, blob_key: str, sha_key: str) -> dict[str, Any]:
    facts: dict[str, Any] = {blob_key: entry.blob_id, "size": len(entry.content)}
    if entry.is_large:
        facts["lfs"] = {sha_key: entry.sha256, "size": len(entry.content), "pointerSize": len(entry.pointer)}
    return facts


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()
