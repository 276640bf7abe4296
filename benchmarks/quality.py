"""What each part of the default recipe is worth: from the original module's recipe to ours, one change at a time.

    python benchmarks/quality.py --corpus speech --seconds 600 --seeds 3 --output benchmarks/results/quality.md
    python benchmarks/quality.py --corpus speech --seconds 60 --seeds 1 --ends       the two ends alone

Generator, discriminators, optimiser, data and wall-clock time are the same in all rows. What is measured on is of speakers and
languages that none was trained on. (b) is the original recipe in our configuration: one 80-band mel loss and an STFT loss, and
the released package's quantizer, which has no losses and starts anywhere. (a) is our default. Each row between them keeps what
the rows above it changed. Finished runs are kept in --work: the script, started again, goes on from there.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cells import Budget, Result, by_recipe, parser, publish, row, run_cells, setting, split_corpus

from snac_accel.config import CodebookSettings, LossSettings, merge

ORIGINAL_NAME, DEFAULT_NAME = "(b) original recipe", "(a) default recipe"
PROMISE = 0.70  # (a)'s mel distance over (b)'s, at most
ORIGINAL: dict[str, Any] = {
    # 45 is the weight of HiFi-GAN's mel loss, the one that this loss goes back to.
    "losses": {"multi_scale_mel": 0.0, "mel": 45.0, "stft": 1.0, "commitment": 0.0, "codebook": 0.0},
    "codebook": {"initialization": "random", "restart": False, "method": "gradient", "hold_steps": 0, "release_steps": 0},
}
CHANGES: dict[str, dict[str, Any]] = {
    "+ quantizer losses": {"losses": {"commitment": 0.25, "codebook": 1.0}},
    "+ codebooks start from clusters": {"codebook": {"initialization": "kmeans"}},
    "+ dead codes restarted": {"codebook": {"restart": True}},
    "+ seven-scale mel for mel and STFT": {"losses": {"multi_scale_mel": 15.0, "mel": 0.0, "stft": 0.0}},
}


def recipes() -> dict[str, dict[str, Any]]:
    """The rows in order, each as changes of the common configuration; the last change is whatever else the default has."""
    rows, current = {ORIGINAL_NAME: ORIGINAL}, ORIGINAL
    for name, change in CHANGES.items():
        current = merge(current, change)
        rows[name] = current
    default = default_recipe()
    pairs = [(section, key) for section, own in default.items() for key in own]
    left = [f"{section}.{key}" for section, key in pairs if current[section][key] != default[section][key]]
    if not left:  # the last change makes it the default
        rows.popitem()
        return {**rows, f"{list(CHANGES)[-1]} = {DEFAULT_NAME}": default}
    return {**rows, f"+ {', '.join(left)} = {DEFAULT_NAME}": default}


def default_recipe() -> dict[str, Any]:
    """Our defaults for everything that the original recipe sets."""
    models = {"losses": LossSettings().model_dump(), "codebook": CodebookSettings().model_dump()}
    return {section: {key: models[section][key] for key in own} for section, own in ORIGINAL.items()}


def verdict(grouped: Mapping[str, Sequence[Result]]) -> list[str]:
    """Whether the default is as much better as is promised, and collapses nowhere; nothing while an end is missing."""
    names = list(recipes())
    if names[0] not in grouped or names[-1] not in grouped:
        return []
    first, last = (statistics.mean(r.metrics["mel_distance"] for r in grouped[name]) for name in (names[0], names[-1]))
    collapsed = sum(len(result.collapsed) for result in grouped[names[-1]])
    kept = last / first <= PROMISE and not collapsed
    return [
        f"(a)'s mel distance is {last / first:.2f} of (b)'s; {collapsed} collapsed levels in (a)'s runs. Promised: at most "
        f"{PROMISE:.2f}, and none. {'Kept.' if kept else 'NOT kept.'}"
    ]


def lines(grouped: Mapping[str, Sequence[Result]]) -> list[list[str]]:
    """The rows, and behind each name what the mel distance is of the row above."""
    found, above = [], None
    for name, own in grouped.items():
        distance = statistics.mean(result.metrics["mel_distance"] for result in own)
        change = "" if above is None else f" ({distance / above - 1:+.0%} mel)"
        found.append(row(name + change, own))
        above = distance
    return found


def main() -> None:
    """Run what is missing, print the table after each run."""
    flags = parser(__doc__, "runs/benchmarks/quality")
    flags.add_argument("--ends", action="store_true", help="only (b) and (a)")
    options = flags.parse_args()
    corpus = split_corpus(options.corpus, options.work, options.held_out_languages, options.held_out_speakers)
    about = setting(options, corpus)
    rows = recipes()
    if options.ends:
        rows = {name: rows[name] for name in (list(rows)[0], list(rows)[-1])}

    def report(results: list[Result]) -> None:
        grouped = by_recipe(results)
        publish("From the original recipe to ours", about, lines(grouped), verdict(grouped), options.output)

    run_cells(rows, range(options.seeds), Budget(options.seconds, options.max_clips), corpus, options.work, report=report)


if __name__ == "__main__":
    main()
