"""The benchmarks of the data layer run, and their tables hold what they promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_throughput_prints_its_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import data_throughput

    monkeypatch.setattr(
        data_throughput, "ways", lambda: {"ours": data_throughput.ours, "whole": data_throughput.whole}
    )
    assert data_throughput.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    for encoding in ("wav", "flac"):
        for length in (2, 10):
            cells = re.search(rf"^\| {encoding} +\| {length} +\|(.+)\|$", printed, re.MULTILINE)
            assert cells is not None
            ours, whole, by_datasets, ratio, _ = (cell.strip() for cell in cells.group(1).split("|"))
            assert float(ours) > 0
            assert float(whole) > 0
            assert by_datasets == ""  # not measured: nothing is made up
            assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", ratio)
    assert len(re.findall(r"^\| [012] +\| [\d.]+ +\|$", printed, re.MULTILINE)) == 3


def test_the_ways_give_a_window_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import data_throughput

    path = data_throughput.write_clip(tmp_path, "mp3", 2.0)
    for source in (str(path), path.read_bytes()):
        for way in (data_throughput.ours, data_throughput.whole):
            assert way(source, 0.4) == data_throughput.WINDOW


def test_a_stream_is_read_once_and_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import data_memory

    (tmp_path / "shards").mkdir()
    assert data_memory.write_shards(tmp_path / "shards", 40) > 40 * 5000
    printed = data_memory.table(tmp_path / "shards", 0, 4)
    rows = re.findall(r"^\| ([\d.]+) +\| (\d+) +\| (\d+) +\| (\d+) +\|$", printed, re.MULTILINE)
    assert len(rows) == 10
    assert all(int(resident) >= int(private) > 50 for _, resident, private, _ in rows)


def test_the_wait_for_data_is_that_of_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import data_wait

    monkeypatch.setattr(data_wait, "LOG_EVERY", 1)
    monkeypatch.setattr(data_wait, "SKIPPED", 1)
    assert data_wait.main(["--steps", "3", "--workers", "0"]) == 0
    cells = re.search(r"^\| 0 +\| ([\d.]+) +\| ([\d.]+)% +\| ([\d.]+)% +\|$", capsys.readouterr().out, re.MULTILINE)
    assert cells is not None
    assert 0 < float(cells[2]) <= float(cells[3]) < 100
