"""`launch/slurm/train.sbatch`, as it is shipped, on a real SLURM of two nodes: the trainer, its signals, what is requeued."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from slurm_jobs import ON_CPU, ROOT, TEMPLATE, Cluster, Job
from snac import SNAC
from test_train import rows, tiny_config

from snac_accel.checkpoint import list_checkpoints, verify_checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ENDLESS = 1_000_000


class Run:
    """A run of the tiny model by two ranks: its configuration file, its folder, its job."""

    def __init__(
        self, cluster: Cluster, folder: Path, *flags: str, save_interval: int = ENDLESS, **options: Any
    ) -> None:
        self.config, self.folder = folder / "tiny.json", folder / "run"
        self._training = {
            "num_iterations": ENDLESS,
            "save_interval": save_interval,
            "validation_interval": ENDLESS,
            "batch_size": 1,
            "global_batch_size": 4,
        }
        self._write()
        ours = ("--config", self.config, "--paths.run_dir", self.folder)
        self.job: Job = cluster.train(folder / "output.txt", *ours, *flags, **options)

    def _write(self) -> None:
        self.config.write_text(json.dumps(tiny_config(training=self._training)))

    def end_after(self, steps: int) -> None:
        """Let the next start of the job complete the run, so many steps after the newest checkpoint."""
        self._training["num_iterations"] = self.newest() + steps
        self._write()

    def steps(self) -> list[int]:
        """The logged steps."""
        try:
            return [row["step"] for row in rows(self.folder)]
        except FileNotFoundError:
            return []

    def newest(self) -> int:
        """The step of the newest checkpoint, which must be whole; -1 if there is none."""
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        return int(verify_checkpoint(checkpoints[-1])["step"]) if checkpoints else -1

    def trained(self, step: int) -> None:
        """Wait until the step is logged."""
        self.job.until(lambda: max(self.steps(), default=0) >= step, f"step {step}")

    def check_complete(self) -> None:
        """Every step once, four windows each, and a model that the stock package loads."""
        done = self.job.wait("COMPLETED", "FAILED", "CANCELLED")
        assert (done["JobState"], done["ExitCode"]) == ("COMPLETED", "0:0"), self.job.printed()
        assert self.steps() == list(range(1, self.newest() + 1))
        assert [row["data/clips"] for row in rows(self.folder)] == [4 * step for step in self.steps()]
        SNAC.from_pretrained(str(self.folder / "export"))
        assert not list(self.folder.parent.rglob("*slurm_attempts"))


def test_the_template_can_be_submitted_as_it_is(cluster: Cluster) -> None:
    """Two nodes with eight GPUs each, and the same without GPUs."""
    for options, processors in (((), 128), (ON_CPU, 2)):
        said = cluster.call("sbatch", "--test-only", *options, TEMPLATE)
        assert f"using {processors} processors on nodes 127.0.0.[1-2]" in said


def test_what_the_user_can_put_right_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.train(tmp_path / "output.txt", "--training.learnig_rate", "1")
    done = job.wait("COMPLETED", "FAILED", "CANCELLED")
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "2:0", "0"), job.printed()
    assert "training.learning_rate" in job.printed() and "not requeued" in job.printed()
    run_dir = f"runs/snac-{job.number}"
    assert f"run {run_dir}," in job.printed() and not (ROOT / run_dir).exists()


def test_two_nodes_save_on_usr1_are_requeued_and_complete_the_run(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path)
    run.trained(2)
    assert set(run.job.trainers()) == {0, 1} and run.newest() == -1
    run.job.signal("USR1")
    run.job.wait_requeued(1)
    saved = run.newest()
    assert saved == run.steps()[-1]
    run.end_after(2)
    run.job.start_soon()
    run.check_complete()
    assert run.newest() == saved + 2 and run.job.facts()["Restarts"] == "1"
    assert "step: 4 windows (batch 1 x 2 processes x 2 micro-batches)" in run.job.printed()


def test_preemption_saves_and_requeues_but_scancel_is_final(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path)
    run.trained(2)
    high = cluster.preempt()
    run.job.wait_requeued(1)
    saved = run.newest()
    assert saved == run.steps()[-1]
    high.wait("COMPLETED")
    run.job.start_soon()
    run.trained(saved + 1)
    run.job.cluster.call("scancel", run.job.number)
    run.job.wait("CANCELLED")
    run.job.until(lambda: not run.job.trainers(), "both ranks have left")
    done = run.job.facts()
    assert (done["JobState"], done["Restarts"]) == ("CANCELLED", "1")
    assert run.newest() >= saved and run.steps() == list(range(1, run.steps()[-1] + 1))


def test_a_killed_rank_ends_the_other_and_the_job_starts_again(cluster: Cluster, tmp_path: Path) -> None:
    """One failed start is within the bound, as it brought checkpoints; --resume is for the first start alone."""
    run = Run(cluster, tmp_path, "--resume", "never", save_interval=1, export="ALL,MAX_ATTEMPTS=1")
    run.trained(2)
    ranks = run.job.trainers()
    ranks[1].send_signal(signal.SIGKILL)
    run.job.until(lambda: not ranks[0].is_running(), "rank 0 has left", seconds=30)
    run.job.wait_requeued(1)
    run.end_after(2)
    run.job.start_soon()
    run.check_complete()
    assert "rank 1 on 127.0.0.2 ended with exit code 137" in run.job.printed()


def test_a_crash_loop_without_progress_ends(cluster: Cluster, tmp_path: Path) -> None:
    """On nodes with too little memory to load the trainer."""
    run = Run(cluster, tmp_path, export="ALL,MAX_ATTEMPTS=2", memory=700 << 20)
    run.job.wait_requeued(1)
    run.job.start_soon()
    done = run.job.wait("COMPLETED", "FAILED", "CANCELLED")
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "1:0", "1"), run.job.printed()
    assert "2 failed starts in a row without a newer checkpoint" in run.job.printed()
