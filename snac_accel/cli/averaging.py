"""`snac-accel average`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from ..files import writing_problem
from .flags import ConfigParser

EXIT_OK = 0
LARGEST = 0.28  # as averaging.relative_width


def average_parser() -> ConfigParser:
    """The flags of `average`."""
    parser = ConfigParser(
        prog="snac-accel average",
        description="Export another moving average of a run that had averaging.snapshot_steps: of any width, after the run.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("folder", metavar="DIR", help="folder to write; must not exist yet")
    width = "how far it looks back, standard deviation as a part of the steps so far"
    parser.add_argument("--relative_width", metavar="W", type=_width, required=True, help=width)
    parser.add_argument("--step", metavar="N", type=int, help="the average as of this step (default: the newest that is saved)")
    return parser


def average(arguments: Sequence[str]) -> int:
    """Export another moving average of a run that had averaging.snapshot_steps."""
    flags = average_parser().parse_known(arguments)
    run, folder = Path(flags.run), Path(flags.folder)
    from ..run_folder import AVERAGES, saved_config

    config = saved_config(run)
    if config is None:
        raise CheckpointError(f"{run}: no run there; give the folder of a run")
    if folder.exists():
        raise CheckpointError(f"{folder} exists already: give a new folder")
    from ..export import write_export  # loads torch
    from ..post_hoc import combine_averages

    combined = combine_averages(run / AVERAGES, flags.relative_width, flags.step)
    try:
        write_export(folder, config["model"], combined.weights)
    except OSError as error:
        raise CheckpointError(writing_problem(error, folder)) from error
    files = len(combined.shares)
    print(f"exported the average of width {flags.relative_width:g} of step {combined.step}, from {files} files, to {folder}")
    return EXIT_OK


def _width(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text}: should be above 0 and at most {LARGEST}")
    return value
