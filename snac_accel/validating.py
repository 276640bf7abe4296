"""What a run does with its model beside training it: validation, and at the end export, samples and results."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor
from torch.profiler import record_function

from .agreement import on_first_rank
from .codebook import entropy_rates
from .config import to_dict
from .errors import CheckpointError, DataError
from .evaluate import (
    Evaluation,
    EvaluationStopped,
    SamplePair,
    evaluate,
    level_information,
    sample_pairs,
    write_samples,
)
from .export import check_export, write_export
from .files import writing_problem
from .health import last_word, watch_codebooks
from .pulse import in_phase
from .report import results_table
from .run_card import run_card
from .session import Session, agree_to_stop
from .tracking import validations

BEST_METRIC = "mel_distance"  # of the held-out clips; the smallest is the best
log = logging.getLogger(__name__)


@in_phase("validation")
@record_function("validation")
def validate_model(session: Session) -> Evaluation | None:
    """Measure the generator on the held-out clips, log the numbers, samples and pictures; collective.

    Once any rank is asked to stop it is broken off on all of them, and made after the next start.
    """
    if session.validation is None or session.state.validated_at == session.state.step:
        return None
    own = session.validation.share(session.accelerator.process_index, session.accelerator.num_processes)
    try:
        with averaged(session):
            result = evaluate(
                session.generator,
                session.pulse.along(own),
                seed=session.seed,
                reduce=session.sum_over_ranks,
                stopped=lambda: session.stop.number != 0,
            )
    except EvaluationStopped:
        agree_to_stop(session)
        return None
    for failure in own.failures:
        log.warning("validation clip %s is left out: %s", failure.name, failure.reason)
    if not result.num_clips:
        raise DataError(
            "no validation clip could be decoded: see the reasons above, or set validation.enabled to false"
        )
    value = result.metrics[BEST_METRIC]
    session.state.note_validation(BEST_METRIC, value)
    session.score = {"metric": BEST_METRIC, "value": value, "step": session.state.step} if math.isfinite(value) else None
    model = session.config.model
    rates = entropy_rates(result.perplexity, model.facts.token_rates, model.codebook_size)
    session.tracking.log(result.scalars() | {f"validation/{name}": value for name, value in rates.items()}, session.state.step)
    watch_codebooks(session, result)
    session.tracking.say(f"step {session.state.step}: {describe(result)}")
    if session.accelerator.is_main_process and session.config.validation.num_samples:
        with averaged(session):
            session.tracking.samples(_pairs(session), session.config.model.sampling_rate, session.state.step)
    return result


@contextmanager
def averaged(session: Session) -> Iterator[None]:
    """The average of the generator's weights in their place, where there is one."""
    if session.state.average is None:
        yield
        return
    with session.state.average.inside(session.generator):
        yield


def describe(result: Evaluation) -> str:
    """One line of the main numbers."""
    levels = " / ".join(f"{value:.0f}" for value in result.perplexity)
    return (
        f"held-out log-mel {result.metrics['mel_distance']:.3f}, STFT {result.metrics['stft_distance']:.3f}, "
        f"perplexity {levels} ({result.num_clips} clips, {result.audio_seconds:.0f} s)"
    )


def _pairs(session: Session) -> list[SamplePair]:
    assert session.validation is not None
    clips = islice(session.validation, session.config.validation.num_samples)
    return sample_pairs(session.generator, clips, seed=session.seed)


@in_phase("export")
def finish(session: Session) -> None:
    """Export, check the export against the stock package, write samples, print the results; collective."""
    on_first_rank(session.accelerator, lambda: _finish(session))


def _finish(session: Session) -> None:
    with averaged(session):
        _export(session)
        if session.validation is not None:
            _write_samples(session)
            session.tracking.say(_results(session))
            last_word(session)


def _export(session: Session) -> None:
    model = to_dict(session.config)["model"]
    try:
        weights = session.generator.state_dict()
        card = run_card(
            session.folder.root, to_dict(session.config), session.state.step, weights,
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


def _results(session: Session) -> str:
    assert session.validation is not None
    rows = validations(session.folder.logs)
    if not rows:  # a run that branched off, or lost its log, after the last step
        return "no validation in the log of this run"
    clips = session.pulse.along(session.validation)
    carried = level_information(session.generator, clips, seed=session.seed)
    return results_table(rows[0], rows[-1], carried)
