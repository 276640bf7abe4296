"""`snac-accel COMMAND`: from flags to a configuration, then one function.

Nothing here loads torch before the configuration is known to be right, and nothing loads the configuration's schema before
a command needs it: `--help` is printed at once. A command is a function of its arguments that returns an exit code;
`COMMANDS` says where it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from .. import __version__
from ..errors import ConfigError, UserError
from ..redaction import redact, redact_program

EXIT_OK, EXIT_USAGE, EXIT_INTERRUPTED = 0, 2, 130


class Command(NamedTuple):
    """Where a command is, and what the overview says of it."""

    module: str  # in this folder
    function: str
    summary: str  # the first line of its docstring, which is not loaded for the overview

    def run(self, arguments: Sequence[str]) -> int:
        """Load and call it."""
        code: int = getattr(import_module(f".{self.module}", __name__), self.function)(arguments)
        return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, after one line on stderr if the user should change something."""
    arguments = sys.argv[1:] if arguments is None else arguments
    redact_program()
    try:
        return _run(arguments)
    except UserError as error:
        from ..config.messages import one_line

        print(f"error: {redact(one_line(str(error)))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in COMMANDS:
        return COMMANDS[command].run(arguments[1:])
    if command == "--version":
        print(__version__)
        return EXIT_OK
    if command in ("-h", "--help"):
        print(_overview())
        return EXIT_OK if arguments else EXIT_USAGE
    raise ConfigError(_unknown(command))


def _unknown(command: str) -> str:
    from ..config.messages import nearest, show

    near = nearest(command, COMMANDS)
    advice = f"did you mean {near}?" if near else f"there are {', '.join(COMMANDS)}"
    return f"{show(command)}: unknown command; {advice}"


def _overview() -> str:
    lines = ["usage: snac-accel COMMAND [FLAGS]    (snac-accel COMMAND --help shows the flags)", ""]
    lines += [f"  {name:14}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


COMMANDS = {
    "train": Command(
        "training", "train", "Train a model; with no flags, the published 24 kHz model on LJ Speech."
    ),
    "doctor": Command(
        "doctor", "doctor", "Say what is wrong with the data, and what a run would make of it."
    ),
    "prepare": Command(
        "prepare",
        "prepare",
        "Turn the data into shards of equal size, parquet or WebDataset, that stream well; goes on if it was stopped.",
    ),
    "encode": Command("use", "encode", "Turn audio into files of codes; exit code 1 if a clip could not be read."),
    "decode": Command("use", "decode", "Turn files of codes back into audio; exit code 1 if one could not be decoded."),
    "reconstruct": Command(
        "use", "reconstruct", "Turn audio into codes and back, to hear what is left; exit code 1 if a clip could not be read."
    ),
    "evaluate": Command(
        "evaluation",
        "evaluate",
        "Measure models on clips: a table, a summary with intervals, and a page to listen to.",
    ),
    "compare": Command(
        "evaluation", "compare", "Compare models, or evaluations, clip by clip with the first of them."
    ),
    "tokenize": Command(
        "tokenize", "tokenize", "Turn the data into a dataset of codes for language models; goes on if it was stopped."
    ),
    "runs": Command("runs", "runs", "List runs: state, step, best validation, goodput."),
    "watch": Command(
        "runs", "watch", "Show where a run is; exit code 1 if nobody works on it, though somebody should."
    ),
    "show-config": Command(
        "training", "show_config", "Print the configuration that `train` would run with, ready for --config."
    ),
    "export": Command(
        "publishing",
        "export",
        "Write the snac folder of a run or a checkpoint, for `snac.SNAC.from_pretrained`.",
    ),
    "export-onnx": Command("publishing", "export_onnx", "Write encoder and decoder of a model as ONNX."),
    "publish": Command("publishing", "publish", "Push a model to the Hugging Face Hub, with its card."),
    "average": Command(
        "averaging", "average", "Export another moving average of a run that had averaging.snapshot_steps."
    ),
}
