"""What moves the codebooks best: methods, restarts and starts, the same generator and the same time for each.

    python benchmarks/codebooks.py --corpus speech --seconds 600 --seeds 3 --output benchmarks/results/codebooks.md
    python benchmarks/codebooks.py --corpus speech --seconds 60 --seeds 1 --only "moving averages" gradient

`speech` is a folder with `metadata.csv` (file_name, speaker, language). Everything but the codebooks is the default recipe.
Finished runs are kept in --work: the script, started again, goes on from there.
"""

from __future__ import annotations

from typing import Any

from cells import Budget, Result, by_recipe, parser, publish, row, run_cells, setting, split_corpus

MOVING: dict[str, Any] = {"method": "moving_average"}
RECIPES: dict[str, dict[str, Any]] = {
    "gradient": {"codebook": {"method": "gradient"}},
    "gradient, no restart": {"codebook": {"method": "gradient", "restart": False}},
    "gradient, random start": {"codebook": {"method": "gradient", "initialization": "random"}},
    "gradient, random start, no restart": {"codebook": {"method": "gradient", "initialization": "random", "restart": False}},
    "gradient, held for 60 steps": {"codebook": {"method": "gradient", "hold_steps": 60, "release_steps": 40}},
    "moving averages": {"codebook": MOVING},
    "moving averages, decay 0.95": {"codebook": {**MOVING, "decay": 0.95}},
    "moving averages, commitment 1": {"codebook": MOVING, "losses": {"commitment": 1.0}},
    "moving averages, decay 0.95, commitment 1": {"codebook": {**MOVING, "decay": 0.95}, "losses": {"commitment": 1.0}},
    "moving averages, no restart": {"codebook": {**MOVING, "restart": False}},
    "reparametrised": {"codebook": {"method": "reparametrised"}},
    "reparametrised, no restart": {"codebook": {"method": "reparametrised", "restart": False}},
}


def main() -> None:
    """Run what is missing, print the table after each run."""
    flags = parser(__doc__, "runs/benchmarks/codebooks")
    flags.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE", help="of the table's rows")
    options = flags.parse_args()
    corpus = split_corpus(options.corpus, options.work, options.held_out_languages, options.held_out_speakers)
    about = setting(options, corpus)
    budget = Budget(options.seconds, options.max_clips)
    recipes = {name: RECIPES[name] for name in options.only}

    def report(results: list[Result]) -> None:
        rows = [row(name, own) for name, own in by_recipe(results).items()]
        publish("What moves the codebooks", about, rows, [], options.output)

    run_cells(recipes, range(options.seeds), budget, corpus, options.work, report=report)


if __name__ == "__main__":
    main()
