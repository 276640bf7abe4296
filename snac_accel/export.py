"""The snac folder: what `snac.SNAC.from_pretrained` loads, written and read.

config.json                   the constructor's arguments, and nothing else (the stock package passes every key on)
model.safetensors             weights, float32
pytorch_model.bin             the same weights as a plain state dict: the only file that the stock package reads
README.md                     the model card, where one is given
model.folded.safetensors      if asked for: weight normalisation folded into plain weights, for converters
model.weight_g.safetensors    if asked for: the names of older torch, `weight_g` and `weight_v`
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from snac import SNAC
from torch import Tensor

from .errors import CheckpointError
from .files import new_folder, write_bytes, write_json
from .plain_json import read_json
from .weight_names import folded, with_current_names, with_old_names

WEIGHT_FILES = (
    "model.safetensors",
    "generator.safetensors",
    "pytorch_model.bin",
)  # in the order of preference
CARD_FILE = "README.md"
EXTRA_FORMS = {"folded": folded, "weight_g": with_old_names}  # model.NAME.safetensors
EXTRA_FILES = [f"model.{name}.safetensors" for name in EXTRA_FORMS]


def write_export(
    folder: Path,
    model_config: dict[str, Any],
    weights: dict[str, Tensor],
    *,
    card: str | None = None,
    extra: Collection[str] = (),
) -> Path:
    """Write the snac folder, whole or not at all, over whatever export stood there.

    `extra` names forms of `EXTRA_FORMS` that are written beside it. The stock package does not look at those.
    """
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights.items()}
    pickled = io.BytesIO()
    torch.save(plain, pickled)
    with new_folder(folder) as draft:
        write_json(draft / "config.json", model_config)
        write_bytes(draft / "model.safetensors", safetensors.torch.save(plain, metadata={"format": "pt"}))
        write_bytes(draft / "pytorch_model.bin", pickled.getvalue())
        for name in extra:
            tensors = {key: tensor.contiguous() for key, tensor in EXTRA_FORMS[name](plain).items()}
            write_bytes(draft / f"model.{name}.safetensors", safetensors.torch.save(tensors, metadata={"format": "pt"}))
        if card is not None:
            write_bytes(draft / CARD_FILE, card.encode())
    return folder


def copy_export(source: Path, folder: Path, card: str) -> Path:
    """Copy what is meant for others of a snac folder, with `card` where it has none; raises CheckpointError if it is none."""
    _read_folder(source)
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", *EXTRA_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    own = source / CARD_FILE
    (folder / CARD_FILE).write_text(own.read_text(encoding="utf-8") if own.is_file() else card, encoding="utf-8")
    return folder


@torch.no_grad()
def check_export(folder: Path, model: SNAC, audio: Tensor) -> None:
    """Load `folder` with the stock package and compare its codes of `audio` (B, 1, T) with the model's own.

    Raises CheckpointError naming the first level that differs.
    """
    stock = SNAC.from_pretrained(str(folder))
    for level, (ours, theirs) in enumerate(
        zip(model.encode(audio), stock.to(audio.device).encode(audio), strict=True)
    ):
        if not torch.equal(ours, theirs):
            raise CheckpointError(
                f"{folder}: the stock snac package gives other codes on level {level} than the trained model"
            )


def read_weights(source: str, model_config: dict[str, Any]) -> dict[str, Tensor]:
    """Generator weights of a snac folder, a checkpoint folder, or a Hub repository, for a model of `model_config`.

    A repository may be given with a revision, as owner/name@revision. Names are those of snac, also where the file has those
    of older torch or weight normalisation is folded away. Nothing is unpickled without restriction. Raises CheckpointError,
    one line, if the source is missing, unreadable, or a model with another configuration.
    """
    config, weights = read_model(source)
    for key, value in config.items():
        if key not in model_config or key == "latent_dim" and None in (value, model_config[key]):
            continue  # None: a rule of the constructor
        if model_config[key] != value:
            raise CheckpointError(
                f"{source} has {key} = {value}, this run's model.{key} = {model_config[key]}: make them equal"
            )
    with torch.device("meta"):
        return with_current_names(weights, SNAC(**model_config).state_dict())


def read_model(source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Constructor's arguments, as they stand there, and weights of a snac folder, a checkpoint folder, or a Hub repository.

    Nothing is unpickled without restriction. Raises CheckpointError, one line, if the source is missing or unreadable.
    """
    return _read_folder(Path(source)) if Path(source).is_dir() else _read_repository(source)


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no model: expected config.json and one of {', '.join(WEIGHT_FILES)}"
        )
    return _read_config(folder / "config.json"), read_tensors(file)


def _read_repository(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """From the Hub, or from its cache where there is no network."""
    try:
        config, weights = download(name, "config.json"), download(name, "model.safetensors", "pytorch_model.bin")
    except Exception as error:  # the client's network library, and so its exceptions, change between versions
        raise CheckpointError(
            f"no folder and no readable Hub repository is named {name!r}: {_first_line(error)}"
        ) from error
    return _read_config(config), read_tensors(weights)


def download(repository: str, *files: str) -> Path:
    """The first of `files` that the repository, owner/name or owner/name@revision, holds; raises what the client raises."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = repository.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    for file in files[:-1]:
        try:
            return Path(hf_hub_download(name, file, **options))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(name, files[-1], **options))


def _read_config(file: Path) -> dict[str, Any]:
    """The constructor's arguments: the whole file, or its section `model` in a checkpoint."""
    try:
        config = read_json(file)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if isinstance(config, dict):
        config = config.get("model", config)
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{file} should hold a JSON object with the model's arguments, not {type(config).__name__}"
        )
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; raises CheckpointError, one line, if it holds anything else."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        _check_archive(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, MemoryError) as error:
        raise CheckpointError(f"{file} cannot be read: {_first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError and kin: whatever a hostile file provokes
        raise CheckpointError(f"{file} is not a plain state dict: {type(error).__name__}") from error
    plain = isinstance(tensors, dict) and all(map(_is_plain, tensors.values()))
    if not plain or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{file} is not a plain state dict: it should map names to tensors")
    return tensors


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with all its numbers; of a sparse one torch believes places that lie outside of it."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _check_archive(file: Path) -> None:
    """Raise ValueError for a compressed archive: torch writes none, and a small one may hold more than the memory."""
    if not zipfile.is_zipfile(file):
        return  # the older form, read as a stream
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed, which no file of torch is")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise ValueError("its parts are larger than the whole")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
