"""The loader: workers that die or stop are replaced, and not a sample is lost, repeated or changed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path

import pyarrow
import pytest
import torch
from shards import write_parquet

from snac_accel.dataset import AudioDataset, Batch, Sample, loader, make_loader, parquet
from snac_accel.dataset.delivery import CudaTransfer, Sent, Transfer
from snac_accel.errors import DataError

WAIT_SECONDS = 20.0  # at most, for what should happen at once


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
    batches = list(
        make_loader(fragile, 3, num_steps=8, num_workers=workers, pin_memory=False, timeout_seconds=2)
    )
    assert (tmp_path / "tally").read_text() == "x" * times
    assert len(batches) == 8
    assert all(torch.equal(batch.audio, audio) for batch, audio in zip(batches, quiet, strict=True))
    assert sum("a data worker was lost" in record.message for record in caplog.records) == times


def test_a_worker_lost_again_and_again_ends_the_run_in_one_line(source: AudioDataset, tmp_path: Path) -> None:
    fragile = Fragile(source, 4, 100, tmp_path / "tally", "dies")
    with pytest.raises(DataError, match=r"data workers were lost 4 times in a row") as caught:
        list(make_loader(fragile, 3, num_steps=8, num_workers=1, pin_memory=False))
    assert "\n" not in str(caught.value)
    deaths = len((tmp_path / "tally").read_text())
    # Before the count begins anew with the first batch, that one may be lost with its worker a few times.
    assert loader.MAX_REPLACEMENTS + 1 <= deaths <= 2 * loader.MAX_REPLACEMENTS + 1


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


# --- the way to a device


class Recording(Transfer):
    """Copies each batch, as a GPU would, and notes by which thread it was sent and received."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.received: list[str] = []

    def send(self, batch: Batch) -> Sent:
        """A copy."""
        self.sent.append(threading.current_thread().name)
        return Sent(batch._replace(audio=batch.audio.clone()))

    def receive(self, sent: Sent) -> Batch:
        """The copy."""
        self.received.append(threading.current_thread().name)
        return sent.batch


def recorded(source: AudioDataset | Fragile, workers: int) -> tuple[Iterator[Batch], Recording]:
    """Eight batches of three through a loader with such a transfer."""
    batches = make_loader(source, 3, num_steps=8, num_workers=workers)
    batches.transfer = transfer = Recording()
    return iter(batches), transfer


def happens(condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_the_next_batch_is_copied_while_the_present_one_is_used(
    source: AudioDataset, quiet: list[torch.Tensor]
) -> None:
    """By another thread, in the same order, each once, and never more than two ahead."""
    batches, transfer = recorded(source, 1)
    for number, audio in enumerate(quiet, 1):
        assert torch.equal(next(batches).audio, audio)
        assert happens(lambda number=number: len(transfer.sent) >= min(number + 1, len(quiet)))
        assert len(transfer.sent) <= number + 2
    assert next(batches, None) is None
    assert set(transfer.sent) == {"batches"}
    assert transfer.received == [threading.current_thread().name] * len(quiet)


def test_without_workers_batches_are_copied_where_they_are_made(
    source: AudioDataset, quiet: list[torch.Tensor]
) -> None:
    batches, transfer = recorded(source, 0)
    assert all(torch.equal(batch.audio, audio) for batch, audio in zip(batches, quiet, strict=True))
    assert transfer.sent == transfer.received == [threading.current_thread().name] * len(quiet)


def test_batches_sent_from_a_lost_worker_are_not_used_twice(
    source: AudioDataset, quiet: list[torch.Tensor], tmp_path: Path
) -> None:
    batches, transfer = recorded(Fragile(source, 13, 1, tmp_path / "tally", "dies"), 1)
    assert all(torch.equal(batch.audio, audio) for batch, audio in zip(batches, quiet, strict=True))
    assert (tmp_path / "tally").read_text() == "x"
    assert len(transfer.received) == len(quiet)


def test_an_error_of_the_device_is_not_taken_for_a_lost_worker(
    source: AudioDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: Batch) -> Sent:
        raise torch.OutOfMemoryError("CUDA out of memory")

    batches, transfer = recorded(source, 1)
    monkeypatch.setattr(transfer, "send", fail)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        next(batches)


def test_leaving_early_ends_thread_and_worker(source: AudioDataset) -> None:
    threads_before, workers_before = set(threading.enumerate()), set(active_children())
    batches, _ = recorded(source, 1)
    next(batches)
    (thread,) = (new for new in set(threading.enumerate()) - threads_before if new.name == "batches")
    (worker,) = set(active_children()) - workers_before
    batches.close()  # type: ignore[attr-defined]
    assert happens(lambda: not thread.is_alive())
    assert happens(lambda: not worker.is_alive())


def test_on_a_cpu_nothing_is_pinned_or_copied(source: AudioDataset) -> None:
    batches = make_loader(source, 3, num_steps=1, num_workers=0, device=torch.device("cpu"))
    assert type(batches.transfer) is Transfer
    assert batches.options["pin_memory"] is False


def test_the_copy_and_the_step_wait_for_each_other_in_the_right_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls that `CudaTransfer` makes, and nothing more: what they do is seen only on a GPU, by the test below."""
    calls: list[str] = []

    class Audio:
        def to(self, device: torch.device, *, non_blocking: bool) -> Audio:
            calls.append(f"copy to {device}, {non_blocking=}")
            return self

        def record_stream(self, stream: Stream) -> None:
            calls.append(f"memory in use by {stream.name}")

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "copies" if isinstance(name, torch.device) else name

        def record_event(self) -> str:
            calls.append(f"event on {self.name}")
            return "arrived"

        def wait_event(self, event: str) -> None:
            calls.append(f"{self.name} waits: {event}")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        calls.append(f"begin {stream.name}")
        yield
        calls.append(f"end {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("steps"))
    transfer = CudaTransfer(torch.device("cuda:1"))
    batch = Batch(Audio(), ["clip"], 0, [], [0])  # type: ignore[arg-type]
    assert transfer.receive(transfer.send(batch)) == batch
    copy = ["begin copies", "copy to cuda:1, non_blocking=True", "event on copies", "end copies"]
    assert calls == [*copy, "steps waits: arrived", "memory in use by steps"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_whole_on_a_busy_gpu(source: AudioDataset, quiet: list[torch.Tensor]) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    sums = []
    for batch in make_loader(source, 3, num_steps=8, num_workers=1, device=device):
        assert batch.audio.device == device
        torch.cuda._sleep(20_000_000)  # the stream of the steps is behind, while memory is used again
        sums.append(batch.audio.double().sum())
    assert [float(value) for value in sums] == pytest.approx([float(audio.double().sum()) for audio in quiet])


# --- threads


class Threads:
    """A source whose samples are named for the threads that torch and Arrow would take in the worker, and for those that it
    has got since it began."""

    def __init__(self, source: AudioDataset) -> None:
        self.source, self.at_first = source, 0

    def sample_at(self, position: int) -> Sample:
        """The real sample, renamed."""
        self.at_first = self.at_first or num_threads()
        sample = self.source.sample_at(position)
        return sample._replace(
            name=f"{torch.get_num_threads()} {pyarrow.cpu_count()} {num_threads() - self.at_first}"
        )


def num_threads() -> int:
    """Of this process."""
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def many_threads() -> Iterator[None]:
    """A machine of many cores, as torch and Arrow see it."""
    before = torch.get_num_threads(), pyarrow.cpu_count()
    torch.set_num_threads(6)
    pyarrow.set_cpu_count(6)
    yield
    torch.set_num_threads(before[0])
    pyarrow.set_cpu_count(before[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_worker_computes_with_one_thread(
    streaming: bool, demo_folder: Path, tmp_path: Path, many_threads: None
) -> None:
    """While it decodes, resamples, sets levels and unpacks parquet.

    What it has beside that is of a fixed number and waits: two threads of the queue to the trainer, those that fetch row
    groups ahead, and Arrow's for reading.
    """
    clips = sorted((demo_folder / "validation").glob("*.flac"))
    folder = write_parquet(tmp_path / "shards", clips) if streaming else demo_folder
    options = {"streaming": True, "cache_dir": tmp_path / "cache"} if streaming else {"split": "validation"}
    dataset = AudioDataset(folder, 24_000, 0.2, loudness=-23.0, **options)  # type: ignore[arg-type]
    batches = list(make_loader(Threads(dataset), 4, num_steps=15, num_workers=1))
    torchs, arrows, new = zip(
        *(map(int, name.split()) for batch in batches for name in batch.names), strict=True
    )
    assert set(torchs) == set(arrows) == {1}
    assert max(new) <= 2 + (parquet.FETCH_THREADS + 1 + pyarrow.io_thread_count() if streaming else 0)
