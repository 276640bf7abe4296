"""The memory of a long stream: parquet shards of 100 hours read once, the resident memory at every tenth of them.

    python benchmarks/data_memory.py                 100 hours, 0 and 1 workers; some minutes and 1.4 GB of disk
    python benchmarks/data_memory.py --hours 1

The shards hold mp3 clips of ten seconds, made from the demo's real speech and repeated under names of their own; they
lie in a temporary folder that is removed afterwards. Each clip gives one window of 0.768 s at 24 kHz. Beside the memory
of the process and its worker stands the size of the folder in which the row groups being read are kept.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import soundfile
import torch
from measure import Ratio, machine, ratio
from measure import table as tabulated

import snac_accel
from snac_accel.dataset import AudioDataset, make_loader

CLIP_SECONDS, CLIP_RATE, RATE, WINDOW = 10, 16_000, 24_000, 18_432
ROWS_PER_GROUP, ROWS_PER_SHARD = 100, 2000
CACHE_GIGABYTES = 0.1
SHUFFLE_BUFFER = 1000  # clips
SHORT_HOURS, SHORT_BUFFER, SHORT_ROUNDS = (
    3,
    300,
    7,
)  # 1080 clips: the shuffle buffer is full long before the middle
MEGABYTE = 2**20


class Memory(NamedTuple):
    """Of this process and its workers together, in MB."""

    resident: float  # pages that processes share are counted once
    private: float  # the part that nothing else uses; the rest are libraries and mapped row groups


def encoded_clips() -> list[bytes]:
    """Clips of the demo's speech, one after another, as mp3."""
    paths = sorted((Path(snac_accel.__file__).parent / "demo" / "validation").glob("*.flac"))
    samples = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths])
    length, clips = CLIP_SECONDS * CLIP_RATE, []
    for start in range(0, len(samples) - length, length):
        file = io.BytesIO()
        soundfile.write(file, samples[start : start + length], CLIP_RATE, format="MP3", compression_level=0.9)
        clips.append(file.getvalue())
    return clips


def write_shards(folder: Path, num_clips: int) -> int:
    """Write so many rows as parquet shards; return their size in bytes."""
    clips, size = encoded_clips(), 0
    for first in range(0, num_clips, ROWS_PER_SHARD):
        rows = range(first, min(num_clips, first + ROWS_PER_SHARD))
        audio = [{"bytes": clips[row % len(clips)], "path": f"clip-{row:06d}.mp3"} for row in rows]
        path = folder / f"train-{first // ROWS_PER_SHARD:05d}.parquet"
        table = pyarrow.table({"audio": audio})
        # Without dictionaries: they would keep each of the few clips once.
        pyarrow.parquet.write_table(
            table, path, row_group_size=ROWS_PER_GROUP, use_dictionary=False, compression="none"
        )
        size += path.stat().st_size
    return size


def memory() -> Memory:
    """What this process and its workers hold in memory."""
    found = [
        process.memory_full_info()
        for process in (psutil.Process(), *psutil.Process().children(recursive=True))
    ]
    return Memory(sum(info.pss for info in found) / MEGABYTE, sum(info.uss for info in found) / MEGABYTE)


def read_once(
    folder: Path, cache: Path, num_workers: int, batch_size: int, shuffle_buffer: int = SHUFFLE_BUFFER
) -> Iterator[tuple[float, Memory, float]]:
    """Read the stream once; yield hours read, memory and the size of the cache (MB), ten times and at the ends."""
    dataset = AudioDataset(
        folder, RATE, segment_samples=WINDOW, streaming=True, shuffle_buffer=shuffle_buffer,
        cache_dir=cache, cache_gigabytes=CACHE_GIGABYTES,
    )  # fmt: skip
    num_steps = -(-len(dataset) // batch_size)
    names: set[int] = set()
    loader = make_loader(dataset, batch_size, num_steps=num_steps, num_workers=num_workers, pin_memory=False)
    for step, batch in enumerate(loader):
        names.update(map(hash, batch.names))
        if step == 0 or step == num_steps - 1 or step * 10 // num_steps > (step - 1) * 10 // num_steps:
            hours = (step + 1) * batch_size * CLIP_SECONDS / 3600
            yield hours, memory(), sum(path.stat().st_size for path in cache.rglob("*.arrow")) / MEGABYTE
    if len(names) != len(dataset):
        raise SystemExit(f"{len(names)} of {len(dataset)} clips were read")


def table(folder: Path, num_workers: int, batch_size: int) -> str:
    """The table of one reading."""
    with tempfile.TemporaryDirectory() as cache:
        rows = [
            [f"{hours:.1f}", f"{used.resident:.0f}", f"{used.private:.0f}", f"{size:.0f}"]
            for hours, used, size in read_once(folder, Path(cache), num_workers, batch_size)
        ]
    headers = ["hours read", "resident (MB)", "of it private (MB)", "kept on disk (MB)"]
    return tabulated(rows, headers)


def print_table(*arguments: object) -> None:
    """Print the table of one reading; in a process of its own, so that none begins with the memory of another."""
    torch.set_num_threads(1)
    print(table(*arguments), flush=True)  # type: ignore[arg-type]


def short() -> list[Ratio]:
    """Resident memory at the end of a stream over that in its middle: 1 means that nothing piles up. Each round reads it anew."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), SHORT_HOURS * 3600 // CLIP_SECONDS)
        readings = [_middle_and_end(Path(folder)) for _ in range(1 + SHORT_ROUNDS)]
    middles, lasts = zip(*readings[1:], strict=True)  # the first reading warms up
    name = f"memory of a stream of {SHORT_HOURS} hours, end / middle"
    return [ratio(name, lasts, middles, better="lower")]


def _middle_and_end(folder: Path) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as cache:
        resident = [used.resident for _, used, _ in read_once(folder, Path(cache), 0, 16, SHORT_BUFFER)]
    return resident[len(resident) // 2], resident[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the shards, read them, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=100.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batch_size", type=int, default=16)
    flags = parser.parse_args(arguments)
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        num_clips = round(flags.hours * 3600 / CLIP_SECONDS)
        size = write_shards(Path(folder), num_clips)
        print(machine())
        print(f"{flags.hours:g} hours, {num_clips} clips, {size / 1e9:.2f} GB of parquet", end="")
        print(f", {SHUFFLE_BUFFER} clips shuffled, {CACHE_GIGABYTES * 1e3:.0f} MB of row groups kept on disk")
        for num_workers in flags.workers:
            print(f"\n{num_workers} workers\n", flush=True)
            given = (Path(folder), num_workers, flags.batch_size)
            reader = multiprocessing.get_context("spawn").Process(target=print_table, args=given)
            reader.start()
            reader.join()
            status = status or reader.exitcode or 0
    return status


if __name__ == "__main__":
    raise SystemExit(main())
