"""Parquet read while training: what is fetched, how often, and that going on in the middle costs no more."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from snac_accel.dataset import AudioDataset, make_loader
from snac_accel.dataset.block_cache import BlockCache
from snac_accel.dataset.clips import Clips
from snac_accel.dataset.parquet import ParquetClips
from snac_accel.errors import DataError

from shards import write_parquet


@pytest.fixture(scope="module")
def clips(demo_folder: Path) -> list[Path]:
    """Real speech, 24 clips."""
    return sorted((demo_folder / "validation").glob("*.flac"))


@pytest.fixture
def folder(clips: list[Path], tmp_path: Path) -> Path:
    """Three files of two row groups of four clips."""
    return write_parquet(tmp_path / "set", clips)


def open_clips(folder: Path, cache: BlockCache, speaker: str | None = None) -> ParquetClips:
    return ParquetClips(sorted(map(str, folder.glob("data/*.parquet"))), "train", "audio", speaker, cache=cache)


def test_clips_are_those_of_the_files(folder: Path, clips: list[Path], tmp_path: Path) -> None:
    found: Clips = open_clips(folder, BlockCache(tmp_path / "cache"), "speaker_id")
    assert len(found) == 24
    assert found.block_lengths is not None
    assert found.block_lengths.tolist() == [4] * 6
    content = {clip.name: clip.read_bytes() for clip in clips}
    for index in reversed(range(24)):
        raw = found.clip(index)
        assert raw.source == content[raw.name]
        assert raw.speaker == str(sorted(content).index(raw.name) % 5)
    assert found.names_and_speakers() == [(found.clip(i).name, found.clip(i).speaker) for i in range(24)]


def test_only_what_is_asked_for_is_read_and_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    copy = ParquetClips._copy

    def counting(self: ParquetClips, block: int, target: pyarrow.NativeFile) -> None:
        copied.append(block)
        copy(self, block, target)

    monkeypatch.setattr(ParquetClips, "_copy", counting)
    cache = BlockCache(tmp_path / "cache")
    found = open_clips(folder, cache)
    assert copied == []  # the index reads footers alone
    found.clip(13)
    assert copied == [3]
    for index in (12, 13, 14, 15):
        open_clips(folder, cache).clip(index)  # another process would find it there as well
    assert copied == [3]


def test_going_on_late_reads_no_more_than_the_beginning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start and after a million samples a batch needs the row groups of two pools."""
    monkeypatch.setattr("snac_accel.dataset.audio_dataset.POOLS_AHEAD", 0)
    copied: list[int] = []
    copy = ParquetClips._copy
    monkeypatch.setattr(
        ParquetClips, "_copy", lambda self, block, target: (copied.append(block), copy(self, block, target))[1]
    )
    for number, position in enumerate((0, 24 * 50_000)):
        copied.clear()
        dataset = AudioDataset(
            folder, 24_000, 0.2, streaming=True, shuffle_buffer=4, cache_dir=tmp_path / f"cache-{number}"
        )
        next(iter(make_loader(dataset, 4, start_position=position, num_steps=1, num_workers=0, pin_memory=False)))
        assert len(copied) <= 1


def test_the_next_pool_is_fetched_ahead(folder: Path, tmp_path: Path) -> None:
    dataset = AudioDataset(folder, 24_000, 0.2, streaming=True, shuffle_buffer=4, cache_dir=tmp_path / "cache")
    dataset.sample_at(0)
    assert isinstance(dataset.clips, ParquetClips)
    first_two = {dataset.clips._name(block) for block in dataset.order.epoch(0).blocks[:2].tolist()}
    deadline = time.monotonic() + 30
    while (found := blocks_in(tmp_path / "cache")) != first_two and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found == first_two


def blocks_in(cache: Path) -> set[str]:
    """The names of the row groups that a cache holds."""
    return {path.stem for path in cache.glob("*.arrow") if not path.stem.startswith("footer-")}


def test_the_cache_stays_small_and_what_went_comes_again(folder: Path, clips: list[Path], tmp_path: Path) -> None:
    limit = 3 * max(clip.stat().st_size for clip in clips) * 4
    cache = BlockCache(tmp_path / "cache", max_bytes=limit)
    found = open_clips(folder, cache)
    for index in [*range(24), *range(24)]:
        assert found.clip(index).source == next(c for c in clips if c.name == found.clip(index).name).read_bytes()
        found._opened.clear()
        assert sum(path.stat().st_size for path in cache.folder.glob("*.arrow")) <= limit


def test_a_damaged_block_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache")
    before = open_clips(folder, cache).clip(0)
    for path in cache.folder.glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    assert open_clips(folder, cache).clip(0) == before


def test_a_changed_file_is_not_confused_with_what_it_was(folder: Path, clips: list[Path], tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache")
    before = open_clips(folder, cache)
    assert before.clip(0).source == clips[0].read_bytes()
    write_parquet(folder, clips[::-1])
    after = open_clips(folder, cache)
    assert after.clip(0).source == clips[-1].read_bytes()
    assert before.digest() != after.digest()


def _read(folder: Path, cache: BlockCache, index: int) -> str:
    return open_clips(folder, cache).clip(index).name


def test_many_processes_fetch_each_block_once(folder: Path, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        names = pool.starmap(_read, [(folder, cache, index % 24) for index in range(96)])
    assert names == names[:24] * 4
    assert not list(cache.folder.glob(".incomplete-*"))


def test_opened_clips_can_be_sent_to_a_spawned_worker(folder: Path, tmp_path: Path) -> None:
    found = open_clips(folder, BlockCache(tmp_path / "cache"))
    found.clip(0)
    assert pickle.loads(pickle.dumps(found)).clip(5) == found.clip(5)


def test_paths_and_plain_bytes_are_audio_too(clips: list[Path], tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache")
    rows = {"bytes": [clips[0].read_bytes()], "paths": [clips[0].name], "number": [1]}
    file = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table(rows), file)
    for column in ("bytes", "paths"):
        found = ParquetClips([str(file)], "train", column, root=str(clips[0].parent), cache=cache)
        found.check("set")
        source = found.clip(0).source
        assert (source if isinstance(source, bytes) else Path(source).read_bytes()) == clips[0].read_bytes()
    with pytest.raises(DataError, match=r"column 'number' of 'set' holds no audio: it is of type int64"):
        ParquetClips([str(file)], "train", "number", cache=cache).check("set")
    with pytest.raises(DataError, match=r"has no column 'sound'; there are: bytes, paths, number"):
        ParquetClips([str(file)], "train", "sound", cache=cache).check("set")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100, b"<html>404</html>"])
def test_a_file_that_is_no_parquet_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train.parquet cannot be read as parquet: ") as caught:
        ParquetClips([str(file)], "train", "audio", cache=BlockCache(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_a_cache_too_small_for_its_pools_is_said(folder: Path, tmp_path: Path) -> None:
    assert open_clips(folder, BlockCache(tmp_path / "cache")).cache_note(8) is None
    note = open_clips(folder, BlockCache(tmp_path / "cache", max_bytes=10**6)).cache_note(8)
    assert note is not None and "data.cache_gigabytes is 0.001: row groups will be fetched more than once" in note


def test_a_cache_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot be written: .*; set data.cache_dir"):
        open_clips(folder, BlockCache(tmp_path / "file" / "cache"))


def test_a_file_that_changes_or_goes_during_a_run_is_one_line(
    folder: Path, clips: list[Path], tmp_path: Path
) -> None:
    """Its rows would be other clips than the index says."""
    found = open_clips(folder, BlockCache(tmp_path / "cache"))
    write_parquet(folder, clips[::-1])
    with pytest.raises(DataError, match=r"it was changed after the run began"):
        found.clip(0)
    next(folder.glob("data/train-00001*")).unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00003.parquet") as caught:
        found.clip(8)
    assert "cannot be written" not in str(caught.value)  # that would blame the cache


def test_files_without_the_column_are_one_line(folder: Path, tmp_path: Path) -> None:
    """The first file decides what is looked for; another may lack it."""
    last = sorted(folder.glob("data/*.parquet"))[-1]
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(last).drop_columns(["speaker_id"]), last)
    found = open_clips(folder, BlockCache(tmp_path / "cache"), "speaker_id")
    for call in (lambda: found.clip(23), found.names_and_speakers):
        with pytest.raises(DataError, match="speaker_id") as caught:
            call()
        assert "\n" not in str(caught.value)
