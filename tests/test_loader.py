"""The loader: workers that die or stop are replaced, and not a sample is lost, repeated or changed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from snac_accel.dataset import AudioDataset, Sample, loader, make_loader
from snac_accel.errors import DataError


class Fragile:
    """A source that kills, stops or fails its worker at a position, `times` times in all (counted in a file)."""

    def __init__(self, source: AudioDataset, position: int, times: int, tally: Path, how: str) -> None:
        self.source, self.position, self.times, self.tally, self.how = source, position, times, tally, how

    def sample_at(self, position: int) -> Sample:
        """The sample of the real source, after the accident."""
        if position == self.position and self._happens():
            if self.how == "raises":
                raise KeyError("a fault in the code")
            os.kill(os.getpid(), signal.SIGKILL if self.how == "dies" else signal.SIGSTOP)
            time.sleep(60)
        return self.source.sample_at(position)

    def _happens(self) -> bool:
        with self.tally.open("a+") as file:
            file.seek(0)
            happened = len(file.read())
            file.write("x" if happened < self.times else "")
        return happened < self.times


@pytest.fixture(scope="module")
def source(demo_folder: Path) -> AudioDataset:
    """Real speech."""
    return AudioDataset(demo_folder, 24_000, 0.2, split="validation", seed=7)


@pytest.fixture(scope="module")
def quiet(source: AudioDataset) -> list[torch.Tensor]:
    """What an undisturbed loader gives: 8 batches of 3."""
    return [batch.audio for batch in make_loader(source, 3, num_steps=8, num_workers=0, pin_memory=False)]


@pytest.mark.parametrize(("how", "workers", "times"), [("dies", 1, 1), ("dies", 3, 2), ("stops", 2, 1)])
def test_a_lost_worker_is_replaced(
    how: str, workers: int, times: int, source: AudioDataset, quiet: list[torch.Tensor], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    fragile = Fragile(source, 13, times, tmp_path / "tally", how)
    batches = list(make_loader(fragile, 3, num_steps=8, num_workers=workers, pin_memory=False, timeout_seconds=2))
    assert (tmp_path / "tally").read_text() == "x" * times
    assert len(batches) == 8
    assert all(torch.equal(batch.audio, audio) for batch, audio in zip(batches, quiet, strict=True))
    assert sum("a data worker was lost" in record.message for record in caplog.records) == times


def test_a_worker_lost_again_and_again_ends_the_run_in_one_line(source: AudioDataset, tmp_path: Path) -> None:
    fragile = Fragile(source, 4, 100, tmp_path / "tally", "dies")
    with pytest.raises(DataError, match=r"data workers were lost 4 times in a row") as caught:
        list(make_loader(fragile, 3, num_steps=8, num_workers=1, pin_memory=False))
    assert "\n" not in str(caught.value)
    deaths = len((tmp_path / "tally").read_text())  # one more if the first batch was lost with its worker
    assert loader.MAX_REPLACEMENTS + 1 <= deaths <= loader.MAX_REPLACEMENTS + 2


def test_a_fault_in_the_code_is_not_hidden(source: AudioDataset, tmp_path: Path) -> None:
    fragile = Fragile(source, 4, 1, tmp_path / "tally", "raises")
    with pytest.raises(KeyError, match="a fault in the code"):
        list(make_loader(fragile, 3, num_steps=8, num_workers=1, pin_memory=False))


def test_a_dying_worker_does_not_raise_between_batches(source: AudioDataset, tmp_path: Path) -> None:
    """torch's handler of SIGCHLD would raise in the middle of an update."""
    fragile = Fragile(source, 13, 1, tmp_path / "tally", "dies")
    batches = iter(make_loader(fragile, 3, num_steps=8, num_workers=1, pin_memory=False))
    next(batches)
    deadline = time.monotonic() + 20
    while not (tmp_path / "tally").exists() and time.monotonic() < deadline:
        next(batches)
    for _ in range(20):
        time.sleep(0.05)  # where an exception would come
    assert len(list(batches)) > 0
