"""Encode and decode at the published 24 kHz shape: this package against the stock one, in turns, on one machine.

    python benchmarks/use.py                            # a table, and the real-time factor of decoding as tokens come
    python benchmarks/use.py --seconds 4 --rounds 9
    OMP_NUM_THREADS=1 python benchmarks/use.py --clock processor     # on a machine that does other work as well

Both have the same random weights; the audio is recorded speech from the package's demo. "batched" is four clips, one after the
other by the stock package, as its users do, and as one batch by ours. A ratio below 1 means that this package is faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from measure import Ratio, alternate, describe, machine, positive, ratio, seconds, table
from snac import SNAC
from torch import Tensor

import snac_accel
from snac_accel.generator import TrainableSNAC, zero_encoding_biases
from snac_accel.inference import Codec, Codes, StreamingDecoder
from snac_accel.inference.codec import Clip
from snac_accel.inference.networks import prepare_network
from snac_accel.presets import MODEL_CONFIGS

CLIPS = 4  # of the batch
TARGET = 1.0  # never slower


class Pair(NamedTuple):
    """The stock model and ours, with the same weights, and what they work on."""

    stock: SNAC
    codec: Codec
    clips: list[Tensor]  # (T,) each, of one length

    def ways(self) -> dict[str, Callable[[], object]]:
        """What is measured, by name."""
        codes = [self.stock_encode(clip) for clip in self.clips]
        ours = [Codes([level[0] for level in levels], len(self.clips[0])) for levels in codes]
        return {
            "encode, stock": lambda: self.stock_encode(self.clips[0]),
            "encode, ours": lambda: self.encode(self.clips[:1]),
            "decode, stock": lambda: self.stock_decode(codes[0]),
            "decode, ours": lambda: self.decode(ours[:1]),
            "encode batched, stock": lambda: [self.stock_encode(clip) for clip in self.clips],
            "encode batched, ours": lambda: self.encode(self.clips),
            "decode batched, stock": lambda: [self.stock_decode(levels) for levels in codes],
            "decode batched, ours": lambda: self.decode(ours),
        }

    @torch.inference_mode()
    def stock_encode(self, clip: Tensor) -> list[Tensor]:
        """Codes, per level (1, F_l)."""
        found: list[Tensor] = self.stock.encode(clip[None, None])
        return found

    @torch.inference_mode()
    def stock_decode(self, codes: list[Tensor]) -> Tensor:
        """Audio (1, 1, T)."""
        audio: Tensor = self.stock.decode(codes)
        return audio

    def encode(self, clips: list[Tensor]) -> list[Codes]:
        """Codes of clips."""
        return [codes for _, codes in self.codec.encode(map(opened, clips)) if isinstance(codes, Codes)]

    def decode(self, codes: list[Codes]) -> list[Tensor]:
        """Audio (T,) of each."""
        return [torch.cat(list(pieces)) for _, pieces in self.codec.decode(codes)]


def opened(audio: Tensor) -> Clip:
    """A clip in memory, as the codec reads it."""
    return Clip(len(audio), lambda first, count: audio[first : first + count])


def make_pair(model: str, num_seconds: float) -> Pair:
    """The two models, and clips of recorded speech."""
    torch.manual_seed(0)
    trained = TrainableSNAC(**MODEL_CONFIGS[model])
    zero_encoding_biases(trained)
    stock = SNAC(**MODEL_CONFIGS[model]).eval()
    stock.load_state_dict(trained.state_dict())
    files = sorted((Path(snac_accel.__file__).parent / "demo" / "train").glob("*.ogg"))
    speech = torch.cat([torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in files[:30]])
    length = int(num_seconds * stock.sampling_rate)
    clips = list(speech[: CLIPS * length].split(length))
    return Pair(stock, Codec(prepare_network(trained), batch_size=CLIPS), clips)


def check(pair: Pair) -> None:
    """Both give the same codes; RuntimeError if not."""
    for clip, codes in zip(pair.clips, pair.encode(pair.clips), strict=True):
        for ours, theirs in zip(codes.levels, pair.stock_encode(clip), strict=True):
            if (ours == theirs[0]).float().mean() < 0.999:
                raise RuntimeError("the two packages give other codes: the times would say nothing")


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of `work`: with one thread what it would take if nothing else ran."""
    started = time.process_time()
    work()
    return time.process_time() - started


CLOCKS: dict[str, Callable[[Callable[[], object]], float]] = {"wall": seconds, "processor": processor_seconds}


def measure(pair: Pair, rounds: int, clock: str = "wall") -> tuple[dict[str, list[float]], list[Ratio]]:
    """Seconds of every way, and the ratios."""
    times = alternate(pair.ways(), rounds, measured_by=CLOCKS[clock])
    names = ("encode", "decode", "encode batched", "decode batched")
    found = [
        ratio(f"{name}, 24 kHz", times[f"{name}, ours"], times[f"{name}, stock"], better="lower", target=TARGET) for name in names
    ]
    return times, found


def stream(pair: Pair, groups_at_once: int, clock: str) -> tuple[float, float]:
    """Real-time factor of decoding as tokens come, and of the whole decode of the same codes."""
    (codes,) = pair.encode(pair.clips[:1])
    decoder = StreamingDecoder(pair.codec.network)
    strides = pair.codec.strides
    groups = len(codes.levels[0])

    def work() -> None:
        for group in range(0, groups, groups_at_once):
            rows = zip(codes.levels, strides, strict=True)
            ends = [(level, strides[0] // stride) for level, stride in rows]
            decoder.push([level[group * each : (group + groups_at_once) * each] for level, each in ends])
        decoder.finish()

    audio = codes.num_samples / pair.codec.sampling_rate
    return CLOCKS[clock](work) / audio, CLOCKS[clock](lambda: pair.decode([codes])) / audio


def short() -> list[Ratio]:
    """For `make bench`."""
    return measure(make_pair("24khz", 1.0), 7)[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Encode and decode against the stock package.")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each clip")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--model", choices=MODEL_CONFIGS, default="24khz")
    flags = parser.parse_args()
    pair = make_pair(flags.model, flags.seconds)
    check(pair)
    times, ratios = measure(pair, flags.rounds, flags.clock)
    print(machine(torch.get_num_threads()))
    shape = f"model {flags.model}, clips of {flags.seconds:g} s, batches of {CLIPS}"
    print(f"{shape}, {flags.rounds} rounds, {flags.clock} clock; seconds are the shortest", flush=True)
    names = ("encode", "decode", "encode batched", "decode batched")
    rows = [
        [name, f"{min(times[f'{name}, stock']):.2f}", f"{min(times[f'{name}, ours']):.2f}", describe(found)]
        for name, found in zip(names, ratios, strict=True)
    ]
    print(table(rows, ["", "stock, s", "ours, s", "ours / stock"]))
    for groups_at_once in (1, 4):
        streamed, whole = stream(pair, groups_at_once, flags.clock)
        pushes = f"{groups_at_once} groups at a time"
        print(f"as tokens come, {pushes}: real-time factor {streamed:.2f}; the whole decode {whole:.2f}")
    print(f"look-ahead: {StreamingDecoder(pair.codec.network).look_ahead / pair.codec.sampling_rate:.3f} s")


if __name__ == "__main__":
    main()
