"""The first pass: every clip is encoded, in steps that leave a table each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import torch

from ..audio import AudioError
from ..dataset.clips import RawClip
from ..inference.codec import Clip, Codec
from ..inference.inputs import to_encode
from ..inference.networks import Network, find_device
from ..prepare.collecting import Step, write_table
from ..prepare.contents import storable
from ..prepare.processes import context
from ..prepare.sources import Part
from .columns import code_columns, code_values, step_schema
from .settings import TokenizeSettings


class Tokenizer(NamedTuple):
    """What the workers need."""

    settings: TokenizeSettings
    parts: dict[str, list[Part]]
    folder: Path  # of the tables
    network: Network  # on the CPU
    schema: pyarrow.Schema  # of the shards

    def table(self, step: tuple[str, int, int]) -> Path:
        """Return the place of a step's table."""
        split, part, number = step
        return self.folder / f"{split}-{part:03d}-{number:07d}.parquet"


def encode_step(step: Step) -> int:
    """Encode the clips of a step, in a worker; return their number."""
    tokenizer: Tokenizer = context()
    path = tokenizer.table(step[:3])
    if not path.exists():
        rows = sorted(_rows(tokenizer, step), key=lambda row: row["clip"])
        write_table(path, pyarrow.Table.from_pylist(rows, step_schema(tokenizer.schema)))
    return step.end - step.begin


def _rows(tokenizer: Tokenizer, step: Step) -> Iterator[dict[str, Any]]:
    """Yield the rows of a step, not quite in order: with codes, or with the reason why there are none."""
    part, codec = tokenizer.parts[step.split][step.part], _codec(tokenizer)
    layout = tokenizer.settings.flat_layout(codec.strides, codec.codebook_size)
    empty: dict[str, Any] = {name: [] for name in code_columns(len(codec.strides), layout)}
    rows: list[dict[str, Any]] = []

    def opened() -> Iterator[Clip | AudioError]:
        for number in range(step.begin, step.end):
            context()  # ends here if the tokenization does
            facts = {"part": step.part, "clip": number, "source": part.label, "reason": ""}
            unknown = {"name": f"{step.split}/{number}", "speaker": "", "seconds": 0.0, "num_samples": 0}
            rows.append({**facts, **unknown, **empty})
            try:
                raw = _raw(part, step, number)
            except AudioError as error:
                yield error
                continue
            rows[-1] |= {"name": storable(raw.name), "speaker": storable(raw.speaker or "")}
            yield to_encode(raw, codec.sampling_rate)

    for index, codes in codec.encode(opened()):
        if isinstance(codes, AudioError):
            yield rows[index] | {"reason": storable(str(codes))}
        else:
            length = {"num_samples": codes.num_samples, "seconds": codes.num_samples / codec.sampling_rate}
            yield rows[index] | length | code_values(codes, layout)


def _raw(part: Part, step: Step, number: int) -> RawClip:
    if step.clips is not None:
        return step.clips[number - step.begin]
    clip: RawClip = part.clips.clip(number)  # type: ignore[union-attr]
    return clip


_codecs: dict[int, Codec] = {}  # of this worker: made when it begins, for the GPU is not to be touched before it is forked


def _codec(tokenizer: Tokenizer) -> Codec:
    if id(tokenizer) not in _codecs:
        settings, network = tokenizer.settings, tokenizer.network
        device = _device_of_worker(settings.device)
        network = network._replace(model=network.model.to(device), device=device)
        options: dict[str, Any] = {"chunk_seconds": settings.chunk_seconds, "batch_size": settings.batch_size}
        _codecs[id(tokenizer)] = Codec(network, **options)
    return _codecs[id(tokenizer)]


def _device_of_worker(name: str) -> torch.device:
    """The device of a name; workers take the GPUs in turns."""
    device = find_device(name)
    if device.type != "cuda" or device.index is not None:
        return device
    number = multiprocessing.current_process()._identity[:1] or (1,)
    return torch.device("cuda", (number[0] - 1) % torch.cuda.device_count())
