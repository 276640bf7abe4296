"""Whether training diverges or collapses: the demo's model with ten seeds, and with learning rates from a quarter to four times.

    python benchmarks/stability.py --seeds 10 --steps 400 --output benchmarks/results/stability.md
    python benchmarks/stability.py --seeds 1 --factors 4 --steps 40

A run is stable if all its steps were made, its losses stayed finite, and the held-out mel distance is smaller at the end than at
the beginning. Its codebooks are well if the held-out perplexity of every level ends above a quarter of the codebook; if not, the
run itself must have said so. With --output the curves are drawn beside the table. Finished runs are kept in --work.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cells import train
from measure import machine, positive, read_json, table, write_json

from snac_accel.config import config_hash, load_config, merge, preset_run, to_dict, validate
from snac_accel.tracking import validations

HEADERS = ["seed", "learning rate", "mel distance: start", "end", "perplexity", "skipped steps", "stable", "codebooks"]
FACTORS = (0.25, 0.5, 2.0, 4.0)


class Outcome(NamedTuple):
    """What came of a run."""

    seed: int
    factor: float  # of the learning rate
    rows: list[dict[str, Any]]  # its validations
    skipped: int
    warned: list[int]  # levels that it warned of at the end
    finished: bool  # all its steps were made
    key: str

    @property
    def mel(self) -> list[float]:
        """Held-out mel distances."""
        return [float(row["validation/mel_distance"]) for row in self.rows]

    @property
    def perplexity(self) -> list[float]:
        """Of each level, at the end."""
        names = sorted(name for name in self.rows[-1] if name.startswith("validation/level_") and name.endswith("perplexity"))
        return [float(self.rows[-1][name]) for name in names]

    @property
    def stable(self) -> bool:
        """Whether it neither diverged nor stopped."""
        return self.finished and all(map(math.isfinite, self.mel)) and self.mel[-1] < self.mel[0]

    def codebooks(self, size: int) -> str:
        """well; or which levels are low, and whether the run said so."""
        low = [level for level, value in enumerate(self.perplexity) if value < size / 4]
        if not low:
            return "well"
        return f"low: level {', '.join(map(str, low))}, {'warned' if set(low) <= set(self.warned) else 'NOT SAID'}"


def run(seed: int, factor: float, steps: int, work: Path) -> Outcome:
    """What is there of a run, if it was made with the same settings, or the run."""
    base = preset_run("demo")
    every = max(1, steps // 8)
    rate = base["training"]["learning_rate"] * factor
    own = {"num_iterations": steps, "seed": seed, "learning_rate": rate, "validation_interval": every, "save_interval": steps}
    quiet = {"tracking": {"trackers": [], "progress_bar": False}, "checkpoint": {"keep_last": 1}}
    config = to_dict(validate(merge(base, {"training": own, **quiet})))
    folder, key = work / f"seed_{seed}-times_{factor:g}", config_hash(validate(config))
    finished = folder / "result.json"
    if finished.is_file() and (found := Outcome(**read_json(finished))).key == key:
        print(f"seed {seed}, learning rate x {factor:g}: there already", flush=True)
        return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", merge(config, {"paths": {"run_dir": str(folder / "run")}}))
    complete = True
    try:
        train(folder)
    except SystemExit as error:  # a run that ended itself: for this table an outcome
        print(error, file=sys.stderr)
        complete = False
    outcome = Outcome(seed, factor, validations(folder / "run" / "logs"), *said(folder), complete, key)
    write_json(finished, outcome._asdict())
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    return outcome


def said(folder: Path) -> tuple[int, list[int]]:
    """Steps that were skipped, and the levels that the run warned of at its end."""
    lines = (folder / "run" / "logs" / "metrics.jsonl").read_text().splitlines()
    skipped = max((int(json.loads(line).get("train/skipped_updates", 0)) for line in lines), default=0)
    output = (folder / "output.txt").read_text(errors="replace").splitlines()
    warned = [line for line in output if line.startswith("warning: at the end level ")]
    return skipped, [int(line.split("level ")[1].split()[0]) for line in warned]


def line(outcome: Outcome, size: int) -> list[str]:
    """A run's line of the table."""
    perplexity = " / ".join(f"{value:.0f}" for value in outcome.perplexity)
    ends = [f"{outcome.mel[0]:.2f}", f"{outcome.mel[-1]:.2f}"]
    verdict = [str(outcome.skipped), "yes" if outcome.stable else "NO", outcome.codebooks(size)]
    return [str(outcome.seed), f"x {outcome.factor:g}", *ends, perplexity, *verdict]


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Held-out mel distance and perplexity of the coarsest level against the step, a curve for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    names = {"validation/mel_distance": "held-out mel distance", "validation/level_0/perplexity": "perplexity, level 0"}
    for axis, (name, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        for outcome in outcomes:
            colour = "tab:blue" if outcome.factor == 1 else "tab:orange" if outcome.factor > 1 else "tab:green"
            steps = [row["step"] for row in outcome.rows]
            axis.plot(steps, [float(row[name]) for row in outcome.rows], color=colour, alpha=0.7, linewidth=1)
        axis.set(xlabel="step", title=label)
    figure.suptitle("blue: seeds; orange: higher learning rates; green: lower ones", fontsize="small")
    figure.savefig(path, format="svg")


def main() -> int:
    """Run what is missing; 1 if a run diverged, or collapsed in silence."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seeds", type=positive, default=10, help="runs at the preset's learning rate")
    flags.add_argument("--factors", type=float, nargs="*", default=list(FACTORS), help="of the learning rate, with seed 0")
    flags.add_argument("--steps", type=positive, default=400, help="of each run")
    flags.add_argument("--work", type=Path, default=Path("runs/benchmarks/stability"), help="where finished runs are kept")
    flags.add_argument("--output", type=Path, help="file of the table, and with .svg of the curves; none: printed only")
    options = flags.parse_args()
    size = load_config("demo").model.codebook_size
    outcomes: list[Outcome] = []
    for seed, factor in [*((seed, 1.0) for seed in range(options.seeds)), *((0, factor) for factor in options.factors)]:
        outcomes.append(run(seed, factor, options.steps, options.work))
        text = table([line(one, size) for one in outcomes], HEADERS)
        print(f"\n{text}\n", flush=True)
        if options.output is not None:
            command = f"`python benchmarks/stability.py --seeds {options.seeds} --steps {options.steps}`"
            about = f"{command}, {machine()}. The demo's model and speech; low is a codebook below a quarter of its {size} codes."
            picture = options.output.with_suffix(".svg")
            draw(outcomes, picture)
            options.output.write_text(f"# Stability\n\n{about}\n\n{text}\n\n![curves]({picture.name})\n", encoding="utf-8")
    return int(not all(one.stable and "NOT SAID" not in one.codebooks(size) for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
