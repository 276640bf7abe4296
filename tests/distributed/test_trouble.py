"""Two ranks, and something wrong with the numbers of one of them: both decide alike, and no weight has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from layouts import Layout, digest, moving, tiny_run
from worlds import run_world

LAYOUT = Layout(2, 2, 1)
PLACES = ("input", "generator loss", "discriminator loss", "generator gradient", "discriminator gradient")


def spoiled_run(config: dict[str, Any], spoiled: dict[int, str], spoiled_rank: int) -> dict[str, Any]:
    """On one rank: train; in the named calls of the step something of `spoiled_rank` is not finite."""
    from snac_accel import gathering
    from snac_accel import train
    from snac_accel.errors import UserError

    seen: dict[str, Any] = {"verdicts": [], "digests": [], "error": None}
    real_step, real_critic, real_losses = train.train_step, gathering.discriminator_loss, gathering.SPECTRAL_LOSSES
    calls = 0

    def step(batches: list[Any], state: Any, accelerator: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        place = spoiled.get(calls) if accelerator.process_index == spoiled_rank else None
        hooks = []
        if place == "input":
            batches[0][1, 0, 5] = float("nan")
        elif place == "generator loss":
            mel = real_losses["multi_scale_mel"]
            gathering.SPECTRAL_LOSSES = {**real_losses, "multi_scale_mel": lambda *a, **o: mel(*a, **o) + float("inf")}
        elif place == "discriminator loss":
            gathering.discriminator_loss = lambda *a: real_critic(*a) + float("inf")
        elif place is not None:
            module = state.generator if place.startswith("generator") else state.discriminators["mpd"]
            hooks.append(next(module.parameters()).register_hook(lambda gradient: gradient * float("nan")))
        before = _weights(state)
        try:
            report = real_step(batches, state, accelerator, *arguments, **options)
        finally:
            gathering.SPECTRAL_LOSSES, gathering.discriminator_loss = real_losses, real_critic
            for hook in hooks:
                hook.remove()
        verdict = None if report.trouble is None else (report.trouble.places, report.trouble.policy, _weights(state) == before)
        seen["verdicts"].append(verdict)
        seen["digests"].append(_weights(state))
        return report

    with mock.patch.object(train, "train_step", step), mock.patch.object(train, "finish", lambda session: None):
        try:
            seen["code"] = train.main(config)
        except UserError as error:
            seen["error"] = f"{type(error).__name__}: {error}"
    return seen


def _weights(state: Any) -> str:
    flat = moving(state)
    return digest(flat[name] for name in sorted(flat))


def train_spoiled(folder: Path, spoiled: dict[int, str], rank: int = 1, **guards: Any) -> list[dict[str, Any]]:
    config = tiny_run(folder, LAYOUT, guards=guards, training={"num_iterations": 8, "save_interval": 2})
    return run_world(2, spoiled_run, config, spoiled, rank)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "logs" / "trouble.jsonl").read_text().splitlines()]


def test_whatever_is_wrong_on_one_rank_both_skip_the_step(tmp_path: Path) -> None:
    spoiled = dict(enumerate(PLACES, start=2))
    first, second = train_spoiled(tmp_path / "run", spoiled, non_finite="skip")
    assert first["code"] == second["code"] == 0
    assert first["verdicts"] == second["verdicts"] and first["digests"] == second["digests"]
    for call, place in spoiled.items():
        places, policy, unchanged = first["verdicts"][call - 1]
        assert place in places and policy == "skip" and unchanged
    assert [verdict is not None for verdict in first["verdicts"]] == [False, *[True] * 5, False, False]
    by_step = {record["step"]: record["samples"] for record in records(tmp_path / "run")}
    assert list(by_step) == list(spoiled)
    assert len(by_step[2]["rank_1"]) == 1 and set(by_step[2]) == {"rank_1"}  # the row
    assert len(by_step[3]["rank_1"]) == 2 and set(by_step[3]) == {"rank_1"}  # the micro-batch
    assert set(by_step[5]) == {"rank_0", "rank_1"}  # a gradient that was averaged already


@pytest.mark.parametrize("place", [PLACES[1], *(pytest.param(p, marks=pytest.mark.torture) for p in (PLACES[0], *PLACES[2:]))])
def test_both_go_back_to_the_same_checkpoint(place: str, tmp_path: Path) -> None:
    first, second = train_spoiled(tmp_path / "run", {6: place}, rank=0, non_finite="rollback")
    assert first["code"] == second["code"] == 0
    assert first["verdicts"] == second["verdicts"] and first["digests"] == second["digests"]
    assert first["verdicts"][5][2]
    assert len(first["digests"]) == 10  # 6, back to 4, then 5 to 8
    assert first["digests"][6] != first["digests"][4]  # step 5 again, from other data


@pytest.mark.parametrize("place", [PLACES[3], *(pytest.param(p, marks=pytest.mark.torture) for p in (*PLACES[:3], PLACES[4]))])
def test_both_stop_with_the_same_line(place: str, tmp_path: Path) -> None:
    first, second = train_spoiled(tmp_path / "run", {4: place}, non_finite="stop")
    assert first["error"] == second["error"] and first["digests"] == second["digests"]
    assert first["error"].startswith("TrainingError: step 4: not finite: ") and place in first["error"]
    assert "\n" not in first["error"] and first["digests"][3] == first["digests"][2]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))[-1] == "step_00000003"


def slow_run(config: dict[str, Any], slow_rank: int, said: str) -> int:
    """On one rank: train; `slow_rank` sleeps before every step. What is said goes to a file."""
    import time

    from snac_accel import train
    from snac_accel.tracking import Tracking

    real = train.train_step

    def step(batches: Any, state: Any, accelerator: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.5 if accelerator.process_index == slow_rank else 0.0)
        return real(batches, state, accelerator, *arguments, **options)

    def say(self: Tracking, text: str) -> None:
        if self.main:
            with open(said, "a") as file:
                file.write(text + "\n")

    with mock.patch.object(train, "train_step", step), mock.patch.object(Tracking, "say", say):
        return train.main(config)


def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "run", LAYOUT, training={"num_iterations": 6, "log_interval": 2})
    assert run_world(2, slow_run, config, 1, str(tmp_path / "said")) == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "logs" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "time/slowest_rank" in line][-1]
    assert last["time/slowest_rank"] == 1 and last["time/slowest_rank_lag"] > 0.3
    said = (tmp_path / "said").read_text().splitlines()
    assert [line for line in said if line.startswith("warning: ") and "rank 1 on " in line]
