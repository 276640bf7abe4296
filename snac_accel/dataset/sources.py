"""Where clips come from: the Hub, an address, a local folder or file. Nothing is decoded here.

Whatever can be had in any order is opened as `Clips`; the rest is a `StreamedClips`. No remote code is ever run:
`datasets` 4 and newer refuse loading scripts, and nothing here asks for them.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .clips import Clips
from .local_sources import FILE_SUFFIXES, open_local
from .network import NetworkError, is_address, open_patiently
from .opening import Request
from .remote_sources import open_address_folder, open_hub
from .source_errors import explain
from .streams import StreamedClips

__all__ = ["Request", "open_source"]


def open_source(request: Request) -> Clips | StreamedClips:
    """Open one split of a dataset; raises DataError in one line.

    An address (s3://…, hf://…) is read from there while training; a path that exists is local; anything else is a
    Hub id, downloaded, or with `streaming` read while training.
    """
    local = Path(request.path).expanduser()
    try:
        if is_address(request.path):
            return open_address_folder(request)
        if local.exists():
            return open_local(request, local.absolute())
        if looks_local(request.path):
            raise DataError(f"no such folder or file: {request.path!r}")
        return open_patiently(lambda: open_hub(request))
    except DataError:
        raise
    except NetworkError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # `datasets`, its file systems and the HTTP client raise a great many kinds
        raise explain(error, request.path, request.configuration, request.split, local.exists()) from error


def looks_local(path: str) -> bool:
    """Return whether a path that does not exist was meant as a local one rather than as a Hub id."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).suffix in FILE_SUFFIXES
