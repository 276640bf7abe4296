"""What a run pushes to the Hub, and when. Rank 0 alone, in the background; see `hub`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .config import to_dict
from .hub import Publisher
from .hub.model_jobs import put_checkpoint
from .session import Session
from .validating import best_checkpoint, ends_early

QUEUE = "hub"  # in the run's folder


def open_publisher(session: Session) -> Callable[[], None]:
    """Give rank 0 what it pushes with, if the run is to be pushed; returns what is to be called on every way out."""
    if session.config.hub.repository is None or not session.accelerator.is_main_process:
        return lambda: None
    session.publisher = Publisher(session.folder.root / QUEUE, session.tracking.say)
    return lambda: _close(session)


def _close(session: Session) -> None:
    """Wait for what is on its way, if the run is complete; what else there is stays for the next start."""
    if session.publisher is None:
        return
    complete = session.state.step >= session.config.training.num_iterations or ends_early(session)
    session.pulse.enter("publishing", session.state.step, patient=True)
    session.publisher.close(session.config.hub.wait_seconds if complete and not session.stopped_by else 0.0)


def publish_saved(session: Session, checkpoint: Path, step: int) -> None:
    """Have a checkpoint pushed that was just written, where the run pushes those."""
    when = session.config.hub.push
    if when == "save" or when == "best" and session.state.best.get("step") == step:
        _offer(session, checkpoint)


def publish_finished(session: Session) -> None:
    """Have the model pushed with which the run ended, except where only the best ones are."""
    if session.config.hub.push == "best" or session.saver is None:
        return
    if (path := best_checkpoint(session) or session.saver.saved_path) is not None:
        _offer(session, path, session.folder.samples)


def _offer(session: Session, checkpoint: Path, samples: Path | None = None) -> None:
    if session.publisher is not None:
        hub = to_dict(session.config)["hub"]
        session.publisher.offer(lambda queue: put_checkpoint(queue, checkpoint, hub, samples))
