"""`snac-accel train`, `snac-accel show-config`, `snac-accel export`: from flags to a configuration, then one function.

The flags come from the schema: pydantic-settings makes one for every setting by its dotted name. Nothing here
loads torch before the configuration is known to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pydantic_settings import BaseSettings, CliSettingsSource

from . import __version__
from .config import DATASET_CONFIGS, MODEL_CONFIGS, SETTINGS, TrainingConfig, load_config, to_dict, to_yaml
from .config.messages import nearest, one_line, show
from .config.schema import section_of
from .config.text import is_list, metavar, nest, parse_setting
from .environment import check_launcher
from .errors import ConfigError, UserError
from .signals import end_as_init, end_with_launcher

EXIT_OK, EXIT_USAGE, EXIT_INTERRUPTED = 0, 2, 130

SHORT_FLAGS = {
    "data.dataset_path": "dataset_path",
    "data.streaming": "streaming",
    "training.batch_size": "batch_size",
    "training.learning_rate": "learning_rate",
    "training.num_iterations": "num_iterations",
    "training.init_from": "init_from",
    "checkpoint.resume": "resume",
}

HELP = """\
Settings are layered, each over the one before: preset, file, environment, flags.
A list is written as words (--model.vq_strides 4 2 1) or as JSON (--model.vq_strides [4,2,1]); a value that
starts with a minus sign goes after an equals sign (--data.gain_db=-6,0). Switch off with null
(--discriminators.mpd null). Every setting can also stand in the environment, in capitals with two underscores
for the dot: SNAC_ACCEL_TRAINING__LEARNING_RATE=1e-4.
"""


def train(arguments: Sequence[str]) -> int:
    """Train a model; with no flags, the published 24 kHz model on LJ Speech."""
    parser = config_parser("train", "Train SNAC. With no flags: the published 24 kHz model on LJ Speech.")
    end_as_init()
    config = read_config(parser.parse_known(arguments))
    check_launcher(config, os.environ)  # `train_main` asks again, but only with torch loaded
    end_with_launcher()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings about sockets are pages of stack
    from .train import main as train_main  # loads torch, so only once the configuration is known to be right

    return train_main(config) or EXIT_OK


def show_config(arguments: Sequence[str]) -> int:
    """Print the configuration that `train` would run with, ready for --config."""
    parser = config_parser("show-config", "Print the configuration that `train` would run with.")
    parser.add_argument("--json", action="store_true", default=False, help="print JSON instead of YAML")
    flags = parser.parse_known(arguments)
    settings = to_dict(read_config(flags))
    print(json.dumps(settings, indent=2, ensure_ascii=False) if flags.json else to_yaml(settings), end="")
    return EXIT_OK


def export(arguments: Sequence[str]) -> int:
    """Write the snac folder of a run or a checkpoint, for `snac.SNAC.from_pretrained`."""
    parser = ConfigParser(prog="snac-accel export", description="Write the snac folder of a run or a checkpoint.")
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", help="folder of a run (its newest checkpoint) or of one step")
    parser.add_argument("folder", metavar="DIR", help="folder to write; must not exist yet")
    flags = parser.parse_known(arguments)
    from .checkpoint import export_checkpoint  # loads torch

    print(f"exported {export_checkpoint(Path(flags.source), Path(flags.folder))} to {flags.folder}")
    return EXIT_OK


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
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise ConfigError(f"{show(flag)}: unexpected argument; settings are given as --NAME VALUE")
        if flag.removeprefix("--") in SETTINGS:
            raise ConfigError(f"{flag}: is a section; its settings are flags, see --help")
        known = [name.lstrip("-") for name in self._option_string_actions]
        near = nearest(flag.lstrip("-").replace("-", "_"), known)
        advice = f"did you mean --{near}?" if near else "see --help"
        raise ConfigError(one_line(f"{flag}: unknown flag; {advice}"))


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, after one line on stderr if the user should change something."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in COMMANDS:
        return COMMANDS[command](arguments[1:])
    if command == "--version":
        print(__version__)
        return EXIT_OK
    if command in ("-h", "--help"):
        print(_overview())
        return EXIT_OK if arguments else EXIT_USAGE
    near = nearest(command, COMMANDS)
    advice = f"did you mean {near}?" if near else f"there are {', '.join(COMMANDS)}"
    raise ConfigError(f"{show(command)}: unknown command; {advice}")


def _overview() -> str:
    lines = ["usage: snac-accel COMMAND [FLAGS]    (snac-accel COMMAND --help shows the flags)", ""]
    lines += [f"  {name:14}{(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(lines)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "show-config": show_config,
    "export": export,
}
