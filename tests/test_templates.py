"""The templates in launch/ against the validators of their platforms, offline; each is shown to refuse a mistake.

That their start lines train is shown by `test_template_starts.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dockerfile
import kubernetes_validate
import pytest
import yaml
from huggingface_hub import JobHardware
from huggingface_hub.utils import parse_hf_mount
from kubeflow_trainer_api import models
from nodes import BIN, ROOT, dry_run
from packaging.requirements import Requirement

LAUNCH = ROOT / "launch"
DOCKERFILE = LAUNCH / "docker" / "Dockerfile"
SKYPILOT = ["multi_node.yaml", "spot.yaml"]
SKYPILOT_MISTAKES = [
    ("multi_node.yaml", "num_nodes:", "num_node:"),
    ("multi_node.yaml", "mode: MOUNT_CACHED", "mode: CACHED"),
    ("multi_node.yaml", "vfs_cache_max_size", "vfs_cache_size"),
    ("spot.yaml", "use_spot:", "use_spots:"),
    ("spot.yaml", "max_restarts_on_errors", "max_restarts_on_error"),
    ("spot.yaml", "EAGER_NEXT_REGION", "EAGER_REGION"),
]
KINDS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}
KUBERNETES_VERSION = "1.34"


def broken_copy(source: Path, before: str, after: str, folder: Path) -> Path:
    """The file with a mistake in it."""
    text = source.read_text()
    assert before in text
    copy = folder / f"{before.strip(':').replace(' ', '_')}.{source.name}"
    copy.write_text(text.replace(before, after))
    return copy


# --- SkyPilot


@pytest.fixture(scope="session")
def skypilot(pytestconfig: pytest.Config) -> Path:
    """A Python with SkyPilot: in an environment of its own, because it needs an older click than huggingface_hub does."""
    folder = Path(pytestconfig.cache.mkdir("skypilot-0.14"))
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "skypilot==0.14.*"]  # a minute, 460 MB
        done = subprocess.run(install, capture_output=True, text=True, timeout=800)
        if done.returncode:
            reason = f"SkyPilot cannot be installed: {done.stderr.strip()[-300:]}"
            (pytest.fail if os.environ.get("SNAC_ACCEL_REQUIRE_CLUSTER") == "1" else pytest.skip)(reason)
        ready.touch()
    return python


@pytest.fixture(scope="session")
def skypilot_says(skypilot: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What SkyPilot says to the templates and to their broken copies; one process for all, its import takes seconds."""
    folder = tmp_path_factory.mktemp("skypilot")
    files = [LAUNCH / "skypilot" / name for name in SKYPILOT]
    files += [broken_copy(LAUNCH / "skypilot" / name, *change, folder) for name, *change in SKYPILOT_MISTAKES]
    env = {**os.environ, "HOME": str(folder), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    check = Path(__file__).parent / "data" / "check_skypilot.py"
    done = subprocess.run(
        [str(skypilot), str(check), *map(str, files)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return {Path(name).name: answer for name, answer in answers.items()}


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", SKYPILOT)
def test_skypilot_accepts_the_task(skypilot_says: dict[str, str | None], name: str) -> None:
    assert skypilot_says[name] is None


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("mistake", SKYPILOT_MISTAKES, ids=lambda mistake: mistake[2])
def test_skypilot_refuses_a_mistake(
    skypilot_says: dict[str, str | None], mistake: tuple[str, str, str]
) -> None:
    name, before, after = mistake
    answer = skypilot_says[f"{before.strip(':').replace(' ', '_')}.{name}"]
    assert answer is not None and after.split(": ")[-1].strip(":").lower() in answer.lower()


# --- Kubernetes


def documents(path: Path) -> list[dict[str, Any]]:
    """All documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def problems(document: dict[str, Any]) -> list[str]:
    """What the API of a document's kind does not know, or reads as something else; wrong types raise."""
    if model := KINDS.get(document["kind"]):
        found = list(_lost(document, model.from_dict(document).to_dict(), document["kind"]))
        jobs = document["spec"].get("template", document).get("spec", {}).get("replicatedJobs", [])
        plain = [{"apiVersion": "batch/v1", "kind": "Job", **job["template"]} for job in jobs]
    else:
        found, plain = [], [document]
    for one in plain:
        try:
            kubernetes_validate.validate(one, KUBERNETES_VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(error.message)
    return found


def _lost(before: Any, after: Any, path: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from _lost(value, after[key], f"{path}.{key}") if key in after else [f"{path}.{key}"]
    elif isinstance(before, list) and isinstance(after, list):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif before != after:
        yield f"{path}: {before} became {after}"


@pytest.mark.parametrize("name", ["storage.yaml", "trainjob.yaml", "jobset.yaml"])
def test_kubernetes_knows_every_key(name: str) -> None:
    found = documents(LAUNCH / "kubernetes" / name)
    assert found and [problems(document) for document in found] == [[]] * len(found)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("storage.yaml", "accessModes", "accessMode"),
        ("trainjob.yaml", "numNodes", "nodes"),
        ("trainjob.yaml", "maxRestarts", "restarts"),
        ("trainjob.yaml", "terminationGracePeriodSeconds", "gracePeriod"),
        ("jobset.yaml", "restartStrategy", "strategy"),
        ("jobset.yaml", "preStop", "prestop"),
        ("jobset.yaml", "completionMode", "mode"),
    ],
)
def test_kubernetes_refuses_a_mistake(name: str, before: str, after: str, tmp_path: Path) -> None:
    broken = documents(broken_copy(LAUNCH / "kubernetes" / name, before, after, tmp_path))
    assert any(after in problem for document in broken for problem in problems(document))


def test_wrong_types_are_refused(tmp_path: Path) -> None:
    broken = broken_copy(
        LAUNCH / "kubernetes" / "jobset.yaml", "completions: 2", 'completions: "2"', tmp_path
    )
    with pytest.raises(ValueError, match="completions"):
        problems(documents(broken)[0])


# --- Hugging Face Jobs


def test_the_job_is_what_hf_understands() -> None:
    job = dry_run(["--preset", "demo"])
    assert job["image"] == "docker.io/you/snac_accel"
    assert job["flavor"] in {flavor.value for flavor in JobHardware}
    assert (
        job["secrets"].startswith("HF_TOKEN=") and "HF_TOKEN" not in job["env"]
    )  # taken from the environment
    mount = parse_hf_mount(job["volumes"])
    assert (mount.source.type, mount.source.id, mount.mount_path) == ("bucket", "you/runs", "/runs")
    assert job["command"].endswith("/job.py /runs/snac --preset demo")


@pytest.mark.parametrize("flag", ["--flavor", "--volume", "--attempts"])
def test_a_misspelt_flag_shows(flag: str, tmp_path: Path) -> None:
    """`hf` takes a flag that it does not know for the image."""
    broken = broken_copy(LAUNCH / "hf_jobs" / "submit.sh", flag, flag + "e", tmp_path)
    assert dry_run([], script=broken)["image"] == flag + "e"


# --- Docker


def hadolint(path: Path) -> str:
    """What the linter finds, down to matters of style."""
    command = [str(BIN / "hadolint"), "--no-color", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def instructions(name: str) -> list[dockerfile.Command]:
    """All instructions of that name, read by Docker's own parser."""
    return [command for command in dockerfile.parse_file(str(DOCKERFILE)) if command.cmd == name]


def test_the_dockerfile_is_clean_and_mistakes_are_found(tmp_path: Path) -> None:
    assert hadolint(DOCKERFILE) == ""
    assert "unexpected 'C'" in hadolint(broken_copy(DOCKERFILE, "COPY launch", "CPOY launch", tmp_path))
    assert "DL3006" in hadolint(broken_copy(DOCKERFILE, "python:3.12-slim", "python", tmp_path))


def test_the_image_gets_what_it_copies() -> None:
    """All is hidden but what is named: see `*` at the top of the file."""
    visible = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split("\n*\n")[1].split()
    for command in instructions("COPY"):
        for source in command.value[:-1]:
            assert (ROOT / source).exists() and f"!{source}" in visible


def test_the_dependency_layer_asks_for_what_setup_cfg_asks_for() -> None:
    command = next(line.value[0] for line in instructions("RUN") if "install_requires" in line.value[0])
    listing = command.partition(" > ")[0].replace("python ", f"{sys.executable} ", 1)
    printed = subprocess.run(
        ["bash", "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = {Requirement(line).name for line in printed.split()}
    assert {"torch", "torchaudio", "snac", "accelerate"} <= names and len(names) == len(printed.split())


def test_the_entry_point_needs_no_shell_and_answers() -> None:
    (entry,), (flags,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert entry.json and flags.json and entry.value[0] == "python"
    command = [sys.executable, *entry.value[1:], *flags.value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "usage: snac-accel train" in done.stdout
