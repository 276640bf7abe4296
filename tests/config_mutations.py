"""Mutations of valid configurations, each wrong in one way, and a process that reads them one after the other.

`mutations()` is the same list at every call: names with a typing error at each level, other types, booleans for integers,
numbers out of range or not finite, given by a file, a flag or the environment.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from annotated_types import Le, Lt
from pydantic.fields import FieldInfo

from snac_accel.config import DATASET_CONFIGS, SETTINGS, SourceSettings, load_config, to_dict, to_yaml
from snac_accel.config.schema import section_of
from snac_accel.config.text import ENVIRONMENT_PREFIX, is_list

NUMBER = 300
HEAVY = ("torch", "numpy", "datasets", "accelerate", "snac", "soundfile", "safetensors", "huggingface_hub", "pyarrow")
CHANNELS = ("json", "yaml", "flag", "environment")


class Mutation(NamedTuple):
    """A setting, what is done to it, and how it is given."""

    kind: str  # "name" or "value"
    name: str  # of the setting as it is written, dotted
    value: Any
    channel: str
    preset: str

    def __str__(self) -> str:
        return f"{self.channel} {self.name}={json.dumps(self.value)[:30]}"


def settings() -> dict[str, list[Any]]:
    """Every plain setting with the types that it takes."""
    return {name: kinds(field.annotation) for name, field in SETTINGS.items() if section_of(field.annotation) is None}


def kinds(annotation: Any) -> list[Any]:
    """`Annotated` taken off, unions taken apart."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (tuple, Literal) or isinstance(annotation, type):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in kinds(part)]


def has_upper_bound(annotation: Any) -> bool:
    """Whether some of the numbers of a type are too large for it."""
    if isinstance(annotation, FieldInfo):
        return any(isinstance(part, Le | Lt) for part in annotation.metadata) or has_upper_bound(annotation.annotation)
    return any(map(has_upper_bound, get_args(annotation)))


def wrong_values(name: str, found: list[Any]) -> Iterator[Any]:
    """Values that a setting cannot take."""
    huge = [10**30] if has_upper_bound(SETTINGS[name]) else []
    if type(None) not in found:
        yield None
    main = next(kind for kind in found if kind is not type(None))
    if get_origin(main) is tuple:
        item = kinds(get_args(main)[0])[0]
        yield from (3, True, {"a": 1})
        if item in (int, float):
            yield from (["x"], [True], [None], [[1]], [float("nan")], [-(10**30)])
        elif item is not SourceSettings:
            yield from ([3], [True], [""])
    elif get_origin(main) is Literal:
        yield from ("zzz", 3, True, ["no"], get_args(main)[0].upper() + "_")
    elif main is bool:
        yield from (1, 0, "yes", "on", [True], 1.0, {})
    elif main is int:
        yield from ("eight", "8", True, False, 1.5, 8.0, -(10**30), [1], {}, float("nan"), *huge)
    elif main is float:
        yield from ("x", "0.5", True, False, float("nan"), float("inf"), float("-inf"), -1e30, [1.0], {}, *map(float, huge))
    elif main is str:
        yield from (3, True, 1.5, [], ["a"], {}, "", "a\nb", "a\u0000b")


def misspelt(name: str, draw: random.Random) -> str:
    """A name with one typing error, in one of its parts."""
    parts = name.split(".")
    which = draw.randrange(len(parts))
    word, place = parts[which], draw.randrange(len(parts[which]) - 1)
    changed = [
        word[:place] + word[place + 1 :], word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        word[: place + 1] + word[place] + word[place + 1 :], word[:place] + "q" + word[place + 1 :],
    ]  # fmt: skip
    known = {part for other in SETTINGS for part in other.split(".")}
    parts[which] = next((one for one in draw.sample(changed, 4) if one not in known), f"{word}x")
    return ".".join(parts)


def can_be_said(value: Any, name: str, channel: str) -> bool:
    """Whether a flag or a variable can give this value: text stays text there, and what is no text has no control characters."""
    if channel in ("json", "yaml"):
        return True
    takes_text = any(kind is str or get_origin(kind) is Literal for kind in settings()[name])
    if takes_text and not isinstance(value, str) or value is None and not is_list(name):
        return False
    if is_list(name) and (isinstance(value, str) or not isinstance(value, list) or "" in value):
        return False
    return not isinstance(value, str) or "\x00" not in value and not (channel == "environment" and value == "")


def mutations() -> list[Mutation]:
    """`NUMBER` of them, a third with wrong names."""
    draw = random.Random(6)
    presets = list(DATASET_CONFIGS)
    names = sorted(settings())
    wrong = [
        Mutation("value", name, value, channel, "")
        for name in names
        for value in wrong_values(name, settings()[name])
        for channel in CHANNELS
        if can_be_said(value, name, channel) and as_given(name, value, channel)
    ]
    typos = [Mutation("name", misspelt(name, draw), _default(name), draw.choice(CHANNELS), "") for name in names]
    chosen = draw.sample(typos, NUMBER // 3) if len(typos) >= NUMBER // 3 else typos
    chosen += draw.sample(wrong, NUMBER - len(chosen))
    return [one._replace(preset=draw.choice(presets)) for one in chosen]


def _default(name: str) -> Any:
    default = SETTINGS[name].default
    return json.loads(json.dumps(default, default=lambda value: value.model_dump()))


def as_given(name: str, value: Any, channel: str) -> bool:
    """Whether a value is still wrong as text: "8" is a number there."""
    if channel in ("json", "yaml"):
        return True
    numeric = {int, float} & set(settings()[name])
    return not (numeric and isinstance(value, str) and value.replace(".", "").isdigit())


def command(mutation: Mutation, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments and variables that give a mutation, after its files are written."""
    preset = ["train", "--preset", mutation.preset]
    word = mutation.value if isinstance(mutation.value, str) else json.dumps(mutation.value)
    word = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf", "[NaN]": "[.nan]"}.get(word, word)
    if mutation.channel == "flag":
        return [*preset, f"--{mutation.name}={word}"], {}
    if mutation.channel == "environment":
        return preset, {ENVIRONMENT_PREFIX + mutation.name.upper().replace(".", "__"): word}
    content = to_dict(load_config(mutation.preset, environment={}))
    place, (*sections, last) = content, mutation.name.split(".")
    for section in sections:
        place = place.setdefault(section, {})
        if place is None:  # a discriminator that is switched off
            return command(mutation._replace(channel="flag"), folder)
    place[last] = mutation.value
    file = folder / f"config.{mutation.channel}"
    file.write_text(json.dumps(content) if mutation.channel == "json" else to_yaml(content), encoding="utf-8")
    return ["train", "--config", str(file)], {}


def read_all() -> None:
    """Read JSON lines of arguments and variables; write code, output, errors, seconds and heavy modules for each."""
    from snac_accel.cli import main

    stand_in = types.ModuleType("snac_accel.train")  # what was accepted is not trained
    stand_in.main = lambda config, **options: 0  # type: ignore[attr-defined]
    sys.modules["snac_accel.train"] = stand_in
    for line in sys.stdin:
        arguments, variables = json.loads(line)
        os.environ.update(variables)
        out, errors, begun = io.StringIO(), io.StringIO(), time.perf_counter()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main(arguments)
        seconds = time.perf_counter() - begun
        for name in variables:
            del os.environ[name]
        heavy = sorted(set(HEAVY) & set(sys.modules))
        print(json.dumps([code, out.getvalue(), errors.getvalue(), seconds, heavy]), flush=True)


if __name__ == "__main__":
    read_all()
