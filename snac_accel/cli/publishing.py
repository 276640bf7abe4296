"""`snac-accel export`, `export-onnx` and `publish`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.hub import HubSettings
from ..config.messages import one_line, show
from ..errors import CheckpointError, ConfigError
from ..stored import MANIFEST, list_checkpoints
from .flags import ConfigParser

if TYPE_CHECKING:
    from ..hub import Job

EXIT_OK = 0


def export_parser() -> ConfigParser:
    """The flags of `export`."""
    parser = ConfigParser(prog="snac-accel export", description="Write the snac folder of a run or a checkpoint.")
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", help="folder of a run (its newest checkpoint) or of one step")
    parser.add_argument("folder", metavar="DIR", help="folder to write; must not exist yet")
    parser.add_argument(
        "--fold_weight_norm", action="append_const", dest="extra", const="folded", default=[],
        help="write model.folded.safetensors too: weight normalisation folded into plain weights",
    )  # fmt: skip
    parser.add_argument(
        "--old_names", action="append_const", dest="extra", const="weight_g",
        help="write model.weight_g.safetensors too: the names of older torch, weight_g and weight_v",
    )  # fmt: skip
    return parser


def export(arguments: Sequence[str]) -> int:
    """Write the snac folder of a run or a checkpoint, for `snac.SNAC.from_pretrained`."""
    flags = export_parser().parse_known(arguments)
    from ..checkpoint import export_checkpoint  # loads torch

    print(f"exported {export_checkpoint(Path(flags.source), Path(flags.folder), extra=flags.extra)} to {flags.folder}")
    return EXIT_OK


def export_onnx_parser() -> ConfigParser:
    """The flags of `export-onnx`."""
    parser = ConfigParser(
        prog="snac-accel export-onnx",
        description="Write encoder and decoder of a model as ONNX, compared with torch on speech that comes with the package.",
    )
    parser.add_argument("source", metavar="MODEL", help="an export, a run, a checkpoint, or a repository of the Hub")
    parser.add_argument("folder", metavar="DIR", help="folder to write; must not exist yet")
    return parser


def export_onnx(arguments: Sequence[str]) -> int:
    """Write encoder and decoder of a model as ONNX."""
    flags = export_onnx_parser().parse_known(arguments)
    from ..onnx_models import export_onnx as write  # loads torch
    from ..onnx_models import shipped_speech

    compared = write(flags.source, Path(flags.folder), shipped_speech)
    print(
        f"exported {flags.source} to {flags.folder}; against torch: {compared.equal_codes:.3%} of the codes are equal, "
        f"audio differs by {compared.audio_error:.0e} at most"
    )
    return EXIT_OK


def publish_parser() -> ConfigParser:
    """The flags of `publish`."""
    parser = ConfigParser(
        prog="snac-accel publish",
        description="Push a model to the Hugging Face Hub, with its card. The token is taken from HF_TOKEN or `hf auth login`.",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of a run (its newest checkpoint), of one step, or an export")
    parser.add_argument("repository", metavar="REPOSITORY", nargs="?", help="NAME or OWNER/NAME (default: the run's)")
    parser.add_argument("--private", action="store_true", default=None, help="a repository that has to be made is private")
    parser.add_argument("--license", metavar="NAME", help="licence of the weights, as the Hub names it, such as mit")
    parser.add_argument("--revisions", choices=["none", "tag", "branch"], help="what leads to the step beside main")
    parser.add_argument(
        "--training_pack", choices=["none", "branch", "repository"],
        help="where discriminators, optimisers and schedules go (default: as the run has it; of an export there are none)",
    )  # fmt: skip
    return parser


def publish(arguments: Sequence[str]) -> int:
    """Push a model to the Hugging Face Hub, with its card."""
    flags = publish_parser().parse_known(arguments)
    source = Path(flags.source)
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder; should be a run, a checkpoint or an export")
    with tempfile.TemporaryDirectory(prefix="snac_accel_publish_") as temporary:
        for address in _push(flags, source, Path(temporary)):
            print(f"pushed to {address}")
    return EXIT_OK


def _push(flags: argparse.Namespace, source: Path, temporary: Path) -> list[str]:
    from ..hub import push_job  # loads torch

    jobs = _of_run(flags, source, temporary) if _is_run(source) else _of_export(flags, source, temporary)
    return [push_job(folder, job, say=lambda line: print(line, flush=True)) for folder, job in jobs]


def _is_run(source: Path) -> bool:
    folders = (source, source / "checkpoints")
    return (source / MANIFEST).is_file() or any(list_checkpoints(folder) for folder in folders)


def _of_run(flags: argparse.Namespace, source: Path, temporary: Path) -> list[tuple[Path, Job]]:
    """The model of a run or a checkpoint, and its training pack."""
    from ..hub.model_jobs import model_job, pack_job, write_model
    from ..hub.pack import write_pack
    from ..run_folder import root_of
    from ..stored import find_checkpoint, newest_checkpoint, read_json

    checkpoint = find_checkpoint(source)
    hub = _settings(flags, (read_json(checkpoint / "config.json").get("hub") or {}))
    root = root_of(checkpoint)
    is_newest = newest_checkpoint(checkpoint.parent) == checkpoint
    job, pack = model_job(checkpoint, hub), pack_job(checkpoint, hub)
    write_model(checkpoint, temporary / "model", job.repository, root / "samples" if is_newest else None, hub["license"])
    jobs = [(temporary / "model", job)]
    if pack is not None:
        write_pack(checkpoint, temporary / "pack", job.repository)
        jobs.append((temporary / "pack", pack))
    return jobs


def _of_export(flags: argparse.Namespace, source: Path, temporary: Path) -> list[tuple[Path, Job]]:
    """A snac folder; it gets a card if it has none, and the repository's name in the one that it has."""
    from ..export import CARD_FILE, copy_export
    from ..hub import Job
    from ..model_card import PLACEHOLDER, CardFacts, write_card
    from ..plain_json import read_json

    if flags.training_pack not in (None, "none") or flags.revisions not in (None, "none"):
        raise ConfigError(f"{source} is an export: it has no step and no training pack; give the run, or leave the flags out")
    hub = _settings(flags, {})
    try:
        facts = CardFacts(read_json(source / "config.json"), {"hub": hub}, hub["repository"])
        card = write_card(facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source}: no run, no checkpoint and no export: {error}") from error
    folder = copy_export(source, temporary / "model", card)
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    (folder / CARD_FILE).write_text(text.replace(PLACEHOLDER, hub["repository"]), encoding="utf-8")
    return [(folder, Job(hub["repository"], 0, "Model", private=hub["private"]))]


def _settings(flags: argparse.Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    """The section `hub` of the run, with what the flags say over it; checked."""
    from pydantic import ValidationError

    given = {name: getattr(flags, name) for name in ("repository", "private", "license", "revisions", "training_pack")}
    settings = {**saved, **{name: value for name, value in given.items() if value is not None}}
    if not settings.get("repository"):
        raise ConfigError("REPOSITORY: missing, and the run has no hub.repository; should be NAME or OWNER/NAME")
    try:
        return HubSettings(**settings).model_dump()
    except ValidationError as error:
        problem = error.errors()[0]
        name = problem["loc"][-1] if problem["loc"] else "repository"
        raise ConfigError(one_line(f"{name} {show(settings.get(str(name)))}: {problem['msg']}")) from None
