"""A preparation from beginning to end: open → collect → plan → shards → finish."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from tqdm import tqdm

from ..audio import AudioError, probe
from ..dataset.clips import read_source
from ..dataset.streams import StreamedClips
from ..errors import DataError
from .card import card
from .collecting import Collector, check_step, collect, read_pieces
from .output import OutputFolder
from .processes import workers
from .settings import PrepareSettings, Summary
from .sharding import Dealer, SplitPlan, make_shard, plan_split
from .sources import Part, open_parts

SAMPLED_CLIPS = 32  # of each source, for the estimate of the space
FLAC_RATIO = 0.7  # of the size of 16-bit samples; speech comes to about a half


def prepare(settings: PrepareSettings) -> Summary:
    """Write the shards of `settings` into its output folder, or go on where a stopped preparation was.

    Raises DataError (one line) if a source cannot be opened, if the folder holds something else, or if it gets full.
    """
    output = OutputFolder(settings.output)
    try:
        if done := output.finished(settings.identity()):
            return Summary(settings.output, done["splits"], was_complete=True)
        parts = open_parts(settings.splits, settings.cache_dir, settings.cache_gigabytes)
        with output.opened(settings.identity()):
            output.check_sources(
                {split: [part.digest() for part in members] for split, members in parts.items()}
            )
            return _prepare(settings, output, parts)
    except OSError as error:
        place = f" {error.filename!r}" if error.filename else ""
        raise DataError(
            f"preparing {str(settings.output)!r} failed: {error.strerror or error}{place}; start again to go on"
        ) from error


def _prepare(settings: PrepareSettings, output: OutputFolder, parts: dict[str, list[Part]]) -> Summary:
    """Do both passes in the opened folder."""
    if not any(output.steps.iterdir()):
        output.check_space(_estimate(settings, parts), "this preparation")
    collector = Collector(settings, parts, output.steps)
    with (
        workers(settings.workers, collector) as processes,
        _bar(settings, "checking", num_clips(parts), "clips") as bar,
    ):
        for count in collect(collector, processes, check_step):
            bar.update(count)
    pieces = read_pieces(output.steps)
    plans = {split: plan_split(split, pieces[split], settings) for split in parts if split in pieces}
    if missing := [split for split in parts if split not in plans]:
        raise DataError(f"the source of {missing[0]} holds no clips")
    _check_suffixes(settings, plans)
    dealer = Dealer(settings, parts, plans, output.steps, output.shards, output.data)
    left = _bytes_left(dealer)
    output.check_space(left, "writing the shards")
    splits = _make_shards(dealer)
    bad = [record for split in plans for record in _left_out(split, pieces[split], parts[split])]
    for split in splits:
        splits[split]["left_out"] = sum(record["split"] == split for record in bad)
    output.finish({"settings": settings.identity(), "splits": splits}, bad, card(settings, splits))
    return Summary(settings.output, splits, was_complete=False)


def _make_shards(dealer: Dealer) -> dict[str, dict[str, Any]]:
    """Write all shards; return what is to be known of each split."""
    splits: dict[str, dict[str, Any]] = {
        split: {"clips": 0, "seconds": 0.0, "bytes": 0, "shards": []} for split in dealer.plans
    }
    num_bytes = sum(pyarrow.compute.sum(plan.pieces.column("size")).as_py() for plan in dealer.plans.values())
    settings = dealer.settings
    with workers(settings.workers, dealer) as processes, _bar(settings, "writing", num_bytes, "B") as bar:
        for split, record in processes.run(make_shard, dealer.shards()):
            splits[split]["shards"].append(record)
            bar.update(min(record["bytes"], num_bytes - bar.n))
    for known in splits.values():
        known["shards"].sort(key=lambda shard: shard["name"])
        for name in ("clips", "seconds", "bytes"):
            known[name] = sum(shard[name] for shard in known["shards"])
    return splits


def _bar(settings: PrepareSettings, title: str, total: int | None, unit: str) -> Any:
    """Return a progress bar with speed and time left."""
    return tqdm(
        desc=title,
        total=total,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=unit == "B",
        disable=not settings.progress_bar,
        file=sys.stderr,
        dynamic_ncols=True,
    )


def num_clips(parts: dict[str, list[Part]]) -> int | None:
    """Return how many clips the sources hold, None if one of them does not say."""
    lengths = [len(part.clips) if not isinstance(part.clips, StreamedClips) else None for part in _all(parts)]
    return None if None in lengths else sum(length or 0 for length in lengths)


def _all(parts: dict[str, list[Part]]) -> Iterator[Part]:
    for members in parts.values():
        yield from members


def _estimate(settings: PrepareSettings, parts: dict[str, list[Part]]) -> float:
    """Return about how many bytes a preparation takes, by a sample of its clips.

    Of what is read from an address nothing is known beforehand, and 0 is assumed; the second pass knows it all.
    """
    total = 0.0
    for part in _all(parts):
        if isinstance(part.clips, StreamedClips) or not part.keep_in_place:
            continue
        count = len(part.clips)
        sizes = []
        for index in np.linspace(0, count - 1, min(count, SAMPLED_CLIPS)).astype(int):
            try:
                sizes.append(_size(settings, part, int(index)))
            except (AudioError, OSError):  # bad clips take no space
                sizes.append(0.0)
        total += count * sum(sizes) / len(sizes)
    return total


def _size(settings: PrepareSettings, part: Part, index: int) -> float:
    """Return about how many bytes a clip will take, in shards and work folder."""
    assert not isinstance(part.clips, StreamedClips)
    source = read_source(part.clips.clip(index))
    if not isinstance(source, str | bytes):
        source.close()
        return 0.0
    if settings.encode:
        info = probe(source)
        return 2 * FLAC_RATIO * 2 * info.num_frames * settings.sampling_rate / info.sampling_rate
    return len(source) if isinstance(source, bytes) else Path(source).stat().st_size


def _bytes_left(dealer: Dealer) -> int:
    """Return how many bytes the shards that are not there yet will take."""
    left = 0
    for split, plan in dealer.plans.items():
        sizes = plan.pieces.column("size").to_numpy()[plan.order]
        for shard in range(plan.num_shards):
            if not (dealer.data / dealer.shard_name(split, shard)).exists():
                left += int(sizes[plan.edges[shard] : plan.edges[shard + 1]].sum())
    return left


def _check_suffixes(settings: PrepareSettings, plans: dict[str, SplitPlan]) -> None:
    """Raise DataError for tars of several formats, which plain `datasets` does not read."""
    if settings.format == "webdataset":
        found = sorted(
            {
                suffix
                for plan in plans.values()
                for suffix in plan.pieces.column("suffix").unique().to_pylist()
            }
        )
        if len(found) > 1:
            raise DataError(
                f"the clips are {' and '.join(found)} files, but `datasets` reads tars of one kind only: "
                "add --encode flac, or leave out --format webdataset"
            )


def _left_out(split: str, pieces: pyarrow.Table, parts: list[Part]) -> Iterator[dict[str, str]]:
    """Yield a record of each clip that was left out."""
    bad = pieces.filter(pyarrow.compute.not_equal(pieces.column("reason"), ""))
    for row in bad.select(["name", "part", "reason"]).to_pylist():
        yield {
            "name": row["name"],
            "reason": row["reason"],
            "source": parts[row["part"]].label,
            "split": split,
        }
