"""The `Accelerator` of a run: precision, processes that do not meet, micro-batches."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from snac_accel.config import TrainingConfig, validate
from snac_accel.errors import ConfigError, LaunchError
from snac_accel.launching import accumulation_steps, await_first_rank, create_accelerator

ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def config(**training: Any) -> TrainingConfig:
    return validate({"training": training, "tracking": {"trackers": []}})


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The process-wide state of before."""
    from accelerate.state import AcceleratorState, GradientState

    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_num_threads())
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.set_num_threads(before[2])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("by_launcher", [False, True])
def test_float16_is_refused_without_a_gpu(by_launcher: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="fp16: needs an NVIDIA or AMD GPU; here use bf16 or no"):
        create_accelerator(config(mixed_precision=None if by_launcher else "fp16"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("matmul", "tf32"), [("highest", False), ("high", True), ("medium", True)])
def test_precision_is_as_the_settings_say(precision: str, matmul: str, tf32: bool) -> None:
    accelerator = create_accelerator(
        config(mixed_precision=precision, matmul_precision=matmul, tf32_convolutions=tf32)
    )
    assert accelerator.mixed_precision == precision and accelerator.scaler is None
    assert torch.get_float32_matmul_precision() == matmul
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_the_launchers_precision_holds_where_the_config_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert create_accelerator(config()).mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("training", "launcher", "processes", "expected"),
    [
        ({}, None, 4, 1),
        ({"gradient_accumulation_steps": 3}, None, 4, 3),
        ({}, "3", 4, 3),
        ({"batch_size": 2, "global_batch_size": 16}, None, 1, 8),
        ({"batch_size": 2, "global_batch_size": 16}, None, 4, 2),
        ({"batch_size": 2, "global_batch_size": 16}, "2", 4, 2),
    ],
)
def test_micro_batches(
    training: dict[str, Any],
    launcher: str | None,
    processes: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if launcher:
        monkeypatch.setenv(ACCUMULATION, launcher)
    assert accumulation_steps(config(**training), processes) == expected


@pytest.mark.parametrize(
    ("launcher", "processes", "message"),
    [
        (None, 3, "should be a multiple of 6 .training.batch_size 2 x 3 processes"),
        ("4", 4, "the launcher says 4 .* over 4 processes gives 2"),
    ],
)
def test_micro_batches_that_do_not_fit_the_global_batch(
    launcher: str | None, processes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher:
        monkeypatch.setenv(ACCUMULATION, launcher)
    with pytest.raises(ConfigError, match=message):
        accumulation_steps(config(batch_size=2, global_batch_size=16), processes)


def ranks(rank: int, port: int, **more: str) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"MASTER_PORT={port}: cannot be opened on this machine"):
            await_first_rank(ranks(0, port), 1)
        await_first_rank(ranks(1, port), 1)  # the others are glad of it
        await_first_rank(ranks(0, port, TORCHELASTIC_USE_AGENT_STORE="True"), 1)  # it is the agent's
    await_first_rank(ranks(0, port), 1)


def test_a_rank_0_that_cannot_be_reached_is_one_line() -> None:
    with socket.create_server(("", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(LaunchError, match=f"rank 1 of 2 cannot reach rank 0 at MASTER_ADDR=127.0.0.1, MASTER_PORT={port}"):
        await_first_rank(ranks(1, port), 0.3)
    assert LaunchError.exit_code == 75 and ConfigError.exit_code == 2


def test_a_rank_that_waits_alone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as closed:
        port = closed.getsockname()[1]
    for name, value in ranks(0, port).items():
        monkeypatch.setenv(name, value)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):  # set on the way, and taken back by monkeypatch
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    alone = validate({"distributed": {"timeout_seconds": 1}, "tracking": {"trackers": []}})
    with pytest.raises(LaunchError, match="rank 0 of 2 did not meet the others at 127.0.0.1 within 1 s"):
        create_accelerator(alone)
