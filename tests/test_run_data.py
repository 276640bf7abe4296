"""The data of a run: several sources in one log, streams that go on exactly, promises said, clips reported once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from snac_accel.accounts import SourceAccounts, bad_samples_file
from snac_accel.checkpoint import list_checkpoints
from snac_accel.config import validate
from snac_accel.dataset import Batch, Failure
from snac_accel.errors import ConfigError, DataError
from snac_accel.run_data import check_passes, describe_data
from snac_accel.train import main, setup_dataset

from shards import write_parquet, write_tars
from test_train import losses, rows, tiny_config, weights


@pytest.fixture(scope="module")
def folders(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's validation clips, read in three ways."""
    root = tmp_path_factory.mktemp("sources")
    clips = sorted((demo_folder / "validation").glob("*.flac"))
    write_parquet(root / "groups", clips[:12])
    write_parquet(root / "groups", clips[12:16], num_files=1, split="validation")
    write_tars(root / "tars", clips[12:])
    for clip in clips[:4]:
        (root / "files").mkdir(exist_ok=True)
        (root / "files" / clip.name).write_bytes(clip.read_bytes())
    return root


def source(folders: Path, kind: str, **settings: Any) -> dict[str, Any]:
    """One source of a mixture."""
    if kind == "tars":
        return {"dataset_path": f"file://{folders / kind}", "audio_column": "flac", **settings}
    return {"dataset_path": str(folders / kind), "streaming": kind == "groups", **settings}


def mixed(folders: Path, run: Path | None = None, *kinds: str, **changes: Any) -> dict[str, Any]:
    """A tiny run over several sources; those at the front weigh more."""
    sources = [source(folders, kind, weight=2.0**-number) for number, kind in enumerate(kinds)]
    changes.setdefault("data", {}).update(sources=sources, shuffle_buffer=4)
    return tiny_config(run, validation={"split": None, "fraction": 0.2}, **changes)


def test_a_mixture_trains_and_its_log_says_what_came_from_where(folders: Path, tmp_path: Path) -> None:
    steps = {"batch_size": 4, "num_iterations": 7, "log_interval": 7}
    config = mixed(folders, tmp_path / "run", "groups", "files", "tars", training=steps, data={"steps_per_epoch": 14})
    assert main(config) == 0
    row = rows(tmp_path / "run")[-1]
    assert [row[f"data/{name}/share"] for name in ("groups", "files", "tars")] == [16 / 28, 8 / 28, 4 / 28]
    training, _ = setup_dataset(validate(config))
    assert row["data/files/passes"] == pytest.approx(8 / len(training.parts[1]))
    assert row["data/epoch"] == 0.5
    assert "data/tars/passes" not in row  # nobody knows how many clips it holds
    assert row["data/groups/bad_clips"] == 0


def test_validation_takes_its_clips_from_every_source(folders: Path) -> None:
    training, validation = setup_dataset(mixed(folders, None, "groups", "files", "tars"))
    assert validation is not None
    assert training.names == ["groups", "files", "tars"]
    assert [name.split("/")[0] for name in validation.names] == ["groups", "files", "tars"]
    named = {clip.name for clip in validation}
    assert named == set(validation.names)


def test_a_split_for_validation_is_looked_for_in_every_source(folders: Path) -> None:
    config = tiny_config(data={"sources": [source(folders, "groups")]}, validation={"split": "validation"})
    _, validation = setup_dataset(config)
    assert validation is not None and len(validation) == 2
    both = [source(folders, "groups"), source(folders, "files")]
    with pytest.raises(DataError, match=r"files' has no split 'validation'"):
        setup_dataset(tiny_config(data={"sources": both}, validation={"split": "validation"}))


@pytest.mark.parametrize("kinds", [("groups",), ("groups", "files", "tars")])
def test_a_resumed_run_is_the_uninterrupted_one(kinds: tuple[str, ...], folders: Path, tmp_path: Path) -> None:
    """Streams, mixtures and the weakest promise alike; after the interruption with another number of workers."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(mixed(folders, whole, *kinds))
    main(mixed(folders, parts, *kinds, training={"num_iterations": 2}))
    main(mixed(folders, parts, *kinds, data={"num_workers": 2}))
    assert losses(parts) == losses(whole)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(parts).items())
    assert len(list_checkpoints(parts / "checkpoints")) == 2


def test_the_order_that_is_promised_is_said(folders: Path) -> None:
    config = validate(mixed(folders, None, "groups", "tars"))
    mixture, _ = setup_dataset(config)
    exact, weaker = describe_data(mixture, config, global_batch_size=6)
    assert exact.startswith("data: groups, ") and "66.7% of the windows" in exact and "order: exact" in exact
    assert weaker.startswith("data order of tars: weaker: it can only be read from beginning to end")
    assert "\n" not in exact + weaker


def test_a_source_is_not_gone_through_more_often_than_allowed(folders: Path) -> None:
    both = [source(folders, "groups", weight=1.0), source(folders, "files", weight=1.0, max_passes=2)]
    config = validate(tiny_config(data={"sources": both}, validation={"enabled": False}))
    mixture, _ = setup_dataset(config)
    check_passes(config, mixture, global_batch_size=4)  # 4 steps: 8 windows of 4 clips
    with pytest.raises(ConfigError, match=r"source 'files' would be gone through 2.50 times .* max_passes is 2"):
        check_passes(config, mixture, global_batch_size=5)


def test_sources_of_unknown_size_need_weights(folders: Path) -> None:
    both = [source(folders, "groups"), source(folders, "tars")]
    with pytest.raises(DataError, match=r"source 'tars' can only be read from beginning to end, .* a weight"):
        setup_dataset(tiny_config(data={"sources": both}, validation={"enabled": False}))


def test_a_bad_clip_is_reported_once_also_after_an_interruption(folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for clip in sorted((folders / "files").iterdir()):
        (data / clip.name).write_bytes(clip.read_bytes())
    (data / "page.wav").write_bytes(b"<html>404</html>")
    changes: dict[str, Any] = {"data": {"dataset_path": str(data), "max_bad_fraction": 1.0}}
    run = tmp_path / "run"
    for steps in (4, 8):
        main(tiny_config(run, validation={"enabled": False}, training={"num_iterations": steps}, **changes))
    lines = [json.loads(line) for line in (run / "logs" / "bad_samples.jsonl").read_text().splitlines()]
    assert [(line["name"], line["kind"], line["source"]) for line in lines] == [("page.wav", "bad", "data")]
    assert "cannot be opened" in lines[0]["reason"]
    assert rows(run)[-1]["data/bad_clips"] >= 3  # met again and again: 16 windows of five clips


def test_accounts_add_up_over_ranks(tmp_path: Path) -> None:
    """What two ranks counted is the same on both, step after step, and decides alike."""
    ranks = [SourceAccounts(["a", "b"], 0.2, tmp_path, rank) for rank in (0, 1)]
    bad = Failure("x", "is broken", "bad", source=1)
    batches = [
        Batch(torch.zeros(4, 1, 1), ["n"] * 4, 0, [bad], [0, 0, 0, 1]),
        Batch(torch.zeros(4, 1, 1), ["n"] * 4, 0, [], [0, 1, 1, 1]),
    ]
    for step in range(1, 4):
        for rank, batch in zip(ranks, batches, strict=True):
            records = rank.add([batch])
            assert [record["source"] for record in records] == (["b"] if step == 1 and rank is ranks[0] else [])
        sums = [sum(numbers) for numbers in zip(*(rank.own_numbers() for rank in ranks), strict=True)]
        assert [rank.take(sums) for rank in ranks] == [1, 1]
        for rank in ranks:
            assert [rank.totals[name]["windows"] for name in "ab"] == [4 * step, 4 * step]
            assert rank.scalars() == {
                "data/a/share": 0.5, "data/b/share": 0.5, "data/a/bad_clips": 0, "data/b/bad_clips": step,
            }  # fmt: skip
            assert rank.stop_message() is None
    assert bad_samples_file(tmp_path, 1).name == "rank_1.bad_samples.jsonl"


def test_data_that_changed_since_the_checkpoint_are_said(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another clip is another permutation: the run goes on, but not in silence."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folders / "files", data)
    for steps, said in ((2, False), (3, False), (4, True)):
        if said:
            shutil.copy(next(data.iterdir()), data / "new.flac")
        config = {"data": {"dataset_path": str(data)}, "validation": {"enabled": False}}
        main(tiny_config(run, training={"num_iterations": steps}, **config))
        printed = capsys.readouterr()
        text = "warning: the clips of data are not those of the checkpoint (4 clips"
        assert (text in printed.out + printed.err) == said
