"""The step with torch.compile against the step without: by part, with what compiling costs.

    python benchmarks/compile_time.py                      the published 24 kHz model, its discriminators; many minutes
    python benchmarks/compile_time.py --model tiny         the demo's model
    python benchmarks/compile_time.py --parts generator    the generator alone

For each setting of `performance.compile` the same step is measured in turns with the uncompiled one (plain, compiled, plain …)
in one process, after a first step in which everything is compiled. Compiled code that an earlier call left in torch's cache
would be found again: the cache is an empty folder, unless `--keep-cache` is given.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from measure import Ratio, alternate, available_cores, describe, machine, positive, ratio, table
from step_time import PRESETS, Models, make_batch, our_step
from torch import Tensor

from snac_accel.compiling import Compilation, compile_networks
from snac_accel.config import TrainingConfig, load_config
from snac_accel.train import setup_models, setup_optimizers, step_settings

PARTS = ("generator", "all")
# A generator of two blocks: machine code for it takes half a minute.
SMALL: dict[str, Any] = {
    "model": {"encoder_rates": [16], "decoder_rates": [16], "encoder_dim": 16, "decoder_dim": 64},
    "data": {"segment_length": 0.256},
}


class Compared(NamedTuple):
    """One setting against none."""

    parts: str
    ratio: Ratio
    compilation: Compilation


def compare(config: TrainingConfig, parts: str, batch: Tensor, rounds: int) -> Compared:
    """Compile, then measure in turns."""
    settings = step_settings(config)
    steps = {}
    compilations: dict[str, Compilation | None] = {}
    for name in ("none", parts):
        models = Models(*setup_models(config, batch.device))
        compilations[name] = compile_networks(models.generator, models.discriminators, name)
        steps[name] = our_step(models, setup_optimizers(*models, config)[0], batch, settings)
    compilation = compilations[parts]
    assert compilation is not None
    steps[parts]()
    compilation.after_step()
    times = alternate(steps, rounds)
    name = f"step, {parts} compiled of not"
    return Compared(parts, ratio(name, times[parts], times["none"], better="lower"), compilation)


def report(results: Sequence[Compared]) -> str:
    """A row for each setting."""
    headers = [
        "compiled",
        "time of the uncompiled step",
        "compiling (s)",
        "graphs",
        "recompilations",
        "failed",
    ]
    rows = [
        [
            one.parts,
            describe(one.ratio),
            f"{one.compilation.seconds:.0f}",
            one.compilation.graphs,
            one.compilation.recompilations,
            ", ".join(one.compilation.failed) or "none",
        ]
        for one in results
    ]
    return table(rows, headers)


def short() -> list[Ratio]:
    """A small generator compiled: the ratio of the step's time, and what was compiled after the first step."""
    config = load_config("demo", overrides=SMALL, environment={})
    found = compare(config, "generator", make_batch(config, 4), rounds=7)
    again = (float(found.compilation.recompilations),)
    return [
        found.ratio._replace(name="step, small generator compiled of not"),
        Ratio("recompilations, small generator", again, "lower", 0.0),
    ]


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", choices=list(PRESETS), default="24khz", help="which models (default: 24khz)"
    )
    parser.add_argument(
        "--parts", choices=PARTS, nargs="+", default=list(PARTS), help="settings (default: all of them)"
    )
    parser.add_argument("--batch-size", type=positive, default=1, help="windows per step (default: 1)")
    parser.add_argument("--rounds", type=positive, default=7, help="measured pairs (default: 7)")
    parser.add_argument("--seconds", type=float, help="length of a window (default: the preset's)")
    parser.add_argument(
        "--threads", type=positive, default=available_cores(), help="of torch (default: all cores)"
    )
    parser.add_argument("--keep-cache", action="store_true", help="use what torch compiled before")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, measure, print; returns 1 if anything was compiled after the first step."""
    flags = parse_flags(arguments)
    torch.set_num_threads(flags.threads)
    overrides: Mapping[str, Any] = (
        {} if flags.seconds is None else {"data": {"segment_length": flags.seconds}}
    )
    config = load_config(PRESETS[flags.model], overrides=dict(overrides), environment={})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = make_batch(config, flags.batch_size).to(device)
    window = config.segment_samples / config.model.sampling_rate
    print(f"model {flags.model}, batch {flags.batch_size} x {window:.3f} s, float32, {flags.rounds} rounds")
    print(machine(flags.threads), end="\n\n")
    with ExitStack() as stack:
        if not flags.keep_cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        results = [compare(config, parts, batch, flags.rounds) for parts in flags.parts]
    print(report(results))
    return int(any(one.compilation.recompilations for one in results))


if __name__ == "__main__":
    raise SystemExit(main())
