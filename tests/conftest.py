"""Shared fixtures: the demo's speech, and `datasets` kept offline, quick and away from the user's cache."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="snac_accel_tests_"))
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo's audio folder: splits train/ and validation/, 16 kHz mono speech with metadata.csv."""
    import snac_accel

    return Path(snac_accel.__file__).parent / "demo"


@pytest.fixture(autouse=True)
def no_sleep_after_streams() -> Iterator[None]:
    """Iterators of `datasets` over parquet otherwise sleep five seconds when they end."""
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    yield
