"""Shared fixtures: real speech, an accelerator, and `datasets` kept offline, quick and out of the user's cache."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="snac_accel_tests_"))
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo's audio folder: splits train/ and validation/, 16 kHz mono speech with metadata.csv."""
    import snac_accel

    return Path(snac_accel.__file__).parent / "demo"


@pytest.fixture(scope="session")
def speech(demo_folder: Path) -> Tensor:
    """Real speech at 16 kHz: (24, 1, 8000), half a second from the middle of 24 training clips."""
    import soundfile
    import torch

    windows = []
    for path in sorted((demo_folder / "train").glob("*.ogg"))[:24]:
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        start = (len(samples) - 8000) // 2
        windows.append(samples[start : start + 8000])
    return torch.stack(windows)[:, None]


@pytest.fixture
def make_accelerator() -> Iterator[Callable[..., Accelerator]]:
    """Build an `Accelerator` on the CPU, accumulating so many micro-batches; its shared state ends with the test."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin

    def reset() -> None:
        AcceleratorState._reset_state()
        GradientState._reset_state()

    def make(accumulation_steps: int = 1, mixed_precision: str | None = "no") -> Accelerator:
        reset()
        plugin = GradientAccumulationPlugin(num_steps=accumulation_steps, sync_with_dataloader=False)
        return Accelerator(cpu=True, mixed_precision=mixed_precision, gradient_accumulation_plugin=plugin)

    yield make
    reset()


@pytest.fixture(autouse=True)
def no_sleep_after_streams() -> Iterator[None]:
    """Iterators of `datasets` over parquet otherwise sleep five seconds when they end."""
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    yield
