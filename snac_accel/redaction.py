"""Secrets kept out of what is printed and written: credentials inside addresses, values of variables like HF_TOKEN."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

MASK = "***"
SHORTEST = 8  # characters of a value that is looked for; shorter ones are words that may stand anywhere
# HF_TOKEN, HUGGING_FACE_HUB_TOKEN, WANDB_API_KEY, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, …
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|API_?KEY|ACCESS_KEY(_ID)?|SECRET(_KEY)?|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
_SCHEME = r"([a-z][a-z0-9+.-]+:/{1,2})"  # one slash: what a Path makes of an address
_USER = re.compile(rf"{_SCHEME}([^\s/?#'\"]*)@", re.IGNORECASE)
# The same where the password holds a slash, as keys of S3 may; `host:8080/…@…` is no password.
_LONG_USER = re.compile(rf"{_SCHEME}([^\s/?#'\"@:*]*:(?!\d{{1,5}}(?:[/?#'\"\s]|$))[^\s'\"]*)@", re.IGNORECASE)
_QUERY = re.compile(rf"{_SCHEME}([^\s?'\"]*)\?[^\s'\"]*=[^\s'\"]*", re.IGNORECASE)
_NAMES_ARE_NO_SECRET = ("ssh://", "sftp://", "ftp://", "hdfs://", "smb://")


def holds_credentials(text: str) -> bool:
    """Whether an address in `text` holds a password or a key: before its host, or as a query (`?token=…`)."""
    users = [*_USER.finditer(text), *_LONG_USER.finditer(text)]
    secret = [u for u in users if ":" in u[2] or u[1].lower() not in _NAMES_ARE_NO_SECRET]
    return bool(secret or _QUERY.search(text))


def mask_addresses(text: str) -> str:
    """The text with `***` for user, password and query of every address in it."""
    text = _USER.sub(rf"\1{MASK}@", text)
    text = _LONG_USER.sub(rf"\1{MASK}@", text)
    return _QUERY.sub(rf"\1\2?{MASK}", text)


def nameable(address: str) -> str:
    """An address as it may stand in logs and file names: no user, no password, and a hash in the place of its query."""
    address = _LONG_USER.sub(r"\1", _USER.sub(r"\1", address))
    scheme, mark, query = address.partition("?")
    return address if "=" not in query else f"{scheme}{mark}{hashlib.sha256(query.encode()).hexdigest()[:8]}"


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without secrets: addresses masked, and `***` for the values of variables that hold tokens, keys or passwords."""
    for secret in _secrets(os.environ if environment is None else environment):
        text = text.replace(secret, MASK)
    return mask_addresses(text)


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """The values to look for, longest first; of one with spaces or line ends its parts, as messages escape those."""
    values = [value for name, value in environment.items() if _SECRET_NAME.search(name)]
    parts = {part for value in values for part in re.split(r"[^\x21-\x7e]+", value)}
    return sorted((part for part in parts if len(part) >= SHORTEST), key=len, reverse=True)


def redact_program() -> None:
    """From now on, print log records and tracebacks without secrets. For programs, not for libraries."""
    sys.excepthook = _print_exception
    threading.excepthook = lambda args: (
        _print_exception(args.exc_type, args.exc_value, args.exc_traceback) if args.exc_value else None
    )
    make_record = logging.getLogRecordFactory()
    if not hasattr(make_record, "redacts"):
        logging.setLogRecordFactory(_redacting(make_record))


def _print_exception(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def _redacting(make_record: Any) -> Any:
    def make(*arguments: Any, **options: Any) -> logging.LogRecord:
        record: logging.LogRecord = make_record(*arguments, **options)
        try:
            record.msg, record.args = redact(record.getMessage()), None
        except (TypeError, ValueError):  # a message that does not fit its arguments: logging says so itself
            pass
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record

    make.redacts = True  # type: ignore[attr-defined]
    return make
