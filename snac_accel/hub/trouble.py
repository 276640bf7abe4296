"""What can be wrong with the Hub: what passes, what does not, how long to wait."""

from __future__ import annotations

from typing import Any

from tenacity import RetryCallState, wait_exponential_jitter

from ..redaction import redact

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 300.0
PASSING = {408, 409, 412, 423, 425, 429}  # and 500 to 599: busy, or somebody else was quicker
REFUSED = {401, 403}
NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet"}


def status_of(error: BaseException | None) -> int | None:
    """The status of the answer that an error is about; None if there was none."""
    for one in _chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether the Hub does not let this user write there, or knows no user."""
    return status_of(error) in REFUSED or any(type(one).__name__ == "LocalTokenNotFoundError" for one in _chain(error))


def is_passing(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if is_refusal(error) or any(type(one).__name__ == "OfflineModeIsEnabled" for one in _chain(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in PASSING or status >= 500
    return any(isinstance(one, OSError) or type(one).__module__.partition(".")[0] in NETWORK for one in _chain(error))


def retry_after(error: BaseException | None) -> float:
    """Seconds that the server asks to wait; 0 if it does not."""
    for one in _chain(error):
        headers: Any = getattr(getattr(one, "response", None), "headers", None) or {}
        try:
            return max(0.0, float(headers.get("Retry-After", "")))
        except ValueError:
            continue
    return 0.0


def pause(state: RetryCallState) -> float:
    """Seconds before the next try: growing, and never less than the server asks for."""
    grown = wait_exponential_jitter(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, jitter=FIRST_WAIT_SECONDS)(state)
    error = state.outcome.exception() if state.outcome is not None else None
    return max(grown, retry_after(error))


def in_one_line(error: BaseException) -> str:
    """What happened, without addresses' queries and without secrets."""
    cause = _chain(error)[-1] if status_of(error) is None else next(one for one in _chain(error) if status_of(one))
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return redact(text)[:300]


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it came from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
