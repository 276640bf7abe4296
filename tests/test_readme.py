"""What the README and CONTRIBUTING show is true: commands parse, blocks run, every file has its line in the tree."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import pytest

from snac_accel import cli
from snac_accel.cli.averaging import average_parser
from snac_accel.cli.doctor import doctor_parser
from snac_accel.cli.evaluation import compare_parser, evaluate_parser
from snac_accel.cli.flags import config_parser, read_config
from snac_accel.cli.prepare import prepare_parser
from snac_accel.cli.publishing import export_onnx_parser, export_parser, publish_parser
from snac_accel.cli.runs import runs_parser, watch_parser
from snac_accel.cli.tokenize import tokenize_parser
from snac_accel.cli.use import decode_parser, encode_parser, reconstruct_parser
from snac_accel.config import DATASET_CONFIGS, MODEL_CONFIGS, TrainingConfig, describe_model
from snac_accel.config.text import ENVIRONMENT_PREFIX

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/**/*.md")}
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>\w+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


USE = {"encode": encode_parser, "decode": decode_parser, "reconstruct": reconstruct_parser}
PUBLISH = {"export": export_parser, "export-onnx": export_onnx_parser, "publish": publish_parser}
LOOK = {"runs": runs_parser, "watch": watch_parser, "average": average_parser}
PLAIN = {**LOOK, **USE, **PUBLISH}  # of commands without a configuration
PARSERS = {  # of commands with flags of their own
    "doctor": doctor_parser,
    "prepare": prepare_parser,
    "tokenize": tokenize_parser,
    "evaluate": evaluate_parser,
    "compare": compare_parser,
}


SCRIPTS = {"launch/train.py": "train", "launch/slurm/train.sbatch": "train", "launch/evaluate.py": "evaluate"}


class Block(NamedTuple):
    """A fenced block, and the mark in the HTML comment above it."""

    mark: str
    language: str
    code: str


def blocks(text: str = README, *, language: str | None = None, mark: str | None = None) -> list[Block]:
    found = [Block(m["mark"] or "", m["language"], m["code"]) for m in FENCE.finditer(text)]
    return [
        b for b in found if (language is None or b.language == language) and (mark is None or b.mark == mark)
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in the bash blocks: lines joined at backslashes, comments and redirections cut off."""
    for block in blocks(text, language="bash"):
        open_quotes = ""
        for line in block.code.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(open_quotes + line, comments=True)
            except ValueError:  # the quotes close on a later line
                open_quotes += f"{line}\n"
                continue
            open_quotes = ""
            if words:
                yield words[: words.index(">")] if ">" in words else words


def own_arguments(words: list[str]) -> list[str] | None:
    """The arguments of `snac-accel` that a command amounts to, or None if it starts something else."""
    words = list(dropwhile(lambda word: "=" in word, words))  # variables of the environment
    if any("$" in word for word in words):
        return None
    if words[:1] == ["snac-accel"]:
        return words[1:]
    for script, command in SCRIPTS.items():
        if script in words and words[0] in ("python", "accelerate", "torchrun", "sbatch"):
            return [command, *words[words.index(script) + 1 :]]
    return None


COMMANDS = [words for text in (README, *PAGES.values()) for words in commands(text) if own_arguments(words)]


def read(arguments: list[str]) -> TrainingConfig | None:
    """The configuration that the arguments give, by the command line's own parser; None for --help."""
    command, *flags = arguments
    assert command in cli.COMMANDS
    if flags == ["--help"]:
        return None
    if command in PLAIN:
        PLAIN[command]().parse_known(flags)
        return None
    parser = PARSERS[command]() if command in PARSERS else config_parser(command, "")
    return read_config(parser.parse_known(flags))


@pytest.fixture
def example_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configuration files that the commands name, without settings from the environment."""
    for variable in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(variable)
    (tmp_path / "my_run.yaml").write_text("training: {batch_size: 4}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 20
    assert len(blocks(language="python")) >= 4 and len(blocks(mark="run")) >= 4


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_parses(words: list[str], example_files: Path) -> None:
    arguments = own_arguments(words)
    assert arguments
    read(arguments)


def test_a_wrong_command_would_be_noticed(example_files: Path) -> None:
    with pytest.raises(Exception, match="did you mean --batch_size"):
        read(["train", "--preset", "demo", "--batch_sise", "8"])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_launcher_takes_its_part(words: list[str]) -> None:
    """Flags before launch/train.py are the launcher's, and its configuration file exists."""
    if words[0] not in ("accelerate", "torchrun"):
        return
    own = words[1 : next(words.index(script) for script in SCRIPTS if script in words) + 1]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(own)
        return
    from accelerate.commands.launch import launch_command_parser

    flags = launch_command_parser().parse_args(own[1:])
    assert flags.config_file is None or (ROOT / flags.config_file).is_file()


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_make_targets_exist(text: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(text):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words


@pytest.mark.parametrize("block", blocks(language="python"), ids=lambda block: block.code.splitlines()[0])
def test_python_block_compiles_and_imports_resolve(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.timeout(600)
def test_marked_blocks_run(tmp_path: Path) -> None:
    """In the order of the page, in one folder: two steps of training, the export in the stock package, the parts."""
    scripts = {"python": [sys.executable], "bash": ["bash", "-e"]}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for number, block in enumerate(blocks(mark="run")):
        file = tmp_path / f"block_{number}"
        file.write_text(block.code)
        result = subprocess.run(
            [*scripts[block.language], str(file)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        assert result.returncode == 0, f"{block.code}\n{result.stderr}"
    assert (tmp_path / "two_steps" / "export" / "pytorch_model.bin").is_file()
    assert (tmp_path / "decoded.wav").stat().st_size > 1000


def tree() -> dict[str, str]:
    """Path -> what the annotated tree says about it; folders end in a slash."""
    (block,) = blocks(mark="tree")
    lines: dict[str, str] = {}
    folders: list[str] = []
    for line in block.code.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, text = line.strip().partition("  ")
        folders = folders[:depth]
        lines["".join(folders) + name] = text.strip()
        if name.endswith("/"):
            folders.append(name)
    return lines


@pytest.mark.parametrize(("path", "text"), tree().items(), ids=list(tree()))
def test_path_in_the_tree_exists(path: str, text: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()
    has_lines_below = sum(other.startswith(path) for other in tree()) > 1
    assert text or has_lines_below, "a file needs its line"


def test_every_file_is_in_the_tree() -> None:
    patterns = [
        "snac_accel/**/*.py",
        "docs/*",
        "launch/**/*.*",
        "accelerate_configs/*",
        "benchmarks/*.py",
        "*.md",
        "*.cfg",
        "*.toml",
    ]
    files = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    names = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {name for name in names if not name.startswith("snac_accel/demo/")} <= set(tree())


def test_links_lead_somewhere() -> None:
    for name, text in {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING, **PAGES}.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), (name, target)
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in README.splitlines()
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings


def test_tables_of_presets_are_right() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", README, re.MULTILINE))
    assert set(rows) >= {*MODEL_CONFIGS, *DATASET_CONFIGS}
    for name, model in MODEL_CONFIGS.items():
        facts = describe_model(model)
        rates = " / ".join(f"{rate:.0f}" for rate in facts.token_rates)
        columns = rows[name].split(" | ")
        assert columns[:3] == [f"{model['sampling_rate']} Hz", rates, f"{facts.bitrate / 1000:.2f}"]
    for name, run in DATASET_CONFIGS.items():
        if run["dataset_path"] != DATASET_CONFIGS["demo"]["dataset_path"]:
            assert f"`{run['dataset_path']}`" in rows[name]
            assert rows[name].endswith("streamed" if run["streaming"] else "downloaded")


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_numbers_of_parameters_are_right(name: str) -> None:
    import torch
    from snac import SNAC

    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in SNAC(**MODEL_CONFIGS[name]).parameters())
    assert re.search(rf"^\| `{name}` \|.*\| {parameters:,} \|$", README, re.MULTILINE)


def test_table_of_floors_is_the_one_that_is_kept() -> None:
    from test_floors import FLOORS

    rows = re.findall(r"^\| (\d+) \| (.+) \|$", CONTRIBUTING, re.MULTILINE)
    table = {int(floor): sorted(re.findall(r"`(\w+)`", names)) for floor, names in rows}
    kept = {floor: sorted(name for name in names if name != "__main__") for floor, names in FLOORS.items()}
    assert table == {floor: names for floor, names in kept.items() if names}
