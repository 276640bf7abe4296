"""Signs of life, and what they tell of a rank that is missing."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from snac_accel.heartbeat import Beat, file_of, forget_others, missing, place_of_main_thread, read_beats, write_beat

NOW = 10_000.0


def beat(rank: int = 0, world_size: int = 2, **changes: object) -> Beat:
    fresh = Beat(rank, world_size, "here", 100 + rank, NOW - 1, 12, "step", NOW - 30, "step.py:9 update", True)
    return replace(fresh, **changes)  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    beats = [beat(rank, 3, outcome="complete" if rank else "") for rank in (2, 0, 1)]
    for one in beats:
        write_beat(tmp_path, one)
    assert read_beats(tmp_path) == sorted(beats, key=lambda one: one.rank)
    forget_others(tmp_path, 2)
    assert [one.rank for one in read_beats(tmp_path)] == [0, 1]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"rank": "x"}', "null", '{"rank": 0, "world_size": 1}'])
def test_what_is_no_sign_of_life_is_passed_over(text: str, tmp_path: Path) -> None:
    write_beat(tmp_path, beat(1))
    file_of(tmp_path, 0).write_text(text)
    assert [one.rank for one in read_beats(tmp_path)] == [1]


def test_a_silent_rank_is_missing() -> None:
    silent = beat(1, unix_time=NOW - 40, phase="data", waits=False)
    (text,) = missing([beat(0), silent], beat(0), NOW)
    assert text == "rank 1 on here (pid 101), silent for 40 s, last in phase data at step.py:9 update after step 12"


def test_ranks_never_seen_or_ended_are_missing() -> None:
    ended = beat(2, 4, outcome="failed: no clips")
    found = missing([beat(0, 4), ended, beat(3, 4)], beat(0, 4), NOW)
    assert found == ["rank 1 (never seen)", "rank 2 on here (pid 102), which has ended: failed: no clips"]


def test_of_ranks_that_live_the_one_that_does_not_wait_is_missing() -> None:
    """It is stuck in another phase, or in the same one but not where ranks wait for each other."""
    saving = beat(1, 3, phase="saving", phase_since=NOW - 100, waits=False, place="files.py:22 write_bytes")
    (text,) = missing([beat(0, 3), saving, beat(2, 3)], beat(0, 3), NOW)
    assert text == "rank 1 on here (pid 101), for 99 s in phase saving at files.py:22 write_bytes after step 12"
    stuck = beat(1, 3, waits=False, place="fake.py:3 sleep")
    (text,) = missing([beat(0, 3), stuck, beat(2, 3)], beat(0, 3), NOW)
    assert "rank 1" in text and "fake.py:3 sleep" in text


def test_nobody_is_missing_where_all_wait_or_this_rank_itself_is_stuck() -> None:
    assert missing([beat(0), beat(1)], beat(0), NOW) == []
    assert missing([beat(0, waits=False), beat(1)], beat(0, waits=False), NOW) == []


def test_files_of_another_layout_are_no_ranks_of_this_run() -> None:
    assert missing([beat(0), beat(1), beat(5, 8, unix_time=0.0)], beat(0), NOW) == []


def test_the_place_is_that_of_the_main_thread() -> None:
    found: list[tuple[str, bool]] = []
    thread = threading.Thread(target=lambda: (time.sleep(0.05), found.append(place_of_main_thread())))
    thread.start()
    time.sleep(0.2)
    thread.join()
    assert found[0][0].startswith("test_heartbeat.py:") and found[0][0].endswith("test_the_place_is_that_of_the_main_thread")
    assert not found[0][1]
