"""What moves the codebooks, over several processes that accumulate: the same codes as in one process, and on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layouts import Hooks, Layout, train_in

BRIEF: dict[str, Any] = {
    "training": {"num_iterations": 4, "warmup_steps": 0},
    "model": {"encoder_rates": [16], "decoder_rates": [16], "noise": False},
    "data": {"gain_db": [0, 0]},
    "losses": {"mel": 0.0, "stft": 0.0},
}
CODEBOOK: dict[str, Any] = {"initialization": "random", "hold_steps": 0, "release_steps": 0, "restart_after": 4, "decay": 0.8}


@pytest.mark.parametrize("method", ["moving_average", "reparametrised"])
def test_codes_do_not_depend_on_processes_and_accumulation(method: str, tmp_path: Path) -> None:
    """In float64, with restarts: codes, what the method keeps, and what it decided."""
    changes = {**BRIEF, "codebook": {**CODEBOOK, "method": method}}
    hooks = Hooks(float64=True, sgd=True)
    (alone,) = train_in(Layout(1, 8, 1), tmp_path / "alone", hooks, **changes)
    first, second = train_in(Layout(2, 2, 2), tmp_path / "spread", hooks, **changes)
    assert [step.digests for step in first.steps] == [step.digests for step in second.steps]
    assert [step.restarts for step in first.steps] == [step.restarts for step in alone.steps]
    assert sum(map(sum, (step.restarts for step in alone.steps))) > 0
    names = [name for name in alone.state if ".codebook." in name or ".method." in name]
    assert len(names) > 3
    for name in names:
        before, after = alone.state[name], first.state[name]
        assert (before - after).abs().max() <= 1e-7 * before.abs().max(), name
        assert before.isfinite().all()
