"""Broken inputs give a reason in one line or sound audio: no crash, no hang, no flood of memory, nothing else."""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile
import torch
from broken_audio import NUM_CASES, Case, corpus

from snac_accel.audio import AudioError, AudioReader
from snac_accel.dataset import AudioDataset, BadSamples, Batch, make_loader
from snac_accel.dataset.clips import RawClip
from snac_accel.dataset.order import SampleKey, draw_sample
from snac_accel.dataset.windows import WindowReader
from snac_accel.errors import DataError

RATE, WINDOW = 24_000, 12_000
SECONDS_PER_FILE = 5.0
MAX_GROWTH = 200 * 2**20  # bytes, of the process that reads the whole corpus
SHORTFALL = 4608 * 6  # samples that an mp3 may lack, if it is resampled from 4 kHz
SECONDS_TO_MAKE = 60.0  # a case, such as hours of silence


@pytest.fixture(scope="module")
def recorded(demo_folder: Path) -> np.ndarray:
    """Eight seconds of recorded speech, 16 kHz."""
    clips = sorted((demo_folder / "validation").glob("*.flac"))[:6]
    return np.concatenate([soundfile.read(clip, dtype="float32")[0] for clip in clips])[:128_000]


# --- what is asked of one input


def windows_of(source: str | bytes | BinaryIO, case: Case) -> str:
    """Read windows all over a clip; return how it went. Raises AssertionError for what must not be."""
    try:
        with AudioReader(source, RATE) as reader:
            last = reader.num_samples - 1
            starts = [0, last // 2, max(0, last - WINDOW), last, last // 3]
            for number, start in enumerate(starts):
                check_window(reader, start)
                if number == 0 and case.change is not None and isinstance(source, str):
                    case.change()
    except AudioError as error:
        return reason_of(error)
    return "usable"


def check_window(reader: AudioReader, start: int) -> None:
    audio = reader.read(start, WINDOW)
    wanted = min(WINDOW, reader.num_samples - start)
    assert audio.dtype == torch.float32
    assert audio.ndim == 1
    assert wanted - SHORTFALL <= len(audio) <= wanted
    assert len(audio) > 0
    assert bool(torch.isfinite(audio).all())
    assert float(audio.abs().max()) < 8.0  # 4, and what a resampler adds


def reason_of(error: AudioError) -> str:
    reason = str(error)
    assert 5 < len(reason) < 300, reason
    assert "\n" not in reason
    assert "0x" not in reason, reason  # no address of an object
    return reason


def training_windows_of(source: str | bytes, case: Case) -> str:
    """Read training windows, changed in every way, as the loader does."""
    reader = WindowReader(
        RATE, WINDOW, gain_db=(-6.0, 6.0), min_clip_seconds=0.0, min_loudness=-30.0, window_tries=3,
        channels="random", loudness=-20.0, random_phase=True, random_polarity=True,
    )  # fmt: skip
    try:
        for position in range(2):
            key = SampleKey(0, position, 0)
            audio, num_padding = reader.read(RawClip("x", source, None), draw_sample(0, key, 0), key)
            assert audio.shape == (1, WINDOW)
            assert bool(torch.isfinite(audio).all())
            assert float(audio.abs().max()) <= 1.0
            assert 0 <= num_padding < WINDOW
    except AudioError as error:
        return reason_of(error)
    return "usable"


def outcomes(case: Case) -> list[str]:
    """How a case went, as a path and, if it is a file, as bytes and opened."""
    path = os.fsdecode(case.path)
    found = [windows_of(path, case), training_windows_of(path, case)]
    if os.path.isfile(case.path):
        with open(case.path, "rb") as file:
            content = file.read()
            file.seek(0)
            found += [windows_of(content, case), training_windows_of(content, case), windows_of(file, case)]
            assert file.closed
    return found


# --- in a process of its own, so that a crash, a hang and a flood of memory are seen


def child(cases: Iterator[Case], pipe: int) -> None:
    """Work through the cases and write a line for each: its kind, then how it went; at last the growth in bytes."""
    torch.set_num_threads(1)
    before, descriptors = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, None
    for case in cases:
        os.write(pipe, f"> {case.kind}\n".encode())
        started = time.perf_counter()
        try:
            result = " | ".join(outcomes(case))
        except BaseException as error:  # noqa: B036 - it is reported
            result = f"RAISED {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        seconds = time.perf_counter() - started
        os.write(pipe, f"{seconds:.3f} {result}\n".encode())
        opened = len(os.listdir("/proc/self/fd"))
        descriptors = opened if descriptors is None else descriptors
        if opened > descriptors:
            os.write(pipe, f"0 RAISED {opened - descriptors} files left open\n".encode())
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    os.write(pipe, f"= {growth}\n".encode())


def lines_of_child(cases: Iterator[Case]) -> Iterator[str]:
    """Run `child` in a forked process and yield its lines; it is ended if it says nothing for too long."""
    receiving, sending = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.close(receiving)
            child(cases, sending)
            status = 0
        finally:
            os._exit(status)
    os.close(sending)
    text, seconds = b"", SECONDS_TO_MAKE
    try:
        while select.select([receiving], [], [], seconds)[0]:
            part = os.read(receiving, 65_536)
            if not part:
                break
            *complete, text = (text + part).split(b"\n")
            yield from (line.decode() for line in complete)
            seconds = SECONDS_PER_FILE if complete and complete[-1].startswith(b">") else SECONDS_TO_MAKE
        else:
            yield "HANGS"
    finally:
        os.close(receiving)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        yield f"CRASHED by {signal.Signals(os.WTERMSIG(status)).name}"


def judge(folder: Path, recorded: np.ndarray, seed: int, one_of_each: bool = False) -> Counter[str]:
    """Read the corpus; return how many inputs ended how. Fails with all that should not have been."""
    kind, growth, faults, counts = "", None, [], Counter[str]()
    for line in lines_of_child(corpus(folder, recorded, seed, one_of_each)):
        if line.startswith("> "):
            kind = line[2:]
        elif line.startswith("= "):
            growth = int(line[2:])
        elif line.startswith(("HANGS", "CRASHED")) or "RAISED" in line:
            faults.append(f"{kind}: {line}")
        else:
            seconds, result = line.split(" ", 1)
            counts["usable" if result.startswith("usable") else "refused"] += 1
            if float(seconds) > SECONDS_PER_FILE:
                faults.append(f"{kind}: took {seconds} s")
    assert not faults, "\n".join(faults)
    assert growth is not None, f"ended at {kind}"
    assert growth < MAX_GROWTH, f"{growth / 2**20:.0f} MB"
    return counts


def test_a_sample_of_broken_inputs(
    recorded: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    counts = judge(tmp_path, recorded, seed=0, one_of_each=True)
    assert 150 <= counts.total() <= 200
    assert counts["refused"] > 50
    assert counts["usable"] > 20
    assert capfd.readouterr().err == ""  # decoders complain on the standard error stream


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_thousand_broken_inputs(seed: int, recorded: np.ndarray, tmp_path: Path) -> None:
    counts = judge(tmp_path, recorded, seed)
    assert counts.total() == NUM_CASES
    assert counts["refused"] > 350
    assert counts["usable"] > 150


def test_the_checks_can_fail(tmp_path: Path, recorded: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, a hang, a flood and an error of another kind are each noticed."""

    def crash() -> None:
        faulthandler.disable()  # it would print a page
        os.kill(os.getpid(), signal.SIGSEGV)

    deeds = {
        "CRASHED by SIGSEGV": crash,
        "HANGS": lambda: time.sleep(60),
        "RAISED KeyError": lambda: {}["missing"],
        r"\d MB": lambda: np.ones(MAX_GROWTH // 4),
    }
    one = [Case("any", b"any.wav")]
    for expected, deed in deeds.items():
        monkeypatch.setattr(f"{__name__}.SECONDS_PER_FILE", 0.5 if expected == "HANGS" else 5.0)
        monkeypatch.setattr(f"{__name__}.corpus", lambda *_: iter(one))
        monkeypatch.setattr(f"{__name__}.outcomes", lambda case, deed=deed: [str(deed())[:5]])
        with pytest.raises(AssertionError, match=expected):
            judge(tmp_path, recorded, seed=0)


# --- through the data set


@pytest.fixture
def mixed_folder(demo_folder: Path, recorded: np.ndarray, tmp_path: Path) -> Path:
    """One broken input of each kind among as many good clips."""
    assert len(list(corpus(tmp_path, recorded, seed=0, one_of_each=True))) > 150
    for path in sorted((demo_folder / "train").glob("*.ogg"))[:200]:
        (tmp_path / f"good-{path.name}").symlink_to(path)
    return tmp_path


def epoch(folder: Path, num_workers: int) -> tuple[list[Batch], list[dict[str, object]]]:
    """An epoch of batches, and the records of what could not be used."""
    dataset = AudioDataset(folder, RATE, segment_samples=WINDOW, gain_db=(-6.0, 6.0), loudness=-20.0)
    tally = BadSamples()
    loader = make_loader(
        dataset, 8, num_steps=-(-len(dataset) // 8), num_workers=num_workers, pin_memory=False
    )
    batches = list(loader)
    return batches, [record for batch in batches for record in tally.add(batch)]


def test_nothing_broken_reaches_a_batch(mixed_folder: Path) -> None:
    batches, records = epoch(mixed_folder, num_workers=0)
    for batch in batches:
        assert batch.audio.shape == (8, 1, WINDOW)
        assert batch.audio.dtype == torch.float32
        assert bool(torch.isfinite(batch.audio).all())
        assert float(batch.audio.abs().max()) <= 1.0
    names = [record["name"] for record in records]
    assert len(names) == len(set(names)) > 70  # each once
    assert not any(str(name).startswith("good-") for name in names)
    certain = ["zero bytes", "web page", "pointer", "number nan", "number 1e+30", "64 channels", "is a pipe"]
    for kind in certain:
        assert any(f"-{kind}." in str(name) for name in names), kind
    assert all(record["reason"] and "\n" not in str(record["reason"]) for record in records)
    again, same_records = epoch(mixed_folder, num_workers=2)
    assert same_records == records
    for one, other in zip(batches, again, strict=True):
        assert one.names == other.names  # the same replacements
        assert torch.equal(one.audio, other.audio)


def test_a_folder_of_nothing_but_broken_files_is_one_line(recorded: np.ndarray, tmp_path: Path) -> None:
    kinds = ("is a ", "zero bytes", "web page", "pointer")
    assert len(list(corpus(tmp_path, recorded, seed=0, kinds=kinds))) > 15
    loader = make_loader(AudioDataset(tmp_path, RATE), 2, num_workers=0, pin_memory=False)
    with pytest.raises(DataError, match="none of 16 clips tried can be used; the last one, .*, ") as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)
