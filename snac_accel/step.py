"""One optimisation step: a GAN update of generator and discriminators from one global batch.

Each discriminator's output on real and on fake audio is needed three times: for its own loss, for the adversarial loss and for
feature matching. It is computed once (`gathering`). From the same weights this gives the update that separate passes give, with
seven discriminator forward-equivalents instead of ten. Who learns in a step is a function of the step (`turns`).

Optimisers and loss scale are driven here, not by Accelerate: its wrappers would scale the leaf's gradient twice and
adjust the scale once for each optimiser.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.profiler import record_function

from .balancer import TERMS, mean_norms, row_norms
from .codebook import codebooks, count_codes, restart_dead_codes
from .gathering import StepReport, StepSettings, alone, discriminate, gather_gradients, pull_of, reconstruct
from .generator import GeneratorOutput, TrainableSNAC
from .guards import OFF, PLACES, SPIKE, STOP, Trouble, findings, judge, look_at
from .losses import DISCRIMINATOR_LOSSES
from .optimizers import advance
from .pace import Span
from .seeds import derive_seed
from .state import TrainState
from .turns import Turn

__all__ = ["StepReport", "StepSettings", "seed_noise", "train_step"]


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
    turn = settings.turns.of(state.step) if state.discriminators else Turn()
    if state.balancer is not None:
        measure_norms(batches, state, accelerator, settings, turn)
    generator = state.generator if turn.generator else alone(state.generator)
    report = StepReport(forward=Span(accelerator.device))
    outputs: list[GeneratorOutput] = []
    for index, real in enumerate(batches):
        report.parts.append(look_at(real))
        with accelerator.accumulate(*state.models()):
            seed_noise(settings.seed, state.step, index, accelerator.process_index)
            with record_function("generator forward"), torch.set_grad_enabled(turn.generator):
                output = generator(real)
            if index == 0 and report.forward is not None:
                report.forward.end()
            gather_gradients(real, output, state, settings, report, 1 / len(batches), log_unweighted, turn)
            outputs.append(output)
    update(state, accelerator, settings, report, turn)
    if report.trouble is not None and report.trouble.policy == STOP:
        return report  # the step has not been: it can be looked into
    if turn.generator and not report.skipped:
        follow_codebooks(outputs, state, accelerator, settings, report)
        for average in state.averages():
            average.update(accelerator.unwrap_model(state.generator, keep_fp32_wrapper=True))
    state.step += 1
    state.position += accelerator.num_processes * sum(len(real) for real in batches)
    report.ended = time.perf_counter()
    return report


def seed_noise(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Make the decoder's noise a function of its place in the run, so that a resumed run draws the same."""
    torch.manual_seed(derive_seed(seed, "noise", step, micro_batch, rank))


def measure_norms(
    batches: Sequence[Tensor], state: TrainState, accelerator: Accelerator, settings: StepSettings, turn: Turn
) -> None:
    """Give the balancer the norms of this step's gradients, where it lacks one, in a pass that trains nothing; collective."""
    assert state.balancer is not None
    asked = {name for name, weight in settings.weights(turn).items() if weight > 0 and name in TERMS}
    if not turn.judged or not state.discriminators:
        asked -= set(DISCRIMINATOR_LOSSES)
    if not turn.generator or state.balancer.knows(asked):
        return
    sums: Tensor | None = None
    listening = turn._replace(discriminators=False)
    for index, real in enumerate(batches):
        seed_noise(settings.seed, state.step, index, accelerator.process_index)
        with torch.no_grad():
            audio = alone(state.generator)(real).audio
        pull, unread = pull_of(audio, state, settings, turn), StepReport()
        if turn.judged:
            for name, discriminator in state.discriminators.items():
                discriminate(name, alone(discriminator), real, pull, unread, 1.0, listening)
        reconstruct(real, pull, settings.sampling_rate, unread, 1.0, log_unweighted=False)
        norms = row_norms(pull.gradients, state.scaler.get_scale())
        sums = norms if sums is None else sums + norms
    state.balancer.observe(mean_norms(accelerator.reduce(sums, reduction="sum").tolist()))


@record_function("optimizers")
def update(
    state: TrainState, accelerator: Accelerator, settings: StepSettings, report: StepReport, turn: Turn | None = None
) -> None:
    """Take the loss scale out of the gradients, clip, step, schedule: all sides whose turn it is, or none; collective."""
    turn = turn or Turn()
    sides = {"generator": [state.generator], "discriminator": list(state.discriminators.values())}
    learning = [name for name in state.optimizers if (turn.generator if name == "generator" else turn.discriminators)]
    for name in learning:
        state.scaler.unscale_(state.optimizers[name])
        parameters = [parameter for module in sides[name] for parameter in module.parameters()]
        report.grad_norms[name] = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, report.grad_norms[name])
    report.trouble = find_trouble(state, accelerator, settings, report, turn)
    report.skipped = report.trouble is not None
    if report.trouble is not None and report.trouble.policy == STOP:
        for optimizer in state.optimizers.values():
            optimizer.zero_grad()
        return
    if state.codebook_method is not None and "generator" in learning and not report.skipped:
        state.codebook_method.take_gradients(_unwrapped(state, accelerator), state.optimizers["generator"])
    for name, optimizer in state.optimizers.items():
        if name in learning and not report.skipped:
            optimizer.step()
        optimizer.zero_grad()
        advance(state.schedules[name])
    state.scaler.update()  # once for both: smaller after an overflow in either, larger after a long time without
    state.count("skipped_updates", int(report.skipped))
    state.count("spikes", int(report.trouble is not None and report.trouble.kind == SPIKE))


def find_trouble(
    state: TrainState, accelerator: Accelerator, settings: StepSettings, report: StepReport, turn: Turn | None = None
) -> Trouble | None:
    """What is wrong with the step on any rank, the same on all; collective. The balancer's norms travel with it."""
    turn = turn or Turn()
    weights = settings.weights(turn)
    nothing = torch.zeros((), device=accelerator.device)
    norms = [report.grad_norms.get(name, nothing) for name in ("generator", "discriminator")]
    own = findings(report.parts, weights, norms)
    if report.norms is not None:
        own = torch.cat([own.to(report.norms.dtype), report.norms])
    sums = accelerator.reduce(own, reduction="sum").tolist()
    sums, gathered = sums[: len(PLACES) + 1], sums[len(PLACES) + 1 :]
    guards = settings.guards if turn.generator else replace(settings.guards, spikes=OFF)  # else its loss lacks terms
    if settings.turns.changes_at(state.step):
        state.recent_losses.clear()
    scaled = state.scaler.is_enabled()
    trouble = judge(sums, accelerator.num_processes, state.recent_losses, guards, scaled=scaled)
    if trouble is None and state.balancer is not None and gathered:
        state.balancer.observe(mean_norms(gathered))
    return trouble


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
        dead = state.usage.dead(settings.restart_after)
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
        for average in state.snapshot_averages:
            for rows, mean, weight in zip(dead, codebooks(average.tensors), codebooks(generator.state_dict()), strict=True):
                mean[rows] = weight[rows]


def _unwrapped(state: TrainState, accelerator: Accelerator) -> TrainableSNAC:
    """The generator as it computes with autocast, without the wrapper of several processes."""
    generator: TrainableSNAC = accelerator.unwrap_model(state.generator, keep_fp32_wrapper=True)
    return generator
