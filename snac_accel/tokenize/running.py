"""A tokenization from beginning to end: open → encode → shards → finish."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from torch import nn
from tqdm import tqdm

from ..errors import DataError
from ..inference.code_files import facts_of
from ..inference.codec import Codec
from ..inference.networks import Network
from ..prepare.collecting import collect, tables_of
from ..prepare.output import OutputFolder
from ..prepare.processes import workers
from ..prepare.running import num_clips
from ..prepare.settings import Summary
from ..prepare.sources import Part, open_parts
from .card import DONE, card
from .columns import code_columns, features
from .encoding import Tokenizer, encode_step
from .settings import TokenizeSettings
from .sharding import edges_of, look_at, write_shards


def tokenize(settings: TokenizeSettings, network: Network) -> Summary:
    """Write the codes of the sources of `settings` into its output folder, or go on where a stopped tokenization was.

    `network` is on the CPU; the workers take it to their devices. Raises DataError (one line) if a source cannot be opened, if
    the folder holds something else, or if it gets full.
    """
    output = OutputFolder(settings.output, DONE)
    identity = {**settings.identity(), "weights": weights_digest(network.model), "model": facts_of(Codec(network))}
    try:
        if done := output.finished(identity):
            return Summary(settings.output, done["splits"], was_complete=True)
        parts = open_parts(settings.splits, settings.cache_dir, settings.cache_gigabytes)
        with output.opened(identity):
            output.check_sources({split: [part.digest() for part in members] for split, members in parts.items()})
            splits = _tokenize(settings, output, parts, network, identity)
            return Summary(settings.output, splits, was_complete=False)
    except OSError as error:
        place = f" {error.filename!r}" if error.filename else ""
        reason = error.strerror or error
        raise DataError(f"tokenizing into {str(settings.output)!r} failed: {reason}{place}; start again to go on") from error


def _tokenize(
    settings: TokenizeSettings,
    output: OutputFolder,
    parts: dict[str, list[Part]],
    network: Network,
    identity: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Do both passes in the opened folder; return what is to be known of each split."""
    strides, size = list(network.model.vq_strides), network.model.codebook_size
    layout = settings.flat_layout(strides, size)
    schema = features(len(strides), size, layout).arrow_schema
    tokenizer = Tokenizer(settings, parts, output.steps, network, schema)
    bar = tqdm(desc="encoding", total=num_clips(parts), unit=" clips", disable=not settings.progress_bar, file=sys.stderr)
    with bar, workers(settings.workers, tokenizer) as processes:
        for count in collect(tokenizer, processes, encode_step):
            bar.update(count)
    tables = tables_of(output.steps)
    if missing := [split for split in parts if split not in tables]:
        raise DataError(f"the source of {missing[0]} holds no clips")
    splits, bad = {}, []
    for name in parts:
        found = look_at(tables[name], code_columns(len(strides), layout))
        edges = edges_of(name, found, settings.num_shards)
        output.check_space(found.num_bytes, "writing the shards")
        shards = list(write_shards(output, name, tables[name], edges, schema))
        sums = {key: sum(shard[key] for shard in shards) for key in ("clips", "seconds", "bytes")}
        splits[name] = {**sums, "shards": shards, "left_out": len(found.bad)}
        bad += [
            {"name": row["name"], "reason": row["reason"], "source": parts[name][row["part"]].label, "split": name}
            for row in found.bad
        ]
    summary = {"settings": identity, "splits": splits}
    output.finish(summary, bad, card(settings, identity["model"], layout, splits))
    return splits


def weights_digest(model: nn.Module) -> str:
    """Digits that tell whether it is the same model: a stopped tokenization does not go on with another."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
