"""Where a run lives: fresh folders, resumed ones, and everything that is refused before anything is written."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from snac_accel import run_folder
from snac_accel.checkpoint import FORMAT
from snac_accel.config import load_config, to_dict
from snac_accel.errors import CheckpointError, ConfigError, UserError
from snac_accel.files import write_json
from snac_accel.run_folder import RunFolder, choose_run, create_run, harmful_change


def open_run(settings: dict[str, Any]) -> RunFolder:
    """As `train.main` does: decide, then create."""
    folder = choose_run(settings)
    create_run(folder, settings)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and one second for each new run."""
    seconds = iter(range(1000))
    monkeypatch.setattr(run_folder.time, "strftime", lambda *form: f"2026-{next(seconds):03d}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**overrides: Any) -> dict[str, Any]:
    """The resolved config of a small run called demo; `overrides` by dotted name with `__`."""
    nested: dict[str, dict[str, Any]] = {"checkpoint": {"resume": "auto"}}
    for name, value in overrides.items():
        section, key = name.split("__")
        nested.setdefault(section, {})[key] = value
    return to_dict(load_config("demo", overrides=nested, environment={}))


def checkpoint_in(folder: Path, step: int) -> Path:
    """The least that `newest_checkpoint` takes for an intact checkpoint."""
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    facts = {"step": step, "config_hash": "", "world_size": 1, "global_batch_size": 1}
    write_json(path / "manifest.json", {"format": FORMAT, **facts, "files": {}})
    return path


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every path below a folder with what it holds, links with where they lead."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def refused(settings: Mapping[str, Any], match: str, here: Path, kind: type[UserError] = ConfigError) -> None:
    """`choose_run` or `create_run` raises one line and writes nothing."""
    before = contents(here)
    with pytest.raises(kind, match=match) as error:
        open_run(settings)
    assert "\n" not in str(error.value)
    assert contents(here) == before


def saved_config(folder: RunFolder) -> dict[str, Any]:
    return json.loads((folder.root / "config.json").read_text())


# Fresh runs


def test_a_fresh_run_gets_its_folder_and_the_link(here: Path) -> None:
    settings = config()
    folder = open_run(settings)
    assert folder.root == Path("runs/demo-2026-000")
    assert folder.checkpoints == folder.root / "checkpoints" and folder.checkpoints.is_dir()
    assert folder.logs == folder.root / "logs" and folder.logs.is_dir()
    assert (folder.samples.parent, folder.export.parent) == (folder.root, folder.root)
    assert folder.resume_from is None
    assert saved_config(folder) == settings
    assert Path("runs/demo").is_symlink() and Path("runs/demo").resolve() == folder.root.resolve()
    assert sorted(path.name for path in Path("runs").iterdir()) == ["demo", "demo-2026-000"]


def test_the_link_is_relative_so_that_runs_can_be_moved(here: Path) -> None:
    open_run(config())
    Path("runs").rename("elsewhere")
    assert (Path("elsewhere/demo") / "config.json").is_file()


def test_the_saved_config_runs_again(here: Path) -> None:
    settings = config(training__learning_rate=1e-3)
    folder = open_run(settings)
    assert to_dict(load_config(file=folder.root / "config.json", environment={})) == settings


def test_never_always_starts_afresh_and_the_link_follows(here: Path) -> None:
    first = open_run(config(checkpoint__resume="never"))
    checkpoint_in(first.checkpoints, 5)
    before = contents(first.root)
    second = open_run(config(checkpoint__resume="never"))
    assert second.root != first.root and second.resume_from is None
    assert Path("runs/demo").resolve() == second.root.resolve()
    assert contents(first.root) == before


def test_two_runs_in_one_second_get_two_folders(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.time, "strftime", lambda *form: "now")
    roots = [open_run(config(checkpoint__resume="never")).root.name for _ in range(3)]
    assert roots == ["demo-now", "demo-now-2", "demo-now-3"]


def test_the_stamp_is_a_time(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)
    name = open_run(config()).root.name
    time.strptime(name, "demo-%Y%m%d-%H%M%S")


# Automatic continuation


def test_auto_goes_on_with_the_newest_run_of_the_name(here: Path) -> None:
    first = open_run(config())
    checkpoint_in(first.checkpoints, 5)
    newest = checkpoint_in(first.checkpoints, 40)
    again = open_run(config())
    assert again.root.resolve() == first.root.resolve()
    assert again.resume_from is not None and again.resume_from.resolve() == newest.resolve()
    assert open_run(config(paths__run_name="other")).resume_from is None


def test_auto_without_a_checkpoint_starts_again_in_the_same_folder(here: Path) -> None:
    first = open_run(config())
    again = open_run(config())
    assert (again.root.resolve(), again.resume_from) == (first.root.resolve(), None)


def test_auto_passes_over_a_damaged_checkpoint(here: Path) -> None:
    first = open_run(config())
    intact = checkpoint_in(first.checkpoints, 5)
    (checkpoint_in(first.checkpoints, 6) / "manifest.json").write_text("{")
    again = open_run(config())
    assert again.resume_from is not None and again.resume_from.resolve() == intact.resolve()


@pytest.mark.parametrize(
    "change",
    [
        {"training__num_iterations": 7},
        {"data__num_workers": 0},
        {"checkpoint__keep_last": 9},
        {"tracking__trackers": []},
    ],
)
def test_a_harmless_change_goes_on_and_is_saved(change: dict[str, Any], here: Path) -> None:
    for where in ({}, {"paths__run_dir": "mine"}):
        first = open_run(config(**where))
        again = open_run(config(**where, **change))
        assert again.root.resolve() == first.root.resolve()
        assert saved_config(again) == config(**where, **change)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"training__learning_rate": 0.5}, "training.learning_rate was [0-9.]+, is 0.5"),
        ({"training__seed": 3}, "training.seed was 0, is 3"),
        ({"model__codebook_size": 512}, "model.codebook_size was 256, is 512"),
        ({"data__segment_length": 1.024}, "data.segment_length"),
        ({"losses__mel": 1.0}, "losses.mel"),
    ],
)
def test_another_run_is_refused_in_a_named_folder_and_gets_a_fresh_one_otherwise(
    change: dict[str, Any], name: str, here: Path
) -> None:
    open_run(config(paths__run_dir="mine"))
    refused(config(paths__run_dir="mine", **change), f"mine holds another run .{name}", here)
    first = open_run(config())
    other = open_run(config(**change))
    assert other.root.resolve() != first.root.resolve() and other.resume_from is None


def test_every_setting_of_the_model_and_the_data_order_is_harmful() -> None:
    """What is harmless is a short list of names that exist; everything else counts."""
    settings = config()
    names = {f"{section}.{key}" for section, values in settings.items() for key in values}
    assert names >= run_folder.HARMLESS
    assert not {
        name for name in run_folder.HARMLESS if name.startswith(("model", "losses", "optimizer", "discrim"))
    }
    for name in sorted(names):
        section, key = name.split(".")
        changed = {**settings, section: {**settings[section], key: "something else"}}
        harmless = name in run_folder.HARMLESS or section in run_folder.HARMLESS_SECTIONS
        assert (harmful_change(settings, changed) is None) is harmless, name


# Named folders


def test_run_dir_is_used_as_it_is(here: Path) -> None:
    folder = open_run(config(paths__run_dir="deep/mine"))
    assert folder.root == Path("deep/mine")
    assert saved_config(folder)["paths"]["run_dir"] == "deep/mine"
    assert not Path("runs").exists()
    newest = checkpoint_in(folder.checkpoints, 3)
    assert open_run(config(paths__run_dir="deep/mine")).resume_from == newest
    refused(config(paths__run_dir="deep/mine", checkpoint__resume="never"), "already holds a run", here)


def test_an_original_config_keeps_everything_in_its_checkpoint_dir(here: Path) -> None:
    settings = config(paths__checkpoint_dir="checkpoints", paths__log_dir="logs")
    folder = open_run(settings)
    assert folder == RunFolder(Path("checkpoints"), Path("checkpoints"), Path("logs"), None)
    newest = checkpoint_in(folder.checkpoints, 3)
    assert open_run(settings).resume_from == newest


@pytest.mark.parametrize("file", ["notes.txt", "config.json", "step_00000001/model.bin", ".hidden"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_strange_folder_is_refused(file: str, resume: str, here: Path) -> None:
    (here / "mine" / file).parent.mkdir(parents=True)
    (here / "mine" / file).write_text('{"somebody": "else"}')
    refused(
        config(paths__run_dir="mine", checkpoint__resume=resume), "mine is not empty and holds no run", here
    )


def test_a_file_in_the_way_is_refused(here: Path) -> None:
    (here / "mine").write_text("a file")
    refused(config(paths__run_dir="mine"), "mine", here)
    refused(config(paths__run_dir="mine/run"), "mine/run cannot be created: .*Not a directory", here)


def test_an_empty_folder_is_welcome(here: Path) -> None:
    (here / "mine").mkdir()
    assert open_run(config(paths__run_dir="mine")).resume_from is None


def test_a_folder_in_place_of_the_link_is_refused(here: Path) -> None:
    (here / "runs" / "demo").mkdir(parents=True)
    refused(config(), "demo is not the link to the newest run: choose another paths.run_name", here)


@pytest.mark.parametrize("paths", [{}, {"paths__run_dir": "new"}])
def test_logs_and_checkpoints_of_another_run_are_not_mixed_with(paths: dict[str, str], here: Path) -> None:
    (here / "logs").mkdir()
    (here / "logs" / "metrics.jsonl").write_text("{}\n")
    refused(
        config(paths__log_dir="logs", checkpoint__resume="never", **paths),
        "logs holds the log of another run",
        here,
    )
    checkpoint_in(here / "saved", 10)
    if paths:
        settings = config(paths__checkpoint_dir="saved", **paths)
        refused(settings, "saved holds another run's checkpoints: choose another paths.checkpoint_dir", here)


# Continuing from a path


@pytest.mark.parametrize("what", ["checkpoint", "run", "link", "checkpoints"])
def test_a_path_may_be_a_checkpoint_or_a_run(what: str, here: Path) -> None:
    first = open_run(config())
    newest = checkpoint_in(first.checkpoints, 8)
    open_run(config(checkpoint__resume="never", paths__run_name="other"))
    path = {
        "checkpoint": newest,
        "run": first.root,
        "link": Path("runs/demo"),
        "checkpoints": first.checkpoints,
    }[what]
    folder = open_run(config(checkpoint__resume=str(path)))
    assert folder.resume_from is not None and folder.resume_from.resolve() == newest.resolve()
    assert folder.root.resolve() == first.root.resolve()
    assert folder.checkpoints.resolve() == first.checkpoints.resolve()


def test_an_older_checkpoint_can_be_named(here: Path) -> None:
    first = open_run(config())
    older = checkpoint_in(first.checkpoints, 8)
    checkpoint_in(first.checkpoints, 9)
    assert open_run(config(checkpoint__resume=str(older))).resume_from == older


@pytest.mark.parametrize("path", ["nowhere", "runs", "empty"])
def test_a_path_without_checkpoint_is_refused(path: str, here: Path) -> None:
    (here / "empty").mkdir()
    open_run(config())
    refused(config(checkpoint__resume=path), f"{path}.*: no checkpoint there", here, CheckpointError)


def test_a_path_of_another_run_is_refused_and_its_config_kept(here: Path) -> None:
    first = open_run(config())
    path = checkpoint_in(first.checkpoints, 8)
    refused(
        config(checkpoint__resume=str(path), model__codebook_size=512),
        "holds another run .model.codebook_size",
        here,
    )


def test_a_path_outside_runs_goes_on_where_it_is(here: Path) -> None:
    first = open_run(config(paths__run_dir="far/away"))
    path = checkpoint_in(first.checkpoints, 8)
    assert not Path("runs").exists()
    folder = open_run(config(checkpoint__resume=str(path)))
    assert folder.root.resolve() == first.root.resolve()


def test_a_run_may_branch_off_into_a_folder_of_its_own(here: Path) -> None:
    first = open_run(config())
    path = checkpoint_in(first.checkpoints, 8)
    before = contents(first.root)
    settings = config(checkpoint__resume=str(path), paths__run_dir="branch", training__learning_rate=0.1)
    folder = open_run(settings)
    assert (folder.root, folder.resume_from) == (Path("branch"), path)
    assert contents(first.root) == before
    assert open_run(settings) == folder  # it had not saved yet: the same command again
    checkpoint_in(folder.checkpoints, 9)
    refused(settings, "branch already holds a run", here)


def test_a_branch_into_a_strange_folder_is_refused(here: Path) -> None:
    path = checkpoint_in(open_run(config()).checkpoints, 8)
    (here / "mine").mkdir()
    (here / "mine" / "config.json").write_text('{"somebody": "else"}')
    settings = config(checkpoint__resume=str(path), paths__run_dir="mine")
    refused(settings, "mine is not empty and holds no run", here)
