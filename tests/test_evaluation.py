"""`snac-accel evaluate` and `compare`: numbers, files, what is kept of a clip, one process or two."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny import MODEL, make_generator

from snac_accel.cli import main
from snac_accel.errors import CheckpointError, ConfigError, DataError
from snac_accel.evaluation import choose_metrics, differences, estimate, merge, open_model, read_results, summarize
from snac_accel.evaluation.models import decode_levels, default_label, find_model, name_and_label
from snac_accel.evaluation.running import choose_page_clips
from snac_accel.evaluation.results import Results
from snac_accel.evaluation.traits import metrics_of_levels
from snac_accel.export import write_export
from snac_accel.listening import read_page_clip

ROOT = Path(__file__).parent.parent
METRICS = ["--metrics", "mel_distance", "si_sdr_db"]
HOSTILE = "=cmd <img src=x onerror=alert(1)>.wav"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """Five short clips of recorded speech at 22050 Hz: quiet, of odd lengths, one with a hostile name."""
    folder = tmp_path_factory.mktemp("clips")
    names = ["a.wav", "b.wav", "c.wav", "d.wav", HOSTILE]
    for number, (name, source) in enumerate(zip(names, sorted((demo_folder / "validation").glob("*.flac")), strict=False)):
        audio = soundfile.read(source, dtype="float32")[0][8000 : 16001 + 100 * number]
        soundfile.write(folder / name, 0.1 * audio / np.abs(audio).max(), 22050, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny exports."""
    folder = tmp_path_factory.mktemp("models")
    return [write_export(folder / f"model_{seed}", MODEL, make_generator(seed).state_dict()) for seed in (0, 1)]


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory, models: list[Path], clips: Path) -> list[Path]:
    """An evaluation of each."""
    folder = tmp_path_factory.mktemp("evaluations")
    for number, model in enumerate(models):
        words = [f"model {number}={model}", "--dataset_path", str(clips), "--output", str(folder / str(number))]
        assert main(["evaluate", *words, *METRICS]) == 0
    return [folder / "0", folder / "1"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "clips.csv").read_text())))


def test_the_table_has_a_line_for_each_clip_and_number_of_levels(evaluations: list[Path]) -> None:
    results = read_results(evaluations[0])
    assert len(results.rows) == 5 * 3 and {row["levels"] for row in results.rows} == {1, 2, 3}
    assert results.names == METRICS[1:]
    assert all(math.isfinite(row["mel_distance"]) for row in results.rows)
    seconds = sorted(row["seconds"] for row in results.of("model 0"))
    assert seconds == pytest.approx([(8001 + 100 * number) / 22050 for number in range(5)])
    from_csv = [float(row["mel_distance"]) for row in rows_of(evaluations[0])]
    assert from_csv == [row["mel_distance"] for row in results.rows]


def test_a_metric_is_what_the_library_gives_for_the_same_clip(evaluations: list[Path], models: list[Path], clips: Path) -> None:
    import torchaudio

    from snac_accel.metrics import mel_distance
    from snac_accel.seeds import derive_seed

    generator = open_model(str(models[0])).generator
    audio = torch.from_numpy(soundfile.read(clips / "a.wav", dtype="float32")[0])[None, None]
    real = torchaudio.functional.resample(audio, 22050, 16000)
    with torch.no_grad():
        codes = generator.encode(real)
        torch.manual_seed(derive_seed(0, "evaluate", "a.wav"))
        fake = generator.decode(codes)[..., : real.shape[-1]]
    expected = mel_distance(real, fake, sampling_rate=16000)[0]
    (row,) = [row for row in read_results(evaluations[0]).of("model 0") if row["clip"] == "a.wav"]
    assert row["mel_distance"] == pytest.approx(expected, rel=1e-5)


def test_level_and_length_of_the_original_are_kept(evaluations: list[Path], clips: Path) -> None:
    for number in range(5):
        clip = read_page_clip(evaluations[0], number)
        original, *others = clip.sounds
        ours, rate = soundfile.read(io.BytesIO(original.content), dtype="int16")
        theirs = soundfile.read(clips / clip.name, dtype="int16")[0]
        assert rate == 22050 and np.array_equal(ours, theirs)
        assert [sound.levels for sound in others] == [3, 2, 1]
        for sound in others:
            made, rate = soundfile.read(io.BytesIO(sound.content))
            assert rate == 16000 and len(made) == math.ceil(len(ours) * 16000 / 22050)


def test_the_page_holds_the_codes_and_values_of_its_clips(evaluations: list[Path]) -> None:
    clip = read_page_clip(evaluations[0], 0)
    frames = [len(level) for level in clip.codes[0]]
    assert frames[1] == 2 * frames[0] and frames[2] == 4 * frames[0]
    (row,) = [row for row in read_results(evaluations[0]).of("model 0") if row["clip"] == clip.name]
    assert clip.values["0/3"]["mel_distance"] == row["mel_distance"]


def test_hostile_names_stay_text(evaluations: list[Path]) -> None:
    """No markup reaches a file that is markup, and no formula a spreadsheet."""
    folder = evaluations[0]
    assert (folder / "index.html").read_bytes() == (ROOT / "snac_accel/listening/static/index.html").read_bytes()
    assert (folder / "data.js").read_bytes().isascii()
    assert f"'{HOSTILE}" in {row["clip"] for row in rows_of(folder)}
    assert HOSTILE in {row["clip"] for row in read_results(folder).rows}  # the parquet has it as it is


def test_all_levels_together_are_what_upstream_decodes() -> None:
    generator = make_generator(3)
    with torch.no_grad():
        codes = generator.encode(0.1 * torch.randn(1, 1, 1280))
        torch.manual_seed(0)
        expected = generator.decode(codes)
        torch.manual_seed(0)
        assert torch.equal(decode_levels(generator, codes, 3), expected)
        torch.manual_seed(0)
        assert not torch.allclose(decode_levels(generator, codes, 1), expected)


def test_intervals_are_those_of_theory() -> None:
    """Of many normal values: mean ± 1.96 standard errors; of equal ones nothing."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = estimate(list(values))
    assert found is not None and found.low is not None and found.high is not None
    error = values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    bounds = (values.mean() - 1.96 * error, values.mean() + 1.96 * error)
    assert (found.low, found.high) == pytest.approx(bounds, abs=0.15 * error)
    assert estimate([2.0, None, 2.0, math.nan]) == (2.0, 2.0, 2.0, 2)
    assert estimate([1.0]) == (1.0, None, None, 1) and estimate([None]) is None


def test_two_processes_find_the_same(evaluations: list[Path], models: list[Path], clips: Path, tmp_path: Path) -> None:
    """Through a real launcher; everything but the times is equal."""
    topology = str(ROOT / "accelerate_configs/cpu_multi_process.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", topology]
    words = ["launch/evaluate.py", f"model 0={models[0]}", "--dataset_path", str(clips), "--output", str(tmp_path / "two")]
    words += METRICS
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": 200}
    done = subprocess.run([*launcher, *words], cwd=ROOT, env=environment, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (read_results(folder) for folder in (evaluations[0], tmp_path / "two"))
    for row, other in zip(one.rows, two.rows, strict=True):
        assert row["clip"] == other["clip"] and row["levels"] == other["levels"]
        assert row["mel_distance"] == pytest.approx(other["mel_distance"], rel=1e-5)
    assert two.models[0]["perplexity"] == pytest.approx(one.models[0]["perplexity"])
    assert read_page_clip(tmp_path / "two", 4).codes == read_page_clip(evaluations[0], 4).codes


def test_compare_pairs_the_clips(evaluations: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, evaluations), "--output", str(tmp_path / "both")]) == 0
    first, second = (read_results(folder) for folder in evaluations)
    pairs = zip(first.of("model 0"), second.of("model 1"), strict=True)
    changes = [other["mel_distance"] - own["mel_distance"] for own, other in pairs]
    summary = json.loads((tmp_path / "both" / "evaluation.json").read_text())
    (found,) = [one for one in summary["differences"] if one["metric"] == "mel_distance"]
    assert found["found"]["mean"] == pytest.approx(np.mean(changes))
    assert found["share_better"] == np.mean([change < 0 for change in changes])
    assert "Differences" in capsys.readouterr().out
    clip = read_page_clip(tmp_path / "both", 0)
    assert [sound.key for sound in clip.sounds] == ["original", "0/3", "0/2", "0/1", "1/3", "1/2", "1/1"]
    assert set(clip.codes) == {0, 1}


def test_a_model_is_no_better_than_itself(evaluations: list[Path]) -> None:
    results = read_results(evaluations[0])
    both = merge([results, results])
    assert both.labels == ["model 0 (1)", "model 0 (2)"]
    for one in differences(both):
        assert one.share_better == 0.5 and not one.is_clear and one.found is not None and one.found.mean == 0


def test_other_data_cannot_be_compared(evaluations: list[Path]) -> None:
    results = read_results(evaluations[0])
    others = Results(results.models, results.metrics, [{**row, "clip": f"other/{row['clip']}"} for row in results.rows])
    with pytest.raises(DataError, match="no clip, or no metric, in common"):
        merge([results, others])


def test_groups_of_the_summary() -> None:
    rows = [row(clip, speaker, value) for clip, speaker, value in (("a", "x", 1.0), ("b", "x", 3.0), ("c", "y", 8.0))]
    metrics = [{"name": "mel_distance", "label": "mel", "unit": "", "better": "lower"}]
    lines = {line.group: line for line in summarize(Results([{"label": "m"}], metrics, rows))}
    assert {group: line.num_clips for group, line in lines.items()} == {"all": 3, "speaker: x": 2, "speaker: y": 1}
    assert lines["speaker: x"].estimates["mel_distance"].mean == 2.0  # type: ignore[union-attr]


def row(clip: str, speaker: str, value: float) -> dict[str, Any]:
    facts = {"model": "m", "source": "s", "levels": 1, "all_levels": True, "seconds": 1.0}
    return {**facts, "clip": clip, "speaker": speaker, "mel_distance": value}


def test_the_worst_clips_are_on_the_page() -> None:
    rows = [row(f"clip {number}", "", float(number)) for number in range(30)]
    results = Results([{"label": "m"}], [{"name": "mel_distance", "label": "mel", "unit": "", "better": "lower"}], rows)
    chosen = choose_page_clips(results, range(30), 6)
    assert len(chosen) == 6 and [number for number, note in chosen.items() if note] == [28, 29]
    assert list(choose_page_clips(results, range(30), 100)) == list(range(30))


def test_checkpoints_are_measured_as_they_would_be_exported() -> None:
    checkpoint = ROOT / "tests/checkpoints/format_3/step_00000003"
    model = open_model(str(checkpoint))
    assert model.facts["step"] == 3 and model.facts["kind"] == "checkpoint" and model.label == "format_3 step 3"
    from safetensors.torch import load_file

    saved = load_file(checkpoint / "generator.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.generator.state_dict().items())


def test_costly_metrics_are_left_to_all_levels_unless_they_are_asked_for() -> None:
    names, missing = choose_metrics(None)
    assert {"pesq", "stoi", "mel_distance"} <= {*names, *missing}
    assert metrics_of_levels(["mel_distance", "pesq"], asked_for=False) == ["mel_distance"]
    assert metrics_of_levels(["mel_distance", "pesq"], asked_for=True) == ["mel_distance", "pesq"]


def test_names_of_models(tmp_path: Path) -> None:
    assert name_and_label("mine=runs/demo") == ("runs/demo", "mine")
    assert name_and_label("runs/a=b") == ("runs/a=b", None)
    assert default_label(find_model("owner/model")) == "owner/model"
    with pytest.raises(CheckpointError, match="no such folder"):
        find_model(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--clips", "0"], "--clips 0: should be at least 1"),
        (["--max_clip_seconds", "0"], "--max_clip_seconds 0: should be above 0"),
        (["--metrics", "melt"], "unknown metric 'melt'"),
        (["--clip", "3"], "unknown flag; did you mean --clips?"),
    ],
)
def test_mistakes_get_one_line(words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "owner/model", "--dataset_path", "x", "--output", str(tmp_path / "new"), *words]) == 2
    assert problem in capsys.readouterr().err


def test_other_folders_are_never_replaced(tmp_path: Path, models: list[Path], clips: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["evaluate", str(models[0]), "--dataset_path", str(clips), "--output", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_data_must_be_known(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(models[0]), "--output", str(tmp_path / "new")]) == 2
    assert "give --dataset_path" in capsys.readouterr().err


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_export(tmp_path / "wrong", {**MODEL, "codebook_size": 2**20}, make_generator().state_dict())
    with pytest.raises(CheckpointError, match="do not fit its config"):
        open_model(str(tmp_path / "wrong"))
    (tmp_path / "wrong" / "config.json").write_text(json.dumps({**MODEL, "vq_strides": [3, 2]}))
    with pytest.raises((CheckpointError, ConfigError), match="vq_strides"):
        open_model(str(tmp_path / "wrong"))


def test_a_diverged_model_is_refused(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means over the clips that it still can do would hide it."""
    weights = make_generator(0).state_dict()
    weights["decoder.model.0.bias"] = torch.full_like(weights["decoder.model.0.bias"], math.nan)
    diverged = write_export(tmp_path / "diverged", MODEL, weights)
    words = [str(diverged), "--dataset_path", str(clips), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *words, *METRICS]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "diverged makes audio that is not finite" in line
    assert not (tmp_path / "out").exists()
