"""Metrics by name: those of others from the user's own flag, and those that are not installed named as missing."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snac_accel.errors import ConfigError
from snac_accel.evaluate import evaluate
from snac_accel.metrics import METRICS, VALIDATION_METRICS, family, find_metric, usable_metrics
from test_evaluate import Clip
from tiny import make_generator

PLUGIN = """
from snac_accel.metrics import clip_metric

def loudest(real, fake, sampling_rate):
    if len(real) < 5000:
        return None
    if len(real) < 6000:
        raise RuntimeError("cannot do this")
    return float(real.max())

peak = clip_metric(loudest, label="peak", better="lower")
resampled = clip_metric(lambda real, fake, rate: len(real) / rate, label="seconds", better="lower", sampling_rate=8000)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the path of Python with a module of the user's, installed under an entry point as well."""
    (tmp_path / "my_metrics.py").write_text(PLUGIN)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[snac_accel.metrics]\nmy_peak = my_metrics:peak\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["my_metrics:peak", "my_peak"])
def test_a_metric_of_the_users_own(name: str, plugin: Path, speech: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    """The mean is over the clips on which it is defined; what it raises ends nothing and is told once."""
    family._warn_once.cache_clear()
    clips = [Clip(f"{i}", speech[i, :, :length]) for i, length in enumerate((8000, 5500, 3000, 5400, 7000))]
    with caplog.at_level(logging.WARNING):
        result = evaluate(make_generator(), clips, metrics=["mel_distance", name])
    expected = (float(speech[0].max()) + float(speech[4, :, :7000].max())) / 2
    assert result.metrics[name] == pytest.approx(expected) and result.num_clips == 5
    assert [record.message for record in caplog.records if "peak" in record.message] == [
        "peak is not defined on some clips: RuntimeError: cannot do this"
    ]


def test_a_metric_gets_the_rate_it_asks_for(plugin: Path) -> None:
    audio = torch.ones(2, 1, 24000)
    assert find_metric("my_metrics:resampled")(audio, audio, sampling_rate=24000) == (2.0, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mel_distanse", "unknown metric 'mel_distanse': did you mean 'mel_distance'? known are "),
        ("my_metrics:", "unknown metric 'my_metrics:'"),
        ("no_module:peak", "cannot be loaded: ModuleNotFoundError: No module named 'no_module'; is its folder in PYTHONPATH?"),
        ("my_metrics:nothing", "cannot be loaded: AttributeError: module 'my_metrics' has no attribute 'nothing'"),
        ("..my_metrics:peak", "cannot be loaded: TypeError: "),
        ("my_metrics:loudest", "is a function, should be a snac_accel.metrics.Metric: clip_metric makes one of a function"),
    ],
)
def test_names_that_are_none(name: str, message: str, plugin: Path) -> None:
    with pytest.raises(ConfigError) as error:
        find_metric(name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "find_spec", lambda module: None if module in ("pesq", "ai_edge_litert") else "there")
    usable, missing = usable_metrics()
    assert missing == {
        "pesq": "needs pesq: pip install 'snac_accel[metrics]'",
        "visqol_speech": "needs visqol-python[lattice]: pip install 'snac_accel[metrics]'",
    }
    assert [name for name in METRICS if name not in missing] == usable
    assert usable_metrics(["pesq", "si_sdr_db"])[0] == ["si_sdr_db"]


def test_the_page_names_them_all(tmp_path: Path) -> None:
    """Name, direction and package as in the table of docs/quality/metrics.md; its example runs."""
    text = (Path(__file__).parent.parent / "docs" / "quality" / "metrics.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): (row[3], row[6].replace("`", "").replace(", ", " and ") or None) for row in rows}
    assert told == {name: (metric.better, metric.package) for name, metric in METRICS.items()}
    example = re.search(r"```python\n(import torch.*?)```", text, re.DOTALL)
    assert example
    exec(compile(example[1], "metrics.md", "exec"), {})


def test_validation_needs_no_extra() -> None:
    assert all(METRICS[name].modules == () for name in VALIDATION_METRICS)


def test_a_mean_over_no_clips_is_not_a_number(speech: Tensor) -> None:
    result = evaluate(make_generator(), [Clip("silence", torch.zeros(1, 4096))], metrics=["si_sdr_db", "mel_distance"])
    assert math.isnan(result.metrics["si_sdr_db"]) and result.metrics["mel_distance"] > 0
