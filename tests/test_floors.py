"""The house keeps its floors: a module imports from lower floors or its own, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import snac_accel

PACKAGE = Path(snac_accel.__file__).parent
FLOORS = {
    0: [
        "clock",
        "errors",
        "files",
        "heartbeat",
        "line_log",
        "locks",
        "peaks",
        "plain_json",
        "presets",
        "pulse",
        "redaction",
        "retention",
        "runs",
        "seeds",
        "stopwatch",
        "stored",
        "watchdog",
    ],
    1: ["config"],
    2: ["audio", "depthwise", "fast_convolution", "snake", "winograd"],
    3: ["codebook", "dataset", "discriminators", "generator", "losses", "metrics"],
    4: [
        "activations",
        "averages",
        "balancer",
        "compiling",
        "costs",
        "export",
        "lineage",
        "guards",
        "pace",
        "state",
        "tensor_files",
        "training_pack",
        "turns",
        "weight_names",
    ],
    5: [
        "accounts",
        "changes",
        "checkpoint",
        "evaluate",
        "gathering",
        "listening",
        "meter",
        "optimizers",
        "post_hoc",
        "profiling",
        "rates",
        "report",
        "resuming",
        "hub",
        "model_card",
        "run_card",
        "run_folder",
        "saving",
        "step",
        "traces",
        "trackers",
        "tracking",
    ],
    6: [
        "agreement",
        "doctor",
        "environment",
        "health",
        "evaluation",
        "inference",
        "keeping",
        "launching",
        "onnx_models",
        "prepare",
        "publishing",
        "rollback",
        "run_data",
        "session", "validating",
        "signals",
        "starting",
        "stopping",
        "tokenize",
    ],
    7: ["train"],
    8: ["cli"],
    9: ["__main__"],
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
HEAVY = {
    "torch",
    "torchaudio",
    "numpy",
    "snac",
    "accelerate",
    "datasets",
    "soundfile",
    "matplotlib",
    "safetensors",
}


@lru_cache
def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; an `__init__` bears its folder's name, the package's is left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name}


def imports_of(name: str) -> Iterator[str]:
    """Modules of the package that `name` imports, anywhere in its text: at the top or inside functions."""
    path = modules()[name]
    package = ["snac_accel", *name.split(".")]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            targets = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield from resolve(target)


def resolve(target: str) -> Iterator[str]:
    """The module that a dotted import leads to: itself, or the one that holds the imported name."""
    top, _, rest = target.partition(".")
    if top != "snac_accel" or not rest:
        return
    while rest and rest not in modules():
        rest = rest.rpartition(".")[0]
    if rest:
        yield rest


def outside_imports_of(name: str) -> set[str]:
    """Top-level names of everything else that a module imports when it is loaded."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def floor(name: str) -> int:
    return FLOOR_OF[name.partition(".")[0]]


def test_every_module_has_a_floor() -> None:
    """A new module is entered above, and in the house's plan."""
    assert {name.partition(".")[0] for name in modules()} == set(FLOOR_OF)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_never_go_up(name: str) -> None:
    upwards = {target for target in imports_of(name) if floor(target) > floor(name)}
    assert not upwards


def test_no_circle() -> None:
    """Between modules, and so between files: a folder's `__init__` gathers its files, which do not import it."""
    order = TopologicalSorter({name: set(imports_of(name)) - {name} for name in modules()})
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", sorted(name for name in modules() if floor(name) in (2, 3, 4)))
def test_parts_never_see_a_config(name: str) -> None:
    assert not [target for target in imports_of(name) if target.partition(".")[0] == "config"]


@pytest.mark.parametrize(
    "name", sorted(name for name in modules() if floor(name) < 2 or name in ("cli", "__main__"))
)
def test_nothing_heavy_at_the_top_of_light_modules(name: str) -> None:
    assert not outside_imports_of(name) & HEAVY


def test_presets_use_the_standard_library_alone() -> None:
    assert outside_imports_of("presets") <= {"__future__", "collections", "copy", "math", "pathlib", "typing"}
    assert not list(imports_of("presets"))


def test_the_reader_of_imports_sees_them() -> None:
    """What the tests above lean on: relative, absolute, nested and function-level imports are all found."""
    assert {"codebook", "generator", "losses", "seeds", "state"} <= set(imports_of("step"))
    assert {"errors", "presets", "config.schema"} <= set(imports_of("config"))
    assert "train" in set(imports_of("cli.training"))  # inside a function
    assert {"torch", "accelerate"} <= outside_imports_of("step")
