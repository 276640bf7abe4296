"""A model in use: chunks without seams, batches, noise by place, levels kept, layouts, and files of codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from snac import SNAC
from torch import Tensor

from snac_accel.generator import TrainableSNAC, zero_encoding_biases
from snac_accel.inference.codec import Clip, Codec, Codes
from snac_accel.inference.networks import Network, prepare_network
from snac_accel.presets import MODEL_CONFIGS

import tiny

MODELS = {"plain": tiny.MODEL, "attention": tiny.ATTENTION_MODEL, "odd": tiny.ODD_MODEL, "demo": MODEL_CONFIGS["tiny"]}


@pytest.fixture(params=MODELS)
def models(request: pytest.FixtureRequest) -> tuple[SNAC, Network]:
    """A stock model and ours with the same weights; noise loud enough to be seen."""
    return make_models(MODELS[request.param])


def make_models(config: dict[str, Any]) -> tuple[SNAC, Network]:
    torch.manual_seed(0)
    model = TrainableSNAC(**config)
    zero_encoding_biases(model)  # or all frames get the same few codes
    stock = SNAC(**config).eval()
    stock.load_state_dict(model.state_dict())
    return stock, prepare_network(model)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are too small for several."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="session")
def long_clip(demo_folder: Path) -> Tensor:
    """A second and a half of real speech at 16 kHz, and a bit: (T,)."""
    path = max((demo_folder / "train").glob("*.ogg"), key=lambda p: soundfile.info(p).frames)
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])[8000 : 8000 + 24_000 + 77]


def clip_of(audio: Tensor) -> Clip:
    return Clip(len(audio), lambda first, count: audio[first : first + count])


def encode(network: Network, clips: Sequence[Tensor], **options: Any) -> list[Codes]:
    found = dict(Codec(network, **options).encode(map(clip_of, clips)))
    return [found[number] for number in range(len(clips))]


def decode(network: Network, codes: Sequence[Codes], **options: Any) -> list[Tensor]:
    found = {number: torch.cat(list(pieces)) for number, pieces in Codec(network, **options).decode(codes)}
    return [found[number] for number in range(len(codes))]


def difference(audio: Tensor, other: Tensor) -> float:
    """The largest difference of two sounds (T,), beside the largest sample of the first."""
    return float((audio - other).abs().max() / audio.abs().max())


def test_whole_clips_are_those_of_the_stock_package(models: tuple[SNAC, Network], long_clip: Tensor) -> None:
    """Codes and audio to the bit, with the noise left out of both; trimmed to the clip's length."""
    stock, network = models
    for module in stock.modules():
        if type(module).__name__ == "NoiseBlock":
            torch.nn.init.zeros_(module.linear.parametrizations.weight.original0)
    with torch.no_grad():
        expected = stock.encode(long_clip[None, None])
        audio = stock.decode(expected)[0, 0, : len(long_clip)]
    (codes,) = encode(network, [long_clip], chunk_seconds=100)
    assert all(torch.equal(ours, theirs[0]) for ours, theirs in zip(codes.levels, expected, strict=True))
    assert max(len(level.unique()) for level in codes.levels) > 8
    (ours,) = decode(network, [codes], chunk_seconds=100, noise_seed=None)
    assert torch.equal(ours, audio)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_chunks_have_no_seams(models: tuple[SNAC, Network], long_clip: Tensor, batch_size: int) -> None:
    """Whatever the chunks, the codes are those of the whole clip, and the audio to 1e-5, noise and all."""
    _, network = models
    (whole,) = encode(network, [long_clip], chunk_seconds=100)
    (chunked,) = encode(network, [long_clip], chunk_seconds=0.2, batch_size=batch_size)
    for ours, theirs in zip(chunked.levels, whole.levels, strict=True):
        assert (ours == theirs).float().mean() >= 0.999
    (audio,) = decode(network, [whole], chunk_seconds=100)
    (pieces,) = decode(network, [whole], chunk_seconds=0.2, batch_size=batch_size)
    assert difference(audio, pieces) < 1e-5
    (silent,) = decode(network, [whole], chunk_seconds=0.2, noise_seed=None)
    assert difference(audio, silent) > 1e-2


def test_smaller_margins_would_be_seen(models: tuple[SNAC, Network], long_clip: Tensor) -> None:
    """The margins are what keeps the seams away: without them they stand there."""
    _, network = models
    (codes,) = encode(network, [long_clip], chunk_seconds=100)
    (audio,) = decode(network, [codes], chunk_seconds=100, noise_seed=None)
    bare = network._replace(reach=network.reach._replace(decoder=0))
    (cut,) = decode(bare, [codes], chunk_seconds=0.2, noise_seed=None)
    assert difference(audio, cut) > 1e-2


def test_batches_of_several_lengths(models: tuple[SNAC, Network], long_clip: Tensor) -> None:
    """Short, long and equal clips, each as if it were alone."""
    _, network = models
    lengths = [5000, 100, 5000, 20_000, 4999, 1, 9000]
    clips = [long_clip[number * 31 :][:length] for number, length in enumerate(lengths)]
    together = encode(network, clips, chunk_seconds=1.0)
    alone = [encode(network, [clip], chunk_seconds=1.0)[0] for clip in clips]
    for one, other in zip(together, alone, strict=True):
        assert all((a == b).float().mean() > 0.99 for a, b in zip(one.levels, other.levels, strict=True))
    audio = decode(network, together, chunk_seconds=1.0)
    assert [len(samples) for samples in audio] == lengths
    for samples, codes in zip(audio, together, strict=True):
        assert difference(decode(network, [codes], chunk_seconds=1.0)[0], samples) < 1e-5


def test_memory_does_not_grow_with_the_clip() -> None:
    """No more is read, encoded or decoded at a time of a clip that is eight times as long."""
    _, network = make_models(tiny.MODEL)
    largest = []
    for seconds in (2, 16):
        seen = [0]
        hooks = [
            part.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].numel()))  # type: ignore[misc]
            for part in (network.model.encoder, network.model.decoder)
        ]
        codec = Codec(network, chunk_seconds=0.2, batch_size=2)

        def read(first: int, count: int, seen: list[int] = seen) -> Tensor:
            seen.append(count)
            return torch.zeros(count)

        ((_, codes),) = codec.encode([Clip(seconds * 16_000, read)])
        assert isinstance(codes, Codes)
        ((_, pieces),) = codec.decode([codes])
        assert sum(map(len, pieces)) == seconds * 16_000
        largest.append((max(seen), len(seen)))
        for hook in hooks:
            hook.remove()
    assert largest[0][0] == largest[1][0] < 2 * 16_000 and largest[1][1] > 4 * largest[0][1]
