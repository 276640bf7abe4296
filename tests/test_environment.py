"""What the launcher says and what the configuration says meet in one place: equal or absent is fine, a conflict is one line."""

from __future__ import annotations

from typing import Any

import pytest

from snac_accel.config import TrainingConfig, validate
from snac_accel.environment import (
    check_launcher,
    complete_ranks,
    gradient_accumulation_steps,
    mixed_precision,
)
from snac_accel.errors import ConfigError

ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
PRECISION = "ACCELERATE_MIXED_PRECISION"
MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}


def config(**training: Any) -> TrainingConfig:
    return validate({"training": training})


@pytest.mark.parametrize(
    ("ours", "theirs", "result"),
    [
        (None, None, "no"),
        (None, "no", "no"),
        (None, "bf16", "bf16"),
        ("bf16", None, "bf16"),
        ("bf16", "bf16", "bf16"),
        ("bf16", "no", "bf16"),  # the launcher says "no" also when nobody chose it
        ("no", "no", "no"),
        ("fp16", "fp16", "fp16"),
        (None, "BF16", "bf16"),
    ],
)
def test_precision_equal_or_absent(ours: str | None, theirs: str | None, result: str) -> None:
    assert mixed_precision(config(mixed_precision=ours), {PRECISION: theirs} if theirs else {}) == result


@pytest.mark.parametrize(("ours", "theirs"), [("no", "bf16"), ("bf16", "fp16"), ("fp16", "bf16"), (None, "fp8")])
def test_precision_conflict_names_both(ours: str | None, theirs: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_launcher(config(mixed_precision=ours), {PRECISION: theirs})
    assert PRECISION in str(caught.value) and theirs in str(caught.value)
    assert ours is None or f"training.mixed_precision is {ours}" in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "theirs", "result"),
    [(None, None, None), (None, "4", 4), (2, None, 2), (2, "2", 2), (1, "1", 1), (None, "1", 1)],
)
def test_accumulation_equal_or_absent(ours: int | None, theirs: str | None, result: int | None) -> None:
    environment = {ACCUMULATION: theirs} if theirs else {}
    assert gradient_accumulation_steps(config(gradient_accumulation_steps=ours), environment) == result


@pytest.mark.parametrize(("ours", "theirs"), [(1, "4"), (4, "1"), (None, "0"), (None, "auto"), (2, "-2")])
def test_accumulation_conflict_names_both(ours: int | None, theirs: str) -> None:
    with pytest.raises(ConfigError, match=f"{theirs}") as caught:
        check_launcher(config(gradient_accumulation_steps=ours), {ACCUMULATION: theirs})
    assert ACCUMULATION in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config"),
    ],
)
def test_sharded_engines_are_refused_with_the_reason(variable: str, name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        check_launcher(config(), {variable: "true"})
    assert "DDP" in str(caught.value) and "MULTI_GPU" in str(caught.value) and "\n" not in str(caught.value)
    check_launcher(config(), {variable: "false"})


def test_the_launchers_compiler_is_refused() -> None:
    with pytest.raises(ConfigError, match="ACCELERATE_DYNAMO_BACKEND=INDUCTOR"):
        check_launcher(config(), {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})
    check_launcher(config(), {"ACCELERATE_DYNAMO_BACKEND": "NO"})


def test_ranks_of_torchrun_are_left_alone() -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MASTER}
    assert complete_ranks(before := dict(environment)) == 2
    assert before == environment
    assert complete_ranks({}) == 1


def test_plain_ranks_need_no_local_rank_and_no_port() -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}
    assert complete_ranks(environment) == 2
    assert environment["LOCAL_RANK"] == "0" and environment["MASTER_PORT"] == "29500"


def test_ranks_of_srun_are_taken_from_slurm() -> None:
    slurm = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}
    environment = {**slurm, **MASTER}
    assert complete_ranks(environment) == 4
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("3", "4", "1")
    one_task = {**slurm, "SLURM_STEP_NUM_TASKS": "1"}  # `srun --pty`, or one launcher for each node
    assert complete_ranks(one_task) == 1 and "RANK" not in one_task


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", **MASTER}, "RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': should be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "-1", **MASTER}, "RANK='-1': should be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2", **MASTER}, "RANK=2: should be below WORLD_SIZE, 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MASTER, "MASTER_PORT": "http"}, "MASTER_PORT='http': should be a whole"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "MASTER_ADDR is not set"),
        ({"SLURM_STEP_NUM_TASKS": "2", **MASTER}, "RANK is not set"),
    ],
)
def test_incomplete_ranks_are_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        complete_ranks(environment)
    assert "\n" not in str(caught.value)
