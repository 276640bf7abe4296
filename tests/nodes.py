"""Several processes that stand for the nodes of a cluster, on this machine and with bounded lives; for the tests of launch/."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from test_train import tiny_config

from snac_accel.checkpoint import list_checkpoints, verify_checkpoint
from snac_accel.config import merge

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
QUICK = {
    "training": {"num_iterations": 2, "save_interval": 2, "validation_interval": 100_000},
    "validation": {"max_clips": 1, "max_clip_seconds": 1.0},
}
ENDLESS = {"training": {"num_iterations": 100_000, "save_interval": 100_000, "validation_interval": 100_000}}


def tiny_file(folder: Path, changes: dict[str, dict[str, object]]) -> Path:
    """The tiny run of `test_train` as a file for --config."""
    path = folder / "tiny.json"
    path.write_text(json.dumps(merge(tiny_config(), changes)))
    return path


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the project's commands in front, one thread each, and `variables`."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@contextmanager
def started(command: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the repository's root, as leader of a group that is killed at the end, printing into `log`."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**variables), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(timeout=30)


def wait_for_step(run: Path, process: subprocess.Popen[bytes], log: Path, seconds: float = 200) -> None:
    """Wait until the run has logged a step."""
    metrics, deadline = run / "logs" / "metrics.jsonl", time.monotonic() + seconds
    while not (metrics.exists() and "train/adversarial" in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.1)


def saved(run: Path) -> dict[str, object]:
    """The manifest of the newest checkpoint, whose files are checked."""
    return verify_checkpoint(list_checkpoints(run / "checkpoints")[-1])


def dry_run(flags: Sequence[str], script: Path = ROOT / "launch" / "hf_jobs" / "submit.sh") -> dict[str, str]:
    """The job that `hf jobs run` would send, as it prints it."""
    variables = {"DRY_RUN": "1", "IMAGE": "docker.io/you/snac_accel", "BUCKET": "you/runs", "NO_COLOR": "1"}
    done = subprocess.run(
        ["sh", str(script), *flags], env=environment(**variables), capture_output=True, text=True,
        check=True, timeout=100,
    )  # fmt: skip
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
    return {words[0]: words[1] for words in lines}


def command_of(job: dict[str, str]) -> list[str]:
    """The words of a job's command."""
    return shlex.split(job["command"])
