"""The benchmarks of recipes: what is held out, that the rows lead from the original recipe to the default, that runs are kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY: dict[str, Any] = {
    "model": {"sampling_rate": 16000, "encoder_dim": 4, "encoder_rates": [8, 16], "decoder_dim": 16, "decoder_rates": [16, 8]},
    "training": {"num_iterations": 2, "batch_size": 2},
    "data": {"segment_length": 0.256, "num_workers": 0},
    "discriminators": {"mpd": None, "msstftd": None},
    "losses": {"adversarial": 0, "feature_matching": 0},
    "codebook": {"initialization": "random"},
}


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cells

    return cells


@pytest.fixture
def quality(cells: ModuleType) -> ModuleType:
    import quality

    return quality


@pytest.fixture
def corpus(tmp_path: Path, demo_folder: Path) -> Path:
    """A few clips of the demo as two speakers of one language and one of another."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = ["file_name,speaker,language"]
    for number, clip in enumerate(sorted((demo_folder / "train").glob("*.ogg"))[:8]):
        (folder / clip.name).symlink_to(clip)
        rows.append(f"{clip.name},{['anna', 'ben', 'carla', 'carla'][number % 4]},{['en', 'en', 'es', 'es'][number % 4]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def speakers(manifest: Path) -> list[str]:
    return sorted({json.loads(line)["speaker"] for line in manifest.read_text().splitlines()})


def test_what_is_held_out_shares_neither_speaker_nor_language(cells: ModuleType, corpus: Path, tmp_path: Path) -> None:
    by_language = cells.split_corpus(corpus, tmp_path / "one", ["es"])
    assert (speakers(by_language.train), speakers(by_language.held_out)) == (["anna", "ben"], ["carla"])
    both = cells.split_corpus(corpus, tmp_path / "two", ["es"], ["ben"])
    assert (speakers(both.train), speakers(both.held_out)) == (["anna"], ["ben", "carla"])
    with pytest.raises(SystemExit, match=r"nothing is left for held_out; its speakers are anna \(en\), ben \(en\), carla \(es\)"):
        cells.split_corpus(corpus, tmp_path / "three", ["fr"])


def test_the_rows_lead_from_the_original_recipe_to_the_default(quality: ModuleType) -> None:
    from snac_accel.config import TrainingConfig, merge, to_dict, validate

    rows = quality.recipes()
    names, recipes = list(rows), list(rows.values())
    first = recipes[0]["losses"]
    assert (first["commitment"], first["codebook"], first["multi_scale_mel"]) == (0, 0, 0) and first["mel"] and first["stft"]
    assert names[-1].endswith(quality.DEFAULT_NAME)
    assert all(one != other for one, other in zip(recipes, recipes[1:], strict=False))
    default = to_dict(TrainingConfig())
    assert to_dict(validate(merge(default, recipes[-1]))) == default


def result(cells: ModuleType, recipe: str, mel: float, share: float = 0.9) -> Any:
    metrics = {"mel_distance": mel, "stft_distance": 1.0, "si_sdr_db": 0.0}
    return cells.Result(recipe, 0, 10, 60.0, metrics, [100.0, 90.0], [share, 0.5], "key")


@pytest.mark.parametrize(("mel", "share", "kept"), [(4.1, 0.9, True), (4.3, 0.9, False), (4.1, 0.01, False)])
def test_the_verdict_is_on_both_promises(mel: float, share: float, kept: bool, cells: ModuleType, quality: ModuleType) -> None:
    names = list(quality.recipes())
    grouped = {names[0]: [result(cells, names[0], 6.0, 0.01)], names[-1]: [result(cells, names[-1], mel, share)]}
    (said,) = quality.verdict(grouped)
    assert said.endswith(" Kept.") is kept and said.endswith("NOT kept.") is not kept
    assert quality.verdict({names[0]: grouped[names[0]]}) == []


def test_cells_train_are_measured_and_kept(
    cells: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run; the second time nothing is trained, unless a setting is another."""
    split, budget = cells.split_corpus(corpus, tmp_path / "work", ["es"]), cells.Budget(3600, max_clips=2, clip_seconds=1.0)
    base = cells.merge(cells.SMALL, TINY)
    recipes: dict[str, dict[str, Any]] = {"plain": {}}
    first = cells.run_cells(recipes, [0], budget, split, tmp_path / "work", base)
    assert first[0].steps == 2 and len(first[0].perplexity) == 3
    assert all(0 < share <= 1.2 for share in first[0].share_of_reachable) and first[0].metrics["mel_distance"] > 0

    def trained(folder: Path) -> None:
        raise SystemExit("trained again")

    monkeypatch.setattr(cells, "train", trained)
    assert cells.run_cells(recipes, [0], budget, split, tmp_path / "work", base) == first
    assert "there already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="trained again"):
        cells.run_cells({"plain": {"losses": {"mel": 1.0}}}, [0], budget, split, tmp_path / "work", base)


def test_a_run_that_collapsed_in_silence_is_told_from_one_that_said_so(
    cells: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What runs leave is written here, by learning rate: healthy, collapsed with its warning, collapsed without, diverged."""
    import stability

    def leave(folder: Path) -> None:
        factor = float(folder.name.rpartition("_")[2])
        end, perplexity = (20.0 if factor == 4 else 3.0), (3.0 if factor in (0.5, 2) else 100.0)
        rows = [{"step": step, "validation/mel_distance": mel, "train/skipped_updates": 0} for step, mel in [(0, 10.0), (8, end)]]
        for row in rows:
            row |= {f"validation/level_{level}/perplexity": perplexity for level in range(2)}
        logs = folder / "run" / "logs"
        logs.mkdir(parents=True)
        (logs / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        said = [f"warning: at the end level {level} uses less than a quarter" for level in range(2)] if factor == 0.5 else []
        (folder / "output.txt").write_text("\n".join(said))

    monkeypatch.setattr(stability, "train", leave)
    flags = ["--seeds", "1", "--factors", "0.5", "2", "4", "--steps", "8", "--work", str(tmp_path / "work")]
    monkeypatch.setattr("sys.argv", ["stability.py", *flags, "--output", str(tmp_path / "table.md")])
    assert stability.main() == 1
    table = (tmp_path / "table.md").read_text()
    ends = [[cell.strip() for cell in line.split("|")[-3:-1]] for line in table.splitlines() if line.startswith("| 0 ")]
    low = "low: level 0, 1"
    assert ends == [["yes", "well"], ["yes", f"{low}, warned"], ["yes", f"{low}, NOT SAID"], ["NO", "well"]]
    assert "</svg>" in (tmp_path / "table.svg").read_text()
    monkeypatch.setattr("sys.argv", ["stability.py", "--seeds", "1", "--factors", "0.5", "--steps", "8", *flags[-2:]])
    assert stability.main() == 0 and "there already" in capsys.readouterr().out
