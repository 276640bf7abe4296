"""The gradients of one micro-batch: all losses, back-propagated into the networks that learn from them.

The gradients that the losses send into the fake audio are gathered on a leaf, one discriminator's graph alive at a time, and the
generator is back-propagated once at the end. Shapes: B batch, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.profiler import record_function

from .balancer import row_norms
from .fast_convolution import input_gradients_only, shared_weights
from .generator import GeneratorOutput
from .guards import Guards, Part, Trouble
from .losses import DISCRIMINATOR_LOSSES, SPECTRAL_LOSSES, discriminator_loss
from .pace import Span
from .state import TrainState
from .turns import Turn, Turns

Scale = Callable[[Tensor], Tensor]  # multiplies by the loss scale; the identity without float16


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know beside the state and the batch."""

    loss_weights: Mapping[str, float]
    sampling_rate: int
    max_grad_norm: float | None = None
    restart_after: float | None = None  # lookups per code; None: no restarts
    seed: int = 0
    guards: Guards = field(default_factory=Guards)
    turns: Turns = field(default_factory=Turns)

    def weights(self, turn: Turn) -> dict[str, float]:
        """The weight of each loss in a turn."""
        heard = {name: weight * turn.weight for name, weight in self.loss_weights.items() if name in DISCRIMINATOR_LOSSES}
        return {**self.loss_weights, **heard}


@dataclass
class StepReport:
    """What a step did. Losses are detached scalars on the device, means over the micro-batches of this rank."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    grad_norms: dict[str, Tensor] = field(default_factory=dict)  # before clipping, of the sides that learn
    counts: Tensor | None = None  # (levels, K) codes chosen in this step, over all ranks
    restarts: Tensor | None = None  # (levels,)
    skipped: bool = False  # no weight was touched
    trouble: Trouble | None = None  # why
    parts: list[Part] = field(default_factory=list)  # the micro-batches one by one, each as this rank saw it
    forward: Span | None = None  # from the beginning to the end of the first forward pass, in which no rank waits for others
    ended: float | None = None  # when this rank was done, of `time.perf_counter()`
    norms: Tensor | None = None  # of the balancer: `row_norms` of this rank's micro-batches, added up

    def add(self, name: str, value: Tensor, share: float) -> None:
        """Add a micro-batch's part of the mean."""
        if self.parts:
            self.parts[-1].add(name, value.detach())
        value = value.detach() * share
        self.losses[name] = self.losses[name] + value if name in self.losses else value


@dataclass
class Pull:
    """The gradient of the generator's losses on its audio, `leaf` (B, 1, T), gathered loss by loss."""

    leaf: Tensor
    scale: Scale
    weights: Mapping[str, float]
    separate: bool = False  # each loss by itself, unweighted, as the balancer needs them: one backward pass for each
    gradients: dict[str, Tensor] = field(default_factory=dict)  # "": the weighted sum

    def add(self, terms: Mapping[str, Tensor], retain_graph: bool = False) -> None:
        """Differentiate losses; those of weight 0 pull at nothing."""
        weighted = {name: value for name, value in terms.items() if self.weights.get(name, 0.0) > 0}
        if not weighted:
            return
        if not self.separate:
            loss = torch.stack([self.weights[name] * value for name, value in weighted.items()]).sum()
            self._add("", torch.autograd.grad(self.scale(loss), self.leaf, retain_graph=retain_graph)[0])
            return
        for number, (name, value) in enumerate(weighted.items(), start=1):
            again = retain_graph or number < len(weighted)
            self._add(name, torch.autograd.grad(self.scale(value), self.leaf, retain_graph=again)[0])

    def _add(self, name: str, gradient: Tensor) -> None:
        self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient


def gather_gradients(
    real: Tensor,
    output: GeneratorOutput,
    state: TrainState,
    settings: StepSettings,
    report: StepReport,
    share: float,
    log_unweighted: bool,
    turn: Turn | None = None,
) -> None:
    """Back-propagate all losses of one micro-batch, `share` of its step, into the parameters of the networks that learn.

    With float16 every loss is multiplied by the loss scale where it enters its graph. So the gradient on the leaf bears it
    already when it goes on into the generator, and it is applied once on every way.
    """
    turn = turn or Turn()
    pull = pull_of(output.audio, state, settings, turn)
    if turn.judged:
        for name, discriminator in state.discriminators.items():
            with record_function(f"discriminator {name}"):
                module = discriminator if turn.discriminators else alone(discriminator)
                discriminate(name, module, real, pull, report, share, turn)
    if turn.generator:
        reconstruct(real, pull, settings.sampling_rate, report, share, log_unweighted)
    quantizer_loss = output.audio.new_zeros(())
    for name in ("commitment", "codebook"):
        value = getattr(output, name)
        report.add(name, value, share)
        quantizer_loss = quantizer_loss + settings.loss_weights.get(name, 0.0) * value
    if not turn.generator:
        return
    gradient = _gathered(pull, state, report)
    with record_function("generator backward"):
        # d/dθ of ⟨fake, gradient⟩ is the chain rule's product of the gathered gradient with d fake / dθ.
        (((output.audio * gradient).sum() + pull.scale(quantizer_loss)) * share).backward()


def pull_of(audio: Tensor, state: TrainState, settings: StepSettings, turn: Turn) -> Pull:
    """Begin to gather on audio (B, 1, T)."""
    leaf = audio.detach().requires_grad_(turn.generator)
    return Pull(leaf, state.scaler.scale, settings.weights(turn), separate=state.balancer is not None)


def alone(module: nn.Module) -> nn.Module:
    """A network without DDP, which waits for a backward pass after each forward pass; autocast stays."""
    plain: nn.Module = extract_model_from_parallel(module, keep_fp32_wrapper=True, keep_torch_compile=True)
    return plain


def _gathered(pull: Pull, state: TrainState, report: StepReport) -> Tensor:
    """What the generator is given on its audio (B, 1, T), times the loss scale."""
    if state.balancer is None or not pull.gradients:
        return pull.gradients.get("", torch.zeros_like(pull.leaf))
    norms = row_norms(pull.gradients, state.scaler.get_scale())
    report.norms = norms if report.norms is None else report.norms + norms
    return state.balancer.combine(pull.gradients, pull.weights)


def discriminate(
    name: str, discriminator: nn.Module, real: Tensor, pull: Pull, report: StepReport, share: float, turn: Turn
) -> None:
    """Back-propagate the discriminator's loss into its parameters, and gather what its verdict says to the generator.

    Where one of them does not learn, its part is left out; a discriminator that does not learn is to be given `alone`.
    """
    with shared_weights():
        with torch.set_grad_enabled(turn.discriminators):
            on_real = discriminator(real)
        on_fake = discriminator(pull.leaf)
    terms = {term: loss(on_real, on_fake) for term, loss in DISCRIMINATOR_LOSSES.items()}
    for term, value in terms.items():
        report.add(term, value, share)
    if turn.generator:
        with input_gradients_only():
            pull.add(terms, retain_graph=turn.discriminators)
    loss = discriminator_loss(on_real[0], on_fake[0])
    report.add(f"discriminator/{name}", loss, share)
    if turn.discriminators:
        (pull.scale(loss) * share).backward(inputs=list(discriminator.parameters()))


@record_function("spectral losses")
def reconstruct(
    real: Tensor, pull: Pull, sampling_rate: int, report: StepReport, share: float, log_unweighted: bool
) -> None:
    """Gather the gradient of the weighted spectral losses, term by term, so that one graph lives at a time."""
    for name, loss in SPECTRAL_LOSSES.items():
        weighted = pull.weights.get(name, 0.0) > 0
        if not (weighted or log_unweighted):
            continue
        with torch.set_grad_enabled(weighted):
            value = loss(real, pull.leaf, sampling_rate=sampling_rate)
        report.add(name, value, share)
        if weighted:
            pull.add({name: value})
