"""The page that a run leaves behind: held-out clips as the model ends, its curves, the health of its codebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ..evaluate import NamedClip
from ..files import writing_problem
from ..generator import TrainableSNAC
from ..listening import Page, PageClip, PageModel, Table, write_page
from ..listening.curves import curves_of, read_log
from ..metrics import METRICS, VALIDATION_METRICS
from ..pulse import in_phase
from ..session import Session
from .clips import clip_of
from .measuring import measure_clip
from .models import EvaluatedModel, describe
from .pages import heading, page_clip
from .traits import traits_of

LABEL = "reconstruction"


@in_phase("listening page")
def write_run_page(session: Session, step: int) -> None:
    """Write the page into the run's folder, on one rank, with the weights of `step` in the generator; a full disk ends no run."""
    if session.validation is None or not session.config.validation.num_samples:
        return
    clips = islice(session.validation, session.config.validation.num_samples)
    folder = session.folder.page
    try:
        rows = read_log(session.folder.logs)
        name = session.folder.root.name
        page = run_page(name, session.generator, session.pulse.along(clips), rows, step, session.seed)
        session.tracking.say(f"to listen: {write_page(folder, page)}")
    except OSError as error:
        session.tracking.say(f"warning: {writing_problem(error, folder)}")


def run_page(
    name: str, generator: TrainableSNAC, clips: Iterable[NamedClip], rows: Sequence[Mapping[str, Any]], step: int, seed: int
) -> Page:
    """The page of a run that has come to `step`; `rows`: its log."""
    model = EvaluatedModel(LABEL, generator, describe(generator))
    made = [_page_clip(model, clip, seed) for clip in clips]
    facts = model.facts
    rates = " / ".join(f"{rate:.3g}" for rate in facts["token_rates"])
    about = [
        ("run", name),
        ("step", str(step)),
        ("model", f"{facts['sampling_rate']} Hz, tokens at {rates} Hz, {facts['bitrate'] / 1000:.3g} kbit/s"),
        ("parameters", f"{facts['parameters'] / 1e6:.2f} M"),
    ]
    models = [PageModel(LABEL, facts["token_rates"], facts["codebook_size"])]
    subtitle = f"Step {step}, {len(made)} held-out clips"
    metrics = traits_of(VALIDATION_METRICS)
    return Page(name, subtitle, about, metrics, models, [held_out_table(rows)], made, curves_of(rows))


def _page_clip(model: EvaluatedModel, clip: NamedClip, seed: int) -> PageClip:
    taken = clip_of(clip.name, clip.audio, model.generator.sampling_rate)
    measured = measure_clip(model, taken, VALIDATION_METRICS, seed=seed)
    values = {f"0/{version.levels}": version.values for version in measured.reconstructions}
    return page_clip(taken, [model], [measured], values=values)


def held_out_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The first, the best and the last validation of a log."""
    validations = [row for row in rows if "validation/mel_distance" in row]
    names = [name for name in METRICS if validations and all(_number(row.get(f"validation/{name}")) for row in validations)]
    headers = ["validation", "step", *(heading(trait) for trait in traits_of(names))]
    if not validations or not names:
        return Table("Held-out clips", "There is no validation in the log of this run.", headers, [])
    best = min(validations, key=lambda row: float(row[f"validation/{names[0]}"]))
    cells = []
    for word, row in (("first", validations[0]), ("best by the first metric", best), ("last", validations[-1])):
        values = [row[f"validation/{name}"] for name in names]
        numbers = [(f"{value:.4g}", float(value)) for value in values]
        cells.append([(word, None), (str(row["step"]), float(row["step"])), *numbers])
    return Table("Held-out clips", "Means over all clips of the validation.", headers, cells)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))
