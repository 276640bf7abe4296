"""A headless Chromium for the tests of this folder, and a page with real speech on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import make_page
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PROGRAMS, PACKAGES = ("chromium", "chromedriver"), ("chromium", "chromium-driver")


def missing() -> str | None:
    """Why no browser can run here, after trying to install it; None if one can."""
    if all(map(shutil.which, PROGRAMS)):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"{', '.join(PROGRAMS)} are missing, and only root on Debian can install {' and '.join(PACKAGES)}"
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update", "-q"], install):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
        if done.returncode:
            return f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}"
    return None


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A page: two clips of speech and a steady tone, two models, curves."""
    folder = tmp_path_factory.mktemp("listening") / "a page"
    make_page(folder, demo_folder)
    return folder


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the browser puts what is downloaded."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(downloads: Path) -> Iterator[webdriver.Chrome]:
    """The browser; where none can run the tests are skipped, or fail if SNAC_ACCEL_REQUIRE_CLUSTER is 1."""
    if reason := missing():
        required = os.environ.get("SNAC_ACCEL_REQUIRE_CLUSTER") == "1"
        (pytest.fail if required else pytest.skip)(f"no Chromium here: {reason}")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    flags = ["headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,1000"]
    flags += ["autoplay-policy=no-user-gesture-required", "lang=en"]
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path:
    """Where pictures are kept for a person to look at: .pytest_cache/d/screenshots."""
    assert request.config.cache is not None
    return request.config.cache.mkdir("screenshots")
