"""`snac-accel prepare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .flags import ConfigParser, config_parser, read_config

EXIT_OK = 0


def prepare(arguments: Sequence[str]) -> int:
    """Turn the data into shards of equal size, parquet or WebDataset, that stream well; goes on if it was stopped."""
    parser = prepare_parser()
    flags = parser.parse_known(arguments)
    config = read_config(flags)
    if flags.sampling_rate is not None and flags.encode is None:
        parser.error("--sampling_rate: files that are copied keep their rate; add --encode flac")
    from ..prepare import PrepareSettings  # loads torch, so only once the configuration is known to be right
    from ..prepare import prepare as run
    from ..prepare.settings import splits_of, usable_processors

    settings = PrepareSettings(
        output=Path(flags.output).expanduser(),
        splits=splits_of(config, flags.splits),
        format=flags.format,
        clips_per_shard=flags.clips_per_shard,
        num_shards=flags.num_shards,
        encode=flags.encode,
        sampling_rate=flags.sampling_rate or config.model.sampling_rate,
        max_clip_seconds=flags.max_clip_seconds,
        seed=config.training.seed,
        workers=usable_processors() if flags.workers is None else flags.workers,
        cache_dir=config.data.cache_dir,
        cache_gigabytes=config.data.cache_gigabytes,
        progress_bar=config.tracking.progress_bar and sys.stderr.isatty(),
    )
    print(run(settings).text())
    return EXIT_OK


def prepare_parser() -> ConfigParser:
    """The flags of `train`, and those of the preparation."""
    parser = config_parser(
        "prepare", "Turn the data of a run into shards of equal size, in a shuffled order."
    )
    group = parser.add_argument_group("preparation")
    group.add_argument(
        "--output", metavar="DIR", required=True, help="folder to write; one that was begun is gone on with"
    )
    group.add_argument(
        "--format",
        choices=("parquet", "webdataset"),
        default="parquet",
        help="kind of shards (default: parquet)",
    )
    group.add_argument(
        "--clips_per_shard",
        metavar="N",
        type=int,
        help="at most so many clips in each (default: about 256 MB)",
    )
    group.add_argument("--num_shards", metavar="N", type=int, help="so many shards of each split")
    group.add_argument(
        "--splits", metavar="NAME", nargs="+", help="these splits (default: what is trained and validated on)"
    )
    group.add_argument(
        "--encode",
        choices=("flac",),
        help="encode as mono FLAC of 16 bits (default: copy the files as they are)",
    )
    group.add_argument(
        "--sampling_rate", metavar="HZ", type=int, help="of what is encoded (default: the model's)"
    )
    group.add_argument(
        "--max_clip_seconds", metavar="S", type=float, help="cut longer clips into equal parts"
    )
    group.add_argument("--workers", metavar="N", type=int, help="processes (default: one for each processor)")
    return parser
