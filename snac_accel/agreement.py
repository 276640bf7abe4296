"""What all ranks must have in common: errors, configuration, code, data. Every function here is collective.

A rank that stops alone leaves the others waiting, so what can fail on one of them is decided by all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from .errors import ConfigError, LaunchError, UserError

Result = TypeVar("Result")
PACKAGES = ("torch", "accelerate", "snac", "datasets", "numpy")  # whose versions may change a result
# What gloo and NCCL say when another process is gone, or does not answer.
_LOST = re.compile(r"gloo|NCCL|ProcessGroup|connection (closed|reset) by peer", re.IGNORECASE)


def on_first_rank(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` on rank 0; its result, or the UserError it raises, reaches every rank."""
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [function()]
        except UserError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]


class Failure(NamedTuple):
    """A rank that could not go on."""

    rank: int
    host: str
    error: UserError


def on_every_rank(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call `function` on every rank; if it raises UserError on any, every rank raises the first one's, with its rank."""
    result, failures = None, []
    try:
        result = function()
    except UserError as error:
        failures = [Failure(accelerator.process_index, socket.gethostname(), error)]
    failures = gather_object(failures)
    if not failures:
        return result  # type: ignore[return-value]
    first: Failure = failures[0]
    where = "" if len(failures) == accelerator.num_processes else f"rank {first.rank} on {first.host}: "
    raise type(first.error)(f"{where}{first.error}")


def check_settings(accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the first difference, unless all ranks run the same code with the same settings."""
    if accelerator.num_processes > 1:
        _compare(accelerator, {**_flat(settings), **_versions(), "the code of snac_accel": code_hash()})


def check_data(accelerator: Accelerator, facts: Callable[[], Mapping[str, str]]) -> None:
    """Raise ConfigError unless all ranks see the same data; `facts` tells what they have, by name."""
    if accelerator.num_processes > 1:
        _compare(accelerator, dict(on_every_rank(accelerator, facts)))


def _compare(accelerator: Accelerator, facts: dict[str, Any]) -> None:
    everyone = gather_object([(socket.gethostname(), facts)])
    (host, first), others = everyone[0], everyone[1:]
    for rank, (other_host, other) in enumerate(others, start=1):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                raise ConfigError(
                    f"the ranks differ in {name}: {first.get(name)} on rank 0 ({host}), {other.get(name)} on rank {rank} "
                    f"({other_host}): start all of them with the same"
                )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value for section, values in settings.items() for key, value in values.items()
    }


def _versions() -> dict[str, str]:
    return {f"the version of {name}": importlib.metadata.version(name) for name in PACKAGES}


def code_hash() -> str:
    """SHA-256 of this package's modules, 12 digits."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def lost_processes(rank: int, num_processes: int, missing: Callable[[], str] = str) -> Iterator[None]:
    """Turn the errors of a broken collective into a LaunchError, one line; `missing` says which ranks are, if it is known."""
    try:
        yield
    except RuntimeError as error:
        if num_processes == 1 or not (
            isinstance(error, torch.distributed.DistError) or _LOST.search(str(error))
        ):
            raise
        reason = " ".join(str(error).split())[:200]
        raise LaunchError(
            f"rank {rank} of {num_processes} has lost another process of the run ({reason}): "
            f"{missing() or 'see what the others printed'}; started again, the run goes on from its last checkpoint"
        ) from error
