"""ONNX: what onnxruntime makes of the files is what torch makes of the model, on recorded speech of any length."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from snac_accel import onnx_models
from snac_accel.cli import main
from snac_accel.errors import CheckpointError
from snac_accel.export import write_export
from snac_accel.onnx_models import DECODER, ENCODER, largest_gap, plain_model, shipped_speech
from tiny import ATTENTION_MODEL, MODEL, make_generator, stock_twin

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The ONNX folder of a model by its name, each written once by the command; the export lies beside it."""
    models: dict[str, dict[str, Any]] = {"tiny": MODEL, "attention": ATTENTION_MODEL}
    root, done = tmp_path_factory.mktemp("onnx"), set()

    def folder(name: str) -> Path:
        if name not in done:
            export = write_export(root / f"{name}_export", models[name], make_generator(model=models[name]).state_dict())
            assert main(["export-onnx", str(export), str(root / name)]) == 0
            done.add(name)
        return root / name

    return folder


def without_noise(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "NoiseBlock":
                setattr(parent, name, nn.Identity())
    return model.eval()


@pytest.mark.parametrize("name", ["tiny", "attention"])
def test_codes_and_audio_are_those_of_the_stock_package(name: str, folders: Folders, speech: Tensor) -> None:
    folder, model = folders(name), {"tiny": MODEL, "attention": ATTENTION_MODEL}[name]
    stock: Any = without_noise(stock_twin(make_generator(model=model), model))
    encoder, decoder = (onnxruntime.InferenceSession(str(folder / file)) for file in (ENCODER, DECODER))
    names = [f"audio_codes.{level}" for level in range(len(model["vq_strides"]))]
    assert [node.name for node in encoder.get_inputs()] == ["input_values"]
    assert [node.name for node in encoder.get_outputs()] == [node.name for node in decoder.get_inputs()] == names
    assert [node.name for node in decoder.get_outputs()] == ["audio_values"]
    for batch, length in ((3, 8000), (1, 128), (2, 1999)):
        audio = speech[:batch, :, :length]
        with torch.no_grad():
            codes = stock.encode(audio)
            decoded = stock.decode(codes)
        theirs = encoder.run(names, {"input_values": audio.numpy()})
        same = np.concatenate([(a.numpy() == b).ravel() for a, b in zip(codes, theirs, strict=True)])
        assert same.mean() >= 0.999
        given = {name: level.numpy() for name, level in zip(names, codes, strict=True)}
        (values,) = decoder.run(["audio_values"], given)
        assert values.shape == decoded.shape and np.abs(values - decoded.numpy()).max() <= 1e-4
        assert np.array_equal(values, decoder.run(["audio_values"], given)[0])  # no noise


def test_the_snippet_of_the_card_runs(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders("tiny")
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {}
    exec(compile(snippet, "card", "exec"), space)
    assert space["decoded"].shape == (1, 1, MODEL["sampling_rate"])


def test_what_differs_by_more_than_rounding_is_not_written(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of one model in the folder of another."""
    export = write_export(tmp_path / "export", MODEL, make_generator(seed=9).state_dict())
    for name, file in (("_write_encoder", ENCODER), ("_write_decoder", DECODER)):
        wrong = folders("tiny") / file
        monkeypatch.setattr(onnx_models, name, lambda model, path, wrong=wrong: shutil.copyfile(wrong, path))
    with pytest.raises(CheckpointError, match="onnxruntime differs from torch by more than rounding"):
        onnx_models.export_onnx(str(export), tmp_path / "onnx", shipped_speech)
    assert not (tmp_path / "onnx").exists()


def test_a_tie_is_no_difference_and_another_code_is(speech: Tensor) -> None:
    model = plain_model(dict(MODEL), dict(make_generator().state_dict()))
    audio = speech[:1, :, :1280]
    with torch.no_grad():
        codes = model.encode(audio)
        assert largest_gap(model, audio, codes, codes) == 0
        rows = model.quantizer.quantizers[2].codebook.weight
        other = [level.clone() for level in codes]
        other[2][0, 0] = (codes[2][0, 0] + 1) % len(rows)
        assert largest_gap(model, audio, codes, other) > 1e-3
        rows[other[2][0, 0]] = 2 * rows[codes[2][0, 0]]  # the same direction
        assert abs(largest_gap(model, audio, codes, other)) < 1e-5
