"""What a run does about a step with trouble: says which samples it was, and stops, goes on, or goes back to a checkpoint."""

from __future__ import annotations

import copy
import json
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from .agreement import on_every_rank, on_first_rank
from .checkpoint import load_checkpoint
from .config import TrainingConfig
from .dataset import Batch
from .errors import TrainingError
from .files import writing_problem
from .guards import ROLLBACK, STOP, Guards, Trouble, suspects
from .keeping import await_save, save_now
from .pulse import in_phase
from .session import Session
from .step import StepReport
from .stored import newest_checkpoint

TROUBLE_FILE = "trouble.jsonl"
NAMES_SHOWN = 5  # of the samples, in the line; the file has all of them


class Suspects(NamedTuple):
    """Of one rank: the samples of a step that may be to blame."""

    rank: int
    names: list[str]


def guards_of(config: TrainingConfig) -> Guards:
    """What a step has to look for."""
    settings = config.guards
    return Guards(settings.non_finite, settings.spikes, settings.spike_factor, settings.spike_window)


def meet_trouble(session: Session, batches: list[Batch], report: StepReport) -> None:
    """Do about the step just made what the policy says; collective if there is trouble, which all ranks agree on.

    Raises TrainingError, on every rank, if the run ends here.
    """
    state, trouble = session.state, report.trouble
    if trouble is None:
        state.skipped_in_a_row = 0
        return
    state.skipped_in_a_row += 1
    if trouble.is_overflow:
        _check_limit(session)
        return
    step = state.step + (trouble.policy == STOP)
    blame = _blame(session, batches, report, trouble, step)
    if trouble.policy == STOP:
        state.skipped_in_a_row = 0
        save_now(session)
        raise TrainingError(
            f"step {step}: {trouble}{blame}; stopped before it, as {_setting(trouble)} says: look at the samples, or set it "
            "to skip or rollback"
        )
    if trouble.policy == ROLLBACK:
        roll_back(session, trouble, step)
    else:
        _check_limit(session)


def _setting(trouble: Trouble) -> str:
    return f"guards.{'spikes' if trouble.usual is not None else 'non_finite'} = {trouble.policy}"


def _check_limit(session: Session) -> None:
    skipped = session.state.skipped_in_a_row
    if skipped >= session.config.training.non_finite_limit:
        raise TrainingError(
            f"{skipped} steps in a row up to step {session.state.step} had losses or gradients that are not finite, or jumped: "
            f"lower training.learning_rate, or set training.max_grad_norm; {TROUBLE_FILE} in the logs names the samples"
        )


def _blame(session: Session, batches: list[Batch], report: StepReport, trouble: Trouble, step: int) -> str:
    """Name the samples that may be to blame: all in the log, some in a line."""
    weights = session.config.losses.model_dump()
    rows = suspects(trouble, report.parts, weights, guards_of(session.config))
    own = [batch.names[row] for batch, found in zip(batches, rows, strict=True) for row in found]
    everyone = [Suspects(*one) for one in gather_object([(session.accelerator.process_index, own)])]
    text = _shown([one for one in everyone if one.names])
    if session.accelerator.is_main_process:
        _write(session, trouble, step, everyone)
    session.tracking.say(f"step {step}: {trouble}{text}: {trouble.policy}")
    return text


def _shown(everyone: list[Suspects]) -> str:
    pieces = []
    for rank, names in everyone:
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        pieces.append(f"on rank {rank} {', '.join(names[:NAMES_SHOWN])}{more}")
    return f"; samples: {'; '.join(pieces)}" if pieces else ""


def _write(session: Session, trouble: Trouble, step: int, everyone: list[Suspects]) -> None:
    record = {
        "step": step,
        "kind": trouble.kind,
        "places": trouble.places,
        "policy": trouble.policy,
        "loss": str(trouble.loss),  # JSON has no NaN
        "usual": trouble.usual,
        "samples": {f"rank_{rank}": names for rank, names in everyone if names},
    }
    path = session.folder.logs / TROUBLE_FILE
    try:
        with open(path, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
    except OSError as error:
        session.tracking.say(f"warning: {writing_problem(error, path)}")


@in_phase("rollback")
def roll_back(session: Session, trouble: Trouble, step: int) -> None:
    """Take networks, optimisers and step from the newest checkpoint; the data go on behind the bad step; collective."""
    state = session.state
    await_save(session)
    checkpoint = on_first_rank(session.accelerator, lambda: newest_checkpoint(session.folder.checkpoints))
    if checkpoint is None:
        raise TrainingError(f"step {step}: {trouble}; {_setting(trouble)}, but there is no intact checkpoint to go back to")
    name = checkpoint.name.partition(".")[0]  # of the step: it may have been saved again
    times = session.rollbacks[name] = session.rollbacks.get(name, 0) + 1
    if times > (limit := session.config.guards.rollback_limit):
        raise TrainingError(
            f"step {step}: {trouble}; the run went back to {checkpoint} {limit} times already (guards.rollback_limit): "
            "lower training.learning_rate, or set training.max_grad_norm"
        )
    kept = _data_account(session)
    on_every_rank(session.accelerator, lambda: load_checkpoint(checkpoint, state))
    session.saved_at = None  # what is saved next at this step has another place in the data
    state.position, counters, sources = kept
    state.counters.update(counters)
    for name, numbers in sources.items():
        state.sources[name].update(numbers)
    state.count("rollbacks")
    session.tracking.bar.update(state.step - session.tracking.bar.n - 1)  # it is moved on behind every step
    session.tracking.say(f"went back to step {state.step} of {checkpoint}; the data go on")


def _data_account(session: Session) -> tuple[int, dict[str, int], Any]:
    """What a rollback does not undo: the data that were used, and what was counted."""
    state = session.state
    return state.position, dict(state.counters), copy.deepcopy(state.sources)
