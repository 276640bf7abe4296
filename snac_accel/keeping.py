"""The checkpoints of a run in progress: when they are written, and what happens when they cannot be.

All ranks call these functions at the same steps; rank 0 writes, in the background.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import record_function

from .agreement import on_first_rank
from .checkpoint import Snapshot, write_snapshot
from .config import TrainingConfig, config_hash, to_dict
from .files import writing_problem
from .post_hoc import save_averages
from .publishing import publish_saved
from .pulse import in_phase
from .retention import Retention
from .run_data import training_facts
from .saving import Outcome, Saver
from .session import Session, note_unlogged


def open_saver(session: Session) -> Callable[[], None]:
    """Give rank 0 what it writes checkpoints with; returns what is to be called on every way out."""
    if not session.accelerator.is_main_process:
        return lambda: _close(session)
    config, options = to_dict(session.config), session.config.checkpoint
    retention = Retention(options.keep_last, options.keep_every, num_best(session.config))
    facts: dict[str, Any] = {
        "config_hash": config_hash(session.config),
        "world_size": session.accelerator.num_processes,
        "global_batch_size": session.global_batch_size,
        "data": training_facts(session.training),
    }

    def write(taken: Snapshot) -> Path:
        return write_snapshot(session.folder.checkpoints, taken, config, facts, retention)

    session.saver = Saver(write, lambda outcome: _report(session, outcome), options.max_failed_saves)
    return lambda: _close(session)


def _close(session: Session) -> None:
    """Wait for what is being written, and close the log of bad samples, if there is one."""
    try:
        if session.saver is not None:
            session.saver.wait()
    finally:
        if session.bad_samples is not None:
            session.bad_samples.close()


def _report(session: Session, outcome: Outcome) -> None:
    """Say how a save ended, and what it took."""
    if outcome.path is not None:
        session.tracking.say(f"step {outcome.step}: saved {outcome.path}")
        publish_saved(session, outcome.path, outcome.step)
    else:
        limit = session.config.checkpoint.max_failed_saves
        session.tracking.say(
            f"warning: step {outcome.step} is not saved: {outcome.problem} "
            f"(failed saves in a row: {outcome.failed_in_a_row}, the run ends at {limit})"
        )
    times = {"time/save_stall": outcome.stall_seconds, "time/save_seconds": outcome.write_seconds}
    session.tracking.log(times, session.state.step)


def num_best(config: TrainingConfig) -> int:
    """How many of the best checkpoints are kept: one at least, where the best one is exported."""
    return max(config.checkpoint.keep_best, int(config.validation.exports_best))


def is_best(session: Session) -> bool:
    """Whether the step just validated is the best so far and is to be kept for that; the same on every rank."""
    return num_best(session.config) > 0 and session.state.best.get("step") == session.state.step


def save_snapshots(session: Session) -> None:
    """Write the averages of `averaging.snapshot_steps`, at its steps, on rank 0; a full disk costs them, not the run."""
    state, options = session.state, session.config.averaging
    if options.snapshot_steps is None or state.step % options.snapshot_steps or not session.accelerator.is_main_process:
        return
    averages = list(zip(options.snapshot_widths, state.snapshot_averages, strict=True))
    try:
        save_averages(session.folder.averages, state.step, averages)
    except OSError as error:
        session.tracking.say(f"warning: {writing_problem(error, session.folder.averages)}; training goes on")


@in_phase("saving")
@record_function("save")
def save(session: Session) -> None:
    """Begin to write a checkpoint, once per step; training goes on as soon as the state is copied. Collective."""
    if session.saved_at == session.state.step:
        return
    session.saved_at = session.state.step
    note_unlogged(session)
    if session.saver is not None:
        session.saver.start(session.state, _score(session))


@in_phase("saving")
@record_function("save")
def save_now(session: Session) -> None:
    """Write a checkpoint of this step and wait until it is on the disk; collective.

    Raises CheckpointError, on every rank, if it cannot be written.
    """
    save(session)
    on_first_rank(session.accelerator, lambda: _saver(session).finish(session.state, _score(session)))


@in_phase("saving")
def await_save(session: Session) -> None:
    """Wait until nothing is being written; collective."""
    on_first_rank(session.accelerator, lambda: _saver(session).wait())


def _score(session: Session) -> dict[str, Any] | None:
    """What the validation of this step came to, also where that was before the process began; None if there was none."""
    for score in (session.score, session.state.best):
        if score and score.get("step") == session.state.step:
            return {name: score[name] for name in ("metric", "value", "better") if name in score}
    return None


def _saver(session: Session) -> Saver:
    assert session.saver is not None
    return session.saver
