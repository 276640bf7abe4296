"""A SLURM of two nodes on this machine, and jobs on it, as the tests see them."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TEMPLATE = Path("launch", "slurm", "train.sbatch")
TWO_NODES = Path(__file__).with_name("two_nodes.sh")
PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
# Two nodes with a rank each, on processors; what a person without GPUs would type.
ON_CPU = ("--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1")


def missing() -> str | None:
    """Why no cluster can run here, after trying to install it; None if one can."""
    if os.geteuid() != 0:
        return "the daemons of SLURM need root"
    if all(map(shutil.which, PROGRAMS)):
        return None
    if shutil.which("apt-get") is None:
        return (
            f"{', '.join(PROGRAMS)} are missing, and there is no apt-get to install {' and '.join(PACKAGES)}"
        )
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update", "-q"], install):
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        if done.returncode:
            return f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}"
    return None


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Ask until it holds; the machine may be slow, so the bound is wide."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


class Cluster:
    """A running SLURM: partition `spot`, which `high` preempts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The template calls `python`; Debian keeps the daemons in sbin.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "etc" / "slurm.conf"), "PATH": path}

    def up(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        subprocess.run(["bash", TWO_NODES, "up", self.folder, str(_free_ports(3))], check=True, timeout=120)

    def down(self) -> None:
        """End daemons and jobs."""
        subprocess.run(["bash", TWO_NODES, "down", self.folder], check=True, timeout=60)

    def call(self, *command: str | Path, memory: int | None = None) -> str:
        """What a command of SLURM prints, called from the root of the repository; `memory` bounds it and its jobs (bytes)."""

        def bound() -> None:
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))

        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            preexec_fn=bound,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout.strip()

    def train(self, output: Path, *flags: str | Path, export: str = "ALL", memory: int | None = None) -> Job:
        """Submit the template as it is shipped, with the given flags for the trainer."""
        options = ("--parsable", f"--output={output}", f"--export={export}", *ON_CPU)
        return Job(self, self.call("sbatch", *options, TEMPLATE, *flags, memory=memory), output)

    def preempt(self) -> Job:
        """Submit a job of a second that needs both nodes, in the higher partition."""
        options = ("--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
        return Job(self, self.call("sbatch", *options, "--wrap", "sleep 1"), Path(os.devnull))


class Job:
    """A job by its number."""

    def __init__(self, cluster: Cluster, number: str, output: Path) -> None:
        self.cluster, self.number, self.output = cluster, number, output

    def facts(self) -> dict[str, str]:
        """What SLURM knows of the job: JobState, Restarts, ExitCode, …"""
        words = self.cluster.call("scontrol", "show", "job", "--oneliner", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def printed(self) -> str:
        """Everything that the job has written, in all its starts."""
        return self.output.read_text() if self.output.exists() else ""

    def wait(self, *states: str, seconds: float = 150) -> dict[str, str]:
        """Wait until the job is in one of the states; what SLURM knows of it then."""
        self.until(lambda: self.facts()["JobState"] in states, f"one of {states}", seconds)
        return self.facts()

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 150) -> None:
        """Wait for a condition; if it does not come, say what the job printed."""
        try:
            wait_for(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.facts()}\n{self.printed()}") from None

    def wait_requeued(self, restarts: int) -> None:
        """Wait until the job, after so many restarts in all, is in the queue again."""
        wanted = ("PENDING", str(restarts))
        self.until(
            lambda: (self.facts()["JobState"], self.facts()["Restarts"]) == wanted, f"requeued, {wanted}"
        )

    def start_soon(self) -> None:
        """Start a requeued job without the two minutes that SLURM waits, once everything of its last start is gone."""

        def gone() -> bool:
            titles = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
            return not any(title.startswith(f"slurmstepd: [{self.number}.") for title in titles)

        self.until(gone, "the last start is gone")
        self.cluster.call("scontrol", "update", f"JobId={self.number}", "StartTime=now+2")

    def signal(self, name: str) -> None:
        """Send a signal to the batch script alone, as `#SBATCH --signal=B:…` has SLURM do it before the time limit."""
        self.cluster.call("scancel", "--batch", f"--signal={name}", self.number)

    def trainers(self) -> dict[int, psutil.Process]:
        """The running trainers of the job, by rank."""
        found = {}
        for process in psutil.process_iter():
            try:
                environment = process.environ() if "launch/train.py" in process.cmdline() else {}
            except psutil.Error:
                continue
            ours = environment.get("SLURM_CONF") == self.cluster.environment["SLURM_CONF"]
            if (
                ours
                and environment.get("SLURM_JOB_ID") == self.number
                and process.name().startswith("python")
            ):
                found[int(environment.get("SLURM_PROCID", -1))] = process
        return found


def _free_ports(number: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(17817, 32000, number):
        sockets = [socket.socket() for _ in range(number)]
        try:
            for offset, listener in enumerate(sockets):
                listener.bind(("", first + offset))
            return first
        except OSError:
            continue
        finally:
            for listener in sockets:
                listener.close()
    raise OSError("no free ports")
