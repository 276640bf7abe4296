"""Signals and what is left behind: as process 1 of a container (`unshare -pf`), and under a launcher with one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from nodes import BIN, ENDLESS, ROOT, saved, started, tiny_file, wait_for_step

SCRIPT = "launch/train.py"
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", SCRIPT]
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
# For everything, from the signal to the last process; as many times longer as more programs want to run than there are cores.
SECONDS_TO_END = 25.0  # of the 30 that Kubernetes gives; on a machine that runs other tests beside


def permitted() -> bool:
    """Whether this machine lets us make process namespaces, and enter them."""
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


in_a_container = pytest.mark.skipif(
    not permitted(), reason="needs `unshare --pid --mount-proc`, which root may do"
)


@contextmanager
def container(
    command: list[str], log: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """Start a command as process 1 of a namespace of its own; gives `unshare`, which returns its exit code, and the command."""
    with started([*UNSHARE, *command], log, **variables) as unshare:
        yield unshare, first_child(unshare.pid)


def first_child(pid: int) -> psutil.Process:
    """The only child of a process, as soon as it is there."""
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return children[0]


def family(pid: int) -> list[psutil.Process]:
    """A process and all that come from it."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def running(process: psutil.Process) -> bool:
    """Whether it still does anything: what has ended may wait for whoever inherited it to take note."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_all_end(processes: list[psutil.Process], log: Path) -> None:
    """All of them end in time."""
    deadline = time.monotonic() + SECONDS_TO_END
    while left := [process for process in processes if running(process)]:
        assert time.monotonic() < deadline, f"{left}\n{log.read_text(errors='replace')[-3000:]}"
        time.sleep(0.05)


def flags(folder: Path, **data: object) -> list[str]:
    """An endless tiny run in `folder`/run."""
    return [
        "--config",
        str(tiny_file(folder, {**ENDLESS, "data": data})),
        "--paths.run_dir",
        str(folder / "run"),
    ]


@in_a_container
def test_one_process_saves_and_says_so(tmp_path: Path) -> None:
    """With workers of the data loader, which must not be what keeps it from ending."""
    log = tmp_path / "log"
    with container([sys.executable, SCRIPT, *flags(tmp_path, num_workers=1)], log) as (unshare, trainer):
        wait_for_step(tmp_path / "run", unshare, log)
        everyone = family(unshare.pid)
        trainer.send_signal(signal.SIGTERM)
        assert unshare.wait(timeout=SECONDS_TO_END) == 128 + signal.SIGTERM, log.read_text(errors="replace")[
            -3000:
        ]
        assert_all_end(everyone, log)
    assert "stopped after step" in log.read_text() and saved(tmp_path / "run")


@in_a_container
def test_before_the_first_step_it_ends_at_once(tmp_path: Path) -> None:
    """The kernel keeps signals from process 1 as long as it has no handler: a container that is still loading must end too."""
    log = tmp_path / "log"
    with container([sys.executable, SCRIPT, *flags(tmp_path)], log) as (unshare, trainer):
        for _ in range(120):  # until Python runs so far that it can have a handler
            trainer.send_signal(signal.SIGTERM)
            try:
                unshare.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                continue
        assert unshare.poll() == 128 + signal.SIGTERM, log.read_text(errors="replace")[-3000:]
    assert not (tmp_path / "run").exists()


@in_a_container
def test_torchrun_passes_the_signal_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with container([*TORCHRUN, *flags(tmp_path)], log) as (unshare, torchrun):
        wait_for_step(tmp_path / "run", unshare, log)
        everyone = family(unshare.pid)
        torchrun.send_signal(signal.SIGTERM)
        assert unshare.wait(timeout=SECONDS_TO_END) != 0
        assert_all_end(everyone, log)
    assert saved(tmp_path / "run")["world_size"] == 2


@in_a_container
def test_the_hook_of_the_pods_saves_without_torchruns_time_limit(tmp_path: Path) -> None:
    """`preStop` of launch/kubernetes, entered into the container as the kubelet does."""
    jobset, (runtime, _) = (
        list(yaml.safe_load_all((ROOT / "launch/kubernetes" / name).read_text()))
        for name in ("jobset.yaml", "trainjob.yaml")
    )
    hooks = []
    for spec in (jobset[0]["spec"], runtime["spec"]["template"]["spec"]):
        pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        hooks.append(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])
        assert pod["terminationGracePeriodSeconds"] > 170  # what the hook waits
    assert hooks[0] == hooks[1]
    log = tmp_path / "log"
    with container([*TORCHRUN, *flags(tmp_path)], log) as (unshare, torchrun):
        wait_for_step(tmp_path / "run", unshare, log)
        everyone = family(unshare.pid)
        enter = ["nsenter", "--target", str(torchrun.pid), "--pid", "--mount"]
        with started([*enter, *hooks[0]], tmp_path / "hook.log"):
            assert unshare.wait(timeout=SECONDS_TO_END) != 0, (tmp_path / "hook.log").read_text()
        assert_all_end(everyone, log)
    assert saved(tmp_path / "run")["world_size"] == 2
    assert (
        "death signal" not in log.read_text()
    )  # what torchrun prints when it was told to end, and has a time limit


@in_a_container
def test_a_hugging_face_job_saves_and_copies(tmp_path: Path) -> None:
    log, kept = tmp_path / "log", tmp_path / "bucket" / "run"
    config = tiny_file(tmp_path, ENDLESS)
    command = [sys.executable, "launch/hf_jobs/job.py", str(kept), "--config", str(config)]
    with container(command, log, RUN_DIR=str(tmp_path / "disk")) as (unshare, job):
        wait_for_step(tmp_path / "disk", unshare, log)
        everyone = family(unshare.pid)
        job.send_signal(signal.SIGTERM)
        assert unshare.wait(timeout=SECONDS_TO_END) == 128 + signal.SIGTERM
        assert_all_end(everyone, log)
    assert saved(kept)["world_size"] == 1


def test_accelerate_launch_with_one_process_leaves_nothing_behind(tmp_path: Path) -> None:
    """Accelerate dies of TERM without passing it on; the trainer notices, saves and ends."""
    log = tmp_path / "log"
    with started([str(BIN / "accelerate"), "launch", SCRIPT, *flags(tmp_path)], log) as accelerate:
        wait_for_step(tmp_path / "run", accelerate, log)
        everyone = family(accelerate.pid)
        assert len(everyone) > 1
        os.kill(accelerate.pid, signal.SIGTERM)
        accelerate.wait(timeout=SECONDS_TO_END)
        assert_all_end(everyone, log)
    assert saved(tmp_path / "run")
