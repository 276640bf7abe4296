"""A process of its own whose Hub is a loopback one, and what the tests let it do there.

The clients read HF_ENDPOINT when they are imported, so another process it has to be; one serves many tests, since it
loads torch and `datasets` only once. Functions are called in it by name and give plain values.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CALL_SECONDS = 100.0


class Windows(NamedTuple):
    """What a data set gave."""

    names: list[str]  # of the clips
    audio: NDArray[np.float32]  # (windows, T)
    validation: list[tuple[str, NDArray[np.float32]]]  # name and beginning of each clip, (T,)
    speakers: list[str | None]  # of the first clips
    indexed: bool  # an exact order is promised
    num_retries: int  # requests made again, as the batches count them


class Failed(NamedTuple):
    """What a call raised."""

    kinds: list[str]  # the names of its class and of those above
    message: str
    trace: str

    @property
    def is_line(self) -> bool:
        """Whether it is a DataError of one line."""
        return "DataError" in self.kinds and "\n" not in self.message


class Client:
    """The process: `call` runs a function in it and returns what it gives, or a `Failed`."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, str(log)))
        with _only(environment):  # what is spawned inherits it, before its first import
            self.process.start()
        other.close()

    def call(
        self, function: Callable[..., Any], *values: Any, seconds: float = CALL_SECONDS, **options: Any
    ) -> Any:
        """Return what a function of a module gives there; fail after so many seconds."""
        self._connection.send((function, values, options))
        if not self._connection.poll(seconds):
            self.process.kill()
            self.process.join(30)
            raise AssertionError(f"{function.__name__} did not end within {seconds:g} s")
        return self._connection.recv()

    @property
    def is_alive(self) -> bool:
        """Whether it can still be called."""
        return self.process.is_alive()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self.process.join(2)
        self.process.kill()
        self.process.join(30)


@contextmanager
def _only(environment: Mapping[str, str]) -> Any:
    """Give this process another environment for a moment."""
    saved = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _serve(connection: Connection, log: str) -> None:
    """Answer calls until the other end closes; what is printed goes into a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import datasets  # only now, with the environment of this process

    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    multiprocessing.set_start_method(None, force=True)  # loaders here start workers as they do elsewhere
    while True:
        try:
            function, values, options = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = function(*values, **options)
        except Exception as error:
            answer = Failed(
                [kind.__name__ for kind in type(error).__mro__], str(error), traceback.format_exc()
            )
        connection.send(answer)


def set_token(token: str | None, in_file: bool = False) -> None:
    """Log in, by the variable or by the file that `hf auth login` writes, or out."""
    from huggingface_hub import constants

    file = Path(constants.HF_TOKEN_PATH)
    os.environ.pop("HF_TOKEN", None)
    file.unlink(missing_ok=True)
    if token is not None and in_file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(token)
    elif token is not None:
        os.environ["HF_TOKEN"] = token


def forget() -> None:
    """Forget what the file system of the Hub remembers of repositories."""
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()


def set_network(patience: float | None = None, **constants: float) -> None:
    """Change constants of `dataset.network`; `patience` stands for all that say how long something is tried again."""
    from huggingface_hub.utils import _http

    from snac_accel.dataset import network

    for name in vars(network):
        if patience is not None and name.endswith(("PATIENCE_SECONDS", "OPENING_SECONDS", "AHEAD_SECONDS")):
            constants[name] = patience
    for name, value in constants.items():
        assert hasattr(network, name)
        setattr(network, name, value)
    for function in (_http.http_backoff, _http.http_stream_backoff):  # the Hub's client has pauses of its own
        defaults: Any = getattr(function, "__wrapped__", function).__kwdefaults__
        defaults.update(base_wait_time=0.01, max_wait_time=0.05)


_opened: dict[str, Any] = {}


def open_preset(preset: str | None, overrides: dict[str, Any] | None = None) -> None:
    """Open the data of a preset as a run does."""
    from snac_accel.config import load_config
    from snac_accel.train import setup_dataset

    config = load_config(preset, overrides=overrides, environment={})
    _opened["training"], _opened["validation"] = setup_dataset(config)


def read_on(num_windows: int = 12, num_clips: int = 2, **options: Any) -> Windows:
    """Return the first windows of the data opened last, and the first clips of its validation."""
    from snac_accel.dataset import make_loader

    training, validation = _opened["training"], _opened["validation"]
    loader = make_loader(training, 2, num_steps=num_windows // 2, **{"num_workers": 0, **options})
    batches = list(loader)
    assert not any(batch.failures for batch in batches), [batch.failures for batch in batches]
    clips = [(clip.name, clip.audio[0].numpy()) for clip in islice(validation or (), num_clips)]
    part = training.parts[0]
    return Windows(
        [name for batch in batches for name in batch.names],
        np.concatenate([batch.audio[:, 0].numpy() for batch in batches]),
        clips,
        [clip.speaker for clip in islice(part.stream_clips(None), 4)],
        part.indexed,
        sum(batch.num_retries for batch in batches),
    )


def read_preset(preset: str | None, overrides: dict[str, Any] | None = None, **options: Any) -> Windows:
    """Open the data of a preset, and read."""
    open_preset(preset, overrides)
    return read_on(**options)
