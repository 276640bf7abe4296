"""What is a secret in a text, and what is not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snac_accel.config import validate
from snac_accel.dataset.clips import clip_name
from snac_accel.dataset.network import reason
from snac_accel.errors import ConfigError
from snac_accel.redaction import holds_credentials, mask_addresses, nameable, redact

ROOT = Path(__file__).parent.parent
SECRET = "canary0123456789"
WITH_CREDENTIALS = {
    f"https://user:{SECRET}@host/a.wav": "https://***@host/a.wav",
    f"https://{SECRET}@host/a.wav": "https://***@host/a.wav",
    f"s3://KEY:{SECRET}@bucket/x": "s3://***@bucket/x",
    f"s3://KEY:{SECRET}/with/slashes+=@bucket/x": "s3://***@bucket/x",
    f"https://user:p@{SECRET}@host:8080/x": "https://***@host:8080/x",
    f"HTTPS://user:{SECRET}@host": "HTTPS://***@host",
    f"simplecache::https://user:{SECRET}@host/x": "simplecache::https://***@host/x",
    f"sftp://user:{SECRET}@host/x": "sftp://***@host/x",
    f"https://host/a.wav?X-Amz-Signature={SECRET}&b=1": "https://host/a.wav?***",
    f"gs://bucket/a?token={SECRET}": "gs://bucket/a?***",
    f"https:/user:{SECRET}@host/a": "https:/***@host/a",
}
WITHOUT = [
    "hf://datasets/user/name@main/data/x.parquet", "s3://bucket/a@b.wav", "https://host:8080/a@b.wav", "user/name", "a/b@c",
    "https://host/what?.wav", "/data/x:y@z/a.wav", "sftp://user@host/x", "C:\\data", "C:/me@home/x",
    "see https://example.org: mail me@home",
]  # fmt: skip


@pytest.mark.parametrize("address", WITH_CREDENTIALS)
def test_credentials_in_addresses(address: str) -> None:
    assert holds_credentials(address)
    assert mask_addresses(f"'{address}' failed") == f"'{WITH_CREDENTIALS[address]}' failed"
    assert SECRET not in nameable(address) and SECRET not in clip_name(address, None)
    for name in ("data.dataset_path", "training.init_from", "paths.run_dir", "validation.dataset_path"):
        section, setting = name.split(".")
        with pytest.raises(ConfigError, match=f"^{section}.{setting} = .*should hold no user name, password or key") as error:
            validate({section: {setting: address}})
        assert SECRET not in str(error.value)


@pytest.mark.parametrize("text", WITHOUT)
def test_what_holds_none(text: str) -> None:
    assert not holds_credentials(text)
    if not text.startswith("sftp"):
        assert mask_addresses(text) == nameable(text) == text


def test_names_of_different_queries_differ() -> None:
    """Hold-out and the account of bad clips go by the name."""
    names = {nameable(f"https://host/get?clip={number}") for number in range(100)}
    assert len(names) == 100 and nameable("https://host/get?clip=1") in names


def test_values_of_variables() -> None:
    environment = {
        "HF_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": "abc/def+ghi==", "WANDB_API_KEY": "k" * 40,
        "X_PASSWORD": "pass word9 longer12",
        "TOKENIZERS_PARALLELISM": "false-false", "HF_TOKEN_PATH": "/home/me/token", "HUGGING_FACE_HUB_TOKEN": "short",
        "COLOR": "yellow-and-blue",
    }  # fmt: skip
    plain = "false-false /home/me/token short yellow-and-blue"
    text = f"Illegal header value b'Bearer {SECRET}\\n' abc/def+ghi== {'k' * 40} longer12 {plain}"
    assert redact(text, environment) == f"Illegal header value b'Bearer ***\\n' *** *** *** {plain}"


def test_reasons_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert reason(RuntimeError(f"401 for https://u:x@host/a?b={SECRET} with {SECRET}")) == "401 for https://***@host/a with ***"


PROGRAM = """
import logging, sys, threading
from snac_accel import cli

def run(arguments):
    token = __import__("os").environ["HF_TOKEN"]
    logging.getLogger("x").warning("sent %s to %s", token, "https://u:p4ssw0rd@host/")
    try:
        raise ValueError(f"inner {token}")
    except ValueError:
        logging.getLogger("x").exception("while %s", "sending")
    def work():
        raise RuntimeError(f"in a thread {token}")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if arguments:
        raise cli.UserError(f"a line with {token}")
    raise RuntimeError(f"Illegal header value b'Bearer {token}'")

cli._run = run
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "end"), [([], 1, "RuntimeError: Illegal header value"), (["x"], 2, "error: a line with ***")]
)
def test_a_program_prints_none(arguments: list[str], code: int, end: str) -> None:
    environment = {**os.environ, "HF_TOKEN": SECRET, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert SECRET not in done.stdout + done.stderr and "p4ssw0rd" not in done.stderr
    for part in ("sent *** to https://***@host/", "while sending", "inner ***", "in a thread ***"):
        assert part in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith(end)


def test_libraries_are_left_alone() -> None:
    """Only a program redacts its log: who imports the package keeps their own."""
    code = "import logging, snac_accel, snac_accel.config; assert logging.getLogRecordFactory() is logging.LogRecord"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    logging.getLogger("snac_accel").debug("fine")
