"""Files at an address (hf://, s3://, https://, …), read by ranges through fsspec and tried again when the network fails.

A file system is looked up at each use and never kept: those of fsspec do not survive a fork, and loaders fork.
Tokens and keys are found by the clients in the places of their ecosystem (HF_TOKEN, `hf auth login`, AWS_…).
"""

from __future__ import annotations

import io
import logging
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
import fsspec.asyn
from fsspec.asyn import AsyncFileSystem
from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential_jitter

from ..errors import DataError
from ..redaction import mask_addresses, redact

Result = TypeVar("Result")

PATIENCE_SECONDS = 300.0  # how long a request is tried again; below the 600 s that ranks wait for each other
OPENING_SECONDS = 60.0  # the same for the first contact: whoever has just started a run is waiting
AHEAD_SECONDS = 15.0  # the same for what is fetched ahead: it is asked for again when it is needed
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
MAX_REFUSALS = 3  # of a link: the next request makes an expired one anew, a forbidden file stays forbidden
STALL_SECONDS = 20.0  # without a byte
PIECE_BYTES = 8 * 2**20  # of one request, so that a broken one costs little
BUFFER_BYTES = 2**20
HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "botocore"}
PERMANENT = {400, 401, 404, 405, 410, 416, 451}  # status codes that asking again does not change

LASTING = (  # errors that asking again does not change
    FileNotFoundError, IsADirectoryError, PermissionError, NotImplementedError, TypeError, AttributeError, KeyError,
)  # fmt: skip
log = logging.getLogger(__name__)


class NetworkError(Exception):
    """Something at an address could not be read. The message names the address and the reason."""


class _Retries:
    """Requests made again by this process; its threads share the count."""

    def __init__(self) -> None:
        self.number = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.number += 1


_retries = _Retries()


def num_retries() -> int:
    """Return how many requests this process made again, since it started."""
    return _retries.number


def is_address(path: str) -> bool:
    """Return whether a path has a protocol, such as s3://bucket/folder."""
    return re.match(r"^[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) is not None


def without_protocol(address: str) -> str:
    """Return an address from its first name on: fsspec writes memory://x as memory:///x."""
    return re.sub(r"^[\w+.-]+:/*", "", address)


def patiently(function: Callable[[], Result], address: str, patience_seconds: float | None = None) -> Result:
    """Return what `function` gives, called again with growing pauses while the network fails.

    A server's Retry-After is kept to. Raises NetworkError after `patience_seconds`, or at once for what another
    try does not change.
    """
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    retrying = _retrying(patience, _may_pass)
    refusals = 0

    def attempt() -> Result:
        nonlocal refusals
        try:
            return function()
        except Exception as error:
            refusals += _status(error) == 403
            if refusals >= MAX_REFUSALS:
                raise NetworkError(f"{mask_addresses(address)} is refused (403)") from error
            raise

    try:
        return retrying(attempt)
    except NetworkError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise NetworkError(f"{mask_addresses(address)} cannot be read: {reason(error)}") from error


def open_patiently(function: Callable[[], Result]) -> Result:
    """Return what `function` gives, which opens something with `datasets`; called again only while the network fails.

    Raises what it raises, after `OPENING_SECONDS` at the latest.
    """
    _limit_silence()
    return _retrying(OPENING_SECONDS, is_network_failure)(function)


def _retrying(patience_seconds: float, may_pass: Callable[[BaseException], bool]) -> Retrying:
    return Retrying(
        stop=stop_before_delay(patience_seconds),
        wait=_pause,
        retry=retry_if_exception(may_pass),
        before_sleep=_note,
        reraise=True,
    )


def is_network_failure(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is of the network, so that another try may help."""
    if constants.HF_HUB_OFFLINE:
        return False
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    statuses = [status for status in map(_status, links) if status is not None]
    if statuses:
        return statuses[0] not in PERMANENT
    libraries = {type(link).__module__.partition(".")[0] for link in links}
    return bool(libraries & HTTP_LIBRARIES) or any(
        isinstance(link, ConnectionError | TimeoutError) for link in links
    )


def _limit_silence() -> None:
    """Give the requests of the Hub's client a limit where they have none: its listings would wait for ever."""
    hooks = get_session().event_hooks["request"]  # a client of its own in each process
    if _add_limits not in hooks:
        hooks.append(_add_limits)


def _add_limits(request: Any) -> None:
    limits = request.extensions.get("timeout") or {}
    names = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {name: limits.get(name) or STALL_SECONDS for name in names}


def _pause(state: RetryCallState) -> float:
    """Return the seconds to wait: growing, or what the server asks for, but not for ever."""
    growing = wait_exponential_jitter(
        multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS, jitter=FIRST_WAIT_SECONDS
    )
    error = state.outcome.exception() if state.outcome else None
    return max(growing(state), min(_retry_after(error), LONGEST_WAIT_SECONDS))


def _note(state: RetryCallState) -> None:
    _retries.add()
    if state.attempt_number == 3:  # once is nothing, and every time would fill the screen
        error = state.outcome.exception() if state.outcome else None
        log.warning("the network fails, trying again: %s", reason(error) if error else "")


def _may_pass(error: BaseException) -> bool:
    """Return whether another try may help."""
    lacks_credentials = "Credentials" in type(error).__name__  # botocore's, which need not be installed
    if lacks_credentials or isinstance(error, (NetworkError, *LASTING)):
        return False
    return isinstance(error, Exception) and _status(error) not in PERMANENT


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error carries: of httpx and requests, of aiohttp, or of botocore."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _retry_after(error: BaseException | None) -> float:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:  # a date
        return 0.0


def reason(error: BaseException) -> str:
    """Return the text of an error as one short line, without tokens, passwords, or the query of a signed link, which is a key."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", redact(" ".join(str(error).split())))
    return (text or type(error).__name__)[:200]


def _file_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path there."""
    if address.startswith("hf://"):
        _limit_silence()
    found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    return found


def fetch(address: str, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a file, one request without retries."""
    if address.startswith("hf://"):
        content = _fetch_from_hub(address, start, end)
    else:
        file_system, path = _file_system(address)
        content = bytes(_within_limit(file_system, "cat_file", path, start=start, end=end))
    if len(content) > end - start:
        raise NetworkError(f"{mask_addresses(address)}: this server gives whole files only, not parts of them: download it")
    if len(content) != end - start:
        raise OSError(f"{len(content)} bytes came instead of {end - start}")
    return content


def _within_limit(file_system: Any, name: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of a file system, for at most `STALL_SECONDS` where it can be told so."""
    if isinstance(file_system, AsyncFileSystem):
        method = getattr(file_system, f"_{name}")
        return fsspec.asyn.sync(file_system.loop, method, *arguments, timeout=STALL_SECONDS, **options)
    return getattr(file_system, name)(*arguments, **options)


def _fetch_from_hub(address: str, start: int, end: int) -> bytes:
    """Return a range of a file on the Hub; its own client would retry uncounted, and wait without a limit of ours."""
    file_system, path = _file_system(address)
    headers = {"range": f"bytes={start}-{end - 1}", **build_hf_headers()}
    url = file_system.url(path)
    response = http_backoff("GET", url, max_retries=0, headers=headers, timeout=STALL_SECONDS)
    hf_raise_for_status(response)
    return bytes(response.content)


def file_info(address: str, patience_seconds: float | None = None) -> dict[str, Any]:
    """Return what the file system says of a file: `size`, and what tells its versions apart."""
    file_system, path = _file_system(address)
    return dict(patiently(lambda: _within_limit(file_system, "info", path), address, patience_seconds))


def list_addresses(address: str) -> list[str]:
    """Return the files below an address, sorted; the file itself if it is one. Hidden ones are left out."""
    # Web servers list no folders, and a file would be read in search of links.
    if re.match(r"https?://.*\.\w+$", address):
        file_info(address, OPENING_SECONDS)
        return [address]
    file_system, path = _file_system(address)
    found = patiently(lambda: file_system.find(path), address, OPENING_SECONDS)
    names = (name for name in found if not re.search(r"(^|/)[._]", name.removeprefix(path)))
    return sorted(str(file_system.unstrip_protocol(name)) for name in names)


class RemoteFile(io.RawIOBase):
    """A file at an address, seekable, read by ranges. Raises OSError with the address if that fails for good."""

    def __init__(self, address: str, patience_seconds: float | None = None) -> None:
        self.address = address
        self.patience_seconds = patience_seconds
        self.size = int(file_info(address, patience_seconds)["size"])
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move without reading."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read at most one piece; 0 at the end."""
        start = self._position
        end = min(start + len(buffer), start + PIECE_BYTES, self.size)
        if end <= start:
            return 0
        try:
            content = patiently(lambda: fetch(self.address, start, end), self.address, self.patience_seconds)
        except NetworkError as error:
            raise (DataError if is_network_failure(error) else OSError)(str(error)) from error
        memoryview(buffer)[: len(content)] = content
        self._position = end
        return len(content)


def open_address(address: str, patience_seconds: float | None = None) -> io.BufferedReader:
    """Return the file at an address, opened for reading; raises NetworkError."""
    return io.BufferedReader(RemoteFile(address, patience_seconds), BUFFER_BYTES)
