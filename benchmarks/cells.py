"""Training runs as the cells of a table: recipe × seed, the same wall-clock time each, measured on the same held-out clips.

    corpus = split_corpus(folder, work, languages=["es", "ru"])
    finished = run_cells({"ours": {...}, "theirs": {...}}, seeds=[0, 1], budget=Budget(seconds=600), corpus=corpus, work=work)

A cell is a real `snac-accel train` in a process of its own; its time counts from its launch. What came of it lies in
`work/cells/NAME/result.json`: started again, a script goes on with the first cell that is not there or was of other settings.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import machine, positive, read_json, table, write_json

from snac_accel.checkpoint import export_checkpoint
from snac_accel.config import config_hash, load_config, merge, to_dict, validate
from snac_accel.dataset import AudioDataset, ValidationClips
from snac_accel.evaluate import evaluate
from snac_accel.export import read_weights
from snac_accel.generator import TrainableSNAC
from snac_accel.health import COLLAPSED, LOW, shares_of_reachable
from snac_accel.stopping import BY_CLOCK

ENOUGH_STEPS = 10**7  # the clock ends a run before
METRICS = ("mel_distance", "stft_distance", "si_sdr_db")
# 1.6 M parameters at 24 kHz, tokens at 12, 23 and 47 Hz as in the published model; both discriminators, a fiftieth as wide.
SMALL: dict[str, Any] = {
    "model": {"encoder_dim": 16, "decoder_dim": 256, "codebook_size": 512},
    "training": {"batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 20, "num_iterations": ENOUGH_STEPS},
    "data": {"segment_length": 0.512, "num_workers": 1},
    "discriminators": {
        "mpd": {"channels": [4, 8, 16, 16]},
        "msstftd": {"hop_lengths": [256, 512, 128], "win_lengths": [1024, 2048, 512], "channels": [4, 8, 16]},
    },
    "codebook": {"initialization_clips": 256},
    "validation": {"enabled": False},
    "checkpoint": {"resume": "never", "keep_last": 1},
    "tracking": {"trackers": [], "progress_bar": False},
}


class Corpus(NamedTuple):
    """Manifests of what is trained on, and of what is not."""

    train: Path
    held_out: Path
    about: str


class Budget(NamedTuple):
    """How long a cell trains, and what it is measured on."""

    seconds: float  # of wall-clock time, the start of the program included
    max_clips: int = 64
    clip_seconds: float = 5.0


class Result(NamedTuple):
    """What came of a cell."""

    recipe: str
    seed: int
    steps: int
    seconds: float
    metrics: dict[str, float]  # on the held-out clips
    perplexity: list[float]  # there, of each level
    share_of_reachable: list[float]  # of the codes that so many lookups would show, were all alike
    key: str  # of everything that it depends on

    @property
    def collapsed(self) -> list[int]:
        """Levels that use next to nothing of their codebook."""
        return [level for level, share in enumerate(self.share_of_reachable) if share < COLLAPSED]

    @property
    def low(self) -> list[int]:
        """Levels below a quarter of it."""
        return [level for level, share in enumerate(self.share_of_reachable) if share < LOW]


def split_corpus(corpus: Path, work: Path, languages: Collection[str], speakers: Collection[str] = ()) -> Corpus:
    """Manifests of a folder with `metadata.csv` (file_name, speaker, language); what is held out shares neither with the rest.

    SystemExit if nothing would be left on either side.
    """
    with open(corpus / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    apart = {row["file_name"] for row in rows if row["language"] in languages or row["speaker"] in speakers}
    sides = {"train": [r for r in rows if r["file_name"] not in apart], "held_out": [r for r in rows if r["file_name"] in apart]}
    about = []
    for name, side in sides.items():
        if not side:
            known = ", ".join(sorted({f"{row['speaker']} ({row['language']})" for row in rows}))
            raise SystemExit(f"{corpus}: nothing is left for {name}; its speakers are {known}")
        lines = [json.dumps({"path": str((corpus / row["file_name"]).resolve()), "speaker": row["speaker"]}) for row in side]
        work.mkdir(parents=True, exist_ok=True)
        (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        about.append(f"{name.replace('_', ' ')}: {len(side)} clips, {', '.join(sorted({row['language'] for row in side}))}")
    return Corpus(work / "train.jsonl", work / "held_out.jsonl", "; ".join(about))


def run_cells(
    recipes: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    budget: Budget,
    corpus: Corpus,
    work: Path,
    base: Mapping[str, Any] = SMALL,
    report: Callable[[list[Result]], None] = lambda results: None,
) -> list[Result]:
    """Train and measure every recipe, changes of `base`, with every seed; `report` is called after each cell with all so far."""
    results: list[Result] = []
    for seed in seeds:  # seed by seed: what is there after an hour is a whole table
        for name, changes in recipes.items():
            config = cell_config(base, changes, seed, budget, corpus)
            results.append(run_cell(name, seed, config, budget, corpus, work / "cells" / f"{slug(name)}-{seed}"))
            report(results)
    return results


def slug(name: str) -> str:
    """A recipe's name as a folder's."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def cell_config(
    base: Mapping[str, Any], changes: Mapping[str, Any], seed: int, budget: Budget, corpus: Corpus
) -> dict[str, Any]:
    """The whole configuration of a cell, validated."""
    own = {
        "training": {"seed": seed, "save_interval": ENOUGH_STEPS},
        "data": {"dataset_path": str(corpus.train)},
        "stopping": {"wall_clock_hours": budget.seconds / 3600},
    }
    return to_dict(validate(merge(merge(dict(base), dict(changes)), own)))


def run_cell(name: str, seed: int, config: dict[str, Any], budget: Budget, corpus: Corpus, folder: Path) -> Result:
    """What is there of the cell, if it was made with the same settings, or a run of it."""
    key = config_hash(validate(config)) + f" {budget.max_clips} x {budget.clip_seconds} s of {corpus.about}"
    finished = folder / "result.json"
    if finished.is_file() and (found := Result(**read_json(finished))).key == key:
        print(f"{name}, seed {seed}: there already", flush=True)
        return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = folder / "run"
    write_json(folder / "config.json", merge(config, {"paths": {"run_dir": str(run)}}))
    started = time.monotonic()
    train(folder)
    seconds = time.monotonic() - started
    measured = measure(run, folder / "export", budget, corpus)
    result = Result(name, seed, last_step(run), seconds, *measured, key)
    write_json(finished, result._asdict())
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    print(f"{name}, seed {seed}: {result.steps} steps, mel distance {result.metrics['mel_distance']:.3f}", flush=True)
    return result


def train(folder: Path) -> None:
    """Run the cell's configuration until its time is up; SystemExit with the end of its output if it fails."""
    command = [sys.executable, "-m", "snac_accel", "train", "--config", str(folder / "config.json")]
    with open(folder / "output.txt", "w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code not in (0, 128 + BY_CLOCK):
        tail = "\n".join((folder / "output.txt").read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{folder}: training left with {code}\n{tail}")


def measure(run: Path, export: Path, budget: Budget, corpus: Corpus) -> tuple[dict[str, float], list[float], list[float]]:
    """Metrics, perplexity, and its share of what is reachable, of a run's newest checkpoint on the held-out clips."""
    export_checkpoint(run, export)
    model = to_dict(load_config(file=run / "config.json"))["model"]
    generator = TrainableSNAC(**model)
    generator.load_state_dict(read_weights(str(export), model))
    segment = generator.hop_length * max(generator.vq_strides)
    source = AudioDataset(str(corpus.held_out), generator.sampling_rate, segment_samples=segment)
    clips = ValidationClips(source, budget.max_clips, budget.clip_seconds)
    result = evaluate(generator, clips, metrics=METRICS)
    return result.metrics, result.perplexity, list(shares_of_reachable(result).values())


def last_step(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(path.name.partition("_")[2].partition(".")[0]) for path in (run / "checkpoints").glob("step_*"))


def mean(values: Sequence[float]) -> str:
    """Mean, and in brackets the range where there are several."""
    several = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{several}"


def setting(flags: argparse.Namespace, corpus: Corpus) -> str:
    """How the table came about, and how to have it again."""
    held_out = " ".join(["--held_out_languages", *flags.held_out_languages])
    held_out += " ".join([" --held_out_speakers", *flags.held_out_speakers]) if flags.held_out_speakers else ""
    name = Path(sys.argv[0]).name
    command = f"python benchmarks/{name} --corpus CORPUS {held_out} --seconds {flags.seconds} --seeds {flags.seeds}"
    return (
        f"`{command}`\n\n{machine()}. Each run: {flags.seconds} s of wall-clock time from its launch, on a generator of "
        f"1.6 M parameters at 24 kHz, batch 4 of 0.512 s. {corpus.about}; measured on up to {flags.max_clips} held-out clips. "
        "Mean of the seeds, in brackets their range. A level counts as collapsed where its held-out perplexity is below a "
        "sixteenth of the codes that so many lookups could show."
    )


def by_recipe(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each recipe, in the order of the recipes."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.recipe, []).append(result)
    return grouped


def row(name: str, own: Sequence[Result]) -> list[str]:
    """A recipe's line of the table."""
    levels = range(len(own[0].perplexity))
    perplexity = " / ".join(f"{statistics.mean(r.perplexity[level] for r in own):.0f}" for level in levels)
    metrics = [mean([r.metrics[metric] for r in own]) for metric in METRICS]
    collapsed = f"{sum(len(r.collapsed) for r in own)} of {len(own) * len(levels)}"
    return [name, mean([r.steps for r in own]).replace(".00", ""), *metrics, perplexity, collapsed]


HEADERS = ["recipe", "steps", "mel distance", "STFT distance", "SI-SDR (dB)", "perplexity", "collapsed levels"]


def publish(title: str, about: str, rows: Sequence[Sequence[str]], notes: Sequence[str], output: Path | None) -> None:
    """Print the table so far; write it with its notes where a file is asked for."""
    text = table(rows, HEADERS)
    print(f"\n{text}\n", flush=True)
    if output is not None:
        output.write_text("\n\n".join([f"# {title}", about, text, *notes]) + "\n", encoding="utf-8")


def parser(description: str, work: str) -> argparse.ArgumentParser:
    """The flags that scripts with cells share."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--corpus", type=Path, required=True, help="folder with metadata.csv: file_name, speaker, language")
    flags.add_argument("--held_out_languages", nargs="*", default=["es", "ru"], help="measured on, not trained on")
    flags.add_argument("--held_out_speakers", nargs="*", default=[], help="the same")
    flags.add_argument("--seconds", type=positive, default=600, help="wall-clock time of each cell")
    flags.add_argument("--seeds", type=positive, default=3, help="runs of each recipe")
    flags.add_argument("--max_clips", type=positive, default=64, help="held-out clips")
    flags.add_argument("--work", type=Path, default=Path(work), help="where finished cells are kept")
    flags.add_argument("--output", type=Path, help="file of the table; none: it is printed only")
    return flags
