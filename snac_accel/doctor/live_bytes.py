"""The bytes of all tensors that are alive, counted operation by operation, with the peak of every named range of the step.

Counted are storages, each once, from the operation that makes them until nobody holds them any more: real ones, or those of
fake tensors, which have a size and no memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ENTER, EXIT = "profiler::_record_function_enter_new", "profiler::_record_function_exit"


@dataclass
class RangeBytes:
    """What was alive in one range that `torch.profiler.record_function` named."""

    name: str
    before: int  # at its beginning
    peak: int  # at most within
    after: int = 0  # at its end
    gradients: int = 0  # at its end, of what `gradients` counts


class LiveBytes(TorchDispatchMode):
    """Within this context every new tensor is counted; `live` now, `peak` at most, `ranges` in the order they ended."""

    def __init__(self, gradients: Callable[[], int] = lambda: 0) -> None:
        super().__init__()
        self.gradients = gradients
        self.live = self.peak = 0
        self.ranges: list[RangeBytes] = []
        self._open: list[RangeBytes] = []
        self._seen: dict[int, weakref.ref[Any]] = {}  # by the address of the storage

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = function(*args, **(kwargs or {}))
        name = function.name() if hasattr(function, "name") else ""
        if name.startswith(ENTER):
            self._open.append(RangeBytes(args[0], self.live, self.live))
        elif name.startswith(EXIT):
            self._close()
        else:
            self.count(result, (args, kwargs))
        return result

    def count(self, result: object, inputs: object = ()) -> None:
        """Count the tensors of a result, if they are new: views of what was there before (weights, say) are not."""
        for storage in _storages(result):
            if storage._cdata in self._seen:
                continue
            if storage._cdata not in {one._cdata for one in _storages(inputs)}:
                self._count_storage(storage)

    def _count_storage(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            del self._seen[address]
            self.live -= size

        self._seen[address] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
        for one in self._open:
            one.peak = max(one.peak, self.live)

    def _close(self) -> None:
        if self._open:
            one = self._open.pop()
            one.after, one.gradients = self.live, self.gradients()
            self.ranges.append(one)


def _storages(values: object) -> list[torch.UntypedStorage]:
    leaves = tree_leaves(values)
    return [
        leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == torch.strided
    ]
