"""Storms: kills in the middle of saving, random configurations. A sample in every test run, the long ones by `make torture`."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import make_state

from snac_accel.checkpoint import (
    Retention,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    write_snapshot,
)
from snac_accel.config import SETTINGS, load_config
from snac_accel.config.text import nest
from snac_accel.errors import ConfigError
from snac_accel.saving import Saver
from snac_accel.state import TrainState

few_or_many = pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.torture)])


def save_for_ever(folder: Path, state: TrainState, keep_last: int, acknowledged: Connection) -> None:
    """Save step after step, and now and then a step again, reporting each one that `save_checkpoint` has returned from."""
    while True:
        save_checkpoint(folder, state, config={}, config_hash="", keep_last=keep_last)
        acknowledged.send(state.step)
        state.step += state.counters["bad_clips"] % 3 != 0
        state.count("bad_clips")


def save_for_ever_behind(folder: Path, state: TrainState, keep_last: int, acknowledged: Connection) -> None:
    """The same in the background, while the weights change."""
    facts = {"config_hash": "", "world_size": 1, "global_batch_size": 1}
    saver = Saver(
        lambda taken: write_snapshot(folder, taken, {}, facts, Retention(keep_last)),
        lambda outcome: acknowledged.send(outcome.step),
    )
    while True:
        saver.start(state)
        with torch.no_grad():
            for tensor in state.generator.state_dict().values():
                tensor.add_(1)
        state.step += 1


@few_or_many
@pytest.mark.parametrize("keep_last", [1, 2, 3])
@pytest.mark.parametrize("save_on", [save_for_ever, save_for_ever_behind])
def test_a_kill_while_saving_never_costs_an_acknowledged_checkpoint(
    rounds: int,
    keep_last: int,
    save_on: Callable[..., None],
    tmp_path: Path,
    make_accelerator: Callable[..., Accelerator],
) -> None:
    state, fork = make_state(make_accelerator()), multiprocessing.get_context("fork")
    for seed in range(rounds):
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=save_on, args=(tmp_path, state, keep_last, sender))
        child.start()
        acknowledged = receiver.recv()  # one save is complete
        time.sleep(random.Random(seed).uniform(0, 0.3))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while receiver.poll():
            acknowledged = receiver.recv()
        newest = newest_checkpoint(tmp_path)
        assert newest is not None and load_checkpoint(newest, state)["step"] >= acknowledged
        assert len(list_checkpoints(tmp_path)) <= keep_last + 1
        state.step += 1


VALUES: list[Any] = [
    None, True, 0, 1, -1, 2**40, 0.5, -0.0, 1e30, float("nan"), float("inf"), "", "x", "1", "../x", "\x00", [], [1], [0, -1],
    ["a"], {}, {"a": 1}, [[0, 1]], "null", 1e-9, 3,
]  # fmt: skip


@pytest.mark.parametrize("rounds", [300, pytest.param(20_000, marks=pytest.mark.torture)])
def test_any_settings_give_a_config_or_one_line(rounds: int) -> None:
    draw = random.Random(rounds)
    names = list(SETTINGS)
    refused = 0
    for _ in range(rounds):
        settings = {name: draw.choice(VALUES) for name in draw.sample(names, draw.randint(1, 3))}
        try:
            load_config(preset=draw.choice([None, "demo", "44khz"]), overrides=nest(settings), environment={})
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert 0 < refused < rounds
