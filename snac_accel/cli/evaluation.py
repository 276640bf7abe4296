"""`snac-accel evaluate` and `snac-accel compare`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import SETTINGS, TrainingConfig
from ..environment import check_launcher
from ..errors import ConfigError
from ..files import free_bytes
from .flags import ConfigParser, config_parser, read_config

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..evaluation import Evaluated, EvaluationClips, Results, Table

EXIT_OK = 0
NUM_CLIPS, CLIP_SECONDS, PAGE_CLIPS = 256, 60.0, 24
SUMMARY_FILE = "evaluation.json"  # what tells the folder of an evaluation from any other
LEAST_FREE_BYTES = 1 << 24


def evaluate_parser() -> ConfigParser:
    """The flags of `train`, of which those about data are used, and the evaluation's own."""
    parser = config_parser("evaluate", "Measure models on clips, and write a page to listen to them.")
    parser.usage = "snac-accel evaluate MODEL [MODEL ...] --dataset_path DATA --output DIR [--SECTION.SETTING VALUE ...]"
    models = "export folder, run, checkpoint or Hub repository; LABEL=MODEL gives it another name in the tables"
    parser.add_argument("models", metavar="MODEL", nargs="+", help=models)
    _add_flags(parser)
    return parser


def compare_parser() -> ConfigParser:
    """The flags of `evaluate`; the data may be left out where what is compared are evaluations."""
    parser = config_parser("compare", "Compare models clip by clip with the first of them.")
    parser.usage = "snac-accel compare A B [C ...] --output DIR [--dataset_path DATA] [--SECTION.SETTING VALUE ...]"
    models = "folders that `evaluate` wrote; or models, as `evaluate` takes them"
    parser.add_argument("models", metavar="A", nargs="+", help=models)
    _add_flags(parser)
    return parser


def _add_flags(parser: ConfigParser) -> None:
    group = parser.add_argument_group("evaluation")
    replaced = "folder to write; an evaluation that stands there is replaced"
    group.add_argument("--output", metavar="DIR", required=True, help=replaced)
    number = f"clips, chosen by their names ({NUM_CLIPS}); of a source without an index the first ones"
    group.add_argument("--clips", type=int, default=NUM_CLIPS, metavar="N", help=number)
    group.add_argument("--all", action="store_true", help="every clip")
    seconds = f"of each clip at most its first S seconds ({CLIP_SECONDS:g})"
    group.add_argument("--max_clip_seconds", type=float, default=CLIP_SECONDS, metavar="S", help=seconds)
    group.add_argument("--metrics", metavar="NAME", nargs="+", help="these metrics (default: all that can be computed here)")
    group.add_argument("--full_only", action="store_true", help="leave out what the coarse levels give on their own")
    listed = f"clips on the page, among them the worst ({PAGE_CLIPS})"
    group.add_argument("--page_clips", type=int, default=PAGE_CLIPS, metavar="N", help=listed)
    group.add_argument("--title", metavar="TEXT", help="of the page")


def evaluate(arguments: Sequence[str]) -> int:
    """Measure models on clips: a table, a summary with intervals, and a page to listen to."""
    flags = evaluate_parser().parse_known(arguments)
    config = _checked(flags)
    from ..evaluation import summarize, write_evaluation
    from ..evaluation.pages import evaluation_page

    accelerator, evaluated = _evaluate(flags, config)
    results = evaluated.results
    lines = summarize(results)
    title = flags.title or f"Evaluation: {', '.join(results.labels)}"
    page = evaluation_page(results, lines, evaluated.page_clips, title)
    write_evaluation(Path(flags.output), results, lines, page, accelerator)
    _report(page.tables, results, flags, accelerator.is_main_process)
    return EXIT_OK


def compare(arguments: Sequence[str]) -> int:
    """Compare models, or evaluations, clip by clip with the first of them."""
    flags = compare_parser().parse_known(arguments)
    if len(flags.models) < 2:
        raise ConfigError(f"{flags.models[0]}: give at least two, the first is what the others are compared with")
    folders = [Path(name).expanduser() for name in flags.models]
    written = [(folder / SUMMARY_FILE).is_file() for folder in folders]
    if any(written) and not all(written):
        other = flags.models[written.index(False)]
        raise ConfigError(f"{other}: is no evaluation, as the others are: evaluate it first, or give models alone")
    config = _checked(flags, reads_data=not any(written))
    from ..evaluation import comparison_page, differences, merge, merge_page_clips, read_results, summarize, write_evaluation

    if any(written):
        parts = [read_results(folder) for folder in folders]
        results, accelerator = merge(parts), None
        clips = merge_page_clips(folders, parts, results.labels)
    else:
        accelerator, evaluated = _evaluate(flags, config)
        results, clips = evaluated.results, evaluated.page_clips
    found = differences(results)
    page = comparison_page(results, found, clips, flags.title or f"Comparison with {results.labels[0]}")
    write_evaluation(Path(flags.output), results, summarize(results), page, accelerator, found)
    _report(page.tables, results, flags, accelerator is None or accelerator.is_main_process)
    return EXIT_OK


def _checked(flags: argparse.Namespace, reads_data: bool = True) -> TrainingConfig:
    """The configuration, after a look at everything that can be wrong before torch is loaded."""
    config = read_config(flags)
    for name, least in (("clips", 1), ("page_clips", 0)):
        if getattr(flags, name) < least:
            raise ConfigError(f"--{name} {getattr(flags, name)}: should be at least {least}")
    if not 0 < flags.max_clip_seconds <= 3600:
        raise ConfigError(f"--max_clip_seconds {flags.max_clip_seconds:g}: should be above 0 and at most 3600")
    _check_output(Path(flags.output).expanduser())
    if reads_data:
        check_launcher(config, os.environ)
    return config


def _check_output(folder: Path) -> None:
    """Raise ConfigError unless the folder is new, empty, or an evaluation: what stands there is replaced as a whole."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file, should be a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SUMMARY_FILE).is_file():
        raise ConfigError(f"--output {folder}: holds something else than an evaluation; give a new folder")
    above = folder.absolute().parent
    while not above.exists():
        above = above.parent
    if not os.access(above, os.W_OK):
        raise ConfigError(f"--output {folder}: {above} cannot be written to")
    free = free_bytes(above)
    if free is not None and free < LEAST_FREE_BYTES:
        raise ConfigError(f"--output {folder}: only {free} bytes are free there")


def _evaluate(flags: argparse.Namespace, config: TrainingConfig) -> tuple[Accelerator, Evaluated]:
    from ..agreement import on_every_rank
    from ..evaluation import Settings, choose_metrics, distinct, evaluate_models, find_model, name_and_label, open_model
    from ..evaluation.traits import metrics_of_levels
    from ..launching import create_accelerator

    metrics, missing = choose_metrics(flags.metrics)
    if not metrics:
        raise ConfigError(f"--metrics: none of them can be computed here: {'; '.join(missing.values())}")
    named = [name_and_label(word) for word in flags.models]
    config, whose = _data_of(flags, config, [name for name, _ in named])
    for name, _ in named:
        find_model(name)  # all names are looked at before the first is loaded
    accelerator = create_accelerator(config)
    models = on_every_rank(accelerator, lambda: [open_model(name, label) for name, label in named])
    labels = distinct([model.label for model in models])
    models = [model._replace(label=label) for model, label in zip(models, labels, strict=True)]
    clips = on_every_rank(accelerator, lambda: _clips(flags, config, whose))
    if accelerator.is_main_process:
        print(f"{', '.join(labels)}: {len(clips)} clips of {whose or _where(config)}", file=sys.stderr)
    settings = Settings(
        metrics=metrics,
        of_levels=metrics_of_levels(metrics, flags.metrics is not None),
        missing_metrics=missing,
        seed=config.training.seed,
        num_page_clips=flags.page_clips,
        every_level=not flags.full_only,
        facts={"data": whose or _where(config)},
    )
    follow = partial(_progress, shown=accelerator.is_main_process and config.tracking.progress_bar)
    return accelerator, evaluate_models(models, clips, accelerator, settings, follow)


def _data_of(flags: argparse.Namespace, config: TrainingConfig, names: Sequence[str]) -> tuple[TrainingConfig, str | None]:
    """Whose data are evaluated on: those of the flags (None), or what the run of the first model held out (its name)."""
    from ..evaluation import find_model, run_config

    given = [name for name in vars(flags) if name in SETTINGS and name.partition(".")[0] in ("data", "validation")]
    if given or flags.preset or flags.dataset or flags.config:
        return config, None
    own = run_config(find_model(names[0]))
    if own is None:
        raise ConfigError(f"{names[0]} does not say what it was validated on: give --dataset_path")
    if not own.validation.enabled:
        raise ConfigError(f"the run of {names[0]} was not validated: give --dataset_path")
    return own, "what the run held out"


def _clips(flags: argparse.Namespace, config: TrainingConfig, whose: str | None) -> EvaluationClips:
    from ..evaluation import open_clips

    return open_clips(config, None if flags.all else flags.clips, flags.max_clip_seconds, held_out=whose is not None)


def _where(config: TrainingConfig) -> str:
    """The data in words, without the folders of this machine."""
    held_out = config.validation
    if held_out.dataset_path is not None:
        names = [held_out.dataset_path.rstrip("/").rpartition("/")[2]]
    else:
        names = [source.label for source in config.data.each_source()]
    return f"{', '.join(names)} ({held_out.split or config.data.split})"


def _progress(numbers: Iterable[int], shown: bool) -> Iterable[int]:
    """The same numbers, with a bar on stderr."""
    from tqdm import tqdm

    return tqdm(list(numbers), desc="evaluating", unit="clip", file=sys.stderr, disable=not (shown and sys.stderr.isatty()))


def _report(tables: Sequence[Table], results: Results, flags: argparse.Namespace, speaks: bool) -> None:
    """Print the tables, what is missing, and where the page is."""
    from ..evaluation import as_text

    if not speaks:
        return
    print(as_text(tables))
    for name, what in results.missing_metrics.items():
        print(f"missing: {name} ({what})")
    for failure in results.failures[:5]:
        print(f"left out: {failure['name']} {failure['reason']}")
    print(f"\nwritten to {flags.output}; open {Path(flags.output) / 'index.html'} to listen")
