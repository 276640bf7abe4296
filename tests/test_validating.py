"""Validation in the loop: what is measured, which is the best, when a run ends for it, and what fine-tuning is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from snac import SNAC
from test_train import tiny_config

from snac_accel import validating
from snac_accel.config import validate
from snac_accel.config.validation import METRIC_NAMES
from snac_accel.errors import ConfigError
from snac_accel.metrics import METRICS
from snac_accel.stored import list_checkpoints, read_manifest
from snac_accel.tracking import validations
from snac_accel.train import main


def run(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """The validations of a run of four steps, each after two."""
    assert main(tiny_config(folder, **changes)) == 0
    return validations(folder / "logs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the default average, judged by SI-SDR."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    run(folder, validation={"best_metric": "si_sdr_db", "metrics": ["mel_distance", "si_sdr_db"]}, checkpoint={"keep_best": 1})
    return folder


def test_the_settings_know_every_metric() -> None:
    assert set(METRIC_NAMES) == set(METRICS)


def test_a_row_has_what_was_asked_for_with_and_without_the_average(finished: Path) -> None:
    rows = validations(finished / "logs")
    assert [row["step"] for row in rows] == [0, 2, 4]
    for row in rows:
        for prefix in ("validation", "validation/without_average"):
            assert {"mel_distance", "si_sdr_db", "level_0/perplexity"} <= {
                name.removeprefix(f"{prefix}/") for name in row if name.startswith(prefix)
            }
        assert row["time/validation"] > 0 and "validation/stft_distance" not in row
    first, last = rows[0], rows[-1]
    assert first["validation/mel_distance"] == first["validation/without_average/mel_distance"]
    assert last["validation/mel_distance"] != last["validation/without_average/mel_distance"]


def test_the_average_is_what_is_exported(finished: Path) -> None:
    newest = list_checkpoints(finished / "checkpoints")[-1]
    average, own = (load_file(newest / name) for name in ("average.safetensors", "generator.safetensors"))
    exported = SNAC.from_pretrained(str(finished / "export")).state_dict()
    assert all(torch.equal(exported[name], average[name]) for name in exported)
    assert not all(torch.equal(exported[name], own[name]) for name in exported)


def test_of_a_metric_that_rises_the_largest_is_the_best(finished: Path) -> None:
    rows = {row["step"]: row["validation/si_sdr_db"] for row in validations(finished / "logs")}
    best = max(rows, key=lambda step: rows[step])
    kept = {read_manifest(path)["step"]: read_manifest(path)["score"] for path in list_checkpoints(finished / "checkpoints")}
    assert kept[best] == {"metric": "si_sdr_db", "value": pytest.approx(rows[best]), "better": "higher"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["mel_distance"], "best_metric": "si_sdr_db"}, "should be one of validation.metrics: mel_distance"),
        ({"metrics": ["mel_distance", "mel_distance"]}, "should name each metric once"),
        ({"metrics": ["mel_distanse"]}, "mel_distance"),
    ],
)
def test_metrics_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({"validation": changes})


# The end for want of anything better


def worsening(monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    """Let validations be the better the nearer their number is to `best`, counted from 0."""
    real, calls = validating.evaluate, iter(range(1000))

    def evaluate(*arguments: Any, **options: Any) -> Any:
        result, number = real(*arguments, **options), next(calls)
        return result._replace(metrics={**result.metrics, "mel_distance": 1.0 + abs(number - best)})

    monkeypatch.setattr(validating, "evaluate", evaluate)


PATIENT = {"patience": 2, "without_average": False}
LONG = {"num_iterations": 20, "validation_interval": 1, "save_interval": 100}


def test_a_run_that_gets_no_better_ends_and_exports_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worsening(monkeypatch, best=1)
    rows = run(tmp_path, validation=PATIENT, training=LONG)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert "the run ends at step 3: the last 2 validations were no better in mel_distance than that of step 1, 1" in said
    assert "step 1" in said.split("held-out  ")[-1]  # the table is of what is exported
    steps = {read_manifest(path)["step"]: path for path in list_checkpoints(tmp_path / "checkpoints")}
    assert {1, 3} <= steps.keys()
    exported = SNAC.from_pretrained(str(tmp_path / "export")).state_dict()
    best = load_file(steps[1] / "average.safetensors")
    assert all(torch.equal(exported[name], best[name]) for name in exported)
    # Started again it trains no further; with more patience it does.
    assert [row["step"] for row in run(tmp_path, validation=PATIENT, training=LONG)] == [0, 1, 2, 3]
    more = {**PATIENT, "patience": 4}
    assert [row["step"] for row in run(tmp_path, validation=more, training=LONG)] == [0, 1, 2, 3, 4, 5]


def test_the_untouched_model_may_be_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worsening(monkeypatch, best=0)
    run(tmp_path, validation=PATIENT, training=LONG)
    exported = SNAC.from_pretrained(str(tmp_path / "export")).state_dict()
    start = load_file(tmp_path / "checkpoints" / "step_00000000" / "generator.safetensors")
    assert all(torch.equal(exported[name], start[name]) for name in exported)


# Fine-tuning


def test_fine_tuning_is_compared_with_the_untouched_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first row is the export that it starts from; the later ones, also of a resumed run, show the difference."""
    changes: dict[str, Any] = {"validation": {"metrics": ["mel_distance", "si_sdr_db"]}}
    source = {"training": {"init_from": str(finished / "export"), "num_iterations": 2}}
    run(tmp_path, **changes, **source)
    source["training"]["num_iterations"] = 4
    rows = run(tmp_path, **changes, **source)
    before = validations(finished / "logs")[-1]
    assert rows[0]["validation/mel_distance"] == pytest.approx(before["validation/mel_distance"], rel=1e-5)
    assert [row["step"] for row in rows] == [0, 2, 4]
    for row in rows:
        for name in ("mel_distance", "si_sdr_db"):
            change = row[f"validation/{name}"] - rows[0][f"validation/{name}"]
            assert row[f"validation/change/{name}"] == pytest.approx(change, abs=1e-9)
    assert rows[1]["validation/change/mel_distance"] != 0
    assert "log-mel" in capsys.readouterr().out
    assert "validation/change/mel_distance" not in before


def test_the_average_begins_anew_where_a_checkpoint_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"validation": {"enabled": False}}
    assert main(tiny_config(tmp_path, averaging={"method": "none"}, training={"num_iterations": 2}, **options)) == 0
    assert not (tmp_path / "checkpoints" / "step_00000002" / "average.safetensors").exists()
    assert main(tiny_config(tmp_path, averaging={"method": "exponential", "decay": 0.5}, **options)) == 0
    assert "the checkpoint has no average.safetensors: the average begins with its weights" in capsys.readouterr().out
    saved = load_file(tmp_path / "checkpoints" / "step_00000004" / "average.safetensors")
    assert int(saved["updates"]) == 2


def test_a_balanced_run_with_turns_goes_on_where_it_was(tmp_path: Path) -> None:
    """The norms, the turns and the averages of a resumed run are those of the uninterrupted one."""
    options: dict[str, Any] = {
        "validation": {"enabled": False},
        "balancer": {"enabled": True, "total_norm": 4.0},
        "turns": {"start_step": 1, "pauses": [[3, 4]]},
    }
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert main(tiny_config(straight, **options)) == 0
    assert main(tiny_config(resumed, training={"num_iterations": 3, "save_interval": 3}, **options)) == 0
    assert main(tiny_config(resumed, **options)) == 0
    states = [folder / "checkpoints" / "step_00000004" for folder in (straight, resumed)]
    balancers = [json.loads((state / "progress.json").read_text())["balancer"] for state in states]
    assert balancers[0] == balancers[1] and {"adversarial", "multi_scale_mel"} <= balancers[0].keys()
    for file in ("generator.safetensors", "average.safetensors", "discriminator.mpd.safetensors"):
        one, other = (load_file(state / file) for state in states)
        assert all(torch.equal(one[name], other[name]) for name in one), file
