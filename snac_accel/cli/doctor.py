"""`snac-accel doctor`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TrainingConfig, to_dict, validate
from ..errors import ConfigError, DataError, NoAudioError
from .flags import ConfigParser, config_parser, read_config

if TYPE_CHECKING:
    from ..doctor import Diagnosis

EXIT_BROKEN = 1
NUM_CLIPS = 200
TABLE_FILE, PICTURE_FILE = "doctor.json", "doctor.png"


def doctor(arguments: Sequence[str]) -> int:
    """Say what is wrong with the data, and what a run would make of it."""
    flags = doctor_parser().parse_known(arguments)
    config = read_config(flags)
    _check(flags)
    if flags.memory is not None:
        return _memory(config, flags)
    from ..doctor import json_report, text_report  # loads torch

    try:
        diagnosis = _diagnose(config, flags)
    except NoAudioError as error:
        return _report_unusable(str(error), flags)
    report = json_report(diagnosis)
    print(
        json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        if flags.json
        else text_report(diagnosis)
    )
    if flags.output:
        _write(Path(flags.output), diagnosis, report, flags.json)
    return diagnosis.exit_code


def doctor_parser() -> ConfigParser:
    """The flags of `train`, and the doctor's own."""
    parser = config_parser("doctor", "Read a sample of the data and say what is wrong with it.")
    parser.add_argument(
        "--clips", type=int, default=NUM_CLIPS, metavar="N", help=f"clips read of each source ({NUM_CLIPS})"
    )
    parser.add_argument("--all", action="store_true", help="read every clip")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that the run will have (1)"
    )
    parser.add_argument(
        "--memory", type=float, nargs="?", const=math.inf, metavar="GIB",
        help="look at no data: say what memory a training step needs, by part, and which window and batch fit into so "
        "much (default: what is free on the GPU, without one in the machine)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--output", metavar="DIR", help=f"folder for {TABLE_FILE} and {PICTURE_FILE}")
    return parser


def _check(flags: argparse.Namespace) -> None:
    for name in ("clips", "processes"):
        if (value := getattr(flags, name)) < 1:
            raise ConfigError(f"--{name} {value}: should be at least 1")
    if flags.memory is not None and not flags.memory > 0:
        raise ConfigError(f"--memory {flags.memory:g}: should be above 0 (GiB)")
    if flags.memory is not None and (flags.output or flags.all):
        raise ConfigError("--memory looks at no data: leave out --output and --all")
    if flags.output and Path(flags.output).exists() and not Path(flags.output).is_dir():
        raise ConfigError(f"--output {flags.output}: is a file, should be a folder")
    if flags.output:
        try:
            Path(flags.output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {flags.output}: cannot be created: {error.strerror}") from error


def _memory(config: TrainingConfig, flags: argparse.Namespace) -> int:
    """Estimate what a step needs; exit code 1 if the configuration's does not fit."""
    from ..doctor import estimate_memory, json_memory, text_memory
    from ..environment import mixed_precision

    report = estimate_memory(
        config,
        available=None if math.isinf(flags.memory) else flags.memory * 2**30,
        precision=mixed_precision(config, os.environ),
        num_processes=flags.processes,
        follow=lambda what: print(f"counting a step: {what} …", file=sys.stderr),
    )
    print(json.dumps(json_memory(report), indent=2) if flags.json else text_memory(report))
    return report.exit_code


def _diagnose(config: TrainingConfig, flags: argparse.Namespace) -> Diagnosis:
    """Open the data as `train` does, and examine it; what validation lacks is a finding among the others."""
    from dataclasses import replace

    from ..doctor import Finding, examine
    from ..train import setup_dataset

    problem = None
    try:
        training, validation = setup_dataset(config)
    except DataError as error:
        if not config.validation.enabled:
            raise
        problem = error
        without = validate(to_dict(config) | {"validation": {"enabled": False}})
        training, validation = setup_dataset(without)  # raises again if it is not validation that fails
    diagnosis = examine(
        training,
        validation,
        config,
        count=None if flags.all else flags.clips,
        num_processes=flags.processes,
        follow=_progress,
    )
    if problem is None:
        return diagnosis
    finding = Finding("error", "no_validation_clips", None, str(problem))
    return replace(diagnosis, findings=[finding, *diagnosis.findings])


def _report_unusable(message: str, flags: argparse.Namespace) -> int:
    """A source is there, but no clip can be had from it: the finding is all there is to report."""
    if flags.json:
        finding = {"severity": "error", "code": "no_audio", "source": None, "message": message}
        print(
            json.dumps(
                {"format": 1, "exit_code": EXIT_BROKEN, "findings": [finding]}, indent=2, ensure_ascii=False
            )
        )
    else:
        print(f"error: {message}")
    return EXIT_BROKEN


def _progress(clips: Iterator[Any], number: int | None, name: str) -> Iterator[Any]:
    """The same clips, with a bar on stderr."""
    from tqdm import tqdm

    return iter(tqdm(clips, total=number, desc=name, unit="clip", file=sys.stderr))


def _write(folder: Path, diagnosis: Diagnosis, report: dict[str, Any], is_json: bool) -> None:
    """Write table and picture; where they lie is said on stdout, or on stderr where stdout holds JSON."""
    from ..doctor import draw_picture
    from ..files import replace_json

    replace_json(folder / TABLE_FILE, report)
    draw_picture(diagnosis, folder / PICTURE_FILE)
    print(
        f"written to {folder / TABLE_FILE} and {folder / PICTURE_FILE}",
        file=sys.stderr if is_json else sys.stdout,
    )
