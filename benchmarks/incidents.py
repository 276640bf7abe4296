"""What happens to a run in a storm: each incident waits for some steps, does its harm, and waits for what comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lives import Life, last_step

from snac_accel.stored import MANIFEST, list_checkpoints

WAIT_SECONDS = 60.0


class Incident(NamedTuple):
    """A kind of incident."""

    harm: Callable[[Life], None]
    codes: set[int | None]  # exit codes that may follow; None: the process lives on


def _signal(number: int) -> Callable[[Life], None]:
    return lambda life: os.kill(life.pid, number)


def _twice(life: Life) -> None:
    os.kill(life.pid, signal.SIGTERM)
    time.sleep(0.03)
    os.kill(life.pid, signal.SIGINT)


def _stop_file(life: Life) -> None:
    (life.run_dir / "STOP").touch()


def _killed_while_saving(life: Life) -> None:
    """In the middle of the next checkpoint."""
    checkpoints = life.run_dir / "checkpoints"
    life.until(lambda: any(checkpoints.glob(".incomplete-*")), WAIT_SECONDS)
    os.kill(life.pid, signal.SIGKILL)


def _flipped(life: Life) -> None:
    """Kill it, and change a byte of the newest checkpoint."""
    file = _after_kill(life) / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(life: Life) -> None:
    """Kill it, and cut the newest checkpoint's manifest in two."""
    file = _after_kill(life) / MANIFEST
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _after_kill(life: Life) -> Path:
    """Kill it as soon as there are two checkpoints, and return the newest."""
    checkpoints = life.run_dir / "checkpoints"
    life.until(lambda: len(list_checkpoints(checkpoints)) > 1, WAIT_SECONDS)
    os.kill(life.pid, signal.SIGKILL)
    life.process.join()
    return list_checkpoints(checkpoints)[-1]


def _dead_worker(life: Life) -> None:
    """Kill one of the data workers, and let the run go on for some steps."""
    workers = life.workers()
    if workers:
        os.kill(workers[0].pid, signal.SIGKILL)
    begun = last_step(life.run_dir)
    life.until(lambda: last_step(life.run_dir) > begun + 2, WAIT_SECONDS)


def _full_disk(life: Life) -> None:
    """Leave no byte on the run's disk until a save has failed, and one thereafter has not."""
    filler = life.run_dir.parent / "filler"
    with open(filler, "ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    failed = life.output().count("is not saved")
    try:
        life.until(lambda: life.output().count("is not saved") > failed, WAIT_SECONDS)
    finally:
        filler.unlink()
    saved = life.output().count(": saved ")
    life.until(lambda: life.output().count(": saved ") > saved, WAIT_SECONDS)


INCIDENTS = {
    "SIGKILL": Incident(_signal(signal.SIGKILL), {-9}),
    "SIGKILL in a save": Incident(_killed_while_saving, {-9, 0}),
    "SIGTERM": Incident(_signal(signal.SIGTERM), {143}),
    "SIGINT": Incident(_signal(signal.SIGINT), {130}),
    "SIGUSR1": Incident(_signal(signal.SIGUSR1), {138}),
    "two signals": Incident(_twice, {130, 143}),
    "STOP file": Incident(_stop_file, {130}),
    "newest checkpoint changed": Incident(_flipped, {-9}),
    "newest manifest cut": Incident(_cut, {-9}),
    "dead worker": Incident(_dead_worker, {None, 0}),
    "full disk": Incident(_full_disk, {None, 0, 2}),  # 2: there was no room at the run's end either
}


def mount(folder: Path, megabytes: int) -> str | None:
    """Make `folder` a small disk of its own; returns why that cannot be done here."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or "mount failed" if done.returncode else None


def unmount(folder: Path) -> None:
    """Take the small disk away, with what is on it."""
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
