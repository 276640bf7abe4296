"""What is said and drawn about the codebooks of a run: a picture, and warnings with what to do.

Collapse is judged on held-out clips, by the codes that were chosen there: with restarts on, the codes that training chooses look
healthy even where held-out speech is left with one of them.
"""

from __future__ import annotations

import io

import torch

from .codebook import reachable_codes, usage_figure
from .config import TrainingConfig
from .config.codebook import CodebookSettings
from .evaluate import Evaluation
from .files import write_bytes, writing_problem
from .session import Session

# Of the codes that so many lookups could show.
COLLAPSED = 1 / 16  # a perplexity below this is warned of at once
RECOVERED = 1 / 8  # above this a level may be warned of again
LOW = 1 / 4  # a perplexity below this is warned of at the end
PICTURE = "codebooks.png"


def watch_codebooks(session: Session, result: Evaluation) -> None:
    """After a validation: draw how the codes are used, and warn of each level that has collapsed, once."""
    session.evaluation = result
    if session.state.step > 0:
        shares = shares_of_reachable(result)
        new = [level for level, share in shares.items() if share < COLLAPSED and level not in session.state.collapsed]
        session.state.collapsed = [level for level in [*session.state.collapsed, *new] if shares[level] < RECOVERED]
        for level in new:
            problem = complaint(session.config, result, level, "has collapsed")
            session.tracking.say(f"warning: step {session.state.step}: {problem}")
    if session.accelerator.is_main_process:
        _draw(session, result)


def last_word(session: Session) -> None:
    """At the end of a run: warn of each level that uses less than a quarter of its codes."""
    if (result := session.evaluation) is None:
        return
    for level, share in shares_of_reachable(result).items():
        if share < LOW:
            reason = "uses less than a quarter of its codes"
            session.tracking.say(f"warning: at the end {complaint(session.config, result, level, reason)}")


def shares_of_reachable(result: Evaluation) -> dict[int, float]:
    """For each level its perplexity, as a share of the codes that so many lookups would show, were all alike."""
    reachable = reachable_codes(torch.tensor(result.counts)).tolist()
    return {level: value / max(most, 1.0) for level, (value, most) in enumerate(zip(result.perplexity, reachable, strict=True))}


def complaint(config: TrainingConfig, result: Evaluation, level: int, what: str) -> str:
    """What is wrong with a level, and what to do."""
    lookups = sum(result.counts[level])
    return (
        f"level {level} {what}: perplexity {result.perplexity[level]:.1f} of {config.model.codebook_size} in {lookups} lookups "
        f"on the held-out clips; try {' or '.join(remedies(config.codebook)[:2])}"
    )


def remedies(settings: CodebookSettings) -> list[str]:
    """What can be done about a collapsed level, the most effective first, of what is not done yet."""
    known = {
        "codebook.initialization kmeans, from the start": settings.initialization == "random",
        "codebook.restart true": not settings.restart,
        "codebook.method moving_average": settings.method != "moving_average",
        "codebook.hold_steps, about a tenth of the run, from the start": settings.hold_steps == 0,
        "a lower training.learning_rate": True,
        "a higher losses.commitment": True,
    }
    return [name for name, undone in known.items() if undone]


def _draw(session: Session, result: Evaluation) -> None:
    step = session.state.step
    counts = {"held out": torch.tensor(result.counts), "training so far": session.state.usage.counts}
    figure = usage_figure(counts, f"use of the codes, step {step}")
    session.tracking.picture("codebooks", figure, step)
    content, path = io.BytesIO(), session.folder.logs / PICTURE
    figure.savefig(content, dpi=100, format="png")
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        session.tracking.say(f"warning: {writing_problem(error, path)}")
