"""The lock names a version of all that is needed; `make audit` fails for what is vulnerable, or could not be asked."""

from __future__ import annotations

import configparser
import http.server
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = {
    canonicalize_name(one.name): one
    for one in map(Requirement, re.findall(r"^\w.*$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
}
VULNERABILITY = {
    "id": "PYSEC-0000-1", "summary": "Planted.", "published": "2026-01-01T00:00:00Z", "modified": "2026-01-01T00:00:00Z",
    "affected": [
        {"package": {"name": "tqdm", "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "999"}]}]}
    ],
}  # fmt: skip


def wanted() -> list[Requirement]:
    """What setup.cfg asks for, with all extras but that of wandb, which no test needs."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    texts = [settings["options"]["install_requires"], *(settings["options.extras_require"][x] for x in ("s3", "dev"))]
    return [Requirement(line) for text in texts for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_lock_holds_what_is_needed_in_versions_that_fit() -> None:
    for requirement in wanted():
        (pin,) = LOCK[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), requirement


def test_the_lock_is_closed() -> None:
    """What the locked packages need themselves is locked too, so that the audit sees all of it."""
    for name in LOCK:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in LOCK or need.name in ("setuptools", "pip"), (name, str(need))


def test_the_installation_keeps_to_the_lock() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "--constraint requirements.lock" in makefile
    assert re.search(r"^\$\(READY\):.* requirements\.lock$", makefile, re.MULTILINE)


@pytest.fixture
def service() -> Iterator[tuple[str, dict[str, Any]]]:
    """A service on this machine that knows the vulnerabilities put into the dict, by package."""
    known: dict[str, Any] = {}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = known.get(asked["package"]["name"])
            content = json.dumps({"vulns": [found]} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", known
        server.shutdown()


def audit(address: str) -> subprocess.CompletedProcess[str]:
    """The command of `make audit`, asking this service."""
    (line,) = re.findall(r"^audit:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    line = line.replace("$(BIN)", str(Path(sys.executable).parent))
    line = line.replace("$(AUDIT)", f"--vulnerability-service osv --osv-url {address}")
    return subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True)


def test_the_audit_lists_what_is_vulnerable(service: tuple[str, dict[str, Any]]) -> None:
    address, known = service
    clean = audit(address)
    assert clean.returncode == 0 and "No known vulnerabilities found" in clean.stderr
    known["tqdm"] = VULNERABILITY
    found = audit(address)
    assert found.returncode == 1 and re.search(r"tqdm +\S+ +PYSEC-0000-1 +999", found.stdout)


def test_an_audit_that_could_not_ask_does_not_pass() -> None:
    """PyPI's service calls a package that it was not told about skipped, and passes without --strict."""
    assert "pip-audit --strict " in (ROOT / "Makefile").read_text()
    assert audit("http://127.0.0.1:9/").returncode != 0
