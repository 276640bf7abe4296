"""Flags from the schema: one for every setting by its dotted name, made by pydantic-settings. Loads no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from pydantic_settings import BaseSettings, CliSettingsSource

from ..config import DATASET_CONFIGS, MODEL_CONFIGS, SETTINGS, TrainingConfig, load_config
from ..config.messages import nearest, one_line, show
from ..config.schema import section_of
from ..config.text import is_list, metavar, nest, parse_setting
from ..errors import ConfigError

SHORT_FLAGS = {
    "data.dataset_path": "dataset_path",
    "data.streaming": "streaming",
    "training.batch_size": "batch_size",
    "training.learning_rate": "learning_rate",
    "training.num_iterations": "num_iterations",
    "training.init_from": "init_from",
    "checkpoint.resume": "resume",
    "hub.repository": "push_to_hub",
    "tracking.profile": "profile",
}

HELP = """\
Settings are layered, each over the one before: preset, file, environment, flags.
A list is written as words (--model.vq_strides 4 2 1) or as JSON (--model.vq_strides [4,2,1]); a value that
starts with a minus sign goes after an equals sign (--data.gain_db=-6,0). Switch off with null
(--discriminators.mpd null). Every setting can also stand in the environment, in capitals with two underscores
for the dot: SNAC_ACCEL_TRAINING__LEARNING_RATE=1e-4.
"""


class ConfigParser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError, and names the nearest flag when one is unknown."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(one_line(message.removeprefix("argument ")))

    def parse_known(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse; raise ConfigError for anything left over."""
        flags, unknown = self.parse_known_args(arguments)
        if not unknown:
            return flags
        flag, given, value = unknown[0].partition("=")
        if not given and unknown[1:] and not unknown[1].startswith("--"):
            given, value = "=", unknown[1]
        if not flag.startswith("-"):
            raise ConfigError(f"{show(flag)}: unexpected argument; settings are given as --NAME VALUE")
        if flag.removeprefix("--") in SETTINGS:
            raise ConfigError(f"{flag}: is a section; its settings are flags, see --help")
        known = [name.lstrip("-") for name in self._option_string_actions]
        near = nearest(flag.lstrip("-").replace("-", "_"), known)
        advice = f"did you mean --{near}?" if near else "see --help"
        what = f"{flag} = {show(value)}" if given else flag
        raise ConfigError(one_line(f"{what}: unknown flag; {advice}"))


class _Flags(TrainingConfig, BaseSettings):  # type: ignore[misc]
    """The schema as pydantic-settings wants it; only its flags are used, never an instance."""


def config_parser(command: str, description: str) -> ConfigParser:
    """A parser with the flags of presets and files, and one flag for every setting of the schema."""
    parser = ConfigParser(
        prog=f"snac-accel {command}",
        usage=f"snac-accel {command} [--preset NAME] [--config FILE] [--SECTION.SETTING VALUE ...]",
        description=f"{description}\n\n{HELP}",
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=110),
        allow_abbrev=False,
    )
    runs, models = ", ".join(DATASET_CONFIGS), ", ".join(MODEL_CONFIGS)
    parser.add_argument("--preset", metavar="NAME", help=f"a run ({runs}) or a model ({models})")
    parser.add_argument("--dataset", metavar="NAME", help=f"a run ({runs}); --preset may change its model")
    parser.add_argument("--config", metavar="FILE", help="JSON or YAML file with sections")
    CliSettingsSource(
        _Flags,
        root_parser=parser,
        cli_parse_none_str="null",
        cli_avoid_json=True,
        cli_shortcuts=SHORT_FLAGS,
        add_argument_method=_add_setting,
    )
    return parser


def _add_setting(group: Any, *flags: str, **options: Any) -> Any:
    """Add a flag that pydantic-settings proposes; its words are for `parse_setting`."""
    name = options["dest"]
    field = SETTINGS[name]
    section = section_of(field.annotation)
    if section is not None and field.annotation is section:
        return None  # a whole section is not a flag
    words: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "metavar": metavar(name)}
    if section is not None:
        return group.add_argument(*flags, **words, help="null: switched off")
    words["help"] = f"{field.description} (default: {show(field.default)})".replace("%", "%%")
    if is_list(name):
        words["nargs"] = "+"
    elif field.annotation is bool:
        words |= {"nargs": "?", "const": "true"}  # the bare flag switches on
    return group.add_argument(*flags, **words)


def read_config(flags: argparse.Namespace) -> TrainingConfig:
    """The validated configuration that the parsed flags, and the layers below them, amount to."""
    settings = {}
    for name, words in vars(flags).items():
        if name in SETTINGS:
            settings[name] = parse_setting(name, words if isinstance(words, list) else [words])
    return load_config(flags.preset, flags.config, nest(settings), dataset=flags.dataset)
