"""The folder of a preparation: `data/` with the shards, `.work/` while it lasts, and at the end what says that it is whole."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import replace_json, sync_folder

WORK, DATA, DONE, BAD, CARD = ".work", "data", "prepared.json", "bad_samples.jsonl", "README.md"
LOCK_SECONDS = 5.0  # workers of a killed preparation need a moment to end


class OutputFolder:
    """The folder that is prepared into."""

    def __init__(self, path: Path, done: str = DONE) -> None:
        self.path, self.done = path, done
        self.work, self.data = path / WORK, path / DATA
        self.steps, self.shards = self.work / "steps", self.work / "shards"

    def finished(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what `finish` wrote if the same preparation is complete here, None if it is not.

        Raises DataError if the folder holds anything else, or if a shard is missing.
        """
        if not self.path.exists() or not any(self.path.iterdir()):
            return None
        for path in (self.path / self.done, self.work / "settings.json"):
            if path.exists():
                found = json.loads(path.read_text())
                self._check_identity(found["settings"], identity)
                if path.name == self.done:
                    self._check_shards(found)
                    shutil.rmtree(self.work, ignore_errors=True)  # where the last moment was interrupted
                    return dict(found)
                return None
        if [entry.name for entry in self.path.iterdir()] == [WORK]:
            return None
        raise DataError(f"{str(self.path)!r} is not empty and holds no preparation: give another --output")

    def _check_identity(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        here = json.loads(json.dumps(here))
        for name in here:
            if there.get(name) != here[name]:
                difference = _difference(name, there.get(name), here[name])
                raise DataError(
                    f"{str(self.path)!r} holds another preparation ({difference}): give another --output"
                )

    def _check_shards(self, found: Mapping[str, Any]) -> None:
        for split in found["splits"].values():
            for shard in split["shards"]:
                path = self.data / shard["name"]
                if not path.is_file() or path.stat().st_size != shard["bytes"]:
                    raise DataError(
                        f"{str(path)!r} is missing or damaged: remove {str(self.path)!r} and prepare it again"
                    )

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator[None]:
        """Make the folders and hold them against a second preparation; raises DataError if there is one."""
        self.work.mkdir(parents=True, exist_ok=True)
        with open(self.work / "lock", "w") as file:
            self._lock(file.fileno())
            replace_json(self.work / "settings.json", {"settings": dict(identity)})
            for folder in (self.steps, self.shards, self.data):
                folder.mkdir(exist_ok=True)
            yield

    def _lock(self, descriptor: int) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise DataError(
                        f"{str(self.path)!r} is being prepared by another process: wait for it or end it"
                    ) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                return

    def check_sources(self, digests: Mapping[str, list[str | None]]) -> None:
        """Raise DataError if the sources hold other clips than when the preparation began."""
        path = self.work / "sources.json"
        if path.exists() and json.loads(path.read_text()) != digests:
            raise DataError(
                f"the clips of the sources have changed since {str(self.path)!r} was begun: give another --output"
            )
        replace_json(path, dict(digests))

    def check_space(self, num_bytes: float, purpose: str) -> None:
        """Raise DataError if about `num_bytes` more do not fit."""
        free = shutil.disk_usage(self.path).free
        if num_bytes > free:
            raise DataError(
                f"{purpose} needs about {_size(num_bytes)}, but {str(self.path)!r} has {_size(free)} free: "
                "give --output on a larger disk"
            )

    def finish(self, summary: Mapping[str, Any], bad: list[dict[str, str]], card: str) -> None:
        """Write what goes with the shards; with the last file the preparation is complete."""
        names = {shard["name"] for split in summary["splits"].values() for shard in split["shards"]}
        for path in self.data.iterdir():
            if path.name not in names:
                raise DataError(
                    f"{str(path)!r} is no shard of this preparation: take it away and start again"
                )
        self._write(BAD, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in bad))
        self._write(CARD, card)
        replace_json(self.path / self.done, dict(summary))
        shutil.rmtree(self.work, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        temporary = self.work / name
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)
        sync_folder(self.path)


def _difference(name: str, there: Any, here: Any) -> str:
    """Return what differs between two values, as deep down as it can be named."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in {**there, **here}:
            if there.get(key) != here.get(key):
                return _difference(str(key), there.get(key), here.get(key))
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for one, other in zip(there, here, strict=True):
            if one != other:
                return _difference(name, one, other)
    return f"its {name} is {_shown(there)}, here it is {_shown(here)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
