"""`snac-accel tokenize`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .flags import ConfigParser, config_parser, read_config
from .use import add_model

EXIT_OK = 0


def tokenize(arguments: Sequence[str]) -> int:
    """Turn the data into a dataset of codes for language models; goes on if it was stopped."""
    flags = tokenize_parser().parse_known(arguments)
    config = read_config(flags)
    from ..inference import open_network  # loads torch, so only once the configuration is known to be right
    from ..prepare.settings import splits_of, usable_processors
    from ..tokenize import TokenizeSettings
    from ..tokenize import tokenize as run

    settings = TokenizeSettings(
        output=Path(flags.output).expanduser(),
        splits=splits_of(config, flags.splits),
        layout=flags.layout,
        offsets=flags.offsets,
        base=flags.base,
        num_shards=flags.num_shards,
        workers=usable_processors() if flags.workers is None else flags.workers,
        device=flags.device,
        batch_size=flags.codec_batch,
        chunk_seconds=flags.chunk_seconds,
        cache_dir=config.data.cache_dir,
        cache_gigabytes=config.data.cache_gigabytes,
        progress_bar=config.tracking.progress_bar and sys.stderr.isatty(),
    )
    print(run(settings, open_network(flags.network, "cpu")).text())
    return EXIT_OK


def tokenize_parser() -> ConfigParser:
    """The flags of `train`, and those of the tokenization."""
    parser = config_parser("tokenize MODEL", "Turn the data of a run into a dataset of codes for language models.")
    add_model(parser, "--encode_batch_size")  # `--batch_size` is the one of a run
    group = parser.add_argument_group("tokenization")
    group.add_argument("--output", metavar="DIR", required=True, help="folder to write; one that was begun is gone on with")
    layouts = "levels: a column for each level; flat: one column of tokens, in groups (default: levels)"
    group.add_argument("--layout", choices=("levels", "flat"), default="levels", help=layouts)
    offsets = "of flat tokens: each place of a group, or each level, has a range of its own (default: slot, as Orpheus)"
    group.add_argument("--offsets", choices=("slot", "level", "none"), default="slot", help=offsets)
    group.add_argument("--base", metavar="N", type=int, default=0, help="added to flat tokens: 128266 for Orpheus (default: 0)")
    group.add_argument("--num_shards", metavar="N", type=int, help="so many shards of each split (default: about 128 MB each)")
    splits = "these splits (default: what is trained and validated on)"
    group.add_argument("--splits", metavar="NAME", nargs="+", help=splits)
    group.add_argument("--workers", metavar="N", type=int, help="processes (default: one for each processor)")
    return parser
