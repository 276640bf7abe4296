"""Training from beginning to end: `main` → `setup_models` → `setup_optimizers` → `setup_dataset` → `fit`.

The only training code that builds an `Accelerator`. What a run begins with is in `starting`, what happens around the steps in
`session`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from signal import Signals
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.amp import GradScaler
from torch.profiler import record_function

from .accounts import SourceAccounts
from .activations import checkpoint_activations
from .agreement import check_data, check_settings, lost_processes, on_every_rank, on_first_rank
from .averages import WeightAverage, exponential, power
from .balancer import Balancer
from .changes import alters_optimizers
from .checkpoint import fresh_method, load_checkpoint, save_checkpoint, without_average
from .codebook import METHODS, CodebookUsage, codebook_method
from .compiling import check_compiler, compile_networks
from .config import TrainingConfig, to_dict, validate
from .config.running import AveragingSettings
from .dataset import AudioDataset, Batch, Mixture, ValidationClips, make_loader
from .dataset.loader import BatchLoader
from .discriminators import DISCRIMINATORS
from .doctor import quick_check
from .errors import ConfigError
from .files import writing_problem
from .generator import TrainableSNAC, freeze, zero_encoding_biases
from .keeping import is_best, open_saver, save, save_now, save_snapshots
from .launching import accumulation_steps, create_accelerator, release
from .meter import StepMeter, count_step
from .optimizers import renew_optimizers, setup_optimizers
from .publishing import open_publisher, publish_finished
from .pulse import Pulse
from .report import Processes, introduction
from .rollback import guards_of, meet_trouble
from .run_data import (
    changed_data,
    check_passes,
    data_facts,
    data_promise,
    describe_data,
    mix,
    open_training,
    open_validation,
)
from .resuming import RunClaim, find_checkpoints, set_newer_aside
from .run_folder import RunFolder, create_run
from .runs import COMPLETE, STOPPED
from .seeds import derive_seed
from .session import Session, account, agree_to_stop, log_step, take_unlogged
from .signals import StopSignal
from .starting import keep_origin, load_discriminators, load_generator, start_codebooks
from .state import TrainState
from .step import StepSettings, train_step
from .stopping import STOP_FILE, Stopping, find_deadline
from .stopwatch import Stopwatch
from .trackers import check_trackers
from .tracking import Tracking
from .turns import Turns
from .validating import check_metrics, ends_early, finish, validate_model

__all__ = ["main", "save_checkpoint", "setup_dataset", "setup_models", "setup_optimizers", "train_step"]


DATA_TIMEOUT_SECONDS = 600.0  # without a batch, after which data workers are replaced
SHARE_FOR_DATA = 0.6  # of distributed.timeout_seconds, at most; more than the 300 s for which streams try again


def main(
    config: TrainingConfig | Mapping[str, Any] | None = None,
    *,
    started: float | None = None,
    claim: RunClaim | None = None,
) -> int:
    """Train as `config` says, from the newest checkpoint of its run or from the start.

    `config` is validated: nested plain values as `create_training_config` makes them will do; None means the defaults.
    `started`: when the program was launched, of `time.perf_counter()`, for the line on what the start took; None: now.
    `claim`: the run's folder, where the caller has it already. It is given back at the end.
    Returns 0 when the run is complete, 128 + the signal's number when a signal, or what counts as one (see `stopping`),
    stopped it after saving.
    Raises `UserError` (one line) for anything that the user can put right.
    """
    start = Stopwatch(started)
    config = validate({} if config is None else config)
    start.end("imports")
    claim = claim or RunClaim()
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignal())  # the last to go: until then signals are held
        stack.callback(claim.release)
        accelerator = create_accelerator(config)
        stack.callback(release, accelerator)
        pulse = pulse_of(config, accelerator, start)
        stack.enter_context(lost_processes(accelerator.process_index, accelerator.num_processes, pulse.others))
        stack.enter_context(pulse)
        check_settings(accelerator, to_dict(config))
        if (parts := config.performance.compile) != "none":
            on_every_rank(accelerator, lambda: check_compiler(parts, accelerator.device.type))
        start.end("processes")
        folder = on_first_rank(accelerator, lambda: find_checkpoints(claim.take(to_dict(config)), to_dict(config)))
        start.end("checkpoint")
        session = setup_session(config, accelerator, folder, start, pulse)
        stack.callback(session.tracking.close)
        stack.callback(open_publisher(session))
        stack.callback(open_saver(session))
        take_unlogged(session)
        session.stop = stopping(session, stop)
        stop.hold()
        code = fit(session)
        pulse.outcome = COMPLETE if code == 0 else f"{STOPPED}: {session.stop.reason or Signals(session.stopped_by).name}"
        return code


def pulse_of(config: TrainingConfig, accelerator: Accelerator, start: Stopwatch) -> Pulse:
    """What tells heartbeat, watchdog and clock of this rank what it is doing."""
    limit = config.distributed.timeout_seconds
    return Pulse(accelerator.process_index, accelerator.num_processes, limit, start.started)


def stopping(session: Session, signals: StopSignal) -> Stopping:
    """What may stop this rank: signals, the clock, and, on rank 0, the file."""
    options = session.config.stopping
    deadline = find_deadline(
        options.wall_clock_hours,
        options.slurm_margin_seconds,
        os.environ,
        running_seconds=time.perf_counter() - session.start.started,
    )
    file = session.folder.root / STOP_FILE if session.accelerator.is_main_process else None
    return Stopping(signals, file, deadline)


def fit(session: Session) -> int:
    """Run the steps that are left; collective. Returns the exit code of `main`."""
    state, settings, pulse = session.state, session.config.training, session.pulse
    pulse.watch()
    if state.step % settings.validation_interval == 0:  # also where it was broken off
        validate_model(session)
        session.start.end("validation")
    if session.stopped_by or agree_to_stop(session):
        return interrupted(session)
    if ends_early(session):
        return complete(session)
    if state.step == 0 and (guards_of(session.config).roll_back or is_best(session)):
        save(session)
    pulse.enter("data", state.step, patient=not session.training.indexed)  # a stream may be read for hours until there
    items = session.profiler().follow(timed(step_batches(session)), lambda: state.step)
    for batches, waited in items:
        pulse.enter("step", state.step, patient=session.compilation is not None and not session.compilation.steps)
        say_started(session)
        report = train_step(
            [batch.audio.to(session.accelerator.device, non_blocking=True) for batch in batches],
            state,
            session.accelerator,
            step_settings(session.config, state.step),
            log_unweighted=(state.step + 1) % settings.log_interval == 0,
        )
        meet_trouble(session, batches, report)
        account(session, batches, report, waited)
        session.tracking.advance()
        if state.step % settings.log_interval == 0:
            log_step(session)
        if state.step % settings.validation_interval == 0 and not session.stopped_by:
            validate_model(session)
        if session.stopped_by:
            return interrupted(session)
        if state.step % settings.save_interval == 0 or is_best(session):
            save(session)
        save_snapshots(session)
        if ends_early(session):
            break
        pulse.enter("data", state.step)
    return complete(session)


def say_started(session: Session) -> None:
    """Say what the start took, once the first step can begin; does nothing later on."""
    if not session.started:
        session.start.end("first batch")
        session.tracking.say(session.start.line())
        session.started = True


def complete(session: Session) -> int:
    """Validate, save and export the finished model; collective."""
    validate_model(session)
    if session.stopped_by:
        return interrupted(session)
    save_now(session)
    if ends_early(session):
        session.tracking.say(early_end(session))
    finish(session)
    publish_finished(session)
    return 0


def early_end(session: Session) -> str:
    """Why a run ends before its last step."""
    state, metric = session.state, session.config.validation.best_metric
    return (
        f"the run ends at step {state.step}: the last {state.validations_since_best} validations were no better in {metric} than "
        f"that of step {state.best.get('step')}, {state.best.get('value', math.nan):.4g} (validation.patience)"
    )


def interrupted(session: Session) -> int:
    """Save, and say where the run can go on; the exit code is 128 + the signal's number, as shells have it. Collective."""
    save_now(session)
    reason = session.stop.reason or f"another rank: {Signals(session.stopped_by).name}"
    session.tracking.say(
        f"stopped after step {session.state.step} ({reason}); --resume auto continues from there"
    )
    session.stop.honour()
    return 128 + session.stopped_by


def step_batches(session: Session) -> Iterator[list[Batch]]:
    """The micro-batches of this rank, step by step, from the state's step to the end of the run.

    A run that went back to a checkpoint has steps left when its loader is at its end: another one goes on there.
    """
    while session.state.step < session.config.training.num_iterations:
        micro_batches = iter(open_loader(session))
        while batches := list(islice(micro_batches, session.accumulation)):
            yield batches


def open_loader(session: Session) -> BatchLoader:
    """The loader of what is left of the run, from the state's position on."""
    config, accelerator = session.config, session.accelerator
    return make_loader(
        session.training,
        config.training.batch_size,
        num_processes=accelerator.num_processes,
        rank=accelerator.process_index,
        accumulation_steps=session.accumulation,
        start_position=session.state.position,
        num_steps=config.training.num_iterations - session.state.step,
        num_workers=config.data.num_workers,
        device=accelerator.device,
        # Without an index, going on where the run was stopped may mean to read for hours.
        timeout_seconds=data_timeout(config) if session.training.indexed else math.inf,
    )


def data_timeout(config: TrainingConfig) -> float:
    """Seconds without a batch after which workers are replaced: before the other ranks give up waiting for this one."""
    return min(DATA_TIMEOUT_SECONDS, SHARE_FOR_DATA * config.distributed.timeout_seconds)


def timed(batches: Iterable[list[Batch]]) -> Iterator[tuple[list[Batch], float]]:
    """Each item with the seconds that it was waited for."""
    iterator = iter(batches)
    while True:
        started = time.perf_counter()
        try:
            with record_function("data wait"):
                item = next(iterator)
        except StopIteration:
            return
        yield item, time.perf_counter() - started


def step_settings(config: TrainingConfig, step: int = 0) -> StepSettings:
    """What `train_step` takes from the config, at this step."""
    options = config.training
    held = "quantizer" in options.freeze or step < options.generator_wait_steps
    return StepSettings(
        loss_weights=loss_weights(config),
        sampling_rate=config.model.sampling_rate,
        max_grad_norm=config.training.max_grad_norm,
        restart_after=config.codebook.restart_after if config.codebook.restart and not held else None,
        seed=config.training.seed,
        guards=guards_of(config),
        turns=turns_of(config),
    )


def loss_weights(config: TrainingConfig) -> dict[str, float]:
    """The weights of the losses; the codebook loss is only logged where it is not what moves the codebooks."""
    weights: dict[str, float] = config.losses.model_dump()
    method = METHODS[config.codebook.method]
    return weights if method is None or method.uses_codebook_loss else {**weights, "codebook": 0.0}


def turns_of(config: TrainingConfig) -> Turns:
    """Whose turn it is in each step."""
    return Turns(generator_wait_steps=config.training.generator_wait_steps, **config.turns.model_dump())


def setup_session(
    config: TrainingConfig, accelerator: Accelerator, folder: RunFolder, start: Stopwatch, pulse: Pulse
) -> Session:
    """Build data, models and optimisers, load the checkpoint if there is one, and open the log; collective."""
    settings = config.training
    accumulation = accumulation_steps(config, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = accumulation
    on_every_rank(accelerator, lambda: check_metrics(config))
    on_first_rank(accelerator, lambda: check_trackers(config.tracking.trackers))
    training, validation = on_every_rank(accelerator, lambda: setup_dataset(config))
    check_data(accelerator, lambda: data_facts(training, validation))
    start.end("data")
    said: list[str] = []
    generator, discriminators = on_every_rank(accelerator, lambda: setup_models(config, accelerator.device, said.append))
    start.end("models")
    counted = count_step(config, accelerator, accumulation, generator, discriminators)
    start.end("counting")
    aside = on_first_rank(accelerator, lambda: open_folder(folder, config))
    on_first_rank(accelerator, lambda: keep_origin(folder, config, generator))
    pulse.begin(folder.logs)
    if folder.resume_from is None:
        # The other ranks are given the outcome with all other weights, when the models are wrapped.
        on_first_rank(accelerator, lambda: start_codebooks(generator, training, config))
        start.end("codebooks")
    if config.performance.activation_checkpointing:
        checkpoint_activations(generator)
    compilation = compile_networks(generator, discriminators, config.performance.compile)
    state = setup_state(config, accelerator, generator, discriminators)
    global_batch_size = settings.batch_size * accelerator.num_processes * accumulation
    check_passes(config, training, global_batch_size)
    start.end("optimizers")
    notes = [*folder.notes, aside, *(said if folder.resume_from is None else [])]
    if folder.resume_from is not None:
        notes += resume(folder, state, training, config, accelerator, global_batch_size)
        start.end("checkpoint")
    tracking = on_every_rank(accelerator, lambda: open_tracking(config, accelerator, folder, state.step))
    start.end("trackers")
    processes = Processes(
        accelerator.num_processes, accumulation, str(accelerator.device), accelerator.mixed_precision
    )
    lines = [introduction(config, generator, discriminators, folder, processes)]
    lines += [*describe_data(training, config, global_batch_size), *filter(None, notes)]
    if accelerator.is_main_process:
        lines += map(str, quick_check(training, config))
    start.end("data check")
    if compilation is not None:
        lines.append(compilation.beginning())
        tracking.note("compiling")
    for line in lines:
        tracking.say(line)
    accounts = SourceAccounts(
        training.names, config.data.max_bad_fraction, folder.logs, accelerator.process_index, state.sources
    )
    return Session(
        config,
        accelerator,
        folder,
        state,
        training,
        validation,
        tracking,
        accumulation,
        global_batch_size,
        accounts,
        StepMeter(counted),
        saved_at=state.step if is_own(folder) else None,
        start=start,
        pulse=pulse,
        compilation=compilation,
    )


def resume(
    folder: RunFolder,
    state: TrainState,
    training: Mixture,
    config: TrainingConfig,
    accelerator: Accelerator,
    global_batch_size: int,
) -> list[str | None]:
    """Load the checkpoint that the run goes on from; returns what should be said about its data, None: nothing. Collective."""
    checkpoint = folder.resume_from
    assert checkpoint is not None
    manifest = on_every_rank(accelerator, lambda: load_checkpoint(checkpoint, state))
    if alters_optimizers(folder.changes):
        renew_optimizers(state.optimizers, state.schedules, config)
    promise = data_promise(manifest, config, accelerator.num_processes, global_batch_size)
    notes = [fresh_method(manifest, config), without_average(manifest, state)]
    return [promise, changed_data(manifest, training), *notes]


def open_folder(folder: RunFolder, config: TrainingConfig) -> str | None:
    """Make the run's folder what this start needs, on one rank; returns what should be said about that."""
    note = set_newer_aside(folder)
    create_run(folder, to_dict(config))
    return note


def is_own(folder: RunFolder) -> bool:
    """Whether the run goes on from a checkpoint of its own, rather than branching off from another's or beginning."""
    return folder.resume_from is not None and folder.resume_from.resolve().parent == folder.checkpoints.resolve()


def open_tracking(config: TrainingConfig, accelerator: Accelerator, folder: RunFolder, step: int) -> Tracking:
    """The log, trackers and progress bar of a run that goes on after `step`; ConfigError if they cannot be written."""
    try:
        return Tracking(
            accelerator,
            folder.logs,
            config=to_dict(config),
            name=config.paths.run_name,
            run=folder.root.resolve().name,
            start=step,
            total=config.training.num_iterations,
            progress_bar=config.tracking.progress_bar,
        )
    except OSError as error:
        raise ConfigError(writing_problem(error, folder.logs)) from error


def setup_dataset(config: TrainingConfig | Mapping[str, Any]) -> tuple[Mixture, ValidationClips | None]:
    """The training data, and the held-out clips that are never among them (None if validation is off).

    Raises DataError, one line, if a source is missing, empty, or lacks the column or split.
    """
    config = validate(config)
    sources = config.data.each_source()
    training = [open_training(config, source, number) for number, source in enumerate(sources)]
    held_out: Sequence[AudioDataset] = []
    if config.validation.enabled and config.validation.is_share:
        options = config.validation
        pairs = [part.hold_out(options.fraction, options.by) for part in training]
        training, held_out = map(list, zip(*pairs, strict=True))
    elif config.validation.enabled:
        held_out = open_validation(config)
    labels = [source.label for source in sources]
    mixture = mix(training, sources, config.training.seed)
    if not held_out:
        return mixture, None
    options = config.validation
    return mixture, ValidationClips(held_out, options.max_clips, options.max_clip_seconds, labels)


def setup_models(
    config: TrainingConfig | Mapping[str, Any],
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[TrainableSNAC, dict[str, nn.Module]]:
    """The generator, from `training.init_from` where that is given, and the discriminators by name.

    `say` is told where the discriminators come from.
    """
    config = validate(config)
    torch.manual_seed(derive_seed(config.training.seed, "models"))
    model = to_dict(config)["model"]
    generator = TrainableSNAC(**model)
    zero_encoding_biases(generator)
    options = config.discriminators.model_dump()
    discriminators = {
        name: family(**options[name]) for name, family in DISCRIMINATORS.items() if options[name] is not None
    }
    if source := config.training.init_from:
        load_generator(generator, source, model)
        if config.training.init_discriminators:
            say(load_discriminators(discriminators, source))
    freeze(generator, config.training.freeze)
    return generator.to(device), {name: module.to(device) for name, module in discriminators.items()}


def setup_state(
    config: TrainingConfig,
    accelerator: Accelerator,
    generator: TrainableSNAC,
    discriminators: dict[str, nn.Module],
) -> TrainState:
    """Hand the models to Accelerate.

    Optimisers stay out, because its loss scaling serves one of them only, and so do schedules: prepared ones advance once for
    each process.
    """
    optimizers, schedules = setup_optimizers(generator, discriminators, config)
    usage = CodebookUsage(len(generator.vq_strides), generator.codebook_size, accelerator.device)
    state = TrainState(
        accelerator.prepare_model(generator).train(),
        {name: accelerator.prepare_model(module).train() for name, module in discriminators.items()},
        optimizers,
        schedules,
        usage,
        accelerator.scaler or GradScaler(enabled=False),
    )
    if config.balancer.enabled:
        state.balancer = Balancer(config.balancer.total_norm, config.balancer.decay)
    setup_averages(state, config.averaging, accelerator.unwrap_model(state.generator))
    codebook = config.codebook
    state.codebook_method = codebook_method(codebook.method, accelerator.unwrap_model(state.generator), decay=codebook.decay)
    return state


def setup_averages(state: TrainState, options: AveragingSettings, generator: TrainableSNAC) -> None:
    """Begin the moving averages: only once all ranks have the weights of rank 0."""
    if options.method == "power":
        state.average = WeightAverage(generator, power(options.relative_width))
    elif options.method == "exponential":
        assert options.decay is not None
        state.average = WeightAverage(generator, exponential(options.decay))
    if options.snapshot_steps is not None:
        state.snapshot_averages = [WeightAverage(generator, power(width)) for width in options.snapshot_widths]
