"""Where a run lives: fresh folders, resumed ones, and everything that is refused before anything is written."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from snac_accel import run_folder
from snac_accel.changes import HARMLESS, HARMLESS_SECTIONS, find_changes
from snac_accel.changes import refused as not_allowed
from snac_accel.config import load_config, to_dict
from snac_accel.errors import CheckpointError, ConfigError, UserError
from snac_accel.resuming import choose_run, set_newer_aside
from snac_accel.run_folder import RunFolder, create_run
from snac_accel.stored import sealed


def open_run(settings: dict[str, Any]) -> RunFolder:
    """As `train.main` does: decide, then create."""
    folder = choose_run(settings)
    set_newer_aside(folder)
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
    (path / "manifest.json").write_bytes(sealed({"format": 3, **facts, "files": {}}))
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
    assert re.search(name, other.notes[0]) and str(first.root) in other.notes[0]


def test_every_setting_of_the_model_and_the_data_order_is_harmful() -> None:
    """What is harmless is a short list of names that exist; everything else counts."""
    settings = config()
    names = {f"{section}.{key}" for section, values in settings.items() for key in values}
    assert names >= HARMLESS
    assert not {name for name in HARMLESS if name.startswith(("model", "losses", "optimizer", "discrim"))}
    for name in sorted(names):
        section, key = name.split(".")
        changed = {**settings, section: {**settings[section], key: "something else"}}
        harmless = name in HARMLESS or section in HARMLESS_SECTIONS
        assert (not not_allowed(find_changes(settings, changed), ())) is harmless, name
        assert not not_allowed(find_changes(settings, changed), [name]), name


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
    settings = config(checkpoint__resume=str(older))
    assert open_run(settings).resume_from == older
    # What was newer is kept, but is not what the run goes on from the next time.
    assert [path.name for path in first.checkpoints.rglob("step_*")] != ["step_00000008"]
    assert not (first.checkpoints / "step_00000009").exists()
    again = open_run(config())
    assert again.resume_from is not None and again.resume_from.resolve() == older.resolve()


def test_the_same_command_goes_on_from_what_it_has_saved_since(here: Path) -> None:
    """As a scheduler gives it: it must not go back to the old checkpoint every time."""
    first = open_run(config())
    older = checkpoint_in(first.checkpoints, 8)
    checkpoint_in(first.checkpoints, 20)
    settings = config(checkpoint__resume=str(older))
    assert open_run(settings).resume_from == older
    since = checkpoint_in(first.checkpoints, 9)
    again = open_run(settings)
    assert again.resume_from is not None and again.resume_from.resolve() == since.resolve()
    assert "followed before" in again.notes[-1]
    assert open_run(config()).resume_from is not None  # auto forgets it, so that one can go back again
    assert open_run(settings).resume_from == older


def test_what_was_set_aside_is_gone_on_with_in_a_branch(here: Path) -> None:
    first = open_run(config())
    older = checkpoint_in(first.checkpoints, 8)
    checkpoint_in(first.checkpoints, 9)
    open_run(config(checkpoint__resume=str(older)))
    (aside,) = first.checkpoints.glob("set_aside/*/step_00000009")
    refused(config(checkpoint__resume=str(aside)), "demo-2026-000 already holds a run", here)
    folder = open_run(config(checkpoint__resume=str(aside), paths__run_dir="branch"))
    assert (folder.root, folder.resume_from) == (Path("branch"), aside)


def test_a_damaged_checkpoint_that_was_named_is_refused(here: Path) -> None:
    first = open_run(config())
    older, newer = checkpoint_in(first.checkpoints, 8), checkpoint_in(first.checkpoints, 9)
    (newer / "manifest.json").write_text("{")
    refused(config(checkpoint__resume=str(newer)), "step_00000009", here, CheckpointError)
    folder = open_run(config())
    assert folder.resume_from is not None and folder.resume_from.resolve() == older.resolve()
    assert "step_00000009/manifest.json" in folder.notes[0] and "falling back" in folder.notes[0]


def test_only_damaged_checkpoints_are_not_begun_anew_beside(here: Path) -> None:
    first = open_run(config(paths__run_dir="mine"))
    (checkpoint_in(first.checkpoints, 8) / "manifest.json").write_text("{")
    words = "step_00000008/manifest.json .*no checkpoint in mine/checkpoints is intact"
    refused(config(paths__run_dir="mine"), words, here, CheckpointError)


def test_changes_are_shown(here: Path) -> None:
    first = open_run(config(paths__run_dir="mine"))
    checkpoint_in(first.checkpoints, 8)
    settings = config(paths__run_dir="mine", training__num_iterations=7, data__num_workers=0, losses__mel=1.0)
    refused(settings, r"losses.mel was 0.0, is 1.0\).*--checkpoint.allow_changes losses.mel", here)
    settings["checkpoint"]["allow_changes"] = ["losses.mel"]
    folder = open_run(settings)
    lines = folder.notes[-1].splitlines()
    assert lines[0].startswith("settings changed since mine/checkpoints/step_00000008")
    assert {line.split(":")[0].strip() for line in lines[1:]} == {
        "training.num_iterations", "data.num_workers", "losses.mel"
    }  # fmt: skip
    assert "losses.mel: 0.0 -> 1.0  (allowed)" in folder.notes[-1]
    settings = config(paths__run_dir="mine", losses__mel=1.0)  # that is what the run has now
    assert open_run(settings).resume_from is not None


def test_a_setting_that_an_older_version_did_not_have_had_its_default(here: Path) -> None:
    first = open_run(config(paths__run_dir="mine"))
    saved = saved_config(first)
    del saved["losses"]["mel"], saved["losses"]["stft"], saved["guards"]
    (first.root / "config.json").write_text(json.dumps(saved))
    assert open_run(config(paths__run_dir="mine")).root == first.root
    (first.root / "config.json").write_text(json.dumps(saved))
    refused(config(paths__run_dir="mine", losses__mel=1.0), "losses.mel", here)


def test_a_changed_checkpoint_dir_does_not_lose_the_checkpoints(here: Path) -> None:
    first = open_run(config(paths__run_dir="mine"))
    checkpoint_in(first.checkpoints, 8)
    settings = config(paths__run_dir="mine", paths__checkpoint_dir="elsewhere")
    refused(settings, "checkpoints of mine are in mine/checkpoints, not in elsewhere", here)
    first.checkpoints.rename("elsewhere")
    folder = open_run(settings)
    assert folder.resume_from == Path("elsewhere/step_00000008")


def test_a_changed_checkpoint_dir_of_another_run_is_refused(here: Path) -> None:
    other = open_run(config(paths__run_dir="other", model__codebook_size=512))
    path = checkpoint_in(other.checkpoints, 8)
    (path / "config.json").write_text((other.root / "config.json").read_text())
    open_run(config(paths__run_dir="mine"))
    settings = config(paths__run_dir="mine", paths__checkpoint_dir="other/checkpoints")
    refused(settings, "other/checkpoints holds another run .model.codebook_size", here)


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
    own = checkpoint_in(folder.checkpoints, 9)
    assert open_run(settings).resume_from == own  # the same command goes on with its own
    settings["checkpoint"]["resume"] = str(checkpoint_in(first.checkpoints, 7))
    refused(settings, "branch already holds a run", here)


def test_a_branch_into_a_strange_folder_is_refused(here: Path) -> None:
    path = checkpoint_in(open_run(config()).checkpoints, 8)
    (here / "mine").mkdir()
    (here / "mine" / "config.json").write_text('{"somebody": "else"}')
    settings = config(checkpoint__resume=str(path), paths__run_dir="mine")
    refused(settings, "mine is not empty and holds no run", here)
