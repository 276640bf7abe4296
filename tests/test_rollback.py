"""Runs that meet a bad batch: what they do, what they say, and where they go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import losses, rows, tiny_config, weights

from snac_accel import train
from snac_accel.clock import BUCKETS, GOODPUT_FILE, read_account
from snac_accel.errors import TrainingError
from snac_accel.heartbeat import FOLDER, read_beats
from snac_accel.rollback import TROUBLE_FILE
from snac_accel.runs import look_at
from snac_accel.stored import list_checkpoints, read_json
from snac_accel.train import main

BAD = 3  # the step, counted in batches, that is spoiled
VALIDATED = "validated"  # folders of runs that validate
Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Let some of the batches of the runs to come be of a value in their second row."""

    def plant(bad: set[int], value: float = float("nan")) -> None:
        seen = 0
        real = train.train_step

        def step(batches: list[torch.Tensor], *arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen in bad:
                batches[0][1] = value if value != value else batches[0][1] * value
            return real(batches, *arguments, **options)

        monkeypatch.setattr(train, "train_step", step)

    return plant


def run(folder: Path, guards: dict[str, Any], **training: Any) -> int:
    settings = {"num_iterations": 6, "warmup_steps": 0, **training}
    return main(tiny_config(folder, guards=guards, training=settings, validation={"enabled": VALIDATED in folder.name}))


def trouble(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "logs" / TROUBLE_FILE).read_text().splitlines()]


def test_a_skipped_batch_is_named_and_stays_visible_in_the_log(
    tmp_path: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil({BAD})
    assert run(tmp_path / "run", {"non_finite": "skip"}) == 0
    (record,) = trouble(tmp_path / "run")
    assert record["step"] == BAD and record["kind"] == "not finite" and "input" in record["places"]
    (names,) = record["samples"].values()
    assert len(names) == 1 and names[0].endswith(".ogg")  # the spoiled row alone
    assert f"step {BAD}: not finite: input" in (printed := capsys.readouterr().out) and names[0] in printed
    logged = losses(tmp_path / "run")
    assert logged[BAD]["train/multi_scale_mel"] == "nan" and logged[6]["train/skipped_updates"] == 1
    assert all(isinstance(row["train/multi_scale_mel"], float) for step, row in logged.items() if step != BAD)


def test_a_stop_comes_before_the_step_and_is_gone_on_with(tmp_path: Path, spoil: Spoil) -> None:
    """The checkpoint is that of the step before: set to skip, the run meets the same batch again and goes on."""
    folder = tmp_path / "run"
    spoil({BAD})
    with pytest.raises(TrainingError, match=rf"step {BAD}: not finite: input.*\.ogg.*guards.non_finite = stop") as error:
        run(folder, {"non_finite": "stop"})
    assert "\n" not in str(error.value) and error.value.exit_code == 2
    assert list_checkpoints(folder / "checkpoints")[-1].name == f"step_{BAD - 1:08d}"
    spoil({1})  # of this process: the same batch
    assert run(folder, {"non_finite": "skip"}) == 0
    assert [record["samples"] for record in trouble(folder)][0] == trouble(folder)[1]["samples"]
    assert look_at(folder).state == "complete"


def test_a_rollback_goes_back_in_weights_and_steps_but_not_in_the_data(tmp_path: Path, spoil: Spoil) -> None:
    folder = tmp_path / "run"
    spoil({4})
    assert run(folder, {"non_finite": "rollback"}) == 0
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 2, 3, 4, 5, 6]  # saved at 2
    last = rows(folder)[-1]
    assert last["train/rollbacks"] == 1 and last["train/skipped_updates"] == 1
    assert last["data/clips"] == 8 * 2  # six steps, and the two whose outcome was thrown away
    assert last["goodput/recomputed_seconds"] > 0
    # The same from the checkpoint on, with the data that came after the bad batch.
    spoil(set())
    state = read_json(next(iter((folder / "checkpoints").glob("*6"))) / "progress.json")
    assert state["position"] == 16 and state["counters"]["rollbacks"] == 1


def test_weights_after_a_rollback_are_those_of_a_run_that_never_saw_the_lost_steps(tmp_path: Path, spoil: Spoil) -> None:
    """A plain run of the first two steps, continued with its place in the data moved on by hand, ends with the same weights."""
    spoil({4})
    assert run(tmp_path / "rolled", {"non_finite": "rollback"}) == 0
    spoil(set())
    assert run(tmp_path / "plain", {}, num_iterations=2) == 0
    real = train.load_checkpoint

    def move_on(path: Path, state: Any) -> Any:
        manifest = real(path, state)
        state.position = 8
        return manifest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_checkpoint", move_on)
        assert run(tmp_path / "plain", {}) == 0
    one, other = weights(tmp_path / "rolled"), weights(tmp_path / "plain")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_before_the_first_checkpoint_of_its_own_it_goes_back_to_the_start(tmp_path: Path, spoil: Spoil) -> None:
    spoil({1})
    assert run(tmp_path / "run", {"non_finite": "rollback"}, save_interval=100) == 0
    assert [row["step"] for row in rows(tmp_path / "run")][-6:] == [1, 2, 3, 4, 5, 6]
    assert rows(tmp_path / "run")[-1]["data/clips"] == 14


def test_a_run_that_goes_back_again_and_again_ends(tmp_path: Path, spoil: Spoil) -> None:
    spoil(set(range(3, 100)))
    with pytest.raises(TrainingError, match=r"went back to .*step_00000002 2 times already \(guards.rollback_limit\)"):
        run(tmp_path / "run", {"non_finite": "rollback", "rollback_limit": 2})
    assert len(trouble(tmp_path / "run")) == 3


def test_skipping_without_end_is_limited_also_over_a_restart(tmp_path: Path, spoil: Spoil) -> None:
    spoil(set(range(2, 100)))
    assert run(tmp_path / "run", {}, num_iterations=3, non_finite_limit=4) == 0
    with pytest.raises(TrainingError, match="4 steps in a row up to step 5"):
        run(tmp_path / "run", {}, num_iterations=9, non_finite_limit=4)


@pytest.mark.parametrize("policy", ["skip", "rollback", "stop"])
def test_a_jump_of_the_loss(policy: str, tmp_path: Path, spoil: Spoil) -> None:
    spoil({5}, 3e4)
    guards = {"spikes": policy, "spike_factor": 2.0, "spike_window": 3}
    if policy == "stop":
        with pytest.raises(TrainingError, match=r"step 5: the loss jumped to .* guards.spikes = stop"):
            run(tmp_path / "run", guards)
        return
    assert run(tmp_path / "run", guards) == 0
    (record,) = trouble(tmp_path / "run")
    assert record["kind"] == "spike" and float(record["loss"]) > 2 * record["usual"]
    last = rows(tmp_path / "run")[-1]
    assert (last["train/spikes"], last["train/rollbacks"]) == (1, policy == "rollback")


# What any run says of itself


def test_the_buckets_of_the_time_add_up_over_restarts(tmp_path: Path, spoil: Spoil) -> None:
    folder = tmp_path / VALIDATED
    assert run(folder, {}, num_iterations=2) == 0
    assert run(folder, {}) == 0
    account = read_account(folder / "logs" / GOODPUT_FILE)
    assert account is not None
    assert sum(account["seconds"].values()) == pytest.approx(account["wall_seconds"], abs=1e-6)
    assert all(account["seconds"][name] > 0 for name in ("start", "step", "data", "saving", "validation", "down", "other"))
    last = rows(folder)[-1]
    assert sum(last[f"goodput/{name}_seconds"] for name in BUCKETS) == pytest.approx(last["goodput/wall_seconds"])
    assert last["goodput/share"] == pytest.approx(last["goodput/step_seconds"] / last["goodput/wall_seconds"])
    assert account["furthest_step"] == 6


def test_a_heartbeat_stays_behind_that_says_how_the_run_ended(tmp_path: Path) -> None:
    folder = tmp_path / VALIDATED
    assert run(folder, {}) == 0
    (beat,) = read_beats(folder / "logs" / FOLDER)
    assert (beat.step, beat.outcome, beat.rank, beat.world_size) == (6, "complete", 0, 1)
    found = look_at(folder)
    assert (found.state, found.step, found.num_steps) == ("complete", 6, 6)
    assert found.best is not None and found.goodput is not None and 0 < found.goodput < 1
