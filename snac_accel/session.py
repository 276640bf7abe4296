"""A run in progress, and the periodic work around its steps. Every function here that is collective says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.profiler import record_function

from .accounts import SourceAccounts, bad_samples_file
from .agreement import on_first_rank
from .codebook import entropy_rates
from .compiling import Compilation
from .config import TrainingConfig
from .dataset import Batch, Mixture, ValidationClips
from .errors import CheckpointError, DataError
from .evaluate import Evaluation
from .generator import TrainableSNAC
from .hub import Publisher
from .line_log import LineLog
from .meter import StepMeter
from .pace import Pace, slow_rank
from .profiling import StepProfiler
from .pulse import Pulse, in_phase
from .run_folder import RunFolder
from .saving import Saver
from .signals import STOP_SIGNALS
from .state import TrainState
from .step import StepReport
from .stopping import Stopping
from .stopwatch import Stopwatch
from .tracking import Tracking

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
    pace: Pace = field(default_factory=Pace)  # of this rank against the others
    pulse: Pulse = field(default_factory=Pulse)  # what this process is doing
    stop: Stopping = field(default_factory=Stopping)  # of this rank
    stopped_by: int = 0  # the signal that any rank was given, 0: none; the same on every rank
    rollbacks: dict[str, int] = field(default_factory=dict)  # how often this process went back to a checkpoint, by name
    bad_samples: LineLog | None = None  # of this rank, once there is one
    saver: Saver | None = None  # on rank 0
    publisher: Publisher | None = None  # on rank 0, if the run is pushed to the Hub
    saved_at: int | None = None  # step of the last checkpoint, which may still be in writing
    score: dict[str, Any] | None = None  # of the last validation: metric, value, step
    evaluation: Evaluation | None = None  # the last one of this process
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

    Raises DataError when too many clips are bad, on every rank.
    """
    accounts, state = session.accounts, session.state
    records = accounts.add(batches)
    _write_bad_samples(session, records)
    samples = sum(batch.audio.numel() for batch in batches)
    padding = sum(batch.num_padding for batch in batches)
    own = [samples - padding, padding, sum(batch.num_retries for batch in batches), _given_up(session)]
    own += _stop_flags(session) + accounts.own_numbers()
    if report.forward is not None and report.ended is not None:
        session.pace.add_step(waited, session.pulse.entered, report.forward, report.ended)
    audio, padding, retries, given_up, *others = session.sum_over_ranks(
        torch.tensor(own, dtype=torch.int64, device=session.accelerator.device)
    ).tolist()
    stops, numbers = others[: len(STOP_SIGNALS)], others[len(STOP_SIGNALS) :]
    session.stopped_by = _first_signal(stops)
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
    if given_up:
        on_first_rank(session.accelerator, lambda: _give_up(session))


def _given_up(session: Session) -> int:
    """Whether this rank could not save for so long that the run is to end; what was saved since is reported here."""
    if session.saver is None:
        return 0
    given_up = session.saver.given_up  # first: what it reports below may be of a later save
    session.saver.poll()
    return int(given_up)


def _give_up(session: Session) -> None:
    assert session.saver is not None
    raise CheckpointError(
        f"{session.saver.failed_in_a_row} saves in a row failed (checkpoint.max_failed_saves): {session.saver.problem}"
    )


def _stop_flags(session: Session) -> list[int]:
    """Which of `STOP_SIGNALS` this rank would stop for: at most one."""
    return [int(session.stop.number == number) for number in STOP_SIGNALS]


def _first_signal(ranks: Sequence[int]) -> int:
    """The signal to stop for, given how many ranks would for each: the same on every rank; 0 if none would."""
    return next((int(number) for number, asked in zip(STOP_SIGNALS, ranks, strict=True) if asked), 0)


def agree_to_stop(session: Session) -> bool:
    """Learn, outside a step, whether any rank was asked to stop; collective."""
    own = torch.tensor(_stop_flags(session), device=session.accelerator.device)
    session.stopped_by = _first_signal(session.sum_over_ranks(own).tolist())
    return session.stopped_by != 0


def _write_bad_samples(session: Session, records: list[dict[str, Any]]) -> None:
    if not records:
        return
    if session.bad_samples is None:
        file = bad_samples_file(session.folder.logs, session.accelerator.process_index)
        session.bad_samples = LineLog(file, log.warning)
    for record in records:
        session.bad_samples.write(json.dumps({"step": session.state.step, **record}))


@in_phase("logging")
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
    scalars |= codebook_scalars(session, scalars)
    for name in ("skipped_updates", "spikes", "rollbacks"):
        scalars[f"train/{name}"] = state.counters[name]
    if state.scaler.is_enabled():
        scalars["train/loss_scale"] = state.scaler.get_scale()
    if session.compilation is not None:
        scalars |= session.compilation.scalars()
    pace, step_seconds = session.pace, scalars["time/step_seconds"]
    scalars |= slow_rank(session.accelerator, pace, step_seconds, state.step, session.tracking.say)
    scalars |= session.pulse.clock.scalars()
    session.tracking.log(scalars, state.step)
    session.tracking.show(_headline(scalars))


def note_unlogged(session: Session) -> None:
    """Put into the state what the next line of the log will be made of, if there was a step since the last; collective."""
    session.state.unlogged = gather_object([session.meter.sums()]) if session.meter.losses else []


def take_unlogged(session: Session) -> None:
    """Go on with the line of the log that was begun before the run was interrupted, unless the ranks are others now."""
    everyone = session.state.unlogged
    if len(everyone) == session.accelerator.num_processes:
        session.meter.go_on(everyone[session.accelerator.process_index], session.accelerator.device)


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


def codebook_scalars(session: Session, scalars: Mapping[str, float]) -> dict[str, float]:
    """Ages of the codes, and their entropy where the line of the log holds their perplexities."""
    model, rates = session.config.model, session.config.model.facts.token_rates
    named = session.state.usage.scalars(session.config.codebook.restart_after)
    perplexities = [scalars.get(f"codebook/level_{level}/perplexity") for level in range(len(rates))]
    known = [value for value in perplexities if value is not None]
    if len(known) == len(rates):  # not where every step since the last line was skipped
        named |= entropy_rates(known, rates, model.codebook_size)
    return {f"codebook/{name}": value for name, value in named.items()}


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
