"""Samples and their order: equal for every layout, resumed exactly, no held-out, broken or silent clips."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from snac_accel.audio import AudioReader
from snac_accel.dataset import (
    AudioDataset,
    BadSamples,
    Batch,
    Failure,
    SampleKey,
    ValidationClips,
    hold_out,
    make_loader,
)
from snac_accel.errors import DataError

from shards import write_parquet, write_tars

Steps = list[tuple[list[str], torch.Tensor]]  # names and audio of each global batch

GLOBAL_BATCH = 12
LAYOUTS = [
    (12, 1, 1),
    (4, 1, 3),
    (6, 2, 1),
    (2, 3, 2),
    (3, 4, 1),
]  # batch size, processes, accumulation steps


KINDS = ["table", "row groups", "stream"]  # a folder of files, parquet read while training, tars read in turn


@pytest.fixture(scope="module")
def shards(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's validation clips as parquet and as tars."""
    root = tmp_path_factory.mktemp("shards")
    clips = sorted((demo_folder / "validation").glob("*.flac"))
    write_parquet(root / "parquet", clips)
    write_tars(root / "tars", clips)
    return root


def open_demo(folder: Path, **options: Any) -> AudioDataset:
    return AudioDataset(folder, 24_000, 0.2, seed=7, **options)


def open_kind(kind: str, demo_folder: Path, shards: Path, **options: Any) -> AudioDataset:
    """The same 24 clips, as a table, as row groups or as a stream without an index."""
    if kind == "table":
        return open_demo(demo_folder, split="validation", **options)
    if kind == "row groups":
        cache = shards / "cache"
        return open_demo(shards / "parquet", streaming=True, shuffle_buffer=9, cache_dir=cache, **options)
    address = f"file://{shards / 'tars'}"
    return AudioDataset(address, 24_000, 0.2, audio_column="flac", seed=7, shuffle_buffer=9, **options)


def global_batches(dataset: AudioDataset, layout: tuple[int, int, int], **options: int) -> Steps:
    """Names and audio of each step, put together from all processes in the order of the global batch."""
    batch_size, processes, accumulation = layout
    streams: list[list[Batch]] = []
    for rank in range(processes):
        loader = make_loader(
            dataset,
            batch_size,
            num_processes=processes,
            rank=rank,
            accumulation_steps=accumulation,
            pin_memory=False,
            **options,
        )
        streams.append(list(loader))
    flat = [stream[number] for number in range(len(streams[0])) for stream in streams]
    per_step = processes * accumulation
    steps = [flat[start : start + per_step] for start in range(0, len(flat), per_step)]
    return [
        ([name for batch in step for name in batch.names], torch.cat([batch.audio for batch in step]))
        for step in steps
    ]


def assert_same(one: Steps, other: Steps) -> None:
    assert [names for names, _ in one] == [names for names, _ in other]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_global_batches_do_not_depend_on_the_layout(kind: str, demo_folder: Path, shards: Path) -> None:
    dataset = open_kind(kind, demo_folder, shards)
    reference = global_batches(dataset, LAYOUTS[0], num_workers=0, num_steps=3)
    assert reference[0][1].shape == (GLOBAL_BATCH, 1, 4800)
    for layout in LAYOUTS[1:]:
        assert_same(global_batches(dataset, layout, num_workers=0, num_steps=3), reference)
    for layout, workers in [((6, 2, 1), 2), ((4, 1, 3), 1), ((12, 1, 1), 3)]:
        assert_same(global_batches(dataset, layout, num_workers=workers, num_steps=3), reference)


@pytest.mark.torture
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_combination_gives_the_same_stream(
    processes: int, workers: int, kind: str, demo_folder: Path, shards: Path
) -> None:
    """1 to 4 processes, 0 to 3 workers, every accumulation that divides the step; begun anywhere."""
    dataset = open_kind(kind, demo_folder, shards)
    whole = global_batches(dataset, (12, 1, 1), num_workers=0, num_steps=6)
    for accumulation in (1, 2, 3, 4, 6, 12):
        if 12 % (processes * accumulation) == 0:
            layout = (12 // (processes * accumulation), processes, accumulation)
            start = (processes + workers + accumulation) % 4
            found = global_batches(dataset, layout, num_workers=workers, start_position=12 * start, num_steps=6 - start)
            assert_same(found, whole[start:])


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_in_another_layout_continues_the_same_stream(
    kind: str, demo_folder: Path, shards: Path
) -> None:
    dataset = open_kind(kind, demo_folder, shards)
    whole = global_batches(dataset, (12, 1, 1), num_workers=0, num_steps=6)  # 72 samples: several epochs
    assert_same(global_batches(dataset, (3, 2, 2), num_workers=2, start_position=36, num_steps=3), whole[3:])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_holds_every_clip_once(kind: str, demo_folder: Path, shards: Path) -> None:
    dataset = open_kind(kind, demo_folder, shards)
    num_clips = len(list((demo_folder / "validation").glob("*.flac")))
    batches = global_batches(dataset, (num_clips, 1, 1), num_workers=0, num_steps=2)
    first, second = (names for names, _ in batches)
    assert set(Counter(first).values()) == {1}
    assert sorted(first) == sorted(second)
    assert first != second
    assert len(first) == num_clips


def test_windows_and_gains_are_keyed_by_epoch_and_position(demo_folder: Path) -> None:
    dataset = open_demo(demo_folder, gain_db=(-6.0, 6.0))
    key = SampleKey(epoch=2, position=5, clip=9)
    assert torch.equal(dataset[key].audio, dataset[key].audio)
    others = [key._replace(epoch=3), key._replace(position=6)]
    assert all(not torch.equal(dataset[key].audio, dataset[other].audio) for other in others)
    assert all(dataset[other].name == dataset[key].name for other in others)
    assert max(float(dataset[index].abs().max()) for index in range(20)) <= 1.0


def test_the_dataset_alone(demo_folder: Path, shards: Path) -> None:
    dataset = AudioDataset(str(demo_folder))
    assert len(dataset) == len(list((demo_folder / "train").glob("*.ogg")))
    assert dataset[0].shape == (19_200,)
    assert dataset[0].dtype == torch.float32
    assert torch.equal(dataset[-1], dataset[len(dataset) - 1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    stream = open_kind("stream", demo_folder, shards)
    assert [window.shape for window in stream] == [(4800,)] * 24
    assert not stream.indexed
    with pytest.raises(TypeError):
        stream.__len__()


def test_fixed_windows_are_the_beginning(demo_folder: Path) -> None:
    dataset = AudioDataset(demo_folder, 24_000, 0.5, split="validation", random_window=False)
    path = demo_folder / dataset.clip_names()[3]
    with AudioReader(path, 24_000) as reader:
        assert torch.equal(dataset[3], reader.read(0, 12_000))


# --- held-out clips


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_clips_are_never_trained_on(kind: str, demo_folder: Path, shards: Path) -> None:
    dataset = open_kind(kind, demo_folder, shards)
    training, held_out = dataset.hold_out(0.3)
    validation = ValidationClips(held_out, max_clips=1000)
    batches = global_batches(training, (24, 1, 1), num_workers=0, num_steps=2)
    trained_on = {name for names, _ in batches for name in names}
    assert trained_on.isdisjoint(validation.names)
    assert 2 <= len(validation) <= 14
    assert len(trained_on | set(validation.names)) == 24
    if dataset.indexed:
        assert sorted(training.clip_names() + held_out.clip_names()) == sorted(dataset.clip_names())
        first = [name for names, _ in batches for name in names][: len(training)]
        assert sorted(first) == sorted(training.clip_names())  # an epoch of the part: each of its clips once


def test_row_groups_hold_out_the_clips_that_the_downloaded_table_does(shards: Path) -> None:
    table, groups = open_demo(shards / "parquet"), open_demo(shards / "parquet", streaming=True)
    assert table.clip_names() == groups.clip_names()
    assert table.hold_out(0.2)[1].clip_names() == groups.hold_out(0.2)[1].clip_names()


def test_hold_out_by_hash_is_stable_and_never_empty() -> None:
    names = [f"clip-{number}" for number in range(2000)]
    mask = hold_out(names, 0.05)
    assert 60 <= mask.sum() <= 140
    shuffled = np.random.default_rng(0).permutation(2000)
    assert np.array_equal(hold_out([names[row] for row in shuffled], 0.05), mask[shuffled])
    assert np.array_equal(hold_out(names[:500], 0.05), mask[:500])  # adding clips moves none
    for fraction in (1e-9, 0.999999):
        few = hold_out(names[:3], fraction)
        assert few.any()
        assert not few.all()
    with pytest.raises(DataError, match="1 different clip names"):
        hold_out(["same", "same"], 0.5)


@pytest.mark.parametrize("kind", ["table", "row groups"])
def test_no_speaker_is_on_both_sides(kind: str, demo_folder: Path, shards: Path, tmp_path: Path) -> None:
    if kind == "table":
        clips = sorted((demo_folder / "validation").glob("*.flac"))
        rows = [f"{clip.name},speaker-{number % 5}" for number, clip in enumerate(clips)]
        for clip in clips:
            shutil.copy(clip, tmp_path)
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,speaker_id", *rows]))
        dataset = AudioDataset(tmp_path, speaker_column="speaker_id")
    else:
        dataset = AudioDataset(shards / "parquet", streaming=True, speaker_column="speaker_id")
    parts = dataset.hold_out(0.4, by="speaker")
    speakers = [{part.clip(index).speaker for index in range(len(part))} for part in parts]
    assert speakers[0].isdisjoint(speakers[1])
    assert len(speakers[0] | speakers[1]) == 5
    assert all(speakers)
    with pytest.raises(DataError, match="speaker_column"):
        open_demo(demo_folder).hold_out(0.4, by="speaker")


@pytest.mark.parametrize("kind", KINDS)
def test_validation_clips_are_fixed_and_shared_among_processes(
    kind: str, demo_folder: Path, shards: Path
) -> None:
    dataset = open_kind(kind, demo_folder, shards)
    clips = ValidationClips(dataset, max_clips=7, max_clip_seconds=2.0)
    whole = list(clips)
    assert [clip.name for clip in whole] == clips.names == [clip.name for clip in clips]
    assert len(whole) == 7
    assert all(clip.audio.shape[0] == 1 and clip.audio.shape[1] <= 48_000 for clip in whole)
    shares = [list(clips.share(process, 3)) for process in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    for number, clip in enumerate(whole):
        assert torch.equal(shares[number % 3][number // 3].audio, clip.audio)


# --- clips that cannot be used


@pytest.fixture
def damaged_folder(demo_folder: Path, tmp_path: Path) -> Path:
    """Twelve good clips, six bad ones and a very short one."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    good = sorted((demo_folder / "validation").glob("*.flac"))[:12]
    for clip in good:
        shutil.copy(clip, folder / f"good-{clip.name}")
    content = good[0].read_bytes()
    (folder / "bad-truncated.flac").write_bytes(content[: len(content) // 20])
    (folder / "bad-empty.wav").write_bytes(b"")
    (folder / "bad-page.wav").write_bytes(b"<html>404</html>")
    soundfile.write(
        folder / "bad-nan.wav", np.full(16_000, np.nan, dtype="float32"), 16_000, subtype="FLOAT"
    )
    soundfile.write(folder / "bad-no-samples.wav", np.zeros(0), 16_000)
    (folder / "bad-pointer.mp3").write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    speech = soundfile.read(good[0])[0]
    soundfile.write(folder / "short.wav", speech[8000:9000], 16_000)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_bad_clips_are_replaced_counted_and_named(kind: str, damaged_folder: Path, tmp_path: Path) -> None:
    files = sorted(path for path in damaged_folder.iterdir() if path.is_file())
    if kind == "table":
        dataset = open_demo(damaged_folder)
    elif kind == "row groups":
        dataset = open_demo(write_parquet(tmp_path / "parquet", files), streaming=True, shuffle_buffer=9)
    else:
        address = write_tars(tmp_path / "tars", [path.rename(path.with_suffix(".flac")) for path in files])
        dataset = AudioDataset(address, 24_000, 0.2, audio_column="flac", seed=7)
    runs = []
    for workers in (0, 2):
        tally = BadSamples(0.05)
        batches = list(make_loader(dataset, 19, num_steps=2, num_workers=workers, pin_memory=False))
        records = [record for batch in batches for record in tally.add(batch)]
        runs.append((records, [batch.names for batch in batches], [batch.audio for batch in batches]))
        assert {record["name"] for record in records if record["kind"] == "bad"} == {
            path.name for path in damaged_folder.glob("bad-*")
        }
        assert {record["kind"] for record in records if record["name"].startswith("short")} == {"short"}
        assert tally.num_bad >= 12  # six in each of two epochs
        assert tally.num_short >= 2
        message = tally.stop_message()
        assert message is not None
        assert "could not be used" in message
        assert "allowed" in message
        assert "\n" not in message
    assert runs[0][:2] == runs[1][:2]
    for batch in runs[0][2]:
        assert all(row.abs().max() > 1e-3 for row in batch)  # never silence
    assert all(name.startswith("good-") for names in runs[0][1] for name in names)


def test_nothing_usable_is_one_line(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(b"not audio")
    for workers in (0, 1):
        loader = make_loader(AudioDataset(tmp_path), 2, num_workers=workers, pin_memory=False)
        reason = r"none of 16 clips tried can be used; the last one, \d.wav, cannot be opened"
        with pytest.raises(DataError, match=reason) as caught:
            next(iter(loader))
        assert "\n" not in str(caught.value)


def test_padding_is_counted(demo_folder: Path) -> None:
    clip = min((demo_folder / "validation").glob("*.flac"))
    seconds = soundfile.info(clip).duration
    dataset = AudioDataset(demo_folder, 24_000, seconds + 1.0, split="validation")
    index = dataset.clip_names().index(f"validation/{clip.name}")
    sample = dataset[SampleKey(0, 0, index)]
    assert sample.num_padding == pytest.approx(24_000, abs=1)
    assert sample.audio[0, -sample.num_padding :].abs().max() == 0
    assert sample.audio[0, : -sample.num_padding].abs().max() > 0.01
    (batch,) = make_loader(dataset, len(dataset), num_steps=1, num_workers=0, pin_memory=False)
    assert 0 < batch.num_padding < batch.audio.numel()


def test_the_share_of_bad_clips_stops_a_run() -> None:
    tally = BadSamples(max_bad_fraction=0.1, reported=[(0, "seen")])
    good = Batch(torch.zeros(18, 1, 1), ["good"] * 18, 0, [], [0] * 18)
    failures = [Failure(name, "is empty", "bad") for name in ("seen", "new")]
    failures.append(Failure("tiny", "lasts 0.1 s", "short"))
    assert tally.add(good._replace(names=[], failures=failures[:2])) == [failures[1]._asdict()]
    assert tally.stop_message() is None  # two of two, but too few to judge
    tally.add(good)
    assert tally.stop_message() is None  # 2 of 20 is what is allowed
    tally.add(good._replace(names=[], failures=failures))
    assert tally.share == pytest.approx(4 / 23)
    assert tally.stop_message() == (
        "4 of 23 clips could not be used (17.4%, allowed by data.max_bad_fraction 10.0%), "
        "the last one new: is empty"
    )
    assert tally.stop_message(1, 1000) is None
    assert json.dumps(failures[0]._asdict())


def test_the_loader_leaves_the_global_random_numbers_alone(demo_folder: Path) -> None:
    dataset = open_demo(demo_folder)
    for workers in (0, 1):
        torch.manual_seed(0)
        next(iter(make_loader(dataset, 2, num_steps=1, num_workers=workers, pin_memory=False)))
        after = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(after, torch.rand(1))
