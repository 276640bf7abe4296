"""What the machine under `roofline.py` can do, and the clock that times the parts of a step on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from measure import seconds
from torch.profiler import record_function

from snac_accel.costs import FLOAT32_BYTES, Cost

# Range of the step -> part, if the part is not called as the range is.
PARTS = {"generator forward": "generator", "generator backward": "generator"}
FLOAT32_PARTS = ("spectral losses", "optimizers")  # whatever the precision
TRIES = 3  # for each peak in each round
# Rows of the square matrices, numbers in an array: a CPU takes tenths of a second for them, and no cache holds the arrays.
SIZES = {"cuda": (8192, 2**28), "cpu": (2048, 2**25)}


class Peaks(NamedTuple):
    """What the machine can do, per second."""

    no: float  # operations in float32, which is what mixed precision "no" means
    bf16: float  # operations
    memory: float  # bytes

    def floor(self, part: str, cost: Cost, precision: str) -> float:
        """Seconds that a part needs at least."""
        return max(self.arithmetic(part, cost, precision), cost.num_bytes / self.memory)

    def arithmetic(self, part: str, cost: Cost, precision: str) -> float:
        """Seconds that its operations need at least."""
        return cost.flops / (self.no if precision == "no" or part in FLOAT32_PARTS else self.bf16)


class Clock:
    """Waits for a GPU before and after what it times; times the parts of a step as it marks them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = {}  # seconds of the ranges since this was emptied

    def wait(self) -> None:
        """Until nothing runs any more."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall-clock time of `work` and of all that it started."""
        self.wait()

        def whole() -> None:
            work()
            self.wait()

        return seconds(whole)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Time the outermost ranges that the step marks for profilers, and add each to its part."""
        entered: list[float] = []

        def enter(marked: record_function) -> record_function:
            self.wait()
            entered.append(time.perf_counter())
            return marked

        def leave(marked: record_function, *error: object) -> None:
            self.wait()
            started = entered.pop()
            if not entered:  # within are torch's own, of the optimisers
                part = PARTS.get(marked.name, marked.name.removeprefix("discriminator "))
                self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - started

        # Of the class: some ranges were made long ago, as decorators.
        with mock.patch.object(record_function, "__enter__", enter):
            with mock.patch.object(record_function, "__exit__", leave):
                yield


class Machine:
    """Measures peaks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.size, length = SIZES.get(clock.device.type, SIZES["cpu"])
        square = torch.randn(self.size, self.size, device=clock.device)
        self.squares = {"no": square} | ({"bf16": square.bfloat16()} if has_bf16(clock.device) else {})
        self.arrays = [torch.ones(length, device=clock.device) for _ in range(2)]

    def product(self, precision: str) -> float:
        """Operations per second of the quickest of a few matrix products; in bf16 those of float32 where it is only imitated.

        On a GPU float32 products take TF32 if convolutions may: nearly all operations of a step are convolutions.
        """
        square = self.squares.get(precision, self.squares["no"])
        result, before = torch.empty_like(square), torch.get_float32_matmul_precision()
        if torch.backends.cudnn.allow_tf32:  # `training.tf32_convolutions`
            torch.set_float32_matmul_precision("high")
        times = [self.clock.seconds(lambda: torch.mm(square, square, out=result)) for _ in range(TRIES)]
        torch.set_float32_matmul_precision(before)
        return 2 * self.size**3 / min(times)

    def stream(self) -> float:
        """Bytes per second of the quickest of a few a += s b: two arrays read, one written.

        A third array as the target would be read as well before it is overwritten, which a processor does unasked.
        """
        a, b = self.arrays
        quickest = min(self.clock.seconds(lambda: a.add_(b, alpha=0.5)) for _ in range(TRIES))
        return 3 * a.numel() * FLOAT32_BYTES / quickest

    def peaks(self) -> Peaks:
        """All of them."""
        return Peaks(self.product("no"), self.product("bf16"), self.stream())


def has_bf16(device: torch.device) -> bool:
    """Whether there are instructions for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
