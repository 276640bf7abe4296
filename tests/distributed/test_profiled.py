"""A profile of several processes: rank 0's, with what the processes say to each other."""

from __future__ import annotations

from pathlib import Path

from layouts import Layout, train_in

from snac_accel.profiling import TABLE_FILE, TRACE_FILE
from snac_accel.traces import read_trace


def test_rank_0_profiles_what_the_processes_say_to_each_other(tmp_path: Path) -> None:
    tracking = {"trackers": [], "progress_bar": False, "profile": "1:2"}
    train_in(
        Layout(2, 1, 2),
        tmp_path / "run",
        training={"num_iterations": 2, "mixed_precision": "bf16"},
        tracking=tracking,
    )
    folder = tmp_path / "run" / "profile"
    assert {path.name for path in folder.iterdir()} == {TABLE_FILE, TRACE_FILE}
    assert "Rank 0 of 2, cpu:0, mixed precision bf16; 2 x 1 windows" in (folder / TABLE_FILE).read_text()
    trace = read_trace(folder / TRACE_FILE)
    assert [step.name for step in trace.steps] == ["step 2"]
    assert [part.name for part in trace.parts].count("generator backward") == 2
    assert any(span.name == "gloo:all_reduce" for span in trace.ranges)
