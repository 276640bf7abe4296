"""What a run says about its codebooks, in real runs of a few steps; entropy against known values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from snac_accel import train
from snac_accel.codebook import CodebookUsage, entropy_rates, levels, reachable_codes, usage_figure
from snac_accel.config import CodebookSettings, merge, preset_run
from snac_accel.generator import TrainableSNAC
from snac_accel.health import PICTURE, remedies

TINY: dict[str, Any] = {
    "model": {"encoder_dim": 4, "encoder_rates": [8, 16], "decoder_dim": 16, "decoder_rates": [16, 8], "codebook_size": 64},
    "training": {"num_iterations": 2, "batch_size": 2, "validation_interval": 1, "log_interval": 1},
    "data": {"segment_length": 0.256, "num_workers": 0},
    "validation": {"max_clips": 2, "max_clip_seconds": 1, "num_samples": 0},
    "discriminators": {"mpd": None, "msstftd": None},
    "losses": {"adversarial": 0, "feature_matching": 0},
    "codebook": {"initialization_clips": 24},
    "tracking": {"trackers": [], "progress_bar": False},
}


def test_entropy_of_known_use() -> None:
    rates = entropy_rates([1.0, 4.0, 16.0], [10.0, 20.0, 40.0], 16)
    assert [rates[f"level_{level}/entropy_bits_per_second"] for level in range(3)] == [0.0, 40.0, 160.0]
    assert rates["entropy_bits_per_second"] == 200.0
    assert rates["entropy_share"] == pytest.approx(200 / (70 * 4))
    assert entropy_rates([16.0] * 2, [3.0, 5.0], 16)["entropy_share"] == pytest.approx(1.0)


def test_few_lookups_cannot_show_many_codes() -> None:
    one, many = torch.tensor([1, 0, 0, 0]), torch.full((4,), 1000)
    assert float(reachable_codes(one)) == pytest.approx(1.0)
    assert float(reachable_codes(many)) == pytest.approx(4.0)


def test_dead_codes_and_greatest_age() -> None:
    usage = CodebookUsage(num_levels=2, codebook_size=4)
    usage.observe(torch.tensor([[8, 0, 8, 0], [1, 1, 1, 1]]))
    assert usage.scalars(4.0) == {
        "level_0/dead_codes": 2.0, "level_0/oldest_age": 4.0, "level_1/dead_codes": 0.0, "level_1/oldest_age": 0.0
    }  # fmt: skip


def test_the_picture_shows_each_level_by_frequency() -> None:
    counts = torch.tensor([[0, 6, 2, 0], [2, 2, 2, 2]])
    figure = usage_figure({"held out": counts}, "title")
    lines = [axis.get_lines()[0].get_ydata().tolist() for axis in figure.axes]
    assert lines == [[3.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]  # over an equal share


def test_remedies_are_those_not_taken_yet() -> None:
    everything = CodebookSettings(method="moving_average", hold_steps=10)
    assert not any(name.startswith("codebook.") for name in remedies(everything)) and remedies(everything)
    assert remedies(CodebookSettings(initialization="random", restart=False))[:2] == [
        "codebook.initialization kmeans, from the start", "codebook.restart true"
    ]  # fmt: skip


def warnings_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("warning: ") and "level" in line]


def one_heap(generator: TrainableSNAC, *_: object) -> None:
    """Codes that all point the same way: the first is chosen for everything."""
    for level in levels(generator):
        level.codebook.weight.data.fill_(1.0)


def test_a_collapsed_level_is_named_once_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoder and codebooks are held, so that nothing helps: two validations, each level named at the first, and at the end."""
    monkeypatch.setattr(train, "start_codebooks", one_heap)
    codebook = {"initialization": "random", "restart": False, "hold_steps": 100}
    train.main(merge(merge(preset_run("demo"), TINY), {"codebook": codebook, "paths": {"run_dir": str(tmp_path)}}))
    found = warnings_of(capsys.readouterr().out)
    said = "perplexity 1.0 of 64 in {} lookups on the held-out clips; try codebook.initialization kmeans, from the start or "
    said += "codebook.restart true"
    lookups = [int(line.split(" lookups")[0].rsplit(" ", 1)[1]) for line in found]
    assert found == [
        f"warning: {when} level {level} {what}: {said.format(number)}"
        for (when, level, what), number in zip(
            [
                ("step 1:", 0, "has collapsed"),
                ("step 1:", 1, "has collapsed"),
                ("at the end", 0, "uses less than a quarter of its codes"),
                ("at the end", 1, "uses less than a quarter of its codes"),
            ],
            lookups,
            strict=True,
        )
    ]
    assert lookups[1] == 2 * lookups[0] > 100


def test_healthy_codebooks_are_logged_and_drawn_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = merge(merge(preset_run("demo"), TINY), {"codebook": {"hold_steps": 100}, "paths": {"run_dir": str(tmp_path)}})
    train.main(run)
    assert warnings_of(capsys.readouterr().out) == []
    assert (tmp_path / "logs" / PICTURE).read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for row in rows for name, value in row.items()}
    for family in ("codebook", "validation"):
        bits = [last[f"{family}/level_{level}/entropy_bits_per_second"] for level in range(2)]
        assert bits[0] == pytest.approx(62.5 * math.log2(last[f"{family}/level_0/perplexity"]))
        assert last[f"{family}/entropy_bits_per_second"] == pytest.approx(sum(bits))
        assert 0 < last[f"{family}/entropy_share"] <= 1
    assert last["codebook/level_1/dead_codes"] == 0 and last["codebook/level_1/oldest_age"] < 20
