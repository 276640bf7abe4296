"""`torch.compile` for the training step: which functions are compiled, and what is known about the compilations.

Compiled are the generator's encoder and decoder and, if asked for, the discriminators. The quantizer, the spectral losses and
the optimisers stay as they are. Modules keep their names, weights and wrappers: a function is put in the place of another one.

Where no gradient is asked for (validation, export, the start of the codebooks) the plain function runs. Lengths differ there, and
each would be compiled anew. A training step always has the same shapes: after the first one nothing should be compiled.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .errors import ConfigError
from .generator import TrainableSNAC

log = logging.getLogger(__name__)

BACKEND = "inductor"


def check_compiler(parts: str, device_type: str) -> None:
    """Raise ConfigError, one line, if this machine lacks what torch.compile needs for `device_type`."""
    if parts == "none":
        return
    setting = f"performance.compile = {parts}"
    if device_type not in ("cpu", "cuda"):
        raise ConfigError(
            f"{setting}: needs a CPU or an NVIDIA or AMD GPU, not {device_type}; should be none here"
        )
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            f"{setting}: needs a C++ compiler, and there is none: install one (apt install g++), name it in the "
            "variable CXX, or set performance.compile to none"
        ) from error
    if device_type == "cuda" and not has_triton():
        raise ConfigError(
            f"{setting}: needs triton on a GPU: pip install triton, or set performance.compile to none"
        )


@dataclass
class Compilation:
    """What is compiled, and what the compilations of this process have cost."""

    names: list[str]
    graphs: int = 0  # compiled so far, each with its backward pass
    recompilations: int = 0  # of them after the first step
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)  # left as they were, after a failure
    steps: int = 0  # of this process
    has_warned: bool = False

    def beginning(self) -> str:
        """The line before the first step."""
        return f"compiling {' and '.join(self.names)}: the first step waits for it"

    def add(self, graphs: int, seconds: float) -> None:
        """Count what was compiled just now."""
        self.graphs += graphs
        self.seconds += seconds
        if self.steps:
            self.recompilations += graphs

    def after_step(self) -> str | None:
        """Call it after every step: what there is to say about it, if anything."""
        self.steps += 1
        if self.steps == 1:
            return f"compiled in {self.seconds:.0f} s: {self.graphs} graphs"
        if not self.recompilations or self.has_warned:
            return None
        self.has_warned = True
        return (
            f"warning: step {self.steps} compiled again ({self.recompilations} graphs; one takes "
            f"{self.seconds / self.graphs:.0f} s): something changes from step to step; see compile/recompilations in the "
            "log, and set performance.compile to none if it grows"
        )

    def scalars(self) -> dict[str, float]:
        """For the log."""
        return {
            "compile/graphs": self.graphs,
            "compile/recompilations": self.recompilations,
            "compile/seconds": self.seconds,
        }


def compile_networks(
    generator: TrainableSNAC,
    discriminators: Mapping[str, nn.Module],
    parts: str,
) -> Compilation | None:
    """Have the networks' work compiled when it is first done: `parts` is "none", "generator" or "all". None: nothing is.

    Call it before networks are wrapped for several processes or another precision.
    """
    if parts == "none":
        return None
    torch._dynamo.reset()  # a notebook's earlier runs count towards the compiler's limit for one function
    _configure(keep_graphs=parts == "all")
    compilation = Compilation(["the generator"])
    _replace(generator.encoder, "forward", "the encoder", compilation)
    _replace(generator, "reconstruct", "the decoder", compilation)
    if parts == "all":
        for name, discriminator in discriminators.items():
            compilation.names.append(name)
            _replace(discriminator, "forward", name, compilation)
    return compilation


def _configure(keep_graphs: bool) -> None:
    """Settings of the compiler, for the whole process."""
    import torch._functorch.config as autograd
    import torch._inductor.config as inductor

    inductor.fallback_random = True  # the noise of uncompiled networks: seeds keep their meaning
    # It would split graphs, and cannot split what has its own backward.
    torch._dynamo.config.optimize_ddp = False
    autograd.force_non_lazy_backward_lowering = True  # both passes at once: a failure can still be answered
    # The step goes back through a discriminator's graph twice.
    autograd.donated_buffer = not keep_graphs
    # Our caches hold constants; a spectrum is one operation anyway.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex")


def _replace(owner: nn.Module, function: str, name: str, compilation: Compilation) -> None:
    setattr(owner, function, Compiled(getattr(owner, function), name, compilation))


class Compiled:
    """A function that is compiled where gradients are asked for, and plain elsewhere or if the compiler fails."""

    def __init__(self, plain: Callable[..., Any], name: str, compilation: Compilation) -> None:
        self.plain, self.name, self.compilation = plain, name, compilation
        self.compiled = torch.compile(plain, dynamic=False, backend=BACKEND)
        self.has_failed = False

    def __call__(self, *inputs: Any) -> Any:
        """The function's result."""
        if self.has_failed or not torch.is_grad_enabled():
            return self.plain(*inputs)
        before, started = _graphs(), time.perf_counter()
        try:
            with _fresh_weights():
                return self.compiled(*inputs)
        except _failures() as error:
            self._give_up(error)
        finally:
            if new := _graphs() - before:
                self.compilation.add(new, time.perf_counter() - started)
        return self.plain(*inputs)

    def _give_up(self, error: Exception) -> None:
        self.has_failed = True
        self.compilation.failed.append(self.name)
        reason = " ".join(str(error).split())[:200]
        log.warning("%s could not be compiled and goes on uncompiled: %s", self.name, reason)


class _fresh_weights:
    """Inside, parametrised weights are computed where they are used: a cache outside of the graph would change it."""

    def __enter__(self) -> None:
        self.enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0

    def __exit__(self, *_: object) -> None:
        parametrize._cache_enabled = self.enabled


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
