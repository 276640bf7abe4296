"""The launcher's configuration files: each is read by Accelerate's own loader, and the CPU ones start what they say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

CONFIGS = Path(__file__).parent.parent / "accelerate_configs"
NAMES = ["cpu", "cpu_multi_process", "single_gpu", "multi_gpu", "multi_node", "mps"]
# One process, or several started by torchrun; the launcher's other ways (DeepSpeed, FSDP …) are not for this trainer.
PROCESSES = {"cpu": 1, "single_gpu": 1, "mps": 1, "cpu_multi_process": 2, "multi_gpu": 8, "multi_node": 16}
WHO = """
import os, sys
from snac_accel.config import TrainingConfig
from snac_accel.launching import create_accelerator
accelerator = create_accelerator(TrainingConfig())
assert accelerator.num_processes == int(sys.argv[1]), accelerator.num_processes
assert accelerator.mixed_precision == "no"
open(os.path.join(sys.argv[2], f"rank_{accelerator.process_index}"), "x").write(str(accelerator.device.type))
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def path_of(name: str) -> str:
    return str(CONFIGS / f"{name}.yaml")


def command(script: Path, name: str, *flags: str) -> list[str]:
    program = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*program, "--config_file", path_of(name), *flags, str(script)]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script that asserts the number of processes and leaves a file for each rank."""
    file = tmp_path / "who.py"
    file.write_text(WHO)
    return file


@pytest.fixture
def environment() -> dict[str, str]:
    """Without what a launcher around the tests may have set."""
    ours = ("ACCELERATE_", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(CONFIGS.parent)}


def ranks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("rank_*"))


def test_all_files_are_known() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name: str) -> None:
    """Its own loader takes every key, and no word was turned into a truth value by YAML."""
    config = load_config_from_file(path_of(name))
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision == "no" and config.distributed_type.value in ("NO", "MULTI_GPU")
    assert config.num_processes == PROCESSES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_launcher_takes_it_as_meant(name: str) -> None:
    """What `accelerate launch` makes of file and command line: torchrun exactly where there are several processes."""
    arguments, defaults, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", path_of(name), "train.py"])
    )
    assert defaults is not None
    assert bool(arguments.multi_gpu) == (PROCESSES[name] > 1)
    assert arguments.num_processes == PROCESSES[name]
    assert not arguments.use_fsdp and not arguments.use_deepspeed
    assert arguments.use_cpu == (name == "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_explained(name: str) -> None:
    """The first lines give the command to type; the settings say why they are as they are."""
    lines = Path(path_of(name)).read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert any(f"accelerate launch --config_file accelerate_configs/{name}.yaml" in line for line in head)
    bare = [line for line in lines if line and "#" not in line]
    plain = ("compute_environment", "num_processes", "num_machines", "distributed_type")  # say it themselves
    assert all(line.startswith(plain) for line in bare), bare


@pytest.mark.parametrize(("name", "num_processes"), [("cpu", 1), ("cpu_multi_process", 2)])
def test_cpu_processes_really_meet(
    name: str, num_processes: int, script: Path, environment: dict[str, str]
) -> None:
    subprocess.run(
        [*command(script, name), str(num_processes), str(script.parent)],
        check=True,
        env=environment,
        timeout=120,
    )
    assert ranks(script.parent) == [f"rank_{rank}" for rank in range(num_processes)]
    assert {path.read_text() for path in script.parent.glob("rank_*")} == {"cpu"}


def test_two_machines_really_meet(script: Path, environment: dict[str, str]) -> None:
    """Two launchers on this machine stand for two machines; with one process each, the GPUs hidden."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    machines = [
        subprocess.Popen(
            [
                *command(
                    script,
                    "multi_node",
                    "--machine_rank",
                    rank,
                    "--num_processes",
                    "2",
                    "--main_process_port",
                    port,
                ),
                *("2", str(script.parent)),
            ],
            env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        )
        for rank in ("0", "1")
    ]
    try:
        assert [machine.wait(timeout=120) for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.kill()
    assert ranks(script.parent) == ["rank_0", "rank_1"]
