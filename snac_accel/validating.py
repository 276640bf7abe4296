"""What a run does with its model beside training it: validation, and at the end export, samples and results."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from .agreement import on_first_rank
from .averages import weights_in
from .checkpoint import read_exported
from .codebook import entropy_rates
from .config import TrainingConfig, to_dict
from .errors import CheckpointError, ConfigError, DataError
from .evaluate import (
    Evaluation,
    EvaluationStopped,
    SamplePair,
    evaluate,
    level_information,
    sample_pairs,
    write_samples,
)
from .evaluation.run_page import write_run_page
from .export import check_export, write_export
from .files import writing_problem
from .health import last_word, watch_codebooks
from .metrics import find_metric, usable_metrics
from .pulse import in_phase
from .report import results_table
from .run_card import run_card
from .session import Session, agree_to_stop
from .stored import list_checkpoints, place_of, verify_checkpoint
from .tracking import validations

SHORT = {"mel_distance": "log-mel", "stft_distance": "STFT", "si_sdr_db": "SI-SDR"}  # in the line of a validation
WITHOUT_AVERAGE, CHANGE = "validation/without_average", "validation/change"
log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """What a validation came to."""

    result: Evaluation  # of the moving average, where there is one: of what would be exported
    without_average: Evaluation | None  # of the weights themselves; None: there is no average, or they are not asked for


def check_metrics(config: TrainingConfig) -> None:
    """Raise ConfigError, one line, if a metric of the validation cannot be computed here."""
    if not config.validation.enabled:
        return
    for name, advice in usable_metrics(config.validation.metrics)[1].items():
        raise ConfigError(f"validation.metrics: {name} cannot be measured here: {advice}")


@in_phase("validation")
@record_function("validation")
def validate_model(session: Session) -> Evaluation | None:
    """Measure the generator on the held-out clips, log the numbers, samples and pictures; collective.

    Once any rank is asked to stop it is broken off on all of them, and made after the next start.
    """
    if session.validation is None or session.state.validated_at == session.state.step:
        return None
    started = time.perf_counter()
    try:
        measured = _measure(session)
    except EvaluationStopped:
        agree_to_stop(session)
        return None
    result = measured.result
    if not result.num_clips:
        raise DataError(
            "no validation clip could be decoded: see the reasons above, or set validation.enabled to false"
        )
    _judge(session, result)
    model = session.config.model
    rates = entropy_rates(result.perplexity, model.facts.token_rates, model.codebook_size)
    scalars = result.scalars() | {f"validation/{name}": value for name, value in rates.items()}
    scalars |= changes(session.state.untouched, result)
    if measured.without_average is not None:
        scalars |= measured.without_average.scalars(WITHOUT_AVERAGE)
    scalars["time/validation"] = time.perf_counter() - started
    session.tracking.log(scalars, session.state.step)
    watch_codebooks(session, result)
    session.tracking.say(f"step {session.state.step}: {describe(result, session.state.untouched)}")
    if session.accelerator.is_main_process and session.config.validation.num_samples:
        with averaged(session):
            session.tracking.samples(_pairs(session), session.config.model.sampling_rate, session.state.step)
    return result


def _measure(session: Session) -> Measured:
    """Every rank measures its clips, and all get the same numbers; collective."""
    average, options = session.state.average, session.config.validation
    with averaged(session):
        result = _evaluate(session)
    if average is None or not options.without_average:
        return Measured(result, None)
    return Measured(result, _evaluate(session) if average.updates else result)


def _evaluate(session: Session) -> Evaluation:
    """The generator as it is on the held-out clips; collective."""
    assert session.validation is not None
    own = session.validation.share(session.accelerator.process_index, session.accelerator.num_processes)
    result = evaluate(
        session.generator,
        session.pulse.along(own),
        metrics=session.config.validation.metrics,
        seed=session.seed,
        reduce=session.sum_over_ranks,
        stopped=lambda: session.stop.number != 0,
    )
    for failure in own.failures:
        log.warning("validation clip %s is left out: %s", failure.name, failure.reason)
    return result


def _judge(session: Session, result: Evaluation) -> None:
    """Remember whether this validation is the best, and, of a fine-tuning, what the untouched model came to."""
    state, metric = session.state, session.config.validation.best_metric
    value, better = result.metrics.get(metric, math.nan), find_metric(metric).better
    state.note_validation(metric, value, better)
    session.score = None
    if math.isfinite(value):
        session.score = {"metric": metric, "value": value, "better": better, "step": state.step}
    if state.step == 0 and session.config.training.init_from is not None:
        state.untouched = dict(result.metrics)


def changes(untouched: Mapping[str, float], result: Evaluation) -> dict[str, float]:
    """What fine-tuning has changed since the untouched model, by metric, as `validation/change/…` for logs."""
    return {f"{CHANGE}/{name}": value - untouched[name] for name, value in result.metrics.items() if name in untouched}


def ends_early(session: Session) -> bool:
    """Whether the last `validation.patience` validations were no better than one before; the same on every rank."""
    patience = session.config.validation.patience
    return patience is not None and session.state.validations_since_best >= patience


@contextmanager
def averaged(session: Session) -> Iterator[None]:
    """The average of the generator's weights in their place, where there is one."""
    if session.state.average is None:
        yield
        return
    with session.state.average.inside(session.generator):
        yield


@contextmanager
def exported(session: Session) -> Iterator[int]:
    """What the run exports in the place of the generator's weights; yields the step that it is of."""
    checkpoint = best_checkpoint(session)
    if checkpoint is None:
        with averaged(session):
            yield session.state.step
        return
    with weights_in(session.generator, read_exported(checkpoint)):
        yield int(session.state.best["step"])


def best_checkpoint(session: Session) -> Path | None:
    """The checkpoint of the best validation, where that is exported and is not the last step."""
    step = session.state.best.get("step")
    if not session.config.validation.exports_best or step is None or step == session.state.step:
        return None
    for path in reversed(list_checkpoints(session.folder.checkpoints)):
        if (place := place_of(path)) is None or place.step != step:
            continue
        try:
            verify_checkpoint(path)
            return path
        except CheckpointError as error:
            session.tracking.say(f"warning: {error}")
    session.tracking.say(f"warning: the checkpoint of step {step}, the best, is not there: the last model is exported")
    return None


def describe(result: Evaluation, untouched: Mapping[str, float] | None = None) -> str:
    """One line of the main numbers; of a fine-tuning with the change since the untouched model."""
    levels = " / ".join(f"{value:.0f}" for value in result.perplexity)
    numbers = [_described(name, value, untouched or {}) for name, value in result.metrics.items()]
    return f"held-out {', '.join(numbers)}, perplexity {levels} ({result.num_clips} clips, {result.audio_seconds:.0f} s)"


def _described(name: str, value: float, untouched: Mapping[str, float]) -> str:
    change = f" ({value - untouched[name]:+.3f})" if name in untouched else ""
    return f"{SHORT.get(name, name)} {value:.3f}{change}"


def _pairs(session: Session) -> list[SamplePair]:
    assert session.validation is not None
    clips = islice(session.validation, session.config.validation.num_samples)
    return sample_pairs(session.generator, clips, seed=session.seed)


@in_phase("export")
def finish(session: Session) -> None:
    """Export, check the export against the stock package, write samples, print the results; collective."""
    on_first_rank(session.accelerator, lambda: _finish(session))


def _finish(session: Session) -> None:
    with exported(session) as step:
        _export(session, step)
        if session.validation is not None:
            _write_samples(session)
            write_run_page(session, step)
            session.tracking.say(_results(session, step))
            last_word(session)


def _export(session: Session, step: int) -> None:
    model = to_dict(session.config)["model"]
    try:
        weights = session.generator.state_dict()
        card = run_card(
            session.folder.root, to_dict(session.config), step, weights,
            averaged=session.state.average is not None,
        )  # fmt: skip
        export = write_export(session.folder.export, model, weights, card=card)
    except OSError as error:
        problem = writing_problem(error, session.folder.export)
        raise CheckpointError(f"{problem}; the checkpoint is saved: snac-accel export {session.folder.root} DIR") from error
    check_export(export, session.generator, _probe(session))
    session.tracking.say(f"exported to {export}: snac.SNAC.from_pretrained({str(export)!r}) loads it")


def _write_samples(session: Session) -> None:
    try:
        write_samples(session.folder.samples, _pairs(session), session.config.model.sampling_rate)
    except OSError as error:
        session.tracking.say(f"warning: {writing_problem(error, session.folder.samples)}")


def _probe(session: Session) -> Tensor:
    """Audio (1, 1, T) to compare codes on: held-out speech, or noise where nothing is held out."""
    if session.validation is not None:
        for clip in session.validation:
            return clip.audio[None].to(session.accelerator.device)
    noise = torch.randn(
        1, 1, session.config.segment_samples, generator=torch.Generator().manual_seed(session.seed)
    )
    return (0.1 * noise).to(session.accelerator.device)


def _results(session: Session, step: int) -> str:
    """The table of the first validation and that of the exported step."""
    assert session.validation is not None
    rows = validations(session.folder.logs)
    if not rows:  # a run that branched off, or lost its log, after the last step
        return "no validation in the log of this run"
    clips = session.pulse.along(session.validation)
    carried = level_information(session.generator, clips, seed=session.seed)
    last = [row for row in rows if row["step"] == step] or rows
    return results_table(rows[0], last[-1], carried)
