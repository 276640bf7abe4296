"""A run in progress, and the periodic work around its steps. Every function here that is collective says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import record_function

from .accounts import SourceAccounts, bad_samples_file
from .checkpoint import save_checkpoint
from .compiling import Compilation
from .config import TrainingConfig, config_hash, to_dict
from .dataset import Batch, Mixture, ValidationClips
from .errors import DataError, UserError
from .evaluate import Evaluation, SamplePair, evaluate, level_information, sample_pairs, write_samples
from .export import check_export, write_export
from .generator import TrainableSNAC
from .meter import StepMeter
from .profiling import StepProfiler
from .report import results_table
from .run_data import training_facts
from .run_folder import RunFolder
from .signals import STOP_SIGNALS, StopSignal
from .state import TrainState
from .step import StepReport
from .stopwatch import Stopwatch
from .tracking import Tracking, validations

log = logging.getLogger(__name__)


@dataclass
class Session:
    """Everything that `fit` works with."""

    config: TrainingConfig
    accelerator: Accelerator
    folder: RunFolder
    state: TrainState
    training: Mixture
    validation: ValidationClips | None  # of all ranks
    tracking: Tracking
    accumulation: int  # micro-batches per step
    global_batch_size: int  # windows per step
    accounts: SourceAccounts
    meter: StepMeter = field(default_factory=StepMeter)
    stop: StopSignal = field(default_factory=StopSignal)  # of this rank
    stopped_by: int = 0  # the signal that any rank was given, 0: none; the same on every rank
    skipped_in_a_row: int = 0
    validated_at: int | None = None  # step of the last validation
    saved_at: int | None = None  # step of the last checkpoint
    start: Stopwatch = field(default_factory=Stopwatch)  # what the start took
    started: bool = False  # that was said
    compilation: Compilation | None = None  # None: nothing is compiled

    def profiler(self) -> StepProfiler:
        """What profiles the steps of `tracking.profile`, on rank 0."""
        steps = self.config.tracking.profiled_steps if self.accelerator.is_main_process else None
        about = (
            f"Rank 0 of {self.accelerator.num_processes}, {self.accelerator.device}, mixed precision "
            f"{self.accelerator.mixed_precision}; {self.accumulation} x {self.config.training.batch_size} windows a step."
        )
        return StepProfiler(steps, self.folder.profile, about, self.tracking.say)

    @property
    def generator(self) -> TrainableSNAC:
        """The generator without wrappers; a forward through it involves this rank alone."""
        return self.accelerator.unwrap_model(self.state.generator)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.training.seed

    @property
    def windows_per_epoch(self) -> int | None:
        """Windows in what the log calls an epoch; None if a source without an index leaves it open."""
        steps = self.config.data.steps_per_epoch
        return steps * self.global_batch_size if steps is not None else self.training.num_clips

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Collective sum."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def mean_over_ranks(self, tensor: Tensor) -> Tensor:
        """Collective mean."""
        return self.accelerator.reduce(tensor, reduction="mean")


@record_function("bookkeeping")
def account(session: Session, batches: list[Batch], report: StepReport, waited: float) -> None:
    """Add a step to the books, and learn whether any rank was asked to stop; collective.

    Raises DataError when too many clips are bad, UserError when too many steps in a row were not finite: on every rank.
    """
    accounts, state = session.accounts, session.state
    records = accounts.add(batches)
    _write_bad_samples(session, records)
    samples = sum(batch.audio.numel() for batch in batches)
    padding = sum(batch.num_padding for batch in batches)
    own = [samples - padding, padding, sum(batch.num_retries for batch in batches)]
    own += [session.stop.number == number for number in STOP_SIGNALS] + accounts.own_numbers()
    audio, padding, retries, *others = session.sum_over_ranks(
        torch.tensor(own, dtype=torch.int64, device=session.accelerator.device)
    ).tolist()
    stops, numbers = others[: len(STOP_SIGNALS)], others[len(STOP_SIGNALS) :]
    session.stopped_by = next((int(n) for n, ranks in zip(STOP_SIGNALS, stops, strict=True) if ranks), 0)
    new = {
        "audio_samples": audio,
        "padding_samples": padding,
        "bad_clips": accounts.take(numbers),
        "network_retries": retries,
    }
    for name, number in new.items():
        state.count(name, number)
    session.meter.add(
        report, waited=waited, audio_seconds=(audio + padding) / session.config.model.sampling_rate
    )
    if session.compilation is not None and (note := session.compilation.after_step()):
        session.tracking.say(note)
        session.tracking.note(note)
    if message := accounts.stop_message():
        raise DataError(message)
    session.skipped_in_a_row = session.skipped_in_a_row + 1 if report.skipped else 0
    if session.skipped_in_a_row >= session.config.training.non_finite_limit:
        raise UserError(
            f"{session.skipped_in_a_row} steps in a row up to step {state.step} had losses or gradients that are not finite: "
            "lower training.learning_rate, or set training.max_grad_norm"
        )


def _write_bad_samples(session: Session, records: list[dict[str, Any]]) -> None:
    if not records:
        return
    file = bad_samples_file(session.folder.logs, session.accelerator.process_index)
    with open(file, "a", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"step": session.state.step, **record}) + "\n" for record in records)


@record_function("bookkeeping")
def log_step(session: Session) -> None:
    """Write the means since the last call to bar, trackers and log; collective."""
    state = session.state
    scalars = session.meter.flush(session.mean_over_ranks)
    scalars["train/learning_rate"] = state.optimizers["generator"].param_groups[-1]["lr"]
    total = state.counters["audio_samples"] + state.counters["padding_samples"]
    scalars["data/padding_share"] = state.counters["padding_samples"] / max(total, 1)
    scalars["data/clips"] = state.position
    scalars["data/bad_clips"] = state.counters["bad_clips"]
    scalars["data/network_retries"] = state.counters["network_retries"]
    scalars |= source_scalars(session)
    scalars["train/skipped_updates"] = state.counters["skipped_updates"]
    if state.scaler.is_enabled():
        scalars["train/loss_scale"] = state.scaler.get_scale()
    if session.compilation is not None:
        scalars |= session.compilation.scalars()
    session.tracking.log(scalars, state.step)
    session.tracking.show(_headline(scalars))


def source_scalars(session: Session) -> dict[str, float]:
    """What each source gave, and the epoch that the run is in."""
    position, mixture = session.state.position, session.training
    scalars = session.accounts.scalars()
    if (windows := session.windows_per_epoch) is not None:
        scalars["data/epoch"] = position / windows
    if len(mixture.parts) > 1:
        for name, passes in zip(mixture.names, mixture.passes(position), strict=True):
            if passes is not None:
                scalars[f"data/{name}/passes"] = passes
    return scalars


def _headline(scalars: Mapping[str, float]) -> dict[str, float]:
    names = {
        "mel": "train/multi_scale_mel",
        "adv": "train/adversarial",
        "fm": "train/feature_matching",
        "audio_s/s": "throughput/audio_seconds_per_second",
    }
    shown = {label: scalars[name] for label, name in names.items() if name in scalars}
    shown["disc"] = sum(value for name, value in scalars.items() if name.startswith("discriminator/"))
    return shown


@record_function("validation")
def validate_model(session: Session) -> Evaluation | None:
    """Measure the generator on the held-out clips, log the numbers, samples and pictures; collective."""
    if session.validation is None or session.validated_at == session.state.step:
        return None
    own = session.validation.share(session.accelerator.process_index, session.accelerator.num_processes)
    result = evaluate(session.generator, own, seed=session.seed, reduce=session.sum_over_ranks)
    session.validated_at = session.state.step
    for failure in own.failures:
        log.warning("validation clip %s is left out: %s", failure.name, failure.reason)
    if not result.num_clips:
        raise DataError(
            "no validation clip could be decoded: see the reasons above, or set validation.enabled to false"
        )
    session.tracking.log(result.scalars(), session.state.step)
    session.tracking.say(f"step {session.state.step}: {describe(result)}")
    if session.accelerator.is_main_process and session.config.validation.num_samples:
        session.tracking.samples(_pairs(session), session.config.model.sampling_rate, session.state.step)
    return result


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


@record_function("save")
def save(session: Session) -> None:
    """Write a checkpoint, once per step; collective."""
    if session.saved_at == session.state.step:
        return
    if session.accelerator.is_main_process:
        path = save_checkpoint(
            session.folder.checkpoints,
            session.state,
            config=to_dict(session.config),
            config_hash=config_hash(session.config),
            world_size=session.accelerator.num_processes,
            global_batch_size=session.global_batch_size,
            data=training_facts(session.training),
            keep_last=session.config.checkpoint.keep_last,
        )
        session.tracking.say(f"step {session.state.step}: saved {path}")
    session.saved_at = session.state.step
    session.accelerator.wait_for_everyone()


def finish(session: Session) -> None:
    """Export, check the export against the stock package, write samples, print the results; collective."""
    if session.accelerator.is_main_process:
        export = write_export(
            session.folder.export, to_dict(session.config)["model"], session.generator.state_dict()
        )
        check_export(export, session.generator, _probe(session))
        session.tracking.say(f"exported to {export}: snac.SNAC.from_pretrained({str(export)!r}) loads it")
        if session.validation is not None:
            write_samples(session.folder.samples, _pairs(session), session.config.model.sampling_rate)
            session.tracking.say(_results(session))
    session.accelerator.wait_for_everyone()


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
    carried = level_information(session.generator, session.validation, seed=session.seed)
    return results_table(rows[0], rows[-1], carried)
