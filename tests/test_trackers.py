"""The trackers: numbers, settings, the run's id, audio and pictures in the real packages; and what a failing one costs.

TensorBoard comes with the package. The others run where they are installed: `pip install wandb trackio mlflow-skinny`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import tiny_config

from snac_accel.errors import ConfigError
from snac_accel.evaluate import SamplePair, spectrogram_figure
from snac_accel.trackers import MOST_FAILURES, Picture, Sound, Trackers, check_trackers, run_id
from snac_accel.train import main

SAMPLES = SamplePair("clip", torch.linspace(-0.5, 0.5, 4000), torch.linspace(0.5, -0.5, 4000))


class Faulty:
    """A tracker that does as it is told."""

    def __init__(self, error: BaseException | None = None, times: int = 1000) -> None:
        self.error, self.times, self.logged = error, times, 0

    def log(self, values: dict[str, float], step: int) -> None:
        if self.error is not None and self.times:
            self.times -= 1
            raise self.error
        self.logged += 1

    def finish(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Callable[..., Trackers]:
    """Trackers of a run in `tmp_path`, by name, or ready made."""

    def build(*names: str, **ready: Any) -> Trackers:
        config = {"training.learning_rate": 1e-3, "paths.run_dir": "runs/x"}
        trackers = Trackers(names, tmp_path, project="demo", run="demo-1", config=config, say=said.append)
        trackers.open |= ready
        return trackers

    return build


def write_all(trackers: Trackers) -> None:
    """Numbers, audio and pictures of two steps."""
    for step in (1, 2):
        trackers.log({"train/mel": 1.0 / step}, step)
        sounds = [Sound("samples/clip/original", SAMPLES.real, 16000)]
        trackers.media(sounds, [Picture("samples/clip", spectrogram_figure(SAMPLES, 16000))], step)
    trackers.close()


@pytest.mark.parametrize("error", [RuntimeError("server gone"), SystemExit(1), KeyError("x")], ids=repr)
def test_a_tracker_that_fails_again_and_again_is_left(
    error: BaseException, make: Callable[..., Trackers], said: list[str]
) -> None:
    good, bad = Faulty(), Faulty(error)
    trackers = make(bad=bad, good=good)
    for step in range(5):
        trackers.log({"a": 1.0}, step)
    trackers.close()
    assert good.logged == 5 and bad.times == 1000 - MOST_FAILURES
    assert len(said) == 2 and "training goes on" in said[0] and "bad failed 3 times in a row" in said[1]


def test_a_full_disk_passes(make: Callable[..., Trackers], said: list[str]) -> None:
    full = Faulty(OSError(28, "No space left on device"), times=7)
    trackers = make(full=full)
    for step in range(9):
        trackers.log({"a": 1.0}, step)
    assert full.logged == 2 and len(said) == 1 and "No space left" in said[0]


def test_one_that_cannot_be_opened_is_left_out(
    make: Callable[..., Trackers], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import TensorBoardTracker

    monkeypatch.setattr(TensorBoardTracker, "start", lambda self: 1 / 0)
    assert make("tensorboard").open == {}
    (line,) = said
    assert "tensorboard cannot be opened, training goes on without it: ZeroDivisionError division by zero" in line


def test_one_that_is_not_installed_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snac_accel.trackers.get_available_trackers", lambda: ["tensorboard"])
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"tracking.trackers: wandb is not installed here: pip install wandb"):
        check_trackers(["tensorboard", "wandb"])


def test_a_run_goes_on_without_its_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole run whose tracker raises at every call, from the first to the last."""
    from accelerate.tracking import TensorBoardTracker

    def fail(*arguments: Any, **options: Any) -> None:
        raise ConnectionResetError("no answer")

    for name in ("log", "finish"):
        monkeypatch.setattr(TensorBoardTracker, name, fail)
    assert main(tiny_config(tmp_path, tracking={"trackers": ["tensorboard"]}, validation={"enabled": False})) == 0
    assert capsys.readouterr().out.count("no answer") == 1


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path) == run_id(tmp_path) != run_id(tmp_path / "other")
    assert len(run_id(tmp_path)) == 12


def test_tensorboard_has_settings_and_id(make: Callable[..., Trackers], tmp_path: Path) -> None:
    trackers = make("tensorboard")
    write_all(trackers)
    (settings,) = tmp_path.rglob("hparams.yml")
    assert f"run_id: {trackers.run_id}" in settings.read_text() and "training.learning_rate" in settings.read_text()


# The real packages, each in a process of its own: they leave threads and settings behind


def installed(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")


WRITE = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_trackers import Trackers, write_all
folder = Path({folder!r})
for start in range(2):  # the second goes on with the first
    trackers = Trackers([{name!r}], folder, project="demo", run="demo-1", config={{"training.seed": 7}}, say=print)
    assert list(trackers.open) == [{name!r}], "not opened"
    write_all(trackers)
print("written", trackers.run_id)
"""


def write_with(name: str, folder: Path, **environment: str) -> str:
    """Write the same to a real tracker twice, as a run that is resumed does; returns what was printed."""
    script = WRITE.format(tests=str(Path(__file__).parent), folder=str(folder), name=name)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, env={**os.environ, **environment}, cwd=folder
    )
    assert done.returncode == 0 and "written" in done.stdout and "warning" not in done.stdout, done.stdout + done.stderr
    return done.stdout


def test_wandb_offline(tmp_path: Path) -> None:
    installed("wandb")
    write_with("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    identity = run_id(tmp_path)
    runs = [path for path in (tmp_path / "wandb").iterdir() if path.name.startswith("offline-run")]
    assert runs and all(path.name.endswith(identity) for path in runs)
    media = {path.suffix for path in (tmp_path / "wandb").rglob("media/**/*") if path.is_file()}
    assert media == {".wav", ".png"}


def test_trackio(tmp_path: Path) -> None:
    installed("trackio")
    home = tmp_path / "trackio"
    write_with("trackio", tmp_path, TRACKIO_DIR=str(home), HF_HUB_OFFLINE="1")
    (database,) = home.rglob("demo.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {f"demo-1-{run_id(tmp_path)}"}
    assert any(json.loads(metrics).get("train/mel") == 0.5 for _, step, metrics in rows if step == 2)
    assert {path.suffix for path in home.rglob("*") if path.is_file()} >= {".wav", ".png"}


def test_mlflow_in_files(tmp_path: Path) -> None:
    installed("mlflow")
    write_with("mlflow", tmp_path, MLFLOW_TRACKING_URI=f"file:{tmp_path}/mlruns", MLFLOW_ALLOW_FILE_STORE="true")
    (numbers,) = tmp_path.glob("mlruns/*/*/metrics/train/mel")  # one run, though it was begun twice
    assert {line.split()[1] for line in numbers.read_text().splitlines()} == {"1.0", "0.5"}
    assert {path.suffix for path in tmp_path.glob("mlruns/*/*/artifacts/**/*") if path.is_file()} == {".wav", ".png"}
    assert list(tmp_path.glob("mlruns/*/*/params/run_id"))
