"""Every data preset loads through the Hub's protocol: same clips, same windows, validation, speakers, configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client import Client, Failed, Windows, open_preset, read_on, read_preset, set_network
from numpy.typing import NDArray
from repositories import Corpus, Recording
from server import LoopbackHub

from snac_accel.audio import AudioReader
from snac_accel.presets import DATASET_CONFIGS

RATE = 24_000
# Largest difference to the whole recording: the sums of the resampler from 16 kHz take another order, mp3 is decoded in float.
TOLERANCES = {"16000": 5e-7, "mp3": 2e-6}
FLAC_16 = {"openslr/librispeech_asr", "loopback/sound-files", "loopback/tars", "loopback/manifest"}


def whole(recording: Recording, folder: Path) -> NDArray[np.float32]:
    """The recording, as a file, decoded from beginning to end at the model's rate."""
    path = folder / "recording"
    path.write_bytes(recording.content)
    with AudioReader(path, RATE) as reader:
        return np.asarray(reader.read().numpy())


def lies_in(window: NDArray[np.float32], clip: NDArray[np.float32], tolerance: float) -> bool:
    """Whether a window is a piece of a clip."""
    pieces = np.lib.stride_tricks.sliding_window_view(clip, len(window))
    near = np.flatnonzero(np.abs(pieces[:, 0] - window[0]) <= tolerance)
    return any(float(np.abs(pieces[start] - window).max()) <= tolerance for start in near)


def check_windows(windows: Any, corpus: Corpus, part: str, folder: Path) -> None:
    """Each window is a piece of the recording that it is named after, and no two are the same."""
    assert isinstance(windows, Windows), windows
    kind = "mp3" if "common_voice" in corpus.repository.repo_id else "16000"
    tolerance = TOLERANCES[kind] if kind == "mp3" or corpus.repository.repo_id in FLAC_16 else 0.0
    for name, audio in zip(windows.names, windows.audio, strict=True):
        assert lies_in(audio, whole(corpus.recordings[f"{part}/{name}"], folder), tolerance), name
    assert len({audio.tobytes() for audio in windows.audio}) == len(windows.audio)
    assert windows.audio.shape[1] == round(0.768 * RATE) and windows.num_retries == 0


@pytest.mark.parametrize("preset", ["ljspeech", "common_voice", "librispeech", "vctk"])
def test_a_preset_loads_and_gives_windows_of_the_recordings(
    preset: str, hub: LoopbackHub, client: Client, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    source = DATASET_CONFIGS[preset]
    corpus = corpora[source["dataset_path"]]
    windows = client.call(read_preset, preset, {"data": {"cache_dir": str(tmp_path / "cache")}})
    configuration = source["configuration"] or "default"
    check_windows(windows, corpus, f"{configuration}/{source['split']}", tmp_path)
    assert len(set(windows.names)) == 12  # an epoch has more clips: none comes twice
    held_out = source["sections"]["validation"].get("split", source["split"])
    for name, audio in windows.validation:
        clip = whole(corpus.recordings[f"{configuration}/{held_out}/{name}"], tmp_path)
        assert (
            np.array_equal(audio, clip[: len(audio)])
            and len(audio) == len(clip)
            and name not in windows.names
        )
    assert windows.validation and windows.indexed
    assert ("speaker_column" not in source) or all(windows.speakers)
    assert hub.book.requests("cdn/*") and not any(request.has_token for request in hub.book.all_requests())


def test_vctk_holds_out_speakers_with_both_microphones(client: Client, corpora: dict[str, Corpus]) -> None:
    windows: Windows = client.call(
        read_preset, "vctk", {"validation": {"max_clips": 64}}, num_windows=16, num_clips=64
    )
    trained = {name.partition("_")[0] for name in windows.names}
    held_out = {name.partition("_")[0] for name, _ in windows.validation}
    assert trained and held_out and not trained & held_out
    assert {name.rpartition("_")[2] for name, _ in windows.validation} == {"mic1.flac", "mic2.flac"}


def test_another_language_is_another_configuration(
    hub: LoopbackHub, client: Client, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    """What `--data.configuration de` sets."""
    windows = client.call(
        read_preset, "common_voice", {"data": {"configuration": "de", "cache_dir": str(tmp_path / "cache")}}
    )
    check_windows(windows, corpora["fixie-ai/common_voice_17_0"], "de/train", tmp_path)
    assert all("_de_" in name for name, _ in windows.validation) and windows.validation
    assert not hub.book.requests("cdn/*/en/*") and not hub.book.requests("cdn/*/de/test*")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"configuration": "xx"}, "has no configuration 'xx'; there are: de, en"),
        ({"configuration": None}, "has several configurations: set data.configuration to one of de, en"),
        ({"split": "nope"}, "has no split 'nope'; there are: train, validation, test"),
        ({"revision": "v99"}, "check data.revision"),
        ({"audio_column": "sound"}, "has no column 'sound'; there are: client_id, path, audio"),
        (
            {"dataset_path": "fixie-ai/common_voice_99"},
            "is neither a local folder nor a dataset on the Hub that you can see",
        ),
    ],
)
def test_mistakes_get_one_line(overrides: dict[str, Any], message: str, client: Client) -> None:
    failed = client.call(open_preset, "common_voice", {"data": overrides})
    assert isinstance(failed, Failed) and failed.is_line and message in failed.message, failed


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("repo_id", ["loopback/sound-files", "loopback/tars", "loopback/manifest"])
def test_other_layouts_load(
    repo_id: str, streaming: bool, client: Client, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    """Audio files, tar files of WebDataset and JSON lines that name audio files."""
    column = "flac" if repo_id == "loopback/tars" else "audio"
    data = {
        "dataset_path": repo_id,
        "streaming": streaming,
        "audio_column": column,
        "cache_dir": str(tmp_path / "cache"),
    }
    windows = client.call(read_preset, None, {"data": data, "validation": {"fraction": 0.2}}, num_windows=4)
    assert isinstance(windows, Windows), windows
    recordings = {Path(path).stem: one for path, one in corpora[repo_id].recordings.items()}
    for name, audio in zip(windows.names, windows.audio, strict=True):
        assert lies_in(
            audio[: round(0.8 * RATE)], whole(recordings[Path(name).stem], tmp_path), TOLERANCES["16000"]
        ), name
    assert windows.indexed == (not streaming or repo_id != "loopback/tars")


@pytest.mark.parametrize("path", ["openslr/librispeech_asr/clean/train.100", "loopback/sound-files"])
def test_addresses_of_the_hub_load(path: str, client: Client, corpora: dict[str, Corpus], tmp_path: Path) -> None:
    """A folder of a repository, of parquet or of audio files, by its hf:// address."""
    data = {"dataset_path": f"hf://datasets/{path}", "cache_dir": str(tmp_path / "cache")}
    windows = client.call(read_preset, None, {"data": data, "validation": {"fraction": 0.2}}, num_windows=4)
    assert isinstance(windows, Windows), windows
    repository = corpora["/".join(path.split("/")[:2])]
    recordings = {Path(name).stem: one for name, one in repository.recordings.items()}
    for name, audio in zip(windows.names, windows.audio, strict=True):
        clip = whole(recordings[Path(name).stem], tmp_path)
        assert lies_in(audio[: min(len(clip), round(0.768 * RATE))], clip, TOLERANCES["16000"]), name
    assert windows.indexed


def test_a_stream_is_entered_anywhere_at_the_same_cost(
    hub: LoopbackHub, client: Client, tmp_path: Path
) -> None:
    """At the millionth epoch as at the first: the footers, and the row groups of this pool and the next."""
    client.call(set_network, BUFFER_BYTES=2**12)
    costs = []
    for position in (0, 7, 18 * 1_000_000 + 7):
        data = {"cache_dir": str(tmp_path / str(position)), "shuffle_buffer": 3}
        assert (
            client.call(open_preset, "librispeech", {"data": data, "validation": {"enabled": False}}) is None
        )
        assert len(client.call(read_on, num_windows=2, start_position=position).names) == 2
        costs.append(sum(request.num_bytes for request in hub.book.requests("cdn/*/clean/train.100/*")))
        hub.book.clear()
    client.call(set_network, BUFFER_BYTES=2**20)
    assert max(costs) < 1.5 * min(costs)


def test_the_order_does_not_depend_on_processes_and_workers(client: Client, tmp_path: Path) -> None:
    data = {"cache_dir": str(tmp_path / "cache"), "shuffle_buffer": 3}
    assert client.call(open_preset, "librispeech", {"data": data}) is None
    one: Windows = client.call(read_on, num_windows=24)  # more than an epoch
    for workers in (0, 2):
        ranks = [
            client.call(read_on, num_windows=12, num_processes=2, rank=rank, num_workers=workers).names
            for rank in (0, 1)
        ]
        steps = [names[i : i + 2] for i in range(0, 12, 2) for names in ranks]
        assert [name for step in steps for name in step] == one.names
    later: Windows = client.call(read_on, num_windows=12, start_position=12)
    assert later.names == one.names[12:] and np.array_equal(later.audio, one.audio[12:])
