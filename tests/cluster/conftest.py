"""A SLURM for the tests of this folder: started once, always ended."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_jobs import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster; where none can run the tests are skipped, or fail if SNAC_ACCEL_REQUIRE_CLUSTER is 1."""
    if reason := missing():
        required = os.environ.get("SNAC_ACCEL_REQUIRE_CLUSTER") == "1"
        (pytest.fail if required else pytest.skip)(f"no SLURM here: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))  # not pytest's: munge wants one that all users may enter
    cluster = Cluster(folder)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)
