"""The command line: a flag for every setting, one-line errors with exit code 2, no torch before its time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from snac_accel import __version__, cli
from snac_accel.cli import flags
from snac_accel.config import (
    DATASET_CONFIGS,
    SETTINGS,
    TrainingConfig,
    create_training_config,
    to_dict,
    validate,
)
from snac_accel.config.schema import section_of
from snac_accel.errors import DataError

LAUNCHER = Path(__file__).parent.parent / "launch" / "train.py"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainingConfig]:
    """Stands in for the training: collects the configurations it is called with; no path in them is looked for."""
    configs: list[TrainingConfig] = []
    module = types.ModuleType("snac_accel.train")
    module.main = lambda config, **options: configs.append(config)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "snac_accel.train", module)
    monkeypatch.setattr("snac_accel.cli.training.check_places", lambda config: None)
    monkeypatch.setattr("snac_accel.resuming.RunClaim.take", lambda claim, config: None)
    for variable in [name for name in os.environ if name.startswith("SNAC_ACCEL_")]:
        monkeypatch.delenv(variable)
    return configs


def train(trained: list[TrainingConfig], command_line: str) -> TrainingConfig:
    assert cli.main(["train", *command_line.split()]) == 0
    return trained[-1]


def test_no_flags_are_the_defaults(trained: list[TrainingConfig]) -> None:
    assert train(trained, "") == validate({})


def test_the_three_original_ways(trained: list[TrainingConfig], tmp_path: Path) -> None:
    assert train(trained, "--dataset ljspeech").paths.run_name == "ljspeech"
    data = train(trained, "--dataset_path some/folder --batch_size 8 --streaming")
    assert (data.data.dataset_path, data.training.batch_size, data.data.streaming) == ("some/folder", 8, True)
    (tmp_path / "my_config.json").write_text(
        json.dumps(create_training_config(batch_size=3)), encoding="utf-8"
    )
    assert train(trained, f"--config {tmp_path}/my_config.json").training.batch_size == 3


@pytest.mark.parametrize("name", DATASET_CONFIGS)
def test_preset_and_dataset_name_the_same_runs(trained: list[TrainingConfig], name: str) -> None:
    assert train(trained, f"--preset {name}") == train(trained, f"--dataset {name}")


@pytest.mark.parametrize(
    ("command_line", "setting", "value"),
    [
        ("--training.learning_rate 1e-4", "training.learning_rate", 1e-4),
        ("--training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("--learning_rate 1e-4 --learning_rate 2e-4", "training.learning_rate", 2e-4),
        ("--num_iterations 10", "training.num_iterations", 10),
        ("--init_from some/repo", "training.init_from", "some/repo"),
        ("--resume never", "checkpoint.resume", "never"),
        ("--resume runs/demo/checkpoints/step-10", "checkpoint.resume", "runs/demo/checkpoints/step-10"),
        ("--streaming false", "data.streaming", False),
        ("--data.streaming", "data.streaming", True),
        ("--validation.enabled=false", "validation.enabled", False),
        ("--model.vq_strides 4 2 1", "model.vq_strides", [4, 2, 1]),
        ("--model.vq_strides [4,2,1]", "model.vq_strides", [4, 2, 1]),
        ("--model.vq_strides=2,1", "model.vq_strides", [2, 1]),
        ("--data.gain_db -6 0", "data.gain_db", [-6.0, 0.0]),
        ("--data.gain_db=-6,0", "data.gain_db", [-6.0, 0.0]),
        ("--discriminators.mpd.channels [16,64]", "discriminators.mpd.channels", [16, 64]),
        ("--discriminators.mpd null", "discriminators.mpd", None),
        ("--tracking.trackers []", "tracking.trackers", []),
        ("--training.mixed_precision no", "training.mixed_precision", "no"),
        ("--paths.run_name 007", "paths.run_name", "007"),
    ],
)
def test_flags(trained: list[TrainingConfig], command_line: str, setting: str, value: Any) -> None:
    found: Any = to_dict(train(trained, command_line))
    for key in setting.split("."):
        found = found[key]
    assert found == value and type(found) is type(value)


def test_every_setting_has_a_flag_that_reaches_it(trained: list[TrainingConfig]) -> None:
    """Each leaf's own default, given as a flag, is accepted and changes nothing; the help names each."""
    parser = flags.config_parser("train", "")
    text = parser.format_help()
    for name, field in SETTINGS.items():
        if section_of(field.annotation) is not None:
            continue
        assert f"--{name} " in text
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        assert cli.main(["train", f"--{name}={default}"]) == 0, name
        assert trained[-1] == validate({}), name


def test_flags_come_from_the_schema_alone() -> None:
    names = {action.dest for action in flags.config_parser("train", "")._actions}
    assert names - set(SETTINGS) == {"help", "preset", "dataset", "config"}


def test_short_flags_lead_to_settings() -> None:
    assert set(flags.SHORT_FLAGS) <= set(SETTINGS)


def test_environment_lies_below_flags(trained: list[TrainingConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAC_ACCEL_TRAINING__SEED", "1")
    monkeypatch.setenv("SNAC_ACCEL_TRAINING__BATCH_SIZE", "2")
    config = train(trained, "--preset demo --batch_size 3")
    assert (config.training.seed, config.training.batch_size) == (1, 3)


REFUSED = [
    (
        "train --training.learnig_rate 3",
        '--training.learnig_rate = "3": unknown flag; did you mean --training.learning_rate?',
    ),
    ("train --batch-size=3", '--batch-size = "3": unknown flag; did you mean --batch_size?'),
    (
        "train --training.segment_length 1",
        '--training.segment_length = "1": unknown flag; did you mean --data.segment_length?',
    ),
    ("train --training {}", "--training: is a section; its settings are flags, see --help"),
    ("train extra", '"extra": unexpected argument; settings are given as --NAME VALUE'),
    ("train --batch_size", "--training.batch_size/--batch_size: expected one argument"),
    ("train --batch_size eight", 'training.batch_size = "eight": should be an integer'),
    ("train --batch_size 0", "training.batch_size = 0: should be greater than or equal to 1"),
    ("train --learning_rate nan", 'training.learning_rate = "nan": should be a number'),
    ("train --learning_rate .nan", "training.learning_rate = NaN: should be a finite number"),
    ("train --streaming yes", 'data.streaming = "yes": should be true or false'),
    ("train --model.vq_strides 1 2", "model.vq_strides = [1, 2]: should descend from coarse to fine"),
    ("train --model.vq_strides 4 x", 'model.vq_strides[1] = "x": should be an integer'),
    (
        "train --discriminators.mpd null --discriminators.mpd.periods 2",
        "discriminators.mpd.periods = [2]: contradicts",
    ),
    ("train --discriminators.mpd 3", "discriminators.mpd = 3: should be a section with settings"),
    ("train --preset demoo", 'preset "demoo": unknown; did you mean demo?'),
    ("train --dataset zzz", 'dataset "zzz": unknown; There are ljspeech'),
    ("train --preset demo --dataset vctk", "preset demo and dataset vctk are two runs"),
    ("train --config /does/not/exist.json", "/does/not/exist.json: no such configuration file"),
    ("train --config", "--config: expected one argument"),
    ("show-config --preset zzz", 'preset "zzz": unknown'),
    ("trian", '"trian": unknown command; did you mean train?'),
    ("zzz", '"zzz": unknown command; there are train, '),
]


@pytest.mark.parametrize(("command_line", "line"), REFUSED, ids=[command for command, _ in REFUSED])
def test_refused_in_one_line(command_line: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command_line.split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: {line}") and error.endswith("\n") and error.count("\n") == 1


def test_arguments_that_do_not_print(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["a\nb"],
        ["train", "--x\ny"],
        ["train", "--dataset_path", "a\x00"],
        ["train", "--preset", "\ud800"],
    ):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_refusals_load_no_torch() -> None:
    commands = [command.split() for command, _ in REFUSED]
    script = f"import sys\nfrom snac_accel.cli import main\nassert {{main(c) for c in {commands}}} == {{2}}\n"
    script += "assert not {'torch', 'accelerate', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "program", [["-m", "snac_accel", "train"], [str(LAUNCHER)]], ids=["snac-accel train", "launch/train.py"]
)
def test_as_a_program(program: list[str]) -> None:
    """Both entry points refuse with exit code 2 and no traceback, and show the same help."""
    root = str(LAUNCHER.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    bad = subprocess.run(
        [sys.executable, *program, "--training.sed", "1"], capture_output=True, text=True, env=environment
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == 'error: --training.sed = "1": unknown flag; did you mean --training.seed?\n'
    good = subprocess.run(
        [sys.executable, *program, "--help"], capture_output=True, text=True, env=environment
    )
    assert good.returncode == 0 and "--training.seed" in good.stdout


def test_help_is_grouped_by_section() -> None:
    text = flags.config_parser("train", "").format_help()
    for name, field in SETTINGS.items():
        if section_of(field.annotation) is not None:
            assert re.search(rf"^{re.escape(name)} options:$", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 115


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_show_config_prints_what_can_be_run_again(
    form: list[str], trained: list[TrainingConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--preset 44khz --dataset vctk --training.learning_rate 1e-8 --discriminators.mpd null"
    assert cli.main(["show-config", *flags.split(), *form]) == 0
    path = tmp_path / ("again.json" if form else "again.yaml")
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert train(trained, f"--config {path}") == train(trained, flags)


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in cli.COMMANDS)
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("outcome", "code", "error"),
    [
        (None, 0, ""),
        (7, 7, ""),
        (DataError("split x:\nmissing"), 2, "error: split x:\\nmissing\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    outcome: Any, code: int, error: str, trained: list[TrainingConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: TrainingConfig, **options: Any) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    sys.modules["snac_accel.train"].main = main  # type: ignore[attr-defined]
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == error
