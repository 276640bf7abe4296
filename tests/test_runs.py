"""What is said of a run from its files alone, in a plain Python without torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snac_accel.cli import main
from snac_accel.clock import GOODPUT_FILE, Clock, write_small
from snac_accel.heartbeat import FOLDER, Beat, write_beat
from snac_accel.runs import look_at

MEL = "validation/mel_distance"


def beat(rank: int = 0, world_size: int = 1, **changes: object) -> Beat:
    now = time.time()
    fresh = Beat(rank, world_size, socket.gethostname(), os.getpid(), now, 40, "step", now - 1, limit_seconds=60.0)
    return replace(fresh, **changes)  # type: ignore[arg-type]


def make_run(folder: Path, *beats: Beat, rows: tuple[dict[str, object], ...] = ()) -> Path:
    (folder / "logs" / FOLDER).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"training": {"num_iterations": 100}, "paths": {"log_dir": None}}))
    for one in beats:
        write_beat(folder / "logs" / FOLDER, one)
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


ROWS: tuple[dict[str, object], ...] = (
    {"step": 0, MEL: 9.0}, {"step": 10, MEL: 4.5}, {"step": 20, MEL: "nan"}, {"step": 30, MEL: 5.0},
    {"step": 39, "train/mel": 1.0},
)  # fmt: skip
OLD = time.time() - 3600
STATES: list[tuple[Callable[[], list[Beat]], str]] = [  # made by the test: they are of its time
    (lambda: [beat()], "running"),
    (lambda: [beat(outcome="complete")], "complete"),
    (lambda: [beat(outcome="stopped: SIGTERM", unix_time=OLD)], "stopped"),
    (lambda: [beat(outcome="failed: no clips", unix_time=OLD)], "failed"),
    (lambda: [beat(outcome="gave up in phase saving")], "failed"),
    (lambda: [beat(host="elsewhere", unix_time=OLD, phase_since=OLD)], "stale"),
    (lambda: [beat(phase_since=time.time() - 100)], "stale"),  # alive, but it does not get on
    (lambda: [beat(0, 2), beat(1, 2, host="elsewhere", unix_time=OLD, phase_since=OLD)], "stale"),
    (lambda: [beat(0, 2)], "running"),
    (lambda: [beat(pid=2**22 + 12345, unix_time=time.time() - 3000)], "dead"),  # above the kernel's largest
    (lambda: [beat(pid=2**22 + 12345)], "running"),  # it is in another container, but it has just given a sign of life
    (lambda: [], "not started"),
]


@pytest.mark.parametrize(("beats", "state"), STATES, ids=[f"{n}-{state}" for n, (_, state) in enumerate(STATES)])
def test_state_and_exit_code(
    beats: Callable[[], list[Beat]], state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", *beats())
    assert look_at(run).state == state
    assert main(["watch", str(run)]) == (state in ("failed", "stale", "dead", "not started"))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run}: {state}")


def test_what_counts_as_stale_can_be_set(tmp_path: Path) -> None:
    now = time.time()
    run = make_run(tmp_path / "run", beat(unix_time=now - 10, phase_since=now - 10))
    assert main(["watch", str(run)]) == 0
    assert main(["watch", str(run), "--stale_seconds", "5"]) == 1
    assert main(["watch", str(run), "--stale_seconds", "soon"]) == 2


def test_watch_shows_every_rank_and_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", beat(0, 2), beat(1, 2, phase="data"))
    clock = Clock(time.time() - 100)
    clock.enter("step", 0)
    write_small(run / "logs" / GOODPUT_FILE, clock.account())
    assert main(["watch", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("running; step 40 of 100")
    assert lines[1].split() == ["rank", "host", "pid", "step", "phase", "for", "seen"]
    assert [line.split()[4] for line in lines[2:4]] == ["step", "data"]
    assert lines[4] == "goodput 0.0% of 1.7 min: start 100.0%"


def test_watch_goes_on_until_the_run_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    run = make_run(tmp_path / "run", beat(unix_time=now, phase_since=now))
    assert main(["watch", str(run), "--every", "0.2", "--stale_seconds", "1"]) == 1
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith(str(run))]) > 2


def test_runs_lists_step_best_goodput_and_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "one", beat(outcome="complete", step=100), rows=ROWS)
    write_small(tmp_path / "one" / "logs" / GOODPUT_FILE, Clock(time.time() - 100).account())
    make_run(tmp_path / "two")
    (tmp_path / "newest").symlink_to("two")
    (tmp_path / "other").mkdir()
    assert main(["runs", str(tmp_path)]) == 0
    header, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[:3] == ["run", "state", "step"] and header[-1] == "goodput"
    assert first == ["one", "complete", "100/100", "4.5", "10", "0.0%"]
    assert second == ["two", "not", "started", "0/100"]


def test_a_log_that_a_crash_cut_short_or_of_rubbish_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rows=ROWS)
    with open(run / "logs" / "metrics.jsonl", "a") as log:
        log.write('\x00\xff[[[\n{"step": "x", "validation/mel_distance": 0.1}\n{"step": 40, "validation/mel_dis')
    found = look_at(run)
    assert (found.best, found.best_step) == (4.5, 10)


@pytest.mark.parametrize("text", [None, "", "[]", "[" * 100_000])
def test_a_folder_without_a_run_is_said_in_one_line(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no run")
    assert main(["runs", str(tmp_path / "missing")]) == 2


def test_neither_command_loads_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", beat(outcome="complete"))
    code = "import sys; from snac_accel.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    for arguments in (["watch", str(run)], ["runs", str(tmp_path)]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "False"
