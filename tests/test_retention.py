"""Which checkpoints stay: the newest, those of round steps, the best; and what is removed is never half there."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from faulty_files import Dead, watched
from test_stored import checkpoint

from snac_accel import files
from snac_accel.retention import Retention, rotate, sweep
from snac_accel.stored import MANIFEST, list_checkpoints, newest_checkpoint, verify_checkpoint


def steps(folder: Path) -> list[int]:
    return [verify_checkpoint(path)["step"] for path in list_checkpoints(folder)]


def save(folder: Path, step: int, retention: Retention, value: float | None = None) -> None:
    score = None if value is None else {"metric": "mel_distance", "value": value}
    rotate(folder, checkpoint(folder, step, score=score), retention)


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (Retention(last=1), [10]),
        (Retention(last=3), [8, 9, 10]),
        (Retention(last=1, every=4), [4, 8, 10]),
        (Retention(last=2, every=3, best=2), [2, 3, 5, 6, 9, 10]),
        (Retention(last=1, best=1), [5, 10]),
        (Retention(last=1, best=3), [2, 5, 8, 10]),
    ],
)
def test_what_is_kept(retention: Retention, left: list[int], tmp_path: Path) -> None:
    values = {2: 3.0, 4: 5.0, 5: 2.0, 7: 9.0, 8: 3.0}  # not every step is validated
    for step in range(1, 11):
        save(tmp_path, step, retention, values.get(step))
    assert steps(tmp_path) == left


def test_any_history_keeps_what_the_rules_say(tmp_path: Path) -> None:
    """Against the rules written down once more, over the whole history."""
    draw = random.Random(1)
    for round_number in range(20):
        folder = tmp_path / str(round_number)
        retention = Retention(draw.randint(1, 3), draw.choice([None, 2, 5]), draw.randint(0, 3))
        expected: set[int] = set()
        scores: dict[int, float] = {}
        for step in sorted(draw.sample(range(1, 40), 9)):
            value = draw.choice([None, draw.random()])
            save(folder, step, retention, value)
            if value is not None:
                scores[step] = value
            expected.add(step)
            newest = sorted(expected)[-(retention.last or 0) :]
            best = sorted((s for s in expected if s in scores), key=lambda s: (scores[s], s))[: retention.best]
            round_steps = [s for s in expected if retention.every and s % retention.every == 0]
            expected = {*newest, *best, *round_steps}
        assert steps(folder) == sorted(expected)


def test_newer_ones_of_a_run_that_was_left_are_not_touched(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    save(tmp_path, 15, Retention(last=1))
    assert steps(tmp_path) == [15, 20, 30]


def test_damaged_ones_are_not_counted_and_not_removed(tmp_path: Path) -> None:
    """With two kept, a damaged one beside the new one would leave nothing to fall back to."""
    checkpoint(tmp_path, 1)
    damaged, foreign, unfinished = (checkpoint(tmp_path, step) for step in (2, 3, 4))
    os.truncate(damaged / "generator.safetensors", 1)
    (foreign / MANIFEST).write_text('{"format": 1}')
    (unfinished / MANIFEST).unlink()
    save(tmp_path, 5, Retention(last=2))
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step_00000001", "step_00000002", "step_00000003", "step_00000005"]
    save(tmp_path, 6, Retention(last=2))
    assert "step_00000001" not in [path.name for path in list_checkpoints(tmp_path)]


def test_a_removal_that_was_killed_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    killed, dead = 0, True
    while dead:
        folder = tmp_path / str(killed)
        for step in (1, 2):
            checkpoint(folder, step)
        last = checkpoint(folder, 3)
        with watched(folder) as disk:
            disk.breaks_at = killed
            try:
                rotate(folder, last, Retention(last=1))
            except Dead:
                pass
        dead = disk.dead
        assert set(steps(folder)) >= {3}  # raises if one is damaged
        sweep(folder)
        rotate(folder, last, Retention(last=1))
        assert [path.name for path in folder.iterdir()] == ["step_00000003"]
        killed += 1
    assert killed > 6


def test_where_folders_may_move_file_by_file_the_manifest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    gone: list[str] = []
    unlink = os.unlink

    def noted(path: Any, *arguments: Any, **options: Any) -> None:
        gone.append(os.path.basename(os.fsdecode(path)))
        unlink(path, *arguments, **options)

    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "unlink", noted)
    rotate(tmp_path, new, Retention(last=1))
    assert gone == [MANIFEST, "generator.safetensors"] and not old.exists()
    assert newest_checkpoint(tmp_path) == new


def test_the_sweep_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    kept = checkpoint(tmp_path, 1)
    for name in (".incomplete-step_00000002", ".incomplete-removed-step_00000000", ".incomplete-exchange-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"half")
    mine = tmp_path / ".incomplete-config.json"  # another writer's, in a folder that holds more than checkpoints
    mine.write_text("{")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [mine.name, kept.name]
    sweep(tmp_path / "nowhere")
