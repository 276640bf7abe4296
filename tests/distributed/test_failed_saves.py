"""Rank 0 alone writes checkpoints; what becomes of it, all ranks learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from layouts import Layout, tiny_run
from worlds import run_world


def refused_run(config: dict[str, Any]) -> str:
    """On one rank: how a run ends whose checkpoints cannot be written."""
    from snac_accel import keeping, train
    from snac_accel.errors import CheckpointError

    def refuse(*arguments: Any) -> Path:
        raise CheckpointError("checkpoints cannot be written: 0 bytes free")

    with mock.patch.object(keeping, "write_snapshot", refuse):
        try:
            return f"exit code {train.main(config)}"
        except CheckpointError as error:
            return str(error)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (1, "3 saves in a row failed (checkpoint.max_failed_saves): checkpoints cannot be written: 0 bytes free"),
        (100, "checkpoints cannot be written: 0 bytes free"),  # the last one
    ],
)
def test_all_ranks_end_with_the_same_line(interval: int, expected: str, tmp_path: Path) -> None:
    layout = Layout(2, 1, 1)
    training = {"num_iterations": 4 if interval > 1 else 40, "save_interval": interval}
    config = tiny_run(tmp_path / "run", layout, training=training, validation={"enabled": False})
    ended = run_world(2, refused_run, config)
    assert ended[0] == ended[1]
    assert ended[0].endswith(expected.split("failed ", 1)[-1]) and ("in a row" in ended[0]) == (interval == 1)
