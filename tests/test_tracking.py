"""The log of a run: one readable line a step, whatever the numbers are, and pictures where a tracker takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from snac_accel.evaluate import SamplePair
from snac_accel.tracking import METRICS_FILE, Tracking, flatten, plain, validations


@pytest.fixture
def open_tracking(make_accelerator: Callable[..., Accelerator], tmp_path: Path) -> Callable[..., Tracking]:
    """Open the log in `tmp_path`, with TensorBoard or without any tracker."""

    def open_it(tensorboard: bool = False) -> Tracking:
        accelerator = make_accelerator()
        if tensorboard:
            AcceleratorState._reset_state()
            accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir="elsewhere")
        config = {"training": {"learning_rate": 1e-3, "max_grad_norm": None}, "data": {"gain_db": [0, 1]}}
        return Tracking(
            accelerator, tmp_path, config=config, name="run", start=0, total=5, progress_bar=False
        )

    return open_it


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_every_line_is_json_even_if_a_loss_is_not_finite(
    open_tracking: Callable[..., Tracking], tmp_path: Path
) -> None:
    tracking = open_tracking()
    tracking.log({"train/mel": 1.5, "train/stft": math.nan, "a": math.inf, "b": -math.inf}, step=3)
    (line,) = lines(tmp_path)  # before closing: a crash loses nothing
    tracking.close()
    assert line["step"] == 3
    assert (line["train/mel"], line["train/stft"], line["a"], line["b"]) == (1.5, "nan", "inf", "-inf")


def test_a_resumed_run_adds_to_its_log(open_tracking: Callable[..., Tracking], tmp_path: Path) -> None:
    for step in (1, 2):
        tracking = open_tracking()
        tracking.log({"train/mel": 1.0}, step=step)
        tracking.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_validations_pass_over_what_a_crash_cut_short(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "validation/mel_distance": 9.0},
        {"step": 1, "train/mel": 3.0},
        {"step": 2, "validation/mel_distance": 4.0},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / METRICS_FILE).write_text(text + '\n{"step": 3, "validation/mel_dist')
    assert [row["step"] for row in validations(tmp_path)] == [0, 2]


def test_a_line_after_a_crash_is_not_lost(open_tracking: Callable[..., Tracking], tmp_path: Path) -> None:
    """The line that a crash cut short has no end; the first line of the resumed run must not be glued to it."""
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "validation/mel_distance": 3.0}\n{"step": 2, "valid')
    tracking = open_tracking()
    tracking.log({"validation/mel_distance": 2.0}, step=2)
    tracking.close()
    assert [row["step"] for row in validations(tmp_path)] == [1, 2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_numbers_settings_sound_and_pictures(
    open_tracking: Callable[..., Tracking], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    tracking = open_tracking(tensorboard=True)
    tracking.log({"train/mel": 1.5}, step=3)
    audio = torch.linspace(-2, 2, 4000)  # too loud: TensorBoard would refuse it
    tracking.samples([SamplePair("clips/one.ogg", audio / 2, audio)], 16000, step=3)
    tracking.close()
    folders = {file.parent for file in tmp_path.rglob("events.out.*")}
    events = [event_accumulator.EventAccumulator(str(folder)).Reload() for folder in folders]
    tags = {
        kind: {tag for event in events for tag in event.Tags()[kind]}
        for kind in ("scalars", "audio", "images")
    }
    assert "train/mel" in tags["scalars"]
    assert tags["audio"] == {"samples/clips_one/original", "samples/clips_one/reconstruction"}
    assert tags["images"] == {"samples/clips_one"}


def test_without_tracker_samples_are_no_error(open_tracking: Callable[..., Tracking]) -> None:
    tracking = open_tracking()
    tracking.samples([SamplePair("one", torch.zeros(2000), torch.zeros(2000))], 16000, step=0)
    tracking.close()


def test_lines_above_the_bar(
    open_tracking: Callable[..., Tracking], capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = open_tracking()
    tracking.advance()
    tracking.show({"mel": 1.23456})
    tracking.say("step 1: saved")
    tracking.close()
    assert "step 1: saved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "expected"), [(1.5, 1.5), (math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_plain_values(value: float, expected: float | str) -> None:
    assert plain(value) == expected


def test_flat_settings_are_what_trackers_take() -> None:
    nested = {"a": {"b": {"c": 1}, "d": None, "e": [1, 2], "f": True, "g": "text"}, "h": 0.5}
    assert flatten(nested) == {
        "a.b.c": 1,
        "a.d": "None",
        "a.e": "[1, 2]",
        "a.f": True,
        "a.g": "text",
        "h": 0.5,
    }
