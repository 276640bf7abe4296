"""Inside a Hugging Face Job: train on the job's own disk, and keep a copy of the run in a bucket.

    python launch/hf_jobs/job.py /runs/ljspeech --preset ljspeech

The disk of a job is lost with it. A mounted bucket outlasts it, but is no place to train in: a file there cannot be added
to, which is what logs need. So the run lives in `RUN`, what is new is copied every few minutes and at the end, and the next
job starts from the copy. PROCESSES in the environment: one for each GPU, 1 by default.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
RUN = Path(os.environ.get("RUN_DIR", "/tmp/run"))
SECONDS_BETWEEN_COPIES = float(os.environ.get("COPY_SECONDS", "300"))
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the trainer saves and leaves on each
INCOMPLETE = ".incomplete-"  # checkpoints that are being written, see snac_accel/files.py


def main(arguments: list[str]) -> int:
    """Restore, train, keep copies; returns the trainer's exit code, or 1 if the last copy failed."""
    kept, flags = Path(arguments[0]), arguments[1:]
    if kept.is_dir():
        copy_new_files(kept, RUN)
        print(f"restored {RUN} from {kept}", flush=True)
    trainer = subprocess.Popen(
        [*launcher(), str(TRAIN), *flags, "--paths.run_dir", str(RUN), "--resume", "auto"]
    )

    def forward(number: int, frame: FrameType | None) -> None:
        trainer.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    while True:
        try:
            code = trainer.wait(timeout=SECONDS_BETWEEN_COPIES)
            break
        except subprocess.TimeoutExpired:
            keep(RUN, kept)
    copied = keep(RUN, kept)
    return (code if code >= 0 else 128 - code) or int(not copied)


def launcher() -> list[str]:
    """What starts the training script."""
    processes = os.environ.get("PROCESSES", "1")
    return (
        [sys.executable] if processes == "1" else ["torchrun", "--standalone", "--nproc_per_node", processes]
    )


def keep(run: Path, kept: Path) -> bool:
    """Copy what is new, then drop checkpoints that the run has dropped; False, after a line, if the bucket refused."""
    try:
        copy_new_files(run, kept)
        for old in kept.glob("checkpoints/step_*"):
            if not (run / "checkpoints" / old.name).exists():
                shutil.rmtree(old, ignore_errors=True)  # the next copy tries again
    except OSError as error:
        print(f"the run could not be copied to {kept}: {error}", file=sys.stderr, flush=True)
        return False
    return True


def copy_new_files(source: Path, target: Path) -> None:
    """Copy files that are missing or older in `target`. A cut-short copy does no harm: checkpoints carry checksums."""
    for file in sorted(source.rglob("*")):
        copy = target / file.relative_to(source)
        if INCOMPLETE in str(file) or not file.is_file() or _is_current(copy, file):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file, copy)
        except FileNotFoundError:
            if file.exists():  # else an old checkpoint that was removed meanwhile
                raise


def _is_current(copy: Path, file: Path) -> bool:
    if not copy.is_file():
        return False
    have, want = copy.stat(), file.stat()
    return have.st_size == want.st_size and have.st_mtime >= want.st_mtime


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
