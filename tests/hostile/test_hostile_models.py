"""Models from elsewhere (`--init_from`): folders, exports and Hub repositories in which nothing is run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planted import LYING_TENSORS, bounded, grow, pickles, safetensors
from tiny import MODEL, make_generator

from snac_accel.errors import CheckpointError
from snac_accel.export import read_weights, write_export
from snac_accel.starting import load_generator

WEIGHTS = ["model.safetensors", "generator.safetensors", "pytorch_model.bin"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export without weights."""
    folder = write_export(tmp_path / "export", MODEL, make_generator().state_dict())
    for name in WEIGHTS:
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(params=["folder", "repository"])
def source(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder by its path, or as a repository of the Hub that holds it."""
    if request.param == "folder":
        return str(folder)
    from huggingface_hub.errors import EntryNotFoundError

    def download(repository: str, file: str) -> str:
        if not (folder / file).is_file():
            raise EntryNotFoundError(f"{repository} has no {file}")
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return "somebody/model"


def refused(source: str, maps_files: bool = False) -> str:
    with bounded(maps_files=maps_files), pytest.raises(CheckpointError) as error:
        load_generator(make_generator(), source, MODEL)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_planted_pickle_in_any_file_runs_nothing(name: str, source: str, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    planted = pickles(trace)
    for content in planted.values():
        (folder / name).write_bytes(content)
        refused(source)
    assert not trace.exists()
    pickle.loads(planted["pickle"])
    assert trace.exists()  # the test can fail


def test_code_of_a_repository_is_left_alone(source: str, folder: Path, tmp_path: Path) -> None:
    """What `trust_remote_code` would run elsewhere."""
    script = f"open({str(tmp_path / 'trace')!r}, 'w').write('executed')\n"
    for name in ("modeling.py", "export.py", "__init__.py", "setup.py", "conftest.py"):
        (folder / name).write_text(script)
    code = {"auto_map": {"AutoModel": "modeling.Model"}, "custom_pipelines": {"x": {"impl": "modeling.X"}}}
    (folder / "config.json").write_text(json.dumps({**MODEL, **code, "trust_remote_code": True}))
    torch.save(make_generator(seed=3).state_dict(), folder / "pytorch_model.bin")
    load_generator(make_generator(), source, MODEL)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("case", LYING_TENSORS)
def test_tensors_that_lie(case: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(LYING_TENSORS[case])
    refused(str(folder))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"model":' * 100_000, b"[]", b"\xff\xfe", b'{"codebook_size": 1e999}'])
def test_a_config_that_is_none(content: bytes, source: str, folder: Path) -> None:
    torch.save(make_generator().state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_bytes(content)
    refused(source)


def test_a_giant_config(folder: Path) -> None:
    torch.save(make_generator().state_dict(), folder / "pytorch_model.bin")
    grow(folder / "config.json", 20 * 2**30)
    assert "config.json" in refused(str(folder))


def test_a_giant_tensor_is_not_read(folder: Path) -> None:
    """A header that is true, in a file of 40 gigabytes that takes no room on the disk."""
    file = folder / "model.safetensors"
    content = safetensors({"weight": {"dtype": "F32", "shape": [10 * 2**30], "data_offsets": [0, 40 * 2**30]}})
    file.write_bytes(content)
    grow(file, len(content) + 40 * 2**30)
    refused(str(folder), maps_files=True)


def test_a_compressed_archive_is_not_unpacked(folder: Path) -> None:
    """A gigabyte of zeros in one megabyte, where the weights should be."""
    plain = folder / "plain.bin"
    torch.save({"weight": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                for part in [bytes(2**20)] * 1024 if name.endswith("data.pkl") else [content]:
                    member.write(part)
    assert "compressed" in refused(str(folder))


def _of(size: tuple[int, ...], stride: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    return lambda: torch.zeros(1).as_strided(size, stride)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (_of((2**20, 2**20), (0, 0)), "does not fit the model"),
        (lambda: torch.zeros(3).to_sparse(), "not a plain state dict"),
        (lambda: torch.zeros(4, device="meta"), "not a plain state dict"),
    ],
    ids=["stretched", "sparse", "without content"],
)
def test_tensors_of_other_kinds_do_not_fit(make: Callable[[], torch.Tensor], line: str, folder: Path) -> None:
    weights = make_generator().state_dict()
    weights[next(iter(weights))] = make()
    torch.save(weights, folder / "pytorch_model.bin")
    assert line in refused(str(folder))


def test_safe_weights_of_the_right_kind_load(folder: Path) -> None:
    torch.save(make_generator(seed=3).state_dict(), folder / "pytorch_model.bin")
    with bounded():
        assert read_weights(str(folder), MODEL)
