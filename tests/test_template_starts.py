"""The start lines of the templates in launch/, taken from the files themselves and run as two processes on this machine.

Each gets the variables that its platform sets. GPUs become one process per node; paths of the image and of the mounted
volume become folders here; the run becomes the tiny one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from nodes import QUICK, ROOT, command_of, dry_run, free_port, saved, started, tiny_file
from snac import SNAC
from test_train import losses

LAUNCH = ROOT / "launch"
TINY_FLAGS = ["--batch_size", "1", "--training.global_batch_size", "2"]  # the last of two equal flags counts


def load(name: str) -> list[dict[str, Any]]:
    """All documents of a template."""
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def run_nodes(commands: Sequence[tuple[list[str], dict[str, str]]], folder: Path) -> None:
    """Run one command for each node, with its variables, to the end; all must succeed."""
    logs = [folder / f"node_{index}.log" for index in range(len(commands))]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(started(command, log, **variables))
            for (command, variables), log in zip(commands, logs, strict=True)
        ]
        codes = [node.wait(timeout=270) for node in nodes]
    assert codes == [0] * len(codes), "".join(log.read_text(errors="replace")[-3000:] for log in logs)


def check_run(run: Path, *, world_size: int = 2) -> None:
    """Two steps of two windows by so many ranks that met, and a model at the end."""
    manifest = saved(run)
    assert (manifest["step"], manifest["world_size"], manifest["global_batch_size"]) == (2, world_size, 2)
    assert losses(run)[1]["data/clips"] == 2
    SNAC.from_pretrained(str(run / "export"))


@pytest.mark.parametrize(("name", "nodes", "gpus"), [("multi_node.yaml", 2, 1), ("spot.yaml", 1, 2)])
def test_skypilot(name: str, nodes: int, gpus: int, tmp_path: Path) -> None:
    (task,) = load(f"skypilot/{name}")
    assert "--training.global_batch_size" in task["envs"]["TRAIN_FLAGS"] and "/runs" in task["file_mounts"]
    assert task["envs"]["RUN_DIR"].startswith("/runs/")
    script = task["run"].replace("29500", free_port())
    config = tiny_file(tmp_path, QUICK)
    common = {
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(gpus),
        "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * nodes),
        "TRAIN_FLAGS": f"--config {config} {' '.join(TINY_FLAGS)}",
        "RUN_DIR": str(tmp_path / "run"),
    }
    run_nodes(
        [(["bash", "-c", script], {**common, "SKYPILOT_NODE_RANK": str(r)}) for r in range(nodes)], tmp_path
    )
    check_run(tmp_path / "run")


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    """The container that a JobSet starts for each node."""
    (job,) = document["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


def tiny_command(container: dict[str, Any], folder: Path) -> list[str]:
    """The container's command for the tiny run in `folder`."""
    config = tiny_file(folder, QUICK)
    changes = {
        "--preset=ljspeech": f"--config={config}",
        "--paths.run_dir=/runs/ljspeech": f"--paths.run_dir={folder / 'run'}",
    }
    assert changes.keys() <= set(container["args"])
    return [*container["command"], *(changes.get(word, word) for word in container["args"]), *TINY_FLAGS]


def test_jobset(tmp_path: Path) -> None:
    (jobset,) = load("kubernetes/jobset.yaml")
    container, spec = container_of(jobset), jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    variables = {one["name"]: one.get("value") for one in container["env"] if one["name"].startswith("PET_")}
    assert variables["PET_NNODES"] == str(spec["completions"]) == str(spec["parallelism"]) == "2"
    service = jobset["metadata"]["name"]  # JobSet's name for the first pod: JOBSET-JOB-0-0.SERVICE
    assert (
        variables["PET_MASTER_ADDR"]
        == f"{service}-{jobset['spec']['replicatedJobs'][0]['name']}-0-0.{service}"
    )
    here = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": free_port(), "PET_NPROC_PER_NODE": "1"}
    assert here.keys() | {"PET_NODE_RANK"} < variables.keys()
    command = tiny_command(container, tmp_path)
    environments = [
        {**variables, **here, "PET_NODE_RANK": str(i), "JOB_COMPLETION_INDEX": str(i)} for i in range(2)
    ]
    run_nodes([(command, one) for one in environments], tmp_path)
    check_run(tmp_path / "run")


def test_trainjob(tmp_path: Path) -> None:
    """The variables are those that Trainer 2.3 gives to the container `node` (its plugin `torch`)."""
    runtime, job = load("kubernetes/trainjob.yaml")
    assert job["spec"]["runtimeRef"] == {"kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    assert container_of(runtime["spec"]["template"])["name"] == "node"
    trainer = job["spec"]["trainer"]
    assert not any(one["name"].startswith("PET_") for one in trainer["env"])  # Trainer refuses them
    common = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": free_port(),
    }
    command = tiny_command(trainer, tmp_path)
    run_nodes([(command, {**common, "PET_NODE_RANK": str(rank)}) for rank in range(2)], tmp_path)
    check_run(tmp_path / "run")


def test_hugging_face_job_goes_on_from_the_copy_in_the_bucket(tmp_path: Path) -> None:
    config, bucket = tiny_file(tmp_path, QUICK), tmp_path / "bucket"
    job = dry_run(["--config", str(config), *TINY_FLAGS])
    words = {
        "/app/launch/hf_jobs/job.py": str(LAUNCH / "hf_jobs" / "job.py"),
        "/runs/snac": str(bucket / "snac"),
    }
    command = [words.get(word, word) for word in command_of(job)]
    assert (
        set(words) < set(command_of(job))
        and job["env"] == "PROCESSES=1"
        and job["volumes"].endswith(":/runs")
    )
    bucket.mkdir()
    here = {"RUN_DIR": str(tmp_path / "disk"), "COPY_SECONDS": "2"}

    run_nodes([(command, {**here, "PROCESSES": "2"})], tmp_path)
    check_run(bucket / "snac")
    assert not list(bucket.rglob(".incomplete-*"))

    shutil.rmtree(tmp_path / "disk")  # as a job's disk is
    flags = ["--num_iterations", "3", "--checkpoint.keep_last", "1"]
    run_nodes([([*command, *flags], {**here, "PROCESSES": "1"})], tmp_path)
    manifest = saved(bucket / "snac")
    assert (manifest["step"], manifest["world_size"]) == (3, 1) and sorted(losses(bucket / "snac")) == [
        1,
        2,
        3,
    ]
    assert [path.name for path in (bucket / "snac" / "checkpoints").iterdir()] == ["step_00000003"]
