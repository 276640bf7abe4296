"""Settings written as text, in flags and environment variables, turned into values by the field's type.

Text stays text where the field takes text; all else is read as YAML: `1e-4`, `true`, `null`, `[4, 2, 1]`.
What does not fit the field's type is left as it is, for the validation to name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ..errors import ConfigError
from .data import SourceSettings
from .files import parse_yaml
from .messages import nearest, show, unknown_setting
from .schema import SETTINGS

ENVIRONMENT_PREFIX = "SNAC_ACCEL_"


def parse_setting(name: str, words: Sequence[str]) -> Any:
    """The value of setting `name` from its words: one for a plain setting, one or several for a list."""
    if name not in SETTINGS:
        raise ConfigError(unknown_setting(name, " ".join(words)))
    options = _options(SETTINGS[name].annotation)
    lists = [option for option in options if get_origin(option) is tuple]
    if not lists or (len(words) == 1 and words[0].lstrip().startswith("[")):
        return _parse_word(" ".join(words), options)
    if len(words) == 1 and type(None) in options and words[0] == "null":
        return None
    items = words[0].split(",") if len(words) == 1 else words
    item_options = _options(get_args(lists[0])[0])
    return [_parse_word(item.strip(), item_options) for item in items]


def is_list(name: str) -> bool:
    """Whether a setting takes a list."""
    return any(get_origin(option) is tuple for option in _options(SETTINGS[name].annotation))


def metavar(name: str) -> str:
    """What a setting takes, for its help: INTEGER, NUMBER, true|false, TEXT, a choice, or null."""
    options = [option for option in _options(SETTINGS[name].annotation) if option is not type(None)]
    while get_origin(options[0]) is tuple:
        options = _options(get_args(options[0])[0])
    if get_origin(options[0]) is Literal:
        choices = get_args(options[0])
        return "|".join(choices) if len(choices) <= 4 else "NAME"
    names = {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT", SourceSettings: "JSON"}
    return names.get(options[0], "null")


def _options(annotation: Any) -> list[Any]:
    """The types that an annotation allows, `Annotated` taken off: `int | None` -> [int, NoneType]."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [annotation]


def _parse_word(word: str, options: Sequence[Any]) -> Any:
    if str in options or any(get_origin(option) is Literal for option in options):
        return None if type(None) in options and word == "null" else word
    try:
        return parse_yaml(word)
    except ConfigError:
        return word


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"training.seed": 1} -> {"training": {"seed": 1}}; a section that is also set as a whole is refused."""
    nested: dict[str, Any] = {}
    for name in sorted(settings):
        *sections, last = name.split(".")
        place = nested
        for depth, section in enumerate(sections):
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                whole = ".".join(sections[: depth + 1])
                raise ConfigError(f"{name} = {show(settings[name])}: contradicts {whole} = {show(place)}")
        place[last] = settings[name]
    return nested


def settings_from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Nested settings from variables such as SNAC_ACCEL_TRAINING__LEARNING_RATE; the others are not ours."""
    settings: dict[str, Any] = {}
    for variable, word in environment.items():
        _check_underscores(variable)
        if variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            try:
                settings[name] = parse_setting(name, [word])
            except ConfigError as error:
                raise ConfigError(f"environment variable {variable}: {error}") from None
    return nest(settings)


def _check_underscores(variable: str) -> None:
    """Refuse SNAC_ACCEL_TRAINING_SEED, which would be passed over; variables that begin with no section may be anybody's."""
    section, _, setting = variable.removeprefix(ENVIRONMENT_PREFIX).partition("_")
    if not variable.startswith(ENVIRONMENT_PREFIX) or "__" in variable or section.lower() not in SETTINGS or not setting:
        return
    near = nearest(f"{section}.{setting}".lower(), SETTINGS)
    meant = (near or f"{section}.{setting}").upper().replace(".", "__")
    raise ConfigError(
        f"environment variable {variable}: two underscores stand for the dot; did you mean {ENVIRONMENT_PREFIX}{meant}?"
    )
