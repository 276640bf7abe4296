"""Canaries: tokens, keys and passwords wherever a run may find them, and then none in any byte that it wrote or printed."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from test_train import tiny_config

from snac_accel import cli
from snac_accel.redaction import redact

VARIABLES = {
    "HF_TOKEN": "hf_canaryAAAA0123456789", "HUGGING_FACE_HUB_TOKEN": "hf_canaryBBBB0123456789",
    "WANDB_API_KEY": "canaryCCCC012345678901234567890123456789", "AWS_ACCESS_KEY_ID": "AKIACANARYDDDD000000",
    "AWS_SECRET_ACCESS_KEY": "canaryEEEE/0123+456789/abcdefghij", "AWS_SESSION_TOKEN": "canaryFFFF0123456789==",
    "COMET_API_KEY": "canaryGGGG0123456789", "MLFLOW_TRACKING_PASSWORD": "canaryHHHH 0123456789",
    "GITHUB_TOKEN": "ghp_canaryIIII0123456789",
}  # fmt: skip
IN_ADDRESSES = {"user": "canaryUser", "password": "canaryPassw0rd", "signature": "canarySignature0123"}
CANARIES = {**VARIABLES, **IN_ADDRESSES}


class _Nothing(http.server.BaseHTTPRequestHandler):
    """A server that has nothing, and says so with what it was asked for."""

    def do_HEAD(self) -> None:
        self.send_error(404, self.path)

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    """Name and port of a web server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def corpus(tmp_path: Path, demo_folder: Path, host: str) -> Path:
    """A manifest of good clips, and of some at an address with user, password and signature."""
    user, password, signature = IN_ADDRESSES.values()
    good = [str(path) for path in sorted((demo_folder / "train").glob("*.ogg"))[:24]]
    bad = [f"http://{user}:{password}@{host}/{number}.wav?Signature={signature}&n={number}" for number in range(12)]
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps({"path": path}) + "\n" for path in [*bad, *good]))
    return manifest


def leaks(content: bytes) -> list[str]:
    """Names of the canaries in some bytes: as they are, quoted for a URL, or in base64."""
    found = []
    for name, value in CANARIES.items():
        plain = value.encode()
        forms = [plain, quote(value, safe="").encode(), base64.b64encode(plain).rstrip(b"="), value.encode("utf-16-le")]
        found += [name for form in forms if form in content]
    return found


def start(folder: Path, corpus: Path, **changes: object) -> int:
    """A run of a few steps by the command line."""
    settings = tiny_config(folder / "run", tracking={"trackers": ["tensorboard"]})
    settings["data"] |= {"dataset_path": str(corpus), "max_bad_fraction": 1.0, "split": "train", "audio_column": "path"}
    settings["validation"] |= {"split": None, "dataset_path": None, "fraction": 0.3}
    for section, values in changes.items():
        settings[section] |= values  # type: ignore[operator]
    (folder / "c.json").write_text(json.dumps(settings))
    return cli.main(["train", "--config", str(folder / "c.json")])


def look_everywhere(folder: Path, corpus: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Fail for any canary in a file or on the screen; returns what was printed."""
    out, errors = capfd.readouterr()
    assert leaks((out + errors).encode()) == []
    files = [path for path in folder.rglob("*") if path.is_file() and path != corpus]
    assert {str(path): found for path in files if (found := leaks(path.read_bytes() + str(path).encode()))} == {}
    return out + errors


def test_a_run_writes_no_secret(tmp_path: Path, corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Config, checkpoints, logs, trackers, samples, export, names of clips that could not be had, and the screen."""
    assert start(tmp_path, corpus) == 0
    run = tmp_path / "run"
    printed = look_everywhere(tmp_path, corpus, capfd)
    assert "saved" in printed and (run / "export" / "model.safetensors").is_file()
    told = (run / "logs" / "bad_samples.jsonl").read_text() + printed
    assert "cannot be fetched" in told and "?" in told  # the clips at the address were asked for, and are named
    assert len(list(run.rglob("events.out.tfevents*"))) > 0 and len(list(run.rglob("manifest.json"))) == 2


def test_a_run_that_fails_tells_no_secret(tmp_path: Path, corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = corpus.read_text().splitlines()[:4]
    corpus.write_text("\n".join(lines * 10) + "\n")
    assert start(tmp_path, corpus, data={"max_bad_fraction": 0.0}, validation={"enabled": False}) == 2
    assert "error: " in look_everywhere(tmp_path, corpus, capfd)


@pytest.mark.parametrize("name", ["data.dataset_path", "training.init_from", "validation.dataset_path", "paths.run_dir"])
@pytest.mark.parametrize("where", ["flag", "file", "environment"])
def test_an_address_with_a_password_is_refused_without_it(
    name: str, where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"https://canaryUser:canaryPassw0rd@example.org/a.parquet?Signature={IN_ADDRESSES['signature']}"
    section, setting = name.split(".")
    arguments = ["train"]
    if where == "flag":
        arguments.append(f"--{name}={address}")
    elif where == "environment":
        monkeypatch.setenv(f"SNAC_ACCEL_{section.upper()}__{setting.upper()}", address)
    else:
        (tmp_path / "c.yaml").write_text(f"{section}: {{{setting}: '{address}'}}\n")
        arguments += ["--config", "c.yaml"]
    assert cli.main(arguments) == 2
    printed = look_everywhere(tmp_path, tmp_path / "c.yaml", capfd)
    assert printed.startswith(f"error: {name} = ") and "***" in printed and printed.count("\n") == 1


def test_mistakes_show_no_password(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Wherever an address lands in a message."""
    address = "https://canaryUser:canaryPassw0rd@example.org/?Signature=canarySignature0123"
    for arguments in (
        [address], ["train", address], ["train", f"--data={address}"], ["train", "--batch_size", address],
        ["train", f"--dataset_pat={address}"], ["train", "--preset", address], ["train", "--config", address],
        ["export", address, str(tmp_path)], ["train", "--data.sources", f'[{{"dataset_path": "{address}", "x": 1}}]'],
        ["train", "--tracking.trackers", address], ["doctor", "--clips", address],
    ):  # fmt: skip
        assert cli.main(arguments) == 2
        assert "canary" not in "".join(capfd.readouterr()), arguments


def test_a_leak_would_be_found() -> None:
    for value in CANARIES.values():
        assert leaks(f"x{value}x".encode()) and leaks(quote(value, safe="").encode()) and leaks(base64.b64encode(value.encode()))
    assert not leaks(redact(" ".join(VARIABLES.values())).encode())
