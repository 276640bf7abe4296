"""One optimisation step: a GAN update of generator and discriminators from one global batch.

Each discriminator's output on real and on fake audio is needed three times: for its own loss, for the adversarial loss and for
feature matching. It is computed once. The gradients that the losses send into the fake audio are gathered on a leaf,
one discriminator's graph alive at a time, and the generator is back-propagated once at the end. From the same weights this
gives the update that separate passes give, with seven discriminator forward-equivalents instead of ten.

Optimisers and loss scale are driven here, not by Accelerate: its wrappers would scale the leaf's gradient twice and
adjust the scale once for each optimiser.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from .codebook import codebooks, count_codes, restart_dead_codes
from .fast_convolution import input_gradients_only, shared_weights
from .generator import GeneratorOutput, TrainableSNAC
from .guards import SPIKE, STOP, Guards, Part, Trouble, findings, judge, look_at
from .losses import DISCRIMINATOR_LOSSES, SPECTRAL_LOSSES, discriminator_loss
from .optimizers import advance
from .pace import Span
from .seeds import derive_seed
from .state import TrainState

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


@dataclass
class StepReport:
    """What a step did. Losses are detached scalars on the device, means over the micro-batches of this rank."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    grad_norms: dict[str, Tensor] = field(default_factory=dict)  # before clipping
    counts: Tensor | None = None  # (levels, K) codes chosen in this step, over all ranks
    restarts: Tensor | None = None  # (levels,)
    skipped: bool = False  # no weight was touched
    trouble: Trouble | None = None  # why
    parts: list[Part] = field(default_factory=list)  # the micro-batches one by one, each as this rank saw it
    forward: Span | None = None  # from the beginning to the end of the first forward pass, in which no rank waits for others
    ended: float | None = None  # when this rank was done, of `time.perf_counter()`

    def add(self, name: str, value: Tensor, share: float) -> None:
        """Add a micro-batch's part of the mean."""
        if self.parts:
            self.parts[-1].add(name, value.detach())
        value = value.detach() * share
        self.losses[name] = self.losses[name] + value if name in self.losses else value


def train_step(
    batches: Sequence[Tensor],
    state: TrainState,
    accelerator: Accelerator,
    settings: StepSettings,
    *,
    log_unweighted: bool = False,
) -> StepReport:
    """Update generator and discriminators from one global batch; this rank's part is `batches`, micro-batches (B, 1, T).

    There are as many micro-batches as the accelerator accumulates. With `log_unweighted` the losses of weight 0 are computed
    too, without gradient. A step with trouble changes no weight, on any rank: see `guards`.
    """
    if len(batches) != accelerator.gradient_accumulation_steps:
        expected = accelerator.gradient_accumulation_steps
        raise ValueError(f"a step of this accelerator takes {expected} micro-batches, not {len(batches)}")
    report = StepReport(forward=Span(accelerator.device))
    outputs: list[GeneratorOutput] = []
    for index, real in enumerate(batches):
        report.parts.append(look_at(real))
        with accelerator.accumulate(*state.models()):
            seed_noise(settings.seed, state.step, index, accelerator.process_index)
            with record_function("generator forward"):
                output = state.generator(real)
            if index == 0 and report.forward is not None:
                report.forward.end()
            gather_gradients(real, output, state, settings, report, 1 / len(batches), log_unweighted)
            outputs.append(output)
    update(state, accelerator, settings, report)
    if report.trouble is not None and report.trouble.policy == STOP:
        return report  # the step has not been: it can be looked into
    if not report.skipped:
        follow_codebooks(outputs, state, accelerator, settings, report)
        if state.average is not None:
            state.average.update(accelerator.unwrap_model(state.generator, keep_fp32_wrapper=True))
    state.step += 1
    state.position += accelerator.num_processes * sum(len(real) for real in batches)
    report.ended = time.perf_counter()
    return report


def seed_noise(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Make the decoder's noise a function of its place in the run, so that a resumed run draws the same."""
    torch.manual_seed(derive_seed(seed, "noise", step, micro_batch, rank))


def gather_gradients(
    real: Tensor,
    output: GeneratorOutput,
    state: TrainState,
    settings: StepSettings,
    report: StepReport,
    share: float,
    log_unweighted: bool,
) -> None:
    """Back-propagate all losses of one micro-batch, `share` of its step, into the parameters of all networks.

    With float16 every loss is multiplied by the loss scale where it enters its graph. So the gradient on the leaf bears it
    already when it goes on into the generator, and it is applied once on every way.
    """
    scale = state.scaler.scale
    leaf = output.audio.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    for name, discriminator in state.discriminators.items():
        with record_function(f"discriminator {name}"):
            gradient += _discriminate(name, discriminator, real, leaf, scale, settings, report, share)
    gradient += _reconstruct(real, leaf, scale, settings, report, share, log_unweighted)
    quantizer_loss = leaf.new_zeros(())
    for name in ("commitment", "codebook"):
        value = getattr(output, name)
        report.add(name, value, share)
        quantizer_loss = quantizer_loss + settings.loss_weights.get(name, 0.0) * value
    with record_function("generator backward"):
        # d/dθ of ⟨fake, gradient⟩ is the chain rule's product of the gathered gradient with d fake / dθ.
        (((output.audio * gradient).sum() + scale(quantizer_loss)) * share).backward()


def _discriminate(
    name: str,
    discriminator: nn.Module,
    real: Tensor,
    leaf: Tensor,
    scale: Scale,
    settings: StepSettings,
    report: StepReport,
    share: float,
) -> Tensor:
    """Back-propagate the discriminator's loss into its parameters; return the gradient of its verdict on `leaf`."""
    with shared_weights():
        on_real, on_fake = discriminator(real), discriminator(leaf)
    terms = {term: loss(on_real, on_fake) for term, loss in DISCRIMINATOR_LOSSES.items()}
    for term, value in terms.items():
        report.add(term, value, share)
    with input_gradients_only():
        gradient = _gradient(terms, leaf, scale, settings.loss_weights, retain_graph=True)
    loss = discriminator_loss(on_real[0], on_fake[0])
    report.add(f"discriminator/{name}", loss, share)
    (scale(loss) * share).backward(inputs=list(discriminator.parameters()))
    return gradient


@record_function("spectral losses")
def _reconstruct(
    real: Tensor,
    leaf: Tensor,
    scale: Scale,
    settings: StepSettings,
    report: StepReport,
    share: float,
    log_unweighted: bool,
) -> Tensor:
    """The gradient of the weighted spectral losses on `leaf`, term by term, so that one graph lives at a time."""
    gradient = torch.zeros_like(leaf)
    for name, loss in SPECTRAL_LOSSES.items():
        weighted = settings.loss_weights.get(name, 0.0) > 0
        if not (weighted or log_unweighted):
            continue
        with torch.set_grad_enabled(weighted):
            value = loss(real, leaf, sampling_rate=settings.sampling_rate)
        report.add(name, value, share)
        if weighted:
            gradient += _gradient({name: value}, leaf, scale, settings.loss_weights)
    return gradient


def _gradient(
    terms: Mapping[str, Tensor],
    leaf: Tensor,
    scale: Scale,
    weights: Mapping[str, float],
    retain_graph: bool = False,
) -> Tensor:
    """The gradient of the scaled, weighted sum of `terms` on `leaf`; zero where no weight is above 0."""
    weighted = [weights[name] * value for name, value in terms.items() if weights.get(name, 0.0) > 0]
    if not weighted:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(scale(torch.stack(weighted).sum()), leaf, retain_graph=retain_graph)[0]


@record_function("optimizers")
def update(state: TrainState, accelerator: Accelerator, settings: StepSettings, report: StepReport) -> None:
    """Take the loss scale out of the gradients, clip, step, schedule: both optimisers together, or neither; collective."""
    for optimizer in state.optimizers.values():
        state.scaler.unscale_(optimizer)
    groups = {"generator": [state.generator], "discriminator": list(state.discriminators.values())}
    for name, modules in groups.items():
        gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
        report.grad_norms[name] = torch.nn.utils.get_total_norm(gradients)
        if settings.max_grad_norm is not None:
            parameters = [p for module in modules for p in module.parameters()]
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, report.grad_norms[name])
    report.trouble = find_trouble(state, accelerator, settings, report)
    report.skipped = report.trouble is not None
    if report.trouble is not None and report.trouble.policy == STOP:
        for optimizer in state.optimizers.values():
            optimizer.zero_grad()
        return
    if state.codebook_method is not None and not report.skipped:
        state.codebook_method.take_gradients(_unwrapped(state, accelerator), state.optimizers["generator"])
    for name, optimizer in state.optimizers.items():
        if not report.skipped:
            optimizer.step()
        optimizer.zero_grad()
        advance(state.schedules[name])
    state.scaler.update()  # once for both: smaller after an overflow in either, larger after a long time without
    state.count("skipped_updates", int(report.skipped))
    state.count("spikes", int(report.trouble is not None and report.trouble.kind == SPIKE))


def find_trouble(
    state: TrainState, accelerator: Accelerator, settings: StepSettings, report: StepReport
) -> Trouble | None:
    """What is wrong with the step on any rank, the same on all; collective."""
    own = findings(report.parts, settings.loss_weights, list(report.grad_norms.values()))
    sums = accelerator.reduce(own, reduction="sum").tolist()
    scaled = state.scaler.is_enabled()
    return judge(sums, accelerator.num_processes, state.recent_losses, settings.guards, scaled=scaled)


@record_function("codebooks")
def follow_codebooks(
    outputs: Sequence[GeneratorOutput],
    state: TrainState,
    accelerator: Accelerator,
    settings: StepSettings,
    report: StepReport,
) -> None:
    """Count the codes chosen on all ranks, let the codebooks follow, and restart dead codes, after the optimisers' step."""
    generator = _unwrapped(state, accelerator)
    counts = sum(count_codes(output.codes, generator.codebook_size) for output in outputs)
    report.counts = accelerator.reduce(counts, reduction="sum")
    state.usage.observe(report.counts)
    if state.codebook_method is not None:
        state.codebook_method.follow(generator, outputs, report.counts, lambda sums: accelerator.reduce(sums, reduction="sum"))
    if settings.restart_after is not None:
        report.restarts = restart_dead_codes(
            generator,
            state.usage,
            [output.latents for output in outputs],
            state.optimizers["generator"],
            restart_after=settings.restart_after,
            seed=settings.seed,
            step=state.step,
            rank=accelerator.process_index,
            num_processes=accelerator.num_processes,
            reduce=lambda rows: accelerator.reduce(rows, reduction="sum"),
            averages=None if state.average is None else codebooks(state.average.tensors),
            method=state.codebook_method,
        )


def _unwrapped(state: TrainState, accelerator: Accelerator) -> TrainableSNAC:
    """The generator as it computes with autocast, without the wrapper of several processes."""
    generator: TrainableSNAC = accelerator.unwrap_model(state.generator, keep_fp32_wrapper=True)
    return generator
