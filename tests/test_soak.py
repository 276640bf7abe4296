"""The short version of benchmarks/soak.py: one incident of most kinds, equal weights at the end, nothing that grows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("soak", "lives", "incidents"):
        sys.modules.pop(name, None)


def check(steps: int, names: list[str], seed: int, folder: Path) -> None:
    import soak

    found = soak.soak(steps, names, seed, folder)
    expected = [name for name in names if found.left_out is None or name != "full disk"]
    assert found.differences == []
    assert [event.name for event in found.events] == expected
    late = found.samples[len(found.samples) // 2 :]
    assert len(late) > 3
    assert late[-1].descriptors <= late[0].descriptors + 1  # one more while a checkpoint is written
    assert late[-1].threads <= late[0].threads + 1
    assert late[-1].private - late[0].private < 30  # MB


def test_a_short_storm(tmp_path: Path) -> None:
    names = ["SIGKILL", "dead worker", "newest checkpoint changed", "full disk", "SIGTERM"]
    check(28, names, 1, tmp_path)


@pytest.mark.torture
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(3))
def test_a_long_storm(seed: int, tmp_path: Path) -> None:
    import random

    from incidents import INCIDENTS

    names = list(INCIDENTS) * 5
    random.Random(seed).shuffle(names)
    check(5 * len(names), names, seed, tmp_path)


def test_a_difference_would_be_found(tmp_path: Path) -> None:
    """Another seed, the same everything else."""
    import soak
    from lives import life

    runs = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        config = soak.config_of(folder / "run", 3)
        config["training"]["seed"] = seed
        with life(config, folder) as one:
            assert one.wait() == 0, one.output()
        runs.append(folder / "run")
    found = list(soak.compare(*runs))
    assert any("generator.safetensors" in line for line in found) and any("the log of step" in line for line in found)
    assert list(soak.compare(runs[0], runs[0])) == []
