"""A log that a full disk does not end: lines wait, whole and in order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snac_accel import line_log
from snac_accel.line_log import LineLog


def test_lines_wait_for_room_and_none_is_lost_doubled_or_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes a few bytes, then none, then all: as a full one does."""
    said: list[str] = []
    log = LineLog(tmp_path / "log.jsonl", said.append)
    log.write("one")
    write, room = os.write, [2, 0, 0, 1000]

    def narrow(descriptor: int, content: bytes) -> int:
        part = bytes(content)[: room[0]]
        if not part or len(part) < len(content) and room[0] == 0:
            room.pop(0)
            raise OSError(28, "No space left on device")
        room[0] -= len(part)
        return write(descriptor, part)

    monkeypatch.setattr(os, "write", narrow)
    log.write("second")
    assert (tmp_path / "log.jsonl").read_text() == "one\nse" and log.failing
    log.write("third")
    log.write("fourth")
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == "one\nsecond\nthird\nfourth\n"
    assert len(said) == 2
    assert f"{tmp_path / 'log.jsonl'} cannot be written: No space left on device (" in said[0] and "bytes free" in said[0]
    assert "can be written again, no line is lost" in said[1]


def refuse(descriptor: int, content: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_what_waits_is_bounded_and_what_is_dropped_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_log, "WAITING_BYTES", 10)
    said: list[str] = []
    log = LineLog(tmp_path / "log", said.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        for number in range(5):
            log.write(f"{number}{number}{number}")
    log.write("5")
    log.close()
    assert (tmp_path / "log").read_text() == "000\n111\n5\n"
    assert "3 lines were dropped" in said[1] and len(said) == 2


def test_a_line_that_a_crash_cut_short_is_ended(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"whole": 1}\n{"cut')
    log = LineLog(tmp_path / "log", pytest.fail)
    log.write("new")
    log.close()
    assert (tmp_path / "log").read_text() == '{"whole": 1}\n{"cut\nnew\n'


def test_a_folder_that_cannot_be_written_is_found_at_the_start_or_said(tmp_path: Path) -> None:
    said: list[str] = []
    log = LineLog(tmp_path / "nowhere" / "log", said.append)
    with pytest.raises(OSError, match="No such file"):
        log.open()
    log.write("line")
    assert len(said) == 1 and "cannot be written: No such file or directory" in said[0]
    (tmp_path / "nowhere").mkdir()
    log.close()
    assert (tmp_path / "nowhere" / "log").read_text() == "line\n"
