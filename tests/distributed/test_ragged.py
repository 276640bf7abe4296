"""Numbers that do not divide: epochs, global batches and processes. Nothing is dropped, repeated or waited for.

The clips are one endless stream, epoch after epoch; a step takes the next global batch of it. So a step that crosses the end
of an epoch goes on with the next one, and a dataset smaller than a global batch gives a step several epochs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from layouts import Hooks, Layout, Trace, global_batches, tiny_run, train_in, watched_run
from worlds import run_world

NUM_CLIPS = 7
LOOK = Hooks(trains=False)
RANDOM = {"codebook": {"initialization": "random"}}  # quick where nothing is trained


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A folder of seven clips of the demo."""
    return copy_clips(demo_folder, tmp_path_factory.mktemp("few") / "speech", NUM_CLIPS)


def copy_clips(demo_folder: Path, folder: Path, number: int) -> Path:
    (folder / "train").mkdir(parents=True)
    for path in sorted((demo_folder / "train").glob("*.ogg"))[:number]:
        shutil.copy(path, folder / "train")
    return folder


def stream_of(layout: Layout, traces: list[Trace], attribute: str = "names") -> list[str]:
    """What all ranks took, one step after the other."""
    return list(chain.from_iterable(global_batches(layout, traces, attribute)))


def epochs_of(stream: list[str], length: int = NUM_CLIPS) -> list[list[str]]:
    """The stream cut into epochs; the last one may be unfinished."""
    return [stream[start : start + length] for start in range(0, len(stream), length)]


def changes(folder: Path, num_steps: int, **data: object) -> dict[str, dict[str, Any]]:
    source = {"dataset_path": str(folder), "shuffle_buffer": 4, **data}
    return {"data": source, "training": {"num_iterations": num_steps}}


@pytest.mark.parametrize(
    ("layout", "streaming", "workers"),
    [
        (Layout(1, 4, 1), False, 0),
        (Layout(2, 1, 2), False, 2),
        (Layout(2, 2, 1), True, 2),
        (Layout(3, 2, 1), False, 0),
        (Layout(3, 1, 2), True, 0),
    ],
    ids=str,
)
def test_steps_across_the_end_of_an_epoch_take_every_clip_once_per_epoch(
    layout: Layout, streaming: bool, workers: int, few_clips: Path
) -> None:
    """Neither 4 nor 6 divides 7: the second step holds the end of the first epoch and the beginning of the second."""
    folder, steps = few_clips.parent / f"{layout}-{streaming}", 4
    options = changes(few_clips, steps, streaming=streaming, num_workers=workers)
    traces = train_in(layout, folder, LOOK, **options, **RANDOM)
    stream = stream_of(layout, traces)
    assert len(stream) == steps * layout.clips
    first, second, *_ = epochs = epochs_of(stream)
    everything = sorted(f"train/{path.name}" for path in (few_clips / "train").iterdir())
    assert sorted(first) == sorted(second) == everything and first != second
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    windows = stream_of(layout, traces, "audio")
    assert len(set(windows)) == len(windows), "each epoch has windows of its own"
    assert not [item for trace in traces for item in trace.steps if len(item.names) != layout.accumulation]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_smaller_than_a_global_batch_gives_a_step_several_epochs(
    streaming: bool, tmp_path: Path, demo_folder: Path
) -> None:
    """Three clips, eight in a step: two whole epochs and two thirds of the next, with other windows each time."""
    source = copy_clips(demo_folder, tmp_path / "speech", 3)
    layout, whole = Layout(2, 2, 2), Layout(1, 8, 1)
    options = changes(source, 2, streaming=streaming)
    traces = train_in(layout, tmp_path / "two", LOOK, **options, **RANDOM)
    stream, windows = (stream_of(layout, traces, attribute) for attribute in ("names", "audio"))
    assert len(stream) == 16 and len(set(windows)) == 16
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs_of(stream, 3))
    alone = train_in(whole, tmp_path / "one", LOOK, **options, **RANDOM)
    assert stream_of(whole, alone, "audio") == windows


@pytest.mark.parametrize(
    ("layout", "streaming"), [(Layout(2, 2, 1), False), (Layout(3, 1, 1), True)], ids=str
)
def test_training_goes_on_over_the_ends_of_epochs(
    layout: Layout, streaming: bool, tmp_path: Path, few_clips: Path
) -> None:
    """Five steps of 4, or of 3: two ends of epochs, or one, with decoding processes; all ranks stay equal."""
    options = changes(few_clips, 5, streaming=streaming, num_workers=1)
    first, *others = train_in(layout, tmp_path / "run", Hooks(), **options)
    assert [step.skipped for step in first.steps] == [False] * 5
    assert all(other.steps[-1].digests == first.steps[-1].digests for other in others)
    assert len({step.digests["weights"] for step in first.steps}) == 5
    assert (tmp_path / "run" / "checkpoints" / "step_00000005" / "manifest.json").exists()


def outcome(folders: list[Path], run: Callable[..., Trace], *arguments: Any) -> str:
    """On one rank, in a working folder of its own: the kind and text of the error that ends the run."""
    from snac_accel.errors import UserError

    os.chdir(folders[int(os.environ["RANK"])])
    try:
        run(*arguments)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def ends(folders: list[Path], run_dir: Path, **data: object) -> list[str]:
    """How a run of two ranks ends that read `speech` in working folders of their own."""
    layout = Layout(2, 2, 1)
    config = tiny_run(run_dir, layout, **changes(Path("speech"), 3, **data), **RANDOM)
    return run_world(2, outcome, folders, watched_run, layout, Hooks(), config)


@pytest.mark.parametrize("streaming", [False, True])
def test_ranks_that_see_other_clips_end_with_one_line(
    streaming: bool, tmp_path: Path, demo_folder: Path
) -> None:
    for name, number in (("first", 7), ("second", 6)):
        copy_clips(demo_folder, tmp_path / name / "speech", number)
    first, second = ends([tmp_path / "first", tmp_path / "second"], tmp_path / "run", streaming=streaming)
    assert first == second and "\n" not in first
    assert first.startswith("ConfigError: the ranks differ in the training data of 'speech': 7 clips")
    assert "6 clips" in first and "on rank 1" in first
    assert not (tmp_path / "run").exists(), "nothing is created for a run that cannot begin"


def test_a_rank_without_its_data_ends_all_with_one_line(tmp_path: Path, demo_folder: Path) -> None:
    copy_clips(demo_folder, tmp_path / "first" / "speech", 7)
    (tmp_path / "second").mkdir()
    first, second = ends([tmp_path / "first", tmp_path / "second"], tmp_path / "run")
    assert first == second and "\n" not in first
    assert first.startswith("DataError: rank 1 on ") and "speech" in first


@pytest.mark.parametrize("streaming", [False, True])
def test_a_rank_whose_clips_cannot_be_decoded_leaves_no_other_waiting(
    streaming: bool, tmp_path: Path, demo_folder: Path
) -> None:
    """The names are the same, so it shows only when the windows are read: by one rank, in the middle of a step."""
    for name in ("first", "second"):
        copy_clips(demo_folder, tmp_path / name / "speech", 7)
    for path in (tmp_path / "second" / "speech" / "train").iterdir():
        path.write_bytes(b"not audio")
    first, second = ends([tmp_path / "first", tmp_path / "second"], tmp_path / "run", streaming=streaming)
    assert second.startswith("DataError: ") and "none of 16 clips" in second
    assert first.startswith("LaunchError: rank 0 of 2") and "\n" not in first
