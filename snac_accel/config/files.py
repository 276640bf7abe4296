"""Configuration files: JSON and YAML in, YAML out.

YAML is read by the core schema of YAML 1.2: `1e-4` is a number and `no` is a word (`mixed_precision: no`),
which YAML 1.1 reads the other way round. Names given twice, files over
1 MB and aliases that blow up are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from .messages import one_line, show

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000  # values in one file, aliases counted each time they are used


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a .json, .yaml or .yml file; raises ConfigError with the line where there is one."""
    path = Path(path)
    text = _read_text(path)
    try:
        content = _parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
        _check_size(content)
    except ConfigError as error:
        raise ConfigError(one_line(f"{path}: {error}")) from None
    if not isinstance(content, dict):
        raise ConfigError(one_line(f"{path}: should hold sections with settings, holds {show(content)}"))
    return content


def _read_text(path: Path) -> str:
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise ConfigError(one_line(f"{path}: a configuration file should end in .json, .yaml or .yml"))
    try:
        if not path.is_file():
            raise ConfigError(one_line(f"{path}: no such configuration file"))
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(one_line(f"{path}: {path.stat().st_size} bytes, should be at most {MAX_BYTES}"))
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(one_line(f"{path}: byte {error.start} is not UTF-8 text")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(one_line(f"{path}: cannot be read: {reason}")) from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {error.lineno}: not JSON: {error.msg}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # an integer of thousands of digits, or thousands of brackets
        raise ConfigError(f"not usable JSON: {_reason(error)}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ConfigError(f"{show(key)} is given twice")
        mapping[key] = value
    return mapping


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds, by the core schema of YAML 1.2."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{line}not usable YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(f"not usable YAML: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]


def _check_size(content: Any) -> None:
    """Refuse what aliases have blown up, or tied into a loop, before anything walks through it."""
    waiting, seen = [content], 0
    while waiting:
        seen += 1
        if seen > MAX_VALUES:
            raise ConfigError(f"more than {MAX_VALUES} values")
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and without repeated keys; gives up on too many values."""

    num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.num_nodes += 1
        if self.num_nodes > 2 * MAX_VALUES:  # keys are nodes too
            raise ConfigError(f"more than {MAX_VALUES} values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    None, None, "names of settings should be text", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would otherwise read as something else; lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(content: Mapping[str, Any]) -> str:
    """The mapping as YAML that `read_config_file` reads back unchanged."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _list_on_one_line(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS = {  # tag -> pattern, first characters
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}  # none of YAML 1.1
for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Dumper.add_representer(list, _list_on_one_line)
