"""The user's path: real launchers in real processes, on the shipped speech."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from snac import SNAC
from test_train import TINY, losses, tiny_config, weights

from snac_accel.config import merge

SCRIPT = Path(__file__).parents[1] / "launch" / "train.py"
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "python": [sys.executable, str(SCRIPT)],
    "module": [sys.executable, "-m", "snac_accel", "train"],
    "script": [str(BIN / "snac-accel"), "train"],
    "accelerate": [str(BIN / "accelerate"), "launch", str(SCRIPT)],
}


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, with one thread per process, so that two of them fit on two cores."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)


def config_file(folder: Path, **changes: dict[str, object]) -> Path:
    """The tiny run as a JSON file."""
    path = folder / "tiny.json"
    path.write_text(json.dumps(merge(tiny_config(), changes)))
    return path


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `accelerate launch` trained two steps, and then, resumed, two more."""
    cwd = tmp_path_factory.mktemp("launched")
    flags = ["--config", str(config_file(cwd)), "--paths.run_dir", "run"]
    for steps in ("2", "4"):
        done = run([*LAUNCHERS["accelerate"], *flags, "--num_iterations", steps], cwd)
        assert done.returncode == 0, done.stderr
    return cwd


def test_accelerate_launch_trains_saves_resumes_and_exports(launched: Path) -> None:
    assert sorted(losses(launched / "run")) == [1, 2, 3, 4]
    stock = SNAC.from_pretrained(str(launched / "run" / "export"))
    saved = load_file(launched / "run/checkpoints/step_00000004/average.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in stock.state_dict().items())


def test_the_export_command_writes_the_same_folder(launched: Path) -> None:
    done = run([str(BIN / "snac-accel"), "export", "run", "copy"], launched)
    assert done.returncode == 0, done.stderr
    assert (launched / "copy/model.safetensors").read_bytes() == (launched / "run/export/model.safetensors").read_bytes()
    again = run([str(BIN / "snac-accel"), "export", "run", "copy"], launched)
    assert again.returncode == 2 and "copy exists already" in again.stderr


def test_two_processes_train_the_same_model(launched: Path, tmp_path: Path) -> None:
    """Same global batches on two gloo processes: the losses of the first step agree, both ranks end well."""
    torchrun = [str(BIN / "torchrun"), "--nproc_per_node", "2", str(SCRIPT)]
    flags = ["--config", str(config_file(tmp_path)), "--paths.run_dir", "run", "--batch_size", "1"]
    done = run([*torchrun, *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = losses(launched / "run")[1], losses(tmp_path / "run")[1]
    assert two["train/commitment"] == pytest.approx(one["train/commitment"], rel=1e-3)
    assert two["data/clips"] == one["data/clips"] == 2
    SNAC.from_pretrained(str(tmp_path / "run/export"))
    fewer = [*LAUNCHERS["python"], *flags, "--num_iterations", "6"]
    done = run(fewer, tmp_path)  # one process goes on where two left off
    assert done.returncode == 0, done.stderr
    assert "each clip at most once per epoch (processes: 2 before, 1 now)" in done.stdout
    assert [row["data/clips"] for row in losses(tmp_path / "run").values()] == [2, 4, 6, 8, 9, 10]


@pytest.mark.parametrize("launcher", ["python", "module", "script"])
def test_config_errors_are_one_line_with_exit_code_2(launcher: str, tmp_path: Path) -> None:
    done = run([*LAUNCHERS[launcher], "--training.learnig_rate", "1"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and "training.learning_rate" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--dataset_path", "./nowhere"], ["--preset", "demo", "--data.split", "holdout"]])
def test_data_errors_are_one_line_with_exit_code_2(flags: list[str], tmp_path: Path) -> None:
    done = run([*LAUNCHERS["python"], *flags], tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def started(command: list[str], cwd: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start in a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, stdout=subprocess.DEVNULL)


@contextmanager
def endless_run(command: list[str], cwd: Path, **data: object) -> Iterator[subprocess.Popen[bytes]]:
    """A run without end in `cwd`/run, from its first logged step on; its group is killed afterwards."""
    long = merge(TINY["training"], {"num_iterations": 100_000, "save_interval": 100_000, "validation_interval": 100_000})
    config = config_file(cwd, training=long, data=data)
    process = started([*command, "--config", str(config), "--paths.run_dir", "run"], cwd)
    log = cwd / "run/logs/metrics.jsonl"
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and not (log.exists() and "train/adversarial" in log.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_saves_and_leaves(number: signal.Signals, tmp_path: Path) -> None:
    """As terminals, schedulers and containers send it: to the data workers as well."""
    with endless_run(LAUNCHERS["python"], tmp_path, num_workers=1) as process:
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == 128 + number
    assert weights(tmp_path / "run")


def test_plain_ranks_train_the_same_model(launched: Path, tmp_path: Path) -> None:
    """RANK and WORLD_SIZE in the environment, as srun or a shell loop can give them, are enough."""
    with socket.create_server(("", 0)) as free:
        port = str(free.getsockname()[1])
    flags = ["--config", str(config_file(tmp_path)), "--paths.run_dir", "run", "--batch_size", "1"]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [started([*LAUNCHERS["python"], *flags], tmp_path, RANK=rank, **meeting) for rank in ("0", "1")]
    try:
        assert [process.wait(timeout=200) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    one, two = losses(launched / "run")[1], losses(tmp_path / "run")[1]
    assert two["train/commitment"] == pytest.approx(one["train/commitment"], rel=1e-3)
    assert two["data/clips"] == 2


NOTEBOOK = """
import json, sys
from accelerate import debug_launcher, notebook_launcher
from snac_accel import train_main

config = json.load(open(sys.argv[1]))
for run_dir, batch_size in (("two", 1), ("one", 2)):  # torch cannot fork any more once it has trained
    config["paths"] = {"run_dir": run_dir}
    config["training"]["batch_size"] = batch_size
    if run_dir == "two":
        debug_launcher(train_main, (config,), num_processes=2)
    else:
        notebook_launcher(train_main, (config,), num_processes=1)
"""


def test_train_main_runs_in_a_notebook_launcher(tmp_path: Path) -> None:
    """In two processes forked from the notebook's, and then in its own."""
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    done = run([sys.executable, "notebook.py", str(config_file(tmp_path))], tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert sorted(one) == sorted(two) == [1, 2, 3, 4]
    assert two[1]["train/commitment"] == pytest.approx(one[1]["train/commitment"], rel=1e-3)


def test_a_conflict_with_the_launcher_is_one_line(tmp_path: Path) -> None:
    """Before anything heavy is loaded."""
    for variable, words in {"ACCELERATE_USE_FSDP": "asks for FSDP", "ACCELERATE_DYNAMO_BACKEND": "torch.compile"}.items():
        done = run([*LAUNCHERS["python"], "--config", str(config_file(tmp_path))], tmp_path, **{variable: "true"})
        assert done.returncode == 2
        assert words in done.stderr and done.stderr.strip().count("\n") == 0
