"""`snac-accel encode`, `decode` and `reconstruct`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..redaction import redact
from .flags import ConfigParser

if TYPE_CHECKING:
    from ..audio import AudioError
    from ..dataset.clips import RawClip
    from ..inference import Codec
    from ..inference.jobs import Summary
    from ..inference.outputs import OutputFolder

EXIT_OK, EXIT_LEFT_OUT = 0, 1
AUDIO_INPUT = "audio files, folders of them, or datasets (parquet, JSON lines, a name on the Hub …)"


def encode(arguments: Sequence[str]) -> int:
    """Turn audio into files of codes; exit code 1 if a clip could not be read."""
    flags = encode_parser().parse_known(arguments)
    from ..inference import jobs
    from ..inference.code_files import SUFFIX

    codec = _codec(flags)
    return _done(jobs.encode(codec, _clips(flags), _output(flags, SUFFIX), _report))


def decode(arguments: Sequence[str]) -> int:
    """Turn files of codes back into audio; exit code 1 if one could not be decoded."""
    flags = decode_parser().parse_known(arguments)
    from ..inference import jobs

    codec = _codec(flags)
    return _done(jobs.decode(codec, flags.inputs, _output(flags, f".{flags.format}"), _report))


def reconstruct(arguments: Sequence[str]) -> int:
    """Turn audio into codes and back, to hear what is left; exit code 1 if a clip could not be read."""
    flags = reconstruct_parser().parse_known(arguments)
    from ..inference import jobs

    codec = _codec(flags)
    return _done(jobs.reconstruct(codec, _clips(flags), _output(flags, f".{flags.format}"), _report))


def encode_parser() -> ConfigParser:
    """The flags of `encode`."""
    parser = _parser("encode", "Turn audio into files of codes.", AUDIO_INPUT)
    _add_dataset(parser)
    return parser


def decode_parser() -> ConfigParser:
    """The flags of `decode`."""
    parser = _parser("decode", "Turn files of codes back into audio.", "files of codes, or folders of them")
    _add_audio(parser)
    return parser


def reconstruct_parser() -> ConfigParser:
    """The flags of `reconstruct`."""
    parser = _parser("reconstruct", "Turn audio into codes and back, to hear what is left.", AUDIO_INPUT)
    _add_dataset(parser)
    _add_audio(parser)
    return parser


def _parser(command: str, description: str, inputs: str) -> ConfigParser:
    parser = ConfigParser(prog=f"snac-accel {command}", description=description, allow_abbrev=False)
    add_model(parser)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=inputs)
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write into; files there are replaced")
    return parser


def add_model(parser: ConfigParser, batch_flag: str = "--batch_size") -> None:
    """The flags that say which model works, and how."""
    parser.add_argument("network", metavar="MODEL", help="an export, a run, a checkpoint, or a repository of the Hub")
    device = "cpu, cuda, cuda:1, mps (default: the GPU if there is one)"
    parser.add_argument("--device", metavar="NAME", default="auto", help=device)
    batch = "chunks or clips at a time (default: 4)"
    parser.add_argument(batch_flag, dest="codec_batch", metavar="N", type=_positive, default=4, help=batch)
    chunk = "longer clips are cut into chunks, without seams (default: 10)"
    parser.add_argument("--chunk_seconds", metavar="S", type=_seconds, default=10.0, help=chunk)


def _add_dataset(parser: ConfigParser) -> None:
    group = parser.add_argument_group("datasets")
    group.add_argument("--split", metavar="NAME", default="train", help="which split (default: train)")
    group.add_argument("--audio_column", metavar="NAME", default="audio", help="which column (default: audio)")
    group.add_argument("--configuration", metavar="NAME", help="which configuration of a dataset on the Hub")
    group.add_argument("--streaming", action="store_true", help="read a dataset on the Hub without downloading it first")


def _add_audio(parser: ConfigParser) -> None:
    parser.add_argument("--format", choices=("wav", "flac"), default="wav", help="of the audio, 16 bits (default: wav)")
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("--noise_seed", metavar="N", type=int, default=0, help="seed of the decoder's noise (default: 0)")
    noise.add_argument("--no_noise", action="store_true", help="decode without noise")


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: should be a whole number from 1 to 4096")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: should be more than 0 and at most 3600 seconds")
    return value


def _codec(flags: argparse.Namespace) -> Codec:
    from ..inference import Codec, open_network

    seed = None if getattr(flags, "no_noise", False) else getattr(flags, "noise_seed", 0)
    network = open_network(flags.network, flags.device)
    return Codec(network, chunk_seconds=flags.chunk_seconds, batch_size=flags.codec_batch, noise_seed=seed)


def _clips(flags: argparse.Namespace) -> Iterator[RawClip | AudioError]:
    from ..inference.inputs import Columns, find_clips

    return find_clips(flags.inputs, Columns(flags.split, flags.audio_column, flags.configuration, flags.streaming))


def _output(flags: argparse.Namespace, suffix: str) -> OutputFolder:
    from ..inference.outputs import OutputFolder

    folder = Path(flags.output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output = {flags.output}: is a file; give a folder")
    return OutputFolder(folder, suffix)


def _report(line: str) -> None:
    print(f"left out: {redact(line)}", file=sys.stderr)


def _done(summary: Summary) -> int:
    print(summary.text())
    return EXIT_LEFT_OUT if summary.num_bad else EXIT_OK
