"""Datasets of codes: what plain `datasets` and pyarrow read are the stock package's codes, however they were made."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from snac import SNAC

from snac_accel import cli
from snac_accel.config.data import SourceSettings
from snac_accel.dataset.clips import RawClip
from snac_accel.errors import ConfigError, DataError
from snac_accel.export import write_export
from snac_accel.generator import TrainableSNAC, zero_encoding_biases
from snac_accel.inference import FlatLayout, open_network
from snac_accel.inference.networks import Network
from snac_accel.prepare.settings import Summary
from snac_accel.tokenize import TokenizeSettings, encoding, tokenize

import tiny

FLAT: dict[str, Any] = {"layout": "flat", "base": 100}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a tiny model."""
    torch.manual_seed(0)
    network = TrainableSNAC(**tiny.MODEL)
    zero_encoding_biases(network)
    return write_export(tmp_path_factory.mktemp("model") / "export", tiny.MODEL, network.state_dict())


@pytest.fixture(scope="module")
def network(model: Path) -> Network:
    return open_network(str(model), "cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The network is too small for several."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture
def clips(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A folder `sound` of seven short clips of real speech and a broken one, three to a step; the samples by name."""
    monkeypatch.setattr("snac_accel.prepare.sources.CLIPS_PER_STEP", 3)
    found = {}
    (tmp_path / "sound").mkdir()
    for number, path in enumerate(sorted((demo_folder / "validation").glob("*.flac"))[:7]):
        name = f"{number}.flac"
        speech = soundfile.read(path, dtype="float32")[0][: 3000 + 900 * (number % 3)]
        soundfile.write(tmp_path / "sound" / name, speech, 16_000)
        found[name] = soundfile.read(tmp_path / "sound" / name, dtype="float32")[0]
    (tmp_path / "sound" / "5x.wav").write_bytes(b"RIFF of nothing")
    return found


def source(path: Path, **options: Any) -> SourceSettings:
    return SourceSettings(dataset_path=str(path), split="train", audio_column="audio", **{"streaming": False, **options})


def run(tmp_path: Path, network: Network, output: str = "out", **options: Any) -> Summary:
    defaults: dict[str, Any] = {"splits": {"train": [source(tmp_path / "sound")]}, "progress_bar": False, "workers": 2}
    return tokenize(TokenizeSettings(tmp_path / output, **{**defaults, "device": "cpu", **options}), network)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(datasets.load_dataset(str(folder), split="train"))


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "data").iterdir())}


def test_codes_are_those_of_the_stock_package(
    clips: dict[str, np.ndarray], model: Path, network: Network, tmp_path: Path
) -> None:
    """In the order of the source, with what belongs to a clip; the broken clip is left out and listed."""
    summary = run(tmp_path, network, num_shards=2)
    assert [shard["clips"] for shard in summary.splits["train"]["shards"]] == [3, 4]
    rows = rows_of(tmp_path / "out")
    assert [row["name"] for row in rows] == list(clips)
    stock = SNAC.from_pretrained(str(model))
    for row in rows:
        speech = clips[row["name"]]
        with torch.no_grad():
            expected = stock.encode(torch.from_numpy(speech)[None, None])
        assert [row[f"codes_{level}"] for level in range(3)] == [codes[0].tolist() for codes in expected]
        assert (row["num_samples"], row["seconds"], row["source"]) == (len(speech), len(speech) / 16_000, "sound")
    features = datasets.load_dataset(str(tmp_path / "out"), split="train").features
    assert features["codes_0"].feature.dtype == "uint16"
    assert '"name": "5x.wav", "reason": "cannot be opened: ' in (tmp_path / "out" / "bad_samples.jsonl").read_text()
    assert not (tmp_path / "out" / ".work").exists()


def test_one_row_with_offsets_and_back_to_sound(
    clips: dict[str, np.ndarray], model: Path, network: Network, tmp_path: Path
) -> None:
    """`decode` makes of both layouts the sound that it makes of files of codes."""
    run(tmp_path, network, "levels")
    run(tmp_path, network, "flat", **FLAT)
    layout = FlatLayout([4, 2, 1], 32, base=100)
    for flat, levels in zip(rows_of(tmp_path / "flat"), rows_of(tmp_path / "levels"), strict=True):
        expected = layout.flatten([torch.tensor(levels[f"codes_{level}"]) for level in range(3)])
        assert flat["tokens"] == expected.tolist() and min(flat["tokens"]) >= 100
    (tmp_path / "sound" / "5x.wav").unlink()
    assert cli.main(["encode", str(model), str(tmp_path / "sound"), "--output", str(tmp_path / "files")]) == 0
    for name in ("levels", "flat", "files"):
        assert cli.main(["decode", str(model), str(tmp_path / name), "--output", str(tmp_path / f"{name}-wav")]) == 0
    assert len(list((tmp_path / "files-wav").iterdir())) == 7
    for file in (tmp_path / "files-wav").iterdir():
        for name in ("levels", "flat"):
            assert (tmp_path / f"{name}-wav" / file.name).read_bytes() == file.read_bytes()
            assert soundfile.info(file).frames == len(clips[f"{file.stem}.flac"])


def test_stopped_and_gone_on_with(
    clips: dict[str, np.ndarray], network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as without the stop, with any number of workers; what was done is not done again."""
    run(tmp_path, network, "a/out", num_shards=2, workers=1)
    original = encoding.to_encode

    def failing(clip: RawClip, rate: int) -> Any:
        if clip.name in bad:
            raise MemoryError(clip.name)
        return original(clip, rate)

    monkeypatch.setattr(encoding, "to_encode", failing)
    bad = {"4.flac"}  # in the second step of three
    with pytest.raises(MemoryError):
        run(tmp_path, network, "b/out", num_shards=2, workers=1)
    assert [path.name for path in sorted((tmp_path / "b/out/.work/steps").glob("*.parquet"))][:1] == ["train-000-0000000.parquet"]
    bad = {"0.flac", "1.flac", "2.flac"}
    run(tmp_path, network, "b/out", num_shards=2, workers=2)
    assert sums(tmp_path / "a/out") == sums(tmp_path / "b/out")
    bad |= set(clips)
    assert run(tmp_path, network, "b/out", num_shards=2).was_complete


def test_another_model_or_other_settings_do_not_go_on(clips: dict[str, np.ndarray], network: Network, tmp_path: Path) -> None:
    run(tmp_path, network)
    torch.manual_seed(1)
    from snac_accel.inference.networks import prepare_network

    with pytest.raises(DataError, match="holds another preparation .its weights is"):
        run(tmp_path, prepare_network(TrainableSNAC(**tiny.MODEL)))
    with pytest.raises(DataError, match="its layout is .levels., here it is .flat."):
        run(tmp_path, network, **FLAT)
    with pytest.raises(ConfigError, match="--base and --offsets: belong to --layout flat"):
        run(tmp_path, network, base=5)


def test_a_stream_is_tokenized_as_a_folder_is(clips: dict[str, np.ndarray], network: Network, tmp_path: Path) -> None:
    """Shards of parquet read as a stream, among two sources."""
    from snac_accel.prepare import PrepareSettings, prepare

    shutil.copytree(tmp_path / "sound", tmp_path / "more")
    prepare(PrepareSettings(tmp_path / "shards", {"train": [source(tmp_path / "sound")]}, workers=1, progress_bar=False))
    both = [source(tmp_path / "shards", streaming=True), source(tmp_path / "more")]
    run(tmp_path, network, splits={"train": both})
    run(tmp_path, network, "plain")
    plain = {row["name"]: row["codes_2"] for row in rows_of(tmp_path / "plain")}
    found = {(row["source"], row["name"]): row["codes_2"] for row in rows_of(tmp_path / "out")}
    assert found == {(label, name): codes for label in ("shards", "more") for name, codes in plain.items()}


def test_the_command(model: Path, clips: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tokenize", str(model), "--dataset_path", str(tmp_path / "sound"), "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--layout", "flat", "--base", "128266", "--workers", "1", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("train: 7 clips, 0.00 h, ")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "c0 c1 c2 c2 c1 c2 c2" in card and "128266 128298 128330" in card and str(tmp_path) not in card
