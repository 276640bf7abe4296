"""The code itself: nothing in the package unpickles, evaluates text, unpacks archives or asks for code from elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("snac_accel", "launch", ".ci") for path in (ROOT / folder).rglob("*.py"))

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "imp", "runpy", "code",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}  # as builtins: torch.compile and re.compile are attributes
FORBIDDEN_CALLS = {
    # of any object, by the last part of their name
    "extractall", "unpack_archive", "load_module", "exec_module", "unsafe_load", "full_load", "unsafe_load_all",
    "full_load_all", "load_all", "literal_eval", "Unpickler", "read_pickle", "system", "popen",
    "load_script_module", "set_default_load_plan",
}  # fmt: skip
FORBIDDEN_DOTTED = {"torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "torch.export.load", "np.fromfile"}
FORBIDDEN_OPTIONS = {"trust_remote_code", "allow_pickle", "shell", "pickle_module", "Unpickler"}
# Functions that load, and what makes them safe.
LOADERS = {
    "torch.load": {"weights_only": True},
    "yaml.load": {"Loader": "_Loader"},  # a SafeLoader: test_the_loader_of_yaml_is_safe
}
# The exceptions, each with its reason: file, what is found there.
ALLOWED = {
    ("snac_accel/dataset/delivery.py", "pickle"): "an exception's name: what a dying worker leaves in the pipe",
    ("snac_accel/cli/__init__.py", "import_module"): "the modules of COMMANDS, in this package",
    ("snac_accel/__init__.py", "import_module"): "the modules of the table of public names",
    ("snac_accel/metrics/registry.py", "import_module"): "a metric of the user's own, named in a flag of theirs",
    ("snac_accel/export.py", "from_pretrained"): "the folder that was written a moment before; weights_only is torch's default",
}


def findings(source: str) -> Iterator[str]:
    """What is unsafe in a module, by the name under which ALLOWED has it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name.partition(".")[0] for a in node.names if a.name.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = (node.module or "").partition(".")[0]
            if module in FORBIDDEN_MODULES:
                yield module
            yield from (alias.name for alias in node.names if f"{module}.{alias.name}" in LOADERS)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in FORBIDDEN_NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_CALLS:
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    options = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in FORBIDDEN_DOTTED or last in FORBIDDEN_CALLS - {"system", "popen"} or last in ("import_module", "from_pretrained"):
        yield last
    for option in FORBIDDEN_OPTIONS & options.keys():
        value = options[option]
        if not (isinstance(value, ast.Constant) and value.value is False):
            yield option
    for option, wanted in LOADERS.get(name, {}).items():
        found = options.get(option)
        given = found.value if isinstance(found, ast.Constant) else ast.unparse(found) if found is not None else None
        if given != wanted:
            yield f"{name} without {option}={wanted}"


def test_there_are_modules_to_look_at() -> None:
    assert len(SOURCES) > 80


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unsafe_in(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = set(findings(path.read_text(encoding="utf-8")))
    assert {what for what in found if (name, what) not in ALLOWED} == set()


def test_the_exceptions_are_still_needed() -> None:
    for name, what in ALLOWED:
        assert what in set(findings((ROOT / name).read_text(encoding="utf-8"))), (name, what)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import dill as d", "import joblib.memory", "from torch import load",
        "import torch\ntorch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=x)",
        "torch.load(f, pickle_module=p, weights_only=True)", "eval(text)", "exec(text)", "f = eval", "compile(a, b, 'exec')",
        "__import__(name)", "importlib.import_module(name)", "import_module(name)", "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=yes)", "numpy.load(f, allow_pickle=1)", "load_dataset(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x)", "yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)", "yaml.unsafe_load(f)",
        "yaml.full_load(f)", "tar.extractall(x)", "shutil.unpack_archive(x)", "subprocess.run(x, shell=True)", "os.system(x)",
        "os.popen(x)", "torch.hub.load(x, y)", "torch.jit.load(x)", "pandas.read_pickle(x)", "ast.literal_eval(x)",
        "run = subprocess.run; run(x, shell=flag)",
    ],
)  # fmt: skip
def test_it_would_be_found(code: str) -> None:
    assert list(findings(code))


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f, map_location='cpu', weights_only=True)", "re.compile(x)", "torch.compile(m)", "json.loads(x)",
        "yaml.load(text, Loader=_Loader)", "np.load(f, allow_pickle=False)", "model.eval()", "safetensors.torch.load_file(x)",
        "subprocess.run(x, shell=False)",
    ],
)  # fmt: skip
def test_what_is_safe_is_not_found(code: str) -> None:
    assert not list(findings(code))


def test_the_loader_of_yaml_is_safe() -> None:
    import yaml

    from snac_accel.config import files

    assert issubclass(files._Loader, yaml.SafeLoader)
    tags = [tag for tag in files._Loader.yaml_constructors if tag and "python" in tag]
    assert not tags and not files._Loader.yaml_multi_constructors


def test_the_stock_package_reads_weights_alone() -> None:
    """`from_pretrained` of snac leaves `weights_only` to torch, whose default it is from 2.6 on."""
    import inspect

    import snac
    import torch

    assert "weights_only=False" not in inspect.getsource(snac.SNAC.from_pretrained)
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
