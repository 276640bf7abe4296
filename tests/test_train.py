"""The whole path in one process: train, save, resume, export, and what bad input gets."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from snac import SNAC

from snac_accel.checkpoint import list_checkpoints
from snac_accel.config import create_training_config, load_config, merge, preset_run, validate
from snac_accel.errors import CheckpointError, ConfigError, DataError, UserError
from snac_accel.optimizers import learning_rate_factor, release_factor
from snac_accel.run_data import data_promise
from snac_accel.tracking import METRICS_FILE, validations
from snac_accel.train import main, setup_dataset, setup_models, setup_optimizers

TINY = {
    "model": {"encoder_dim": 4, "decoder_dim": 32, "codebook_size": 16},
    "training": {
        "batch_size": 2,
        "num_iterations": 4,
        "save_interval": 2,
        "log_interval": 1,
        "validation_interval": 2,
        "warmup_steps": 2,
    },
    "data": {"segment_length": 0.256, "num_workers": 0},
    "validation": {"max_clips": 2, "max_clip_seconds": 2.0, "num_samples": 1},
    "discriminators": {
        "mpd": {"periods": [2, 3], "channels": [4, 8]},
        "msstftd": {"fft_sizes": [256], "hop_lengths": [64], "win_lengths": [256], "channels": [4, 8]},
    },
    "codebook": {"initialization_clips": 4, "hold_steps": 1, "release_steps": 1},
    "tracking": {"trackers": [], "progress_bar": False},
}


def tiny_config(run_dir: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The demo shrunk until a run takes seconds, in `run_dir`, with sections changed."""
    config = merge(merge(preset_run("demo"), TINY), {"checkpoint": {"resume": "auto"}})
    if run_dir is not None:
        config = merge(config, {"paths": {"run_dir": str(run_dir)}})
    return merge(config, changes)


def rows(run: Path) -> list[dict[str, Any]]:
    """The log's lines that belong to training steps."""
    lines = [json.loads(line) for line in (run / "logs" / METRICS_FILE).read_text().splitlines()]
    return [line for line in lines if "train/adversarial" in line]


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Every logged number that does not depend on the clock, by step."""
    clocked = ("time", "throughput", "unix", "goodput")
    return {row["step"]: {k: v for k, v in row.items() if not k.startswith(clocked)} for row in rows(run)}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    newest = list_checkpoints(run / "checkpoints")[-1]
    return {f"{file.name}:{name}": t for file in newest.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(tiny_config(run, tracking={"trackers": ["tensorboard"]})) == 0
    return run


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    assert [path.name for path in list_checkpoints(finished / "checkpoints")] == ["step_00000002", "step_00000004"]
    assert [row["step"] for row in rows(finished)] == [1, 2, 3, 4]
    assert [row["step"] for row in validations(finished / "logs")] == [0, 2, 4]
    assert {path.suffix for path in (finished / "samples").iterdir()} == {".wav", ".png"}
    assert list((finished / "logs").rglob("events.out.tfevents*"))


def test_every_loss_is_logged_those_of_weight_0_too(finished: Path) -> None:
    names = {"adversarial", "feature_matching", "multi_scale_mel", "mel", "stft", "commitment", "codebook"}
    assert {f"train/{name}" for name in names} <= rows(finished)[0].keys()
    assert {"discriminator/mpd", "discriminator/msstftd", "codebook/level_1/perplexity"} <= rows(finished)[0].keys()


def test_tensorboard_holds_audio_and_pictures_of_fixed_clips(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((finished / "logs").rglob("events.out.tfevents*")).parent))
    events.Reload()
    tags = events.Tags()
    assert any(tag.endswith("/reconstruction") for tag in tags["audio"])
    assert tags["images"] and "validation/mel_distance" in tags["scalars"]


def test_the_export_is_the_average_of_what_was_trained(finished: Path) -> None:
    stock = SNAC.from_pretrained(str(finished / "export"))
    trained = load_file(list_checkpoints(finished / "checkpoints")[-1] / "average.safetensors")
    assert all(torch.equal(trained[name], tensor) for name, tensor in stock.state_dict().items())


def test_every_codebook_and_network_moved(finished: Path) -> None:
    first, last = (
        {f"{f.name}:{n}": t for f in path.glob("[gd]*.safetensors") for n, t in load_file(f).items()}
        for path in list_checkpoints(finished / "checkpoints")
    )
    still = [name for name in first if torch.equal(first[name], last[name])]
    assert not still


def test_the_saved_config_runs_again(finished: Path, tmp_path: Path) -> None:
    again = load_config(file=finished / "config.json", overrides={"paths": {"run_dir": str(tmp_path / "again")}})
    assert main(again) == 0
    assert losses(tmp_path / "again") == losses(finished)


def test_a_resumed_run_is_the_uninterrupted_run(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(tiny_config(run, training={"num_iterations": 2})) == 0
    assert main(tiny_config(run)) == 0
    assert losses(run) == losses(finished)
    straight, resumed = weights(finished), weights(run)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_finished_run_is_not_trained_further(finished: Path) -> None:
    before = weights(finished)
    assert main(tiny_config(finished, tracking={"trackers": ["tensorboard"]})) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(finished).items())


def test_workers_change_nothing(finished: Path, tmp_path: Path) -> None:
    assert main(tiny_config(tmp_path / "run", data={"num_workers": 2})) == 0
    assert losses(tmp_path / "run") == losses(finished)


def test_accumulation_changes_no_batch(finished: Path, tmp_path: Path) -> None:
    changes = {"batch_size": 1, "global_batch_size": 2}
    assert main(tiny_config(tmp_path / "run", training=changes)) == 0
    one, two = losses(finished)[1], losses(tmp_path / "run")[1]
    assert one["train/commitment"] == pytest.approx(two["train/commitment"], rel=1e-4)
    assert one["data/clips"] == two["data/clips"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    run, long = tmp_path / "run", {"num_iterations": 100_000, "save_interval": 100_000, "validation_interval": 100_000}

    def interrupt() -> None:
        while not (run / "logs" / METRICS_FILE).exists() or len(rows(run)) < 3:
            assert not done.wait(0.05)
        os.kill(os.getpid(), number)

    done, before = threading.Event(), signal.getsignal(number)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        assert main(tiny_config(run, training=long)) == 128 + number
    finally:
        done.set()
    (saved,) = list_checkpoints(run / "checkpoints")
    assert int(saved.name.removeprefix("step_")) == rows(run)[-1]["step"]
    assert signal.getsignal(number) == before


def test_fine_tuning_starts_from_the_given_weights(finished: Path, tmp_path: Path) -> None:
    generator, _ = setup_models(load_config(overrides=tiny_config(training={"init_from": str(finished / "export")})))
    stock = SNAC.from_pretrained(str(finished / "export"))
    assert all(torch.equal(a, b) for a, b in zip(generator.state_dict().values(), stock.state_dict().values(), strict=True))


def test_held_out_clips_are_not_trained_on() -> None:
    config = load_config(overrides=tiny_config(validation={"split": None, "fraction": 0.2}))
    training, validation = setup_dataset(config)
    assert validation is not None and validation.names
    assert not set(training.parts[0].clip_names()) & set(validation.names)


def test_schedules_are_functions_of_the_step() -> None:
    changes = {"training": {"lr_decay": 0.9, "warmup_steps": 4}, "codebook": {"hold_steps": 2, "release_steps": 1}}
    config = load_config(overrides=tiny_config(**changes))
    generator, discriminators = setup_models(config)
    optimizers, schedules = setup_optimizers(generator, discriminators, config)
    seen = []
    for _ in range(6):
        seen.append([group["lr"] / 1e-3 for group in optimizers["generator"].param_groups])
        for name, optimizer in optimizers.items():
            optimizer.step()
            schedules[name].step()
    rate = config.training.learning_rate / 1e-3
    expected = [0.9**step * min(1, (step + 1) / 4) * rate for step in range(6)]
    assert [others for _, others in seen] == pytest.approx(expected)
    released = [0, 0, 0.5, 1, 1, 1]
    assert [own for own, _ in seen] == pytest.approx([e * r for e, r in zip(expected, released, strict=True)])


def test_schedule_factors_without_warmup_or_hold() -> None:
    assert learning_rate_factor(0, 1.0, 0) == release_factor(0, 0, 0) == 1


def test_original_config_trains_unchanged(tmp_path: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the original module alone, as its users edit them; everything of the run lies where it said."""
    monkeypatch.chdir(tmp_path)
    config = create_training_config(dataset_path=str(demo_folder), batch_size=1, learning_rate=6e-4, streaming=False)
    config["training"]["num_iterations"] = 1
    config["model"] = {**preset_run("tiny")["model"], "codebook_size": 32}
    assert main(merge(config, {key: TINY[key] for key in ("discriminators", "validation", "tracking", "codebook")})) == 0
    assert SNAC.from_pretrained("checkpoints/export").codebook_size == 32
    assert (tmp_path / "logs" / METRICS_FILE).is_file()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"data": {"dataset_path": "./no/such/folder"}}, DataError, "no/such/folder"),
        ({"data": {"split": "holdout"}}, DataError, "holdout"),
        ({"data": {"audio_column": "sound"}}, DataError, "sound"),
        ({"training": {"init_from": "./no/such/model"}}, UserError, "no/such/model"),
        ({"checkpoint": {"resume": "./no/such/checkpoint"}}, CheckpointError, "no/such/checkpoint"),
        ({"model": {"sampling_rate": 0}}, ConfigError, "model.sampling_rate"),
        ({"training": {"global_batch_size": 3, "batch_size": 3}, "model": {"encoder_rates": [4, 4]}}, ConfigError, "model."),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, change: dict[str, Any], kind: type[UserError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        main(tiny_config(tmp_path / "run", **change))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_of_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="data"):
        main(tiny_config(tmp_path / "run", data={"dataset_path": str(tmp_path / "data")}))


def test_another_model_or_batch_cannot_continue_the_run(finished: Path) -> None:
    before = weights(finished)
    with pytest.raises(ConfigError, match="codebook_size was 16, is 32"):
        main(tiny_config(finished, model={"codebook_size": 32}))
    with pytest.raises(CheckpointError, match="2 clips per step, this run has 4"):
        main(tiny_config(finished, training={"batch_size": 4}))
    with pytest.raises(ConfigError, match="already holds a run"):
        main(tiny_config(finished, checkpoint={"resume": "never"}))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(finished).items())


@pytest.mark.parametrize(
    ("training", "processes", "global_batch_size", "promise"),
    [
        ({"batch_size": 4}, 2, 8, None),  # nothing changed
        ({"batch_size": 4, "global_batch_size": 8}, 1, 8, r"exact \(processes: 2 before, 1 now\)"),
        ({"batch_size": 4}, 1, 4, r"at most once per epoch \(processes: 2 before, 1 now\): .* 4 clips per step instead of 8"),
        ({"batch_size": 4}, 3, 12, r"at most once per epoch \(processes: 2 before, 3 now\)"),
    ],
)
def test_other_processes_are_told_what_holds_for_the_data(
    training: dict[str, int], processes: int, global_batch_size: int, promise: str | None
) -> None:
    manifest = {"global_batch_size": 8, "world_size": 2}
    said = data_promise(manifest, validate({"training": training}), processes, global_batch_size)
    assert (said is None) if promise is None else re.search(promise, said or "")


@pytest.mark.parametrize(
    ("training", "processes", "global_batch_size"),
    [({"batch_size": 2}, 2, 4), ({"batch_size": 4, "global_batch_size": 4}, 1, 4), ({"batch_size": 16}, 1, 16)],
)
def test_a_changed_batch_is_refused_where_processes_do_not_explain_it(
    training: dict[str, int], processes: int, global_batch_size: int
) -> None:
    with pytest.raises(CheckpointError, match=f"8 clips per step, this run has {global_batch_size}"):
        data_promise(
            {"global_batch_size": 8, "world_size": 2}, validate({"training": training}), processes, global_batch_size
        )


def test_too_many_broken_files_stop_the_run_and_are_named(tmp_path: Path, demo_folder: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "validation"):
        (data / split).mkdir(parents=True)
        for source in sorted((demo_folder / split).glob("*.[of]*"))[:4]:
            (data / split / source.name).write_bytes(source.read_bytes())
    for number in range(8):
        (data / "train" / f"page-{number}.wav").write_text("<html>404</html>")
    config = tiny_config(tmp_path / "run", data={"dataset_path": str(data)}, training={"num_iterations": 200, "batch_size": 4})
    with pytest.raises(DataError, match="could not be used"):
        main(config)
    records = [json.loads(line) for line in (tmp_path / "run/logs/bad_samples.jsonl").read_text().splitlines()]
    assert records and all("page-" in record["name"] and record["reason"] for record in records)


def test_a_broken_file_is_replaced_and_every_meeting_with_it_counted(tmp_path: Path, demo_folder: Path) -> None:
    data = tmp_path / "data" / "train"
    data.mkdir(parents=True)
    for source in sorted((demo_folder / "train").glob("*.ogg"))[:2]:
        (data / source.name).write_bytes(source.read_bytes())
    (data / "page.wav").write_text("<html>404</html>")
    changes = {
        "data": {"dataset_path": str(tmp_path / "data"), "max_bad_fraction": 1.0},
        "validation": {"dataset_path": str(demo_folder), "split": "validation"},
    }
    assert main(tiny_config(tmp_path / "run", **changes)) == 0
    lines = (tmp_path / "run/logs/bad_samples.jsonl").read_text().splitlines()
    last = rows(tmp_path / "run")[-1]
    assert len(lines) == 1 and last["data/clips"] == 8
    assert last["data/bad_clips"] >= 2  # eight windows are two epochs of three clips and more
