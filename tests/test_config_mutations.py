"""Three hundred mistakes in valid configurations, pairs and paths that cannot work: one line each, before torch."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import config_mutations
import pytest
from config_mutations import NUMBER, Mutation, command, mutations

from snac_accel.config import SETTINGS
from snac_accel.config.messages import show
from snac_accel.config.text import ENVIRONMENT_PREFIX

ROOT = Path(__file__).parent.parent
SECONDS = 2.0
MUTATIONS = mutations()
ADVICE = re.compile(
    r"should |did you mean |: unknown setting; \S+ has |the sections are |contradicts|holds no |expected |more than its "
    r"|at least |give one "
)

# Settings as flags, what the line names, and what it begins with after that. FOLDER is a folder, FILE a file in it.
TOGETHER = [
    ("--training.global_batch_size 16 --batch_size 6", "training.global_batch_size = 16"),
    ("--training.global_batch_size 32 --training.gradient_accumulation_steps 2", "training.gradient_accumulation_steps = 2"),
    ("--tracking.profile 5:3", 'tracking.profile = "5:3"'),
    ("--tracking.profile 100:110 --num_iterations 50", 'tracking.profile = "100:110"'),
    ("--model.encoder_rates 2 4 --model.decoder_rates 4 4", "model.decoder_rates = [4, 4]"),
    ("--model.vq_strides 1 2 4", "model.vq_strides = [1, 2, 4]"),
    ("--model.latent_dim 100", "model.latent_dim = 100"),
    ("--model.decoder_dim 1000", "model.decoder_dim = 1000"),
    ("--data.gain_db=3,-3", "data.gain_db = [3.0, -3.0]"),
    ("--data.gain_db=3", "data.gain_db = [3]"),
    ("--discriminators.mpd null --discriminators.msstftd null", "losses.adversarial = 1.0"),
    ("--losses.adversarial 0 --losses.feature_matching 0 --losses.multi_scale_mel 0", "losses.multi_scale_mel = 0.0"),
    ("--discriminators.msstftd.fft_sizes 1024", "discriminators.msstftd.hop_lengths = [120, 240, 50]"),
    ("--discriminators.msstftd.win_lengths 600 1200 600", "discriminators.msstftd.win_lengths = [600, 1200, 600]"),
    ("--validation.by speaker", 'validation.by = "speaker"'),
    ("--validation.split train", 'validation.split = "train"'),
    ("--validation.configuration de", 'validation.configuration = "de"'),
    ("--preset tiny --data.segment_length 0.01", "data.segment_length = 0.01"),
    ("--preset demo --dataset vctk", "preset demo and dataset vctk"),
    ("--discriminators.mpd null --discriminators.mpd.periods 2", "discriminators.mpd.periods = [2]"),
    ("--optimizer.betas 0.9", "optimizer.betas = [0.9]"),
    ("--optimizer.betas 0.9 1.0", "optimizer.betas[1] = 1.0"),
]
PATHS = [
    ("--paths.run_dir FILE/run", "paths.run_dir", "is no folder"),
    ("--paths.run_dir FILE", "paths.run_dir", "is no folder"),
    ("--paths.run_dir /dev/null/run", "paths.run_dir", "is no folder"),
    ("--paths.run_dir /proc/run", "paths.run_dir", "cannot be written"),
    ("--paths.checkpoint_dir /sys/run", "paths.checkpoint_dir", "cannot be written"),
    ("--paths.log_dir FILE/logs", "paths.log_dir", "is no folder"),
    ("--paths.run_dir LONG", "paths.run_dir", "should have names of at most 255 bytes"),
    ("--paths.run_dir DANGLING/run", "paths.run_dir", "is no folder"),
    ("--data.cache_dir FILE", "data.cache_dir", "is no folder"),
    ("--dataset_path FOLDER/recordigns", "data.dataset_path", "did you mean FOLDER/recordings?"),
    ("--dataset_path FOLDER/nothing/like/it", "data.dataset_path", "should|holds no"),
    ("--dataset_path FILE/x", "data.dataset_path", "cannot be read"),
    ("--dataset_path clips.parquet", "data.dataset_path", "no such folder or file"),
    ("--dataset_path LONG", "data.dataset_path", "should have names of at most 255 bytes"),
    ("--validation.dataset_path ./absent", "validation.dataset_path", "no such folder or file"),
    ("--init_from FOLDER/absent", "training.init_from", "no such folder or file"),
    ("--init_from ~/absent/model", "training.init_from", "no such folder or file"),
    ("--paths.run_name a/b", "paths.run_name", "no folders"),
    ("--dataset_path https://user:password@example.org/x", "data.dataset_path", "should hold no user name, password or key"),
    ("--init_from https://example.org/x?token=1", "training.init_from", "should hold no user name, password or key"),
]  # fmt: skip


class Answer(NamedTuple):
    """What came of a command."""

    code: int
    output: str
    errors: str
    seconds: float
    heavy: list[str]  # modules that were loaded by then


class Reader:
    """A fresh interpreter that reads command after command."""

    def __init__(self, folder: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
        environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [sys.executable, config_mutations.__file__], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, arguments: list[str], variables: dict[str, str] | None = None) -> Answer:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([arguments, variables or {}]) + "\n")
        self.process.stdin.flush()
        return Answer(*json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    one = Reader(tmp_path_factory.mktemp("reader"))
    yield one
    one.process.kill()
    one.process.wait()


def check(answer: Answer) -> str:
    """The line; exit code 2, nothing else printed, nothing heavy loaded, in time."""
    assert (answer.code, answer.output) == (2, "")
    assert answer.errors.startswith("error: ") and answer.errors.endswith("\n") and answer.errors.count("\n") == 1
    assert not answer.heavy and answer.seconds < SECONDS
    line = answer.errors.removeprefix("error: ").rstrip("\n")
    assert line.isprintable() and "Traceback" not in line and ADVICE.search(line), line
    return line


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_one_line(mutation: Mutation, reader: Reader, tmp_path: Path) -> None:
    arguments, variables = command(mutation, tmp_path)
    line = check(reader.ask(arguments, variables))
    assert _names(mutation, line), line
    if mutation.kind == "value":
        assert _shows(mutation.value, line), line


def _names(mutation: Mutation, line: str) -> bool:
    """Whether the line names the setting; of a misspelt section, the section."""
    parts = mutation.name.split(".")
    wrong = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    variable = ENVIRONMENT_PREFIX + mutation.name.upper().replace(".", "__")
    if mutation.kind == "value":
        return mutation.name in line
    return any(name in line for name in wrong) and (mutation.channel != "environment" or variable in line)


def _shows(value: Any, line: str) -> bool:
    """Whether the line shows the value, or the item of a list that is wrong."""
    shown = {show(value), show([float(v) for v in value])} if _are_numbers(value) else {show(value)}
    if isinstance(value, list) and value:
        shown |= {show(value[0])}
    escaped = {one.encode("unicode_escape").decode() for one in shown}
    return any(one.rstrip("…")[:40] in line for one in shown | escaped)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def test_there_are_three_hundred_of_every_kind() -> None:
    assert len(MUTATIONS) == NUMBER == len({(m.name, str(m.value), m.channel) for m in MUTATIONS})
    for channel in config_mutations.CHANNELS:
        assert sum(m.channel == channel for m in MUTATIONS) > 40
    assert len({m.name for m in MUTATIONS if m.kind == "value"}) > 60
    assert {name.partition(".")[0] for name in SETTINGS} == {
        m.name.partition(".")[0] for m in MUTATIONS if m.kind == "value"
    }


@pytest.mark.parametrize(("flags", "beginning"), TOGETHER, ids=[flags for flags, _ in TOGETHER])
def test_settings_that_do_not_go_together(flags: str, beginning: str, reader: Reader) -> None:
    assert check(reader.ask(["train", *flags.split()])).startswith(beginning)


@pytest.mark.parametrize(("flags", "name", "problem"), PATHS, ids=[flags for flags, _, _ in PATHS])
def test_paths_that_cannot_work(flags: str, name: str, problem: str, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    words = {"FILE": tmp_path / "file", "FOLDER": tmp_path, "LONG": tmp_path / ("x" * 300), "DANGLING": tmp_path / "dangling"}
    for word, path in words.items():
        flags, problem = flags.replace(word, str(path)), problem.replace(word, re.escape(str(path)))
    answer = reader.ask(["train", *flags.split()])
    line = answer.errors.removeprefix("error: ")
    assert (answer.code, answer.output, answer.heavy) == (2, "", []) and line.count("\n") == 1
    assert line.startswith(f"{name} = ") and re.search(problem, line), line
    assert "password@" not in line and "token=1" not in line


@pytest.mark.parametrize("where", ["file", "environment"])
def test_paths_from_elsewhere(where: str, reader: Reader, tmp_path: Path) -> None:
    """The same checks for what is not given by a flag."""
    (tmp_path / "c.json").write_text(json.dumps({"data": {"dataset_path": "/absent/data"}}))
    answer = (
        reader.ask(["train", "--config", str(tmp_path / "c.json")])
        if where == "file"
        else reader.ask(["train"], {"SNAC_ACCEL_DATA__DATASET_PATH": "/absent/data"})
    )
    assert answer.code == 2 and answer.errors.startswith('error: data.dataset_path = "/absent/data": no such folder or file')


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SNAC_ACCEL_TRAINING_SEED", "SNAC_ACCEL_TRAINING__SEED"),
        ("SNAC_ACCEL_TRAINING_BATCH_SIZE", "SNAC_ACCEL_TRAINING__BATCH_SIZE"),
        ("SNAC_ACCEL_PATHS_RUNDIR", "SNAC_ACCEL_PATHS__RUN_DIR"),
    ],
)
def test_one_underscore_is_not_passed_over(variable: str, meant: str, reader: Reader) -> None:
    line = check(reader.ask(["train"], {variable: "3"}))
    assert line.startswith(f"environment variable {variable}: ") and line.endswith(f"did you mean {meant}?")


def test_values_are_never_evaluated(reader: Reader, tmp_path: Path) -> None:
    """Code in every place where text may stand."""
    trace = tmp_path / "trace"
    codes = [
        f"!!python/object/apply:pathlib.Path.write_text [{trace}, x]", f"__import__('os').system('touch {trace}')",
        f"$(touch {trace})", f"`touch {trace}`", f"${{oc.env:{trace}}}", f"{{{{ cycler.__init__('{trace}') }}}}",
        "!!python/name:os.system", f"!include {trace}", f"@{trace}",
    ]  # fmt: skip
    for number, code in enumerate(codes):
        for name in ("training.seed", "losses.mel", "model.vq_strides", "data.streaming", "discriminators.mpd", "data.sources"):
            check(reader.ask(["train", f"--{name}={code}"]))
            check(reader.ask(["train"], {ENVIRONMENT_PREFIX + name.upper().replace(".", "__"): code}))
        for suffix in ("yaml", "json"):
            file = tmp_path / f"{number}.{suffix}"
            file.write_text(f'{{"training": {{"seed": {code}}}}}' if suffix == "json" else f"training:\n  seed: {code}\n")
            answer = reader.ask(["train", "--config", str(file)])
            assert answer.code == 2 and answer.errors.count("\n") == 1 and not answer.heavy
    assert not trace.exists()


@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.channel != "environment"][:: NUMBER // 5], ids=str)
def test_a_whole_start_costs_little(mutation: Mutation, tmp_path: Path) -> None:
    """A fresh interpreter from beginning to end: processor time, which others on the machine do not lengthen much."""
    arguments, _ = command(mutation, tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "snac_accel", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
