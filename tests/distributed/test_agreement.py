"""Ranks agree, or all of them end with the same line; a rank that is gone does not leave the others waiting."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from worlds import run_world

from snac_accel import agreement
from snac_accel.agreement import check_data, check_settings, lost_processes, on_every_rank, on_first_rank
from snac_accel.config import validate
from snac_accel.errors import ConfigError, DataError, LaunchError, UserError
from snac_accel.launching import create_accelerator

SETTINGS = {"training": {"learning_rate": 1e-3}, "data": {"dataset_path": "speech"}}


def message(function: Callable[[], object]) -> tuple[str, str]:
    """Kind and text of the UserError that a call raises on this rank."""
    try:
        return "returned", repr(function())
    except UserError as error:
        return type(error).__name__, str(error)


def several_agreements(folder: str) -> dict[str, tuple[str, str]]:
    """Runs on every rank: what each of the checks says there."""
    accelerator = create_accelerator(validate({"tracking": {"trackers": []}, "distributed": {"timeout_seconds": 60}}))
    rank = accelerator.process_index
    other_rate = {**SETTINGS, "training": {"learning_rate": 1e-3 if rank == 0 else 2e-3}}

    def fail_on(bad: set[int], kind: type[UserError] = DataError) -> Callable[[], int]:
        def call() -> int:
            if rank in bad:
                raise kind(f"no clips here, at rank {rank}")
            return 10 + rank

        return call

    found = {
        "same settings": message(lambda: check_settings(accelerator, SETTINGS)),
        "other settings": message(lambda: check_settings(accelerator, other_rate)),
        "same data": message(lambda: check_data(accelerator, lambda: {"the training data": "2 clips (ab)"})),
        "fewer clips": message(lambda: check_data(accelerator, lambda: {"the training data": f"{2 - rank} clips"})),
        "other clips": message(
            lambda: check_data(accelerator, lambda: {"the training data": f"2 clips ({'cb' if rank else 'ab'})"})
        ),
        "all well": message(lambda: on_every_rank(accelerator, fail_on(set()))),
        "rank 1 fails": message(lambda: on_every_rank(accelerator, fail_on({1}))),
        "both fail": message(lambda: on_every_rank(accelerator, fail_on({0, 1}))),
        "rank 0 decides": message(lambda: on_first_rank(accelerator, fail_on({1}))),
        "rank 0 refuses": message(lambda: on_first_rank(accelerator, fail_on({0}, ConfigError))),
    }
    real = agreement.code_hash
    agreement.code_hash = lambda: "another" if rank else real()  # type: ignore[assignment]
    found["other code"] = message(lambda: check_settings(accelerator, SETTINGS))
    agreement.code_hash = real
    Path(folder, f"rank_{rank}_was_here").touch()
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, str]]]:
    """What each of two ranks was told."""
    return run_world(2, several_agreements, str(tmp_path_factory.mktemp("agreement")))


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("other settings", "ConfigError", ["training.learning_rate", "0.001 on rank 0", "0.002 on rank 1"]),
        ("other code", "ConfigError", ["the code of snac_accel", "another on rank 1"]),
        ("fewer clips", "ConfigError", ["the training data", "2 clips", "1 clips"]),
        ("other clips", "ConfigError", ["the training data", "2 clips"]),
        ("rank 1 fails", "DataError", ["rank 1 on ", "no clips here, at rank 1"]),
        ("both fail", "DataError", ["no clips here, at rank 0"]),
        ("rank 0 refuses", "ConfigError", ["no clips here, at rank 0"]),
    ],
)
def test_every_rank_ends_with_the_same_line(
    case: str, kind: str, words: list[str], told: list[dict[str, tuple[str, str]]]
) -> None:
    first, second = (one[case] for one in told)
    assert first == second
    assert first[0] == kind and "\n" not in first[1]
    assert all(word in first[1] for word in words), first[1]


def test_ranks_that_agree_go_on(told: list[dict[str, tuple[str, str]]]) -> None:
    for rank, one in enumerate(told):
        assert one["same settings"] == one["same data"] == ("returned", "None")
        assert one["all well"] == ("returned", str(10 + rank))
        assert one["rank 0 decides"] == ("returned", "10")


def lose_a_rank() -> tuple[str, str] | None:
    """Rank 1 kills itself while rank 0 waits for it."""
    accelerator = create_accelerator(validate({"tracking": {"trackers": []}, "distributed": {"timeout_seconds": 60}}))
    if accelerator.process_index == 1:
        time.sleep(0.5)
        os._exit(0)

    def wait() -> None:
        with lost_processes(accelerator.process_index, accelerator.num_processes):
            accelerator.reduce(torch.ones(3))

    started = time.monotonic()
    kind, text = message(wait)
    assert time.monotonic() - started < 30, "seconds, not the timeout"
    Path(os.environ["LOST_REPORT"]).write_text(f"{kind}: {text}")
    return kind, text


def test_a_killed_rank_ends_the_others_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report"
    with pytest.raises(AssertionError, match="ended without a result"):  # that is rank 1
        run_world(2, _with_report, str(report))
    end = time.monotonic() + 30
    while not report.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert report.read_text().startswith("LaunchError: rank 0 of 2 has lost another process of the run")


def _with_report(report: str) -> None:
    os.environ["LOST_REPORT"] = report
    signal.alarm(60)
    lose_a_rank()


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), lost_processes(0, 2):
        raise RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="gloo"), lost_processes(0, 1):
        raise RuntimeError("gloo")
    with pytest.raises(LaunchError), lost_processes(0, 2):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
