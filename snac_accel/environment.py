"""What the launcher says through environment variables, beside what the configuration says. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from .config import TrainingConfig
from .errors import ConfigError

# Variables by which `accelerate launch` asks for other ways to train, and their names in its YAML files.
SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
PRECISION = "ACCELERATE_MIXED_PRECISION"
COMPILER = "ACCELERATE_DYNAMO_BACKEND"
SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def check_launcher(config: TrainingConfig, environment: Mapping[str, str]) -> None:
    """Raise ConfigError, one line, where the launcher asks for what is not supported, or contradicts the configuration."""
    for variable, engine in SHARDING.items():
        if environment.get(variable, "false").lower() in ("true", "1", "yes"):
            raise ConfigError(
                f"{variable}={environment[variable]}: the launcher asks for {engine}, which divides networks among GPUs; "
                "these (20 to 55 million parameters, and as many in the discriminators) fit on every GPU, so only DDP is "
                "supported: use distributed_type MULTI_GPU, as accelerate_configs/multi_gpu.yaml does"
            )
    compiler = environment.get(COMPILER, "no")
    if compiler.lower() != "no":
        raise ConfigError(
            f"{COMPILER}={compiler}: the launcher asks for torch.compile of everything: remove dynamo_config or "
            "--dynamo_backend, and set performance.compile to generator or all"
        )
    mixed_precision(config, environment)
    gradient_accumulation_steps(config, environment)


def mixed_precision(config: TrainingConfig, environment: Mapping[str, str]) -> str:
    """The autocast type: the configuration's, else the launcher's, else "no"; ConfigError if both say something else.

    `accelerate launch` says "no" also when nobody chose it, so its "no" counts as nothing said.
    """
    ours, theirs = config.training.mixed_precision, environment.get(PRECISION, "no").lower()
    if theirs not in ("no", "bf16", "fp16"):
        raise ConfigError(f"{PRECISION}={theirs}: should be no, bf16 or fp16")
    if ours is not None and theirs not in ("no", ours):
        raise ConfigError(
            f"training.mixed_precision is {ours}, but the launcher says {theirs} ({PRECISION}): give the same, or leave one out"
        )
    return ours or theirs


def gradient_accumulation_steps(config: TrainingConfig, environment: Mapping[str, str]) -> int | None:
    """Micro-batches per step: the configuration's, else the launcher's, else None; ConfigError if both say something else."""
    ours, theirs = config.training.gradient_accumulation_steps, environment.get(ACCUMULATION)
    if theirs is None:
        return ours
    if not theirs.isdecimal() or int(theirs) < 1:
        raise ConfigError(f"{ACCUMULATION}={theirs}: should be a whole number above 0")
    if ours is not None and ours != int(theirs):
        raise ConfigError(
            f"training.gradient_accumulation_steps is {ours}, but the launcher says {theirs} ({ACCUMULATION}): "
            "give the same, or leave one out"
        )
    return int(theirs)


def complete_ranks(environment: MutableMapping[str, str]) -> int:
    """Add what plain `srun` ranks lack; returns the number of processes that the launcher started.

    Raises ConfigError, one line, if a variable is missing or no number.
    """
    if "WORLD_SIZE" not in environment and _number(environment, SLURM["WORLD_SIZE"], 1) > 1:
        for name, source in SLURM.items():
            if source in environment:
                environment.setdefault(name, environment[source])
    world_size = _number(environment, "WORLD_SIZE", 1)
    if world_size == 1:
        return 1
    if "RANK" not in environment:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but RANK is not set: every process needs its own, from 0 on"
        )
    rank = _number(environment, "RANK", 0)
    if rank >= world_size:
        raise ConfigError(f"RANK={rank}: should be below WORLD_SIZE, {world_size}")
    environment.setdefault("LOCAL_RANK", environment.get(SLURM["LOCAL_RANK"], "0"))
    _number(environment, "LOCAL_RANK", 0)
    if "MASTER_ADDR" not in environment:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but MASTER_ADDR is not set: export the host of rank 0, under SLURM "
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    environment.setdefault("MASTER_PORT", "29500")
    _number(environment, "MASTER_PORT", 0)
    return world_size


def on_one_machine(environment: Mapping[str, str]) -> bool:
    """Whether all processes see the same files, and whoever started them ends them together: alone, or by torchrun's agent."""
    world_size = environment.get("WORLD_SIZE", "1")
    return world_size == "1" or environment.get("LOCAL_WORLD_SIZE") == world_size


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r}: should be a whole number")
    return int(text)
