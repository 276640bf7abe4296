"""Activation checkpointing and torch.compile in two processes that accumulate: the same training as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layouts import Hooks, Layout, Trace, tiny_run, train_in, watched_run
from worlds import run_world

LAYOUT = Layout(2, 1, 2)
BRIEF: dict[str, dict[str, Any]] = {
    "model": {"encoder_rates": [16], "decoder_rates": [16], "noise": True},
    "training": {"num_iterations": 3},
    "codebook": {"initialization": "random"},
}


def traced_run(layout: Layout, hooks: Hooks, config: dict[str, Any]) -> Trace:
    """`watched_run`, where what is compiled is traced and run by torch's own operations: machine code takes minutes."""
    from snac_accel import compiling

    compiling.BACKEND = "aot_eager"
    return watched_run(layout, hooks, config)


def test_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    """Weights, moments and codebook statistics after every step, on both ranks; the noise blocks draw the same twice."""
    plain = train_in(LAYOUT, tmp_path / "plain", **BRIEF)
    checkpointed = train_in(
        LAYOUT, tmp_path / "checkpointed", **BRIEF, performance={"activation_checkpointing": True}
    )
    for one, other in zip(plain, checkpointed, strict=True):
        assert [step.digests for step in one.steps] == [step.digests for step in other.steps]
        assert [step.losses for step in one.steps] == [step.losses for step in other.steps]


@pytest.mark.timeout(400)
def test_compiled_networks_train_alike(tmp_path: Path) -> None:
    """In bfloat16, with checkpointing as well; both ranks stay the same, and close to the run without."""
    changes = {**BRIEF, "training": {"num_iterations": 3, "mixed_precision": "bf16"}}
    performance = {"compile": "all", "activation_checkpointing": True}
    plain = train_in(LAYOUT, tmp_path / "plain", **changes)
    config = tiny_run(tmp_path / "compiled", LAYOUT, **changes, performance=performance)
    compiled = run_world(LAYOUT.processes, traced_run, LAYOUT, Hooks(), config, seconds=300)
    assert len({trace.steps[-1].digests["weights"] for trace in compiled}) == 1
    for one, other in zip(plain, compiled, strict=True):
        for before, after in zip(one.steps, other.steps, strict=True):
            assert not after.skipped
            assert after.losses == pytest.approx(before.losses, rel=0.02)
