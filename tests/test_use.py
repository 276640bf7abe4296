"""`encode`, `decode` and `reconstruct` on files: names, lengths, levels, chunks, and what is left out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import soundfile
import torch
from snac import SNAC

from snac_accel import cli
from snac_accel.export import write_export
from snac_accel.generator import TrainableSNAC, zero_encoding_biases
from snac_accel.inference.outputs import OutputFolder, safe_path
from snac_accel.weight_names import folded, with_old_names

import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An export of a tiny model."""
    return make_model(tmp_path_factory.mktemp("model") / "export", 0)


def make_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    model = TrainableSNAC(**tiny.MODEL)
    zero_encoding_biases(model)
    return str(write_export(folder, tiny.MODEL, model.state_dict()))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The network is too small for several."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture
def sounds(demo_folder: Path, tmp_path: Path) -> Path:
    """Real speech in three forms, one of them stereo at 44.1 kHz, and a file that is none."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    clips = sorted((demo_folder / "validation").glob("*.flac"))[:2]
    shutil.copy(clips[0], folder / "one.flac")
    soundfile.write(folder / "one.wav", soundfile.read(clips[0])[0][:9000], 16_000)
    left = soundfile.read(clips[1])[0][:30_000]
    soundfile.write(folder / "deep" / "two.wav", np.stack([left, left], 1), 44_100)
    (folder / "deep" / "broken.wav").write_bytes(b"no sound")
    return folder


def test_there_and_back(model: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Codes are those of the stock package; what comes back has the length of the clip; bad files are named."""
    codes, audio = tmp_path / "codes", tmp_path / "audio"
    assert cli.main(["encode", model, str(sounds), "--output", str(codes)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("left out: deep/broken.wav cannot be opened: ")
    assert "3 clips, " in printed.out and "real-time factor" in printed.out and "1 left out" in printed.out
    files = sorted(path.relative_to(codes).as_posix() for path in codes.rglob("*.safetensors"))
    assert files == ["deep/two.safetensors", "one.safetensors", "one.wav.safetensors"]
    speech = torch.from_numpy(soundfile.read(sounds / "one.flac", dtype="float32")[0])
    with torch.no_grad():
        expected = SNAC.from_pretrained(model).encode(speech[None, None])
    found = safetensors.numpy.load_file(codes / "one.safetensors")
    assert [found[f"codes.{n}"].dtype for n in range(3)] == [np.uint16] * 3
    assert all((found[f"codes.{n}"] == level[0].numpy()).all() for n, level in enumerate(expected))
    assert cli.main(["decode", model, str(codes), "--output", str(audio), "--format", "flac"]) == 0
    assert soundfile.info(audio / "one.flac").frames == len(speech)
    assert soundfile.info(audio / "one.wav.flac").frames == 9000
    two = soundfile.info(audio / "deep" / "two.flac")
    assert (two.frames, two.samplerate, two.channels) == (-(-30_000 * 16_000 // 44_100), 16_000, 1)


def test_reconstruct_is_both_and_the_same_every_time(model: str, sounds: Path, tmp_path: Path) -> None:
    file = str(sounds / "one.flac")
    for name, options in {"a": [], "b": ["--chunk_seconds", "0.3"], "c": ["--noise_seed", "1"], "d": ["--no_noise"]}.items():
        assert cli.main(["reconstruct", model, file, "--output", str(tmp_path / name), *options]) == 0
    assert cli.main(["encode", model, file, "--output", str(tmp_path / "codes")]) == 0
    assert cli.main(["decode", model, str(tmp_path / "codes" / "one.safetensors"), "--output", str(tmp_path / "e")]) == 0
    sound = {name: soundfile.read(tmp_path / name / "one.wav", dtype="int16")[0].astype(int) for name in "abcde"}
    assert np.array_equal(sound["a"], sound["e"])
    assert np.abs(sound["a"] - sound["b"]).max() <= 1  # a rounding to 16 bits
    assert not np.array_equal(sound["a"], sound["c"]) and not np.array_equal(sound["a"], sound["d"])


def test_a_dataset_is_encoded_as_a_folder_is(model: str, sounds: Path, tmp_path: Path) -> None:
    (sounds / "list.jsonl").write_text('{"path": "one.flac"}\n{"path": "deep/two.wav"}\n')
    assert cli.main(["encode", model, str(sounds / "list.jsonl"), "--output", str(tmp_path / "out")]) == 0
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        "deep/two.safetensors", "one.safetensors"
    ]  # fmt: skip


def test_the_level_is_kept(tmp_path: Path, demo_folder: Path) -> None:
    """What goes into the network and what comes out of it is not rescaled: a network that passes audio on shows it."""
    from snac_accel.inference import Codec, Codes
    from snac_accel.inference.networks import prepare_network

    network = prepare_network(TrainableSNAC(**tiny.MODEL))
    seen: list[torch.Tensor] = []
    network.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    from snac_accel.dataset.clips import RawClip
    from snac_accel.inference.inputs import to_encode
    from snac_accel.inference.outputs import write_audio

    path = sorted((demo_folder / "validation").glob("*.flac"))[0]
    speech = soundfile.read(path, dtype="float32")[0]
    clip = to_encode(RawClip("clip", str(path), None), 16_000)
    ((_, codes),) = Codec(network).encode([clip])
    assert isinstance(codes, Codes)
    assert np.array_equal(seen[0][0, 0, : len(speech)].numpy(), speech)
    assert float(seen[0][0, 0, len(speech) :].abs().sum()) == 0
    write_audio(tmp_path / "out.wav", [torch.from_numpy(speech[:700]), torch.from_numpy(speech[700:])], 16_000)
    assert np.array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], speech)


@pytest.mark.parametrize("form", [folded, with_old_names])
def test_weights_by_other_names_give_the_same_codes(form: Any, model: str, sounds: Path, tmp_path: Path) -> None:
    """Folded weights, and the names of older torch."""
    shutil.copytree(model, tmp_path / "other")
    weights = safetensors.torch.load_file(Path(model) / "model.safetensors")
    safetensors.torch.save_file(form(weights), tmp_path / "other" / "model.safetensors")
    for name, source in {"a": model, "b": str(tmp_path / "other")}.items():
        assert cli.main(["encode", source, str(sounds / "one.wav"), "--output", str(tmp_path / name)]) == 0
    one, other = (safetensors.numpy.load_file(tmp_path / name / "one.safetensors") for name in "ab")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no file of codes"),
        ({"version": "2"}, "is of version 2: 1 is read here"),
        ({"codebooks": "0" * 16}, "was encoded by another model (codebooks = 0000000000000000"),
        ({"vq_strides": "2 1"}, "was encoded by another model (vq_strides = 2 1, this model has 4 2 1)"),
        ({"num_samples": "x"}, "does not say how many samples"),
        ({"num_samples": "99999999"}, "samples, not 99999999"),
    ],
)
def test_other_files_are_refused_in_one_line(
    change: dict[str, str], message: str, model: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["encode", model, str(sounds / "one.wav"), "--output", str(tmp_path)]) == 0
    file = tmp_path / "one.safetensors"
    with safetensors.safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    file.write_bytes(safetensors.numpy.save(safetensors.numpy.load_file(file), {**metadata, **change}))
    capsys.readouterr()
    assert cli.main(["decode", model, str(file), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "level", "code", "noise"])
def test_damaged_files_are_refused(damage: str, model: str, sounds: Path, tmp_path: Path) -> None:
    assert cli.main(["encode", model, str(sounds / "one.wav"), "--output", str(tmp_path)]) == 0
    file = tmp_path / "one.safetensors"
    with safetensors.safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    tensors = safetensors.numpy.load_file(file)
    if damage == "level":
        tensors["codes.1"] = tensors["codes.1"][:-1]
    if damage == "code":
        tensors["codes.2"] = tensors["codes.2"] + np.uint16(32)
    content = safetensors.numpy.save(tensors, metadata)
    file.write_bytes({"cut": content[:-10], "noise": bytes(range(256)) * 4}.get(damage, content))
    assert cli.main(["decode", model, str(file), "--output", str(tmp_path / "out")]) == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "./nowhere", "a.wav", "--output", "x"], "./nowhere: no such folder"),
        (["encode", "MODEL", "nothing.wav", "--output", "x"], "nothing.wav"),
        (["decode", "MODEL", "nothing", "--output", "x"], "no such file or folder: 'nothing'"),
        (["encode", "MODEL", "a.wav", "--output", "x", "--batch_size", "0"], "--batch_size: '0': should be a whole number"),
        (["encode", "MODEL", "a.wav", "--output", "x", "--device", "cuda:99"], "--device = cuda:99: cannot be used here"),
        (["encode", "MODEL", "a.wav"], "the following arguments are required: --output"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], message: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main([model if word == "MODEL" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_names_lead_nowhere_else(tmp_path: Path) -> None:
    names = ["../../etc/passwd", "/abs/x.wav", "a\x00b\n.wav", "..", "", "x" * 5000 + ".wav", ".hidden.wav", "C:\\y.wav"]
    output = OutputFolder(tmp_path, ".wav")
    for name in names:
        path = output.place(name)
        assert path.resolve().is_relative_to(tmp_path) and ".." not in path.parts
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert str(safe_path("../a/./b//c.wav")) == "a/b/c.wav"


def test_two_clips_never_share_a_file(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path, ".wav")
    places = [output.place(name).name for name in ("a.wav", "a.flac", "a.flac", "a.wav", "a")]
    assert places == ["a.wav", "a.flac.wav", "a.flac-2.wav", "a.wav.wav", "a-2.wav"]
