"""`snac-accel COMMAND`: from flags to a configuration, then one function.

Nothing here loads torch before the configuration is known to be right. A command is a function of its
arguments that returns an exit code; `COMMANDS` names them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from .. import __version__
from ..config.messages import nearest, one_line, show
from ..errors import ConfigError, UserError
from .doctor import doctor
from .prepare import prepare
from .training import EXIT_OK, export, show_config, train

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130


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
    "doctor": doctor,
    "prepare": prepare,
    "show-config": show_config,
    "export": export,
}
