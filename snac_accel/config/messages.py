"""From pydantic's errors to one line a person can act on: which setting, which value, what would be right."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..redaction import mask_addresses
from .data import SourceSettings
from .schema import SETTINGS

_EXPECTED = {
    "int_type": "should be an integer",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "string_pattern_mismatch": "should be a plain name without control characters",
    "string_too_short": "should not be empty",
    "string_unicode": "should be valid text",
    "too_short": "should not be empty",
    "tuple_type": "should be a list",
    "model_type": "should be a section with settings",
    "model_attributes_type": "should be a section with settings",
    "finite_number": "should be a finite number",
    "invalid_key": "names of settings should be text",
}
_LONGEST_VALUE = 60


def describe(error: ValidationError) -> str:
    """The first problem of `error` in one line, and how many more there are."""
    problems = error.errors(include_url=False)
    line = _describe_one(problems[0])
    more = len(problems) - 1
    return f"{line} (and {more} more)" if more else line


def _describe_one(problem: ErrorDetails) -> str:
    context = problem.get("ctx", {})
    if problem["type"] == "missing":
        return _describe_missing(problem)
    name = dotted(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_setting(name, problem["input"])
    if problem["type"] == "inconsistent":
        name = f"{name}.{context['setting']}" if name else context["setting"]
        return one_line(f"{name} = {show(context['value'])}: {context['problem']}")
    if name == "paths.run_name" and problem["type"] == "string_pattern_mismatch":
        return one_line(
            f"{name} = {show(problem['input'])}: should be letters, digits, '_', '-' or '.', no folders"
        )
    expected = _EXPECTED.get(problem["type"]) or _reworded(problem["msg"])
    return one_line(
        f"{name} = {show(problem['input'])}: {expected}" if name else f"configuration: {expected}"
    )


def _describe_missing(problem: ErrorDetails) -> str:
    """Required are the two numbers of a pair, and what a source cannot be without."""
    *location, part = problem["loc"]
    needs = "two entries" if isinstance(part, int) else part
    return one_line(f"{dotted(location)} = {show(problem['input'])}: should have {needs}")


def _reworded(message: str) -> str:
    """Pydantic's own sentence in the manner of ours."""
    words = re.sub(r"^(Input|Tuple|String) ", "", message)
    return words.replace(" after validation", "").replace(" items", " entries")


def unknown_setting(name: str, value: Any) -> str:
    """What to say about a name that the schema does not have, and the value that it was given."""
    section, _, last = name.rpartition(".")
    what = f"{name} = {show(value)}: unknown setting"
    if section.startswith("data.sources["):
        known = SourceSettings.model_fields
        guess = nearest(last, known)
        advice = f"did you mean {guess}?" if guess else f"a source has {', '.join(known)}"
        return one_line(f"{what}; {advice}")
    near = nearest(name, SETTINGS)
    if near:
        return one_line(f"{what}; did you mean {near}?")
    if section not in SETTINGS:
        return one_line(f"{what}; the sections are {_listed(SETTINGS, '')}")
    return one_line(f"{what}; {section} has {_listed(SETTINGS, section)}")


def _listed(names: Iterable[str], section: str) -> str:
    return ", ".join(name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == section)


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known dotted name most like `name`, None if none is near.

    The last part weighs most, so that a setting put into the wrong section is found in the right one.
    """

    def likeness(candidate: str) -> float:
        return _ratio(last, candidate.rpartition(".")[2]) + 0.3 * _ratio(
            section, candidate.rpartition(".")[0]
        )

    section, _, last = name[:200].rpartition(".")
    near = [candidate for candidate in known if _ratio(last, candidate.rpartition(".")[2]) >= 0.65]
    return max(near, key=likeness, default=None)


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def dotted(location: Iterable[int | str]) -> str:
    """("discriminators", "mpd", "channels", 2) -> "discriminators.mpd.channels[2]"."""
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return name.removeprefix(".")


def show(value: Any) -> str:
    """A value as JSON writes it, shortened, without passwords in addresses; values that JSON cannot write by their type."""
    try:
        text = mask_addresses(json.dumps(value, ensure_ascii=False, default=str))
    except (TypeError, ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def one_line(text: str) -> str:
    """The text with everything that does not print, line ends included, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
