"""`snac-accel train` and `show-config`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from ..config import to_dict, to_yaml
from ..config.places import check_places
from ..environment import check_launcher, complete_ranks, on_one_machine
from ..resuming import RunClaim
from ..signals import end_with_launcher, ending_at_once
from ..stopwatch import process_start
from .flags import config_parser, read_config

EXIT_OK = 0


def train(arguments: Sequence[str]) -> int:
    """Train a model; with no flags, the published 24 kHz model on LJ Speech."""
    parser = config_parser("train", "Train SNAC. With no flags: the published 24 kHz model on LJ Speech.")
    claim = RunClaim()
    with ending_at_once(claim.release), claim:
        config = read_config(parser.parse_known(arguments))
        check_launcher(config, os.environ)  # `train_main` asks again, but only with torch loaded
        ranks = dict(os.environ)
        alone, together = complete_ranks(ranks) == 1, on_one_machine(ranks)
        if together:  # else all meet first: each must learn what one of them lacks
            check_places(config)
        end_with_launcher()
        if alone or together and ranks["RANK"] == "0":
            claim.take(to_dict(config))
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings about sockets are pages of stack
        from ..train import main as train_main  # loads torch, so only once the configuration is known to be right

        return train_main(config, started=process_start(), claim=claim) or EXIT_OK


def show_config(arguments: Sequence[str]) -> int:
    """Print the configuration that `train` would run with, ready for --config."""
    parser = config_parser("show-config", "Print the configuration that `train` would run with.")
    parser.add_argument("--json", action="store_true", default=False, help="print JSON instead of YAML")
    flags = parser.parse_known(arguments)
    settings = to_dict(read_config(flags))
    print(json.dumps(settings, indent=2, ensure_ascii=False) if flags.json else to_yaml(settings), end="")
    return EXIT_OK
