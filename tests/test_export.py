"""The snac folder: what the stock package makes of it, and what is refused when weights are read."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from snac import SNAC
from torch import Tensor

from snac_accel import export
from snac_accel.errors import CheckpointError
from snac_accel.export import check_export, read_weights, write_export
from snac_accel.generator import TrainableSNAC
from snac_accel.presets import MODEL_CONFIGS
from tiny import ATTENTION_MODEL, MODEL, ODD_MODEL, differences, make_generator

MODELS = {"tiny": MODEL, "attention": ATTENTION_MODEL, "odd rates": ODD_MODEL}


@pytest.fixture
def generator() -> TrainableSNAC:
    return make_generator()


@pytest.fixture
def folder(generator: TrainableSNAC, tmp_path: Path) -> Path:
    """An export of the tiny model."""
    return write_export(tmp_path / "export", MODEL, generator.state_dict())


def equal(weights: dict[str, Tensor], generator: TrainableSNAC) -> bool:
    return differences(dict(generator.state_dict()), weights) == []


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_stock_package_loads_it_with_the_same_codes_and_audio(
    model: dict[str, Any], speech: Tensor, tmp_path: Path
) -> None:
    generator = make_generator(model=model)
    stock = SNAC.from_pretrained(str(write_export(tmp_path / "export", model, generator.state_dict())))
    real = speech[:2, :, :3001]
    torch.manual_seed(1)
    ours = generator(real)
    torch.manual_seed(1)
    audio, codes = stock(real)
    assert torch.equal(ours.audio, audio)
    assert all(torch.equal(a, b) for a, b in zip(ours.codes, codes, strict=True))


@pytest.mark.parametrize("name", ["24khz", "32khz", "44khz", "16khz", "48khz", "tiny"])
def test_the_published_shapes_give_the_same_codes_and_audio_in_the_stock_package(
    name: str, speech: Tensor, tmp_path: Path
) -> None:
    model = MODEL_CONFIGS[name]
    generator = make_generator(model=model)
    stock = SNAC.from_pretrained(str(write_export(tmp_path / "export", model, generator.state_dict())))
    real = speech[:1, :, :7000]
    with torch.no_grad():
        torch.manual_seed(1)
        ours = generator(real)
        torch.manual_seed(1)
        audio, codes = stock(real)
    assert torch.equal(ours.audio, audio)
    assert all(torch.equal(a, b) for a, b in zip(ours.codes, codes, strict=True))


def test_folded_weights_are_what_the_convolutions_take(generator: TrainableSNAC, tmp_path: Path) -> None:
    folder = write_export(tmp_path / "export", MODEL, generator.state_dict(), extra=["folded", "weight_g"])
    plain = safetensors.torch.load_file(folder / "model.folded.safetensors")
    convolutions = {name: module.weight for name, module in generator.named_modules() if hasattr(module, "parametrizations")}
    assert convolutions and all(torch.equal(plain[f"{name}.weight"], weight) for name, weight in convolutions.items())
    assert not any("parametrizations" in name for name in plain)
    SNAC.from_pretrained(str(folder))  # which looks at none of them


@pytest.mark.parametrize("form", ["folded", "weight_g"])
def test_other_forms_of_the_weights_are_read(
    form: str, folder: Path, generator: TrainableSNAC, speech: Tensor
) -> None:
    write_export(folder, MODEL, generator.state_dict(), extra=[form])
    (folder / f"model.{form}.safetensors").rename(folder / "model.safetensors")
    weights = read_weights(str(folder), MODEL)
    assert weights.keys() == generator.state_dict().keys()
    assert form == "folded" or equal(weights, generator)
    other = make_generator(seed=3)
    other.load_state_dict(weights)
    torch.testing.assert_close(other.encode_latent(speech[:2]), generator.encode_latent(speech[:2]), rtol=1e-4, atol=1e-5)


def test_config_holds_the_constructors_keys_alone(folder: Path) -> None:
    written = json.loads((folder / "config.json").read_text())
    assert set(written) <= set(inspect.signature(SNAC.__init__).parameters)
    assert written == MODEL


def test_an_export_replaces_the_one_before_whole(folder: Path) -> None:
    (folder / "stale.txt").write_text("of the export before")
    other = make_generator(seed=5)
    write_export(folder, MODEL, other.state_dict())
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
    ]
    assert equal(read_weights(str(folder), MODEL), other)


def test_an_interrupted_export_leaves_the_one_before(
    folder: Path, generator: TrainableSNAC, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            write_export(folder, MODEL, make_generator(seed=5).state_dict())
    assert equal(read_weights(str(folder), MODEL), generator)
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_weights_of_any_type_are_written_in_float32(generator: TrainableSNAC, tmp_path: Path) -> None:
    folder = write_export(tmp_path / "export", MODEL, make_generator().bfloat16().state_dict())
    assert {tensor.dtype for tensor in read_weights(str(folder), MODEL).values()} == {torch.float32}
    SNAC.from_pretrained(str(folder))


def test_the_check_finds_other_codes(folder: Path, generator: TrainableSNAC, speech: Tensor) -> None:
    check_export(folder, generator, speech[:1])
    with torch.no_grad():
        generator.quantizer.quantizers[1].codebook.weight.normal_()
    with pytest.raises(CheckpointError, match="gives other codes on level 1 than the trained model"):
        check_export(folder, generator, speech[:1])


# Reading


@pytest.mark.parametrize("only", ["model.safetensors", "pytorch_model.bin", "generator.safetensors"])
def test_each_kind_of_weights_is_read(only: str, folder: Path, generator: TrainableSNAC) -> None:
    """A snac folder, one without pickles, and a checkpoint, whose config has sections."""
    if only == "generator.safetensors":
        (folder / "model.safetensors").rename(folder / only)
        (folder / "config.json").write_text(json.dumps({"model": MODEL, "training": {}}))
    for file in folder.iterdir():
        if file.name not in (only, "config.json"):
            file.unlink()
    weights = read_weights(str(folder), MODEL)
    assert equal(weights, generator)
    make_generator(seed=1).load_state_dict(weights)


def test_safe_weights_are_preferred(folder: Path, generator: TrainableSNAC) -> None:
    torch.save({"other": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert equal(read_weights(str(folder), MODEL), generator)


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.write_text, (self.trace, "executed"))


@pytest.mark.parametrize("form", ["pickle", "torch", "weights"])
def test_a_hostile_pickle_is_refused_without_executing_it(form: str, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hostile = Hostile(trace)
    (folder / "model.safetensors").unlink()
    content: Any = {"weight": hostile} if form == "weights" else hostile
    if form == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(hostile))
    else:
        torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin") as error:
        read_weights(str(folder), MODEL)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    if form == "pickle":
        pickle.loads((folder / "pytorch_model.bin").read_bytes())
        assert trace.read_text() == "executed"  # the test can fail


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"weight": 3}, torch.zeros(2), {1: torch.zeros(2)}])
def test_a_file_without_a_state_dict_is_refused(content: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin is not a plain state dict"):
        read_weights(str(folder), MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 64}, "has codebook_size = 32, this run's model.codebook_size = 64"),
        (
            {"encoder_rates": [4, 4, 2]},
            r"has encoder_rates = \[2, 4, 4\], this run's model.encoder_rates = \[4, 4, 2\]",
        ),
        ({"sampling_rate": 24000}, "has sampling_rate = 16000"),
        ({"noise": False}, "has noise = True"),
        ({"attn_window_size": 8}, "has attn_window_size = None, this run's model.attn_window_size = 8"),
    ],
)
def test_another_model_is_refused_by_the_name_of_the_setting(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        read_weights(str(folder), {**MODEL, **change})
    assert "\n" not in str(error.value)


def test_a_latent_size_left_to_the_rule_is_no_difference(folder: Path) -> None:
    read_weights(str(folder), {**MODEL, "latent_dim": 4 * 2**3})


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "remove"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_damage_is_one_line_that_names_the_file(name: str, damage: str, folder: Path) -> None:
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    elif name == "model.safetensors":
        (folder / "pytorch_model.bin").unlink()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        {"cut": content[: len(content) // 2], "html": b"<html></html>"}.get(damage, b"")
    )
    if damage == "remove":
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name) as error:
        read_weights(str(folder), MODEL)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", '{"model": 3}', '{"model": null}'])
def test_a_config_of_another_shape_is_refused(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="config.json should hold"):
        read_weights(str(folder), MODEL)


def test_a_folder_without_model_and_a_name_without_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="holds no model: expected config.json and one of model.safetensors"
    ):
        read_weights(str(tmp_path), MODEL)
    for name in ("somebody/absent-model", "not/a/repository/name", str(tmp_path / "absent")):
        with pytest.raises(CheckpointError, match="no folder and no readable Hub repository") as error:
            read_weights(name, MODEL)
        assert "\n" not in str(error.value)


def test_a_safetensors_copy_keeps_its_format_mark(folder: Path) -> None:
    """`transformers` and others refuse safetensors files that do not say which framework they are of."""
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    shutil.rmtree(folder)


def test_a_network_that_fails_in_any_way_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub client lets exceptions of its network library through, which are no OSErrors."""

    class ConnectError(Exception):
        pass

    def fail(*arguments: object, **options: object) -> str:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match="somebody/model.*Name or service not known"):
        read_weights("somebody/model", {})


def test_a_repository_without_safetensors_is_read_from_its_bin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Published snac repositories hold `pytorch_model.bin` alone."""
    from huggingface_hub.errors import EntryNotFoundError

    generator = make_generator()
    folder = write_export(tmp_path / "export", dict(MODEL), generator.state_dict())
    (folder / "model.safetensors").unlink()

    def from_folder(repository: str, file: str) -> str:
        if not (folder / file).is_file():
            raise EntryNotFoundError(f"{repository} has no {file}")
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", from_folder)
    weights = read_weights("somebody/model", dict(MODEL))
    assert all(torch.equal(weights[name], tensor) for name, tensor in generator.state_dict().items())
