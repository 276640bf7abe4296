"""What moves the codebooks: each method against its definition, in a step, in a checkpoint, and in what is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional
from tiny import MODEL, WINDOW, differences, make_generator, make_state, snapshot, step_settings

from snac_accel.checkpoint import METHOD_FILE, export_checkpoint, load_checkpoint, save_checkpoint
from snac_accel.codebook import METHODS, MovingAverage, Reparametrised, codebook_method, count_codes, levels, perplexity
from snac_accel.config import CodebookSettings, TrainingConfig, to_dict
from snac_accel.export import check_export
from snac_accel.generator import GeneratorOutput, TrainableSNAC
from snac_accel.state import TrainState
from snac_accel.step import train_step
from snac_accel.train import loss_weights

MakeAccelerator = Callable[..., Accelerator]
OTHERS = [name for name, method in METHODS.items() if method is not None]
K = MODEL["codebook_size"]


def rows_of(generator: Any) -> Tensor:
    """All codebooks, (L, K, d), copied."""
    return torch.stack([level.codebook.weight.detach().clone() for level in levels(generator)])


def begin(accelerator: Accelerator, name: str, **options: Any) -> TrainState:
    """A state whose codebooks are moved by the method of that name."""
    state = make_state(accelerator, **options)
    state.codebook_method = codebook_method(name, state.generator, decay=0.9)  # type: ignore[arg-type]
    return state


def weights_of(name: Any) -> dict[str, float]:
    return {"codebook": loss_weights(TrainingConfig(codebook=CodebookSettings(method=name)))["codebook"]}


def run(state: TrainState, accelerator: Accelerator, speech: Tensor, steps: int, name: str, **options: Any) -> None:
    for step in range(steps):
        batch = speech[4 * (step % 5) :][:4, :, 2000 : 2000 + WINDOW]
        train_step([batch], state, accelerator, step_settings(weights_of(name), **options))


def test_the_configuration_lists_the_methods() -> None:
    assert get_args(CodebookSettings.model_fields["method"].annotation) == tuple(METHODS)


# Moving averages


def outputs_of(generator: TrainableSNAC, batches: list[Tensor]) -> list[GeneratorOutput]:
    with torch.no_grad():
        return [generator(batch) for batch in batches]


def counts_of(outputs: list[GeneratorOutput]) -> Tensor:
    return torch.stack([count_codes(output.codes, K) for output in outputs]).sum(0)


def test_moving_averages_are_the_weighted_means_of_the_latents(speech: Tensor) -> None:
    """Against a loop over single latents, in three steps, from the definition."""
    generator, decay = make_generator(), 0.8
    method = MovingAverage(generator, decay)
    number: dict[tuple[int, int], float] = {}
    total: dict[tuple[int, int], Tensor] = {}
    for step in range(3):
        before = rows_of(generator).double()
        outputs = outputs_of(generator, list(speech[8 * step :][:8, :, :WINDOW].split(4)))
        for level in range(3):
            vectors = [z for output in outputs for z in output.latents[level].transpose(1, 2).flatten(0, 1).double()]
            codes = [int(c) for output in outputs for c in output.codes[level].flatten()]
            for code in range(K):
                own = [vector for vector, chosen in zip(vectors, codes, strict=True) if chosen == code]
                place, share = (level, code), len(codes) / K
                number.setdefault(place, share)
                total.setdefault(place, share * before[level, code])
                number[place] = decay * number[place] + (1 - decay) * len(own)
                total[place] = decay * total[place] + (1 - decay) * sum(own, torch.zeros(4).double())
        method.follow(generator, outputs, counts_of(outputs))
    for (level, code), expected in total.items():
        found = rows_of(generator)[level, code].double()
        torch.testing.assert_close(found, expected / number[level, code], rtol=1e-4, atol=1e-6)


def test_a_code_that_nobody_chooses_stays_for_ever(speech: Tensor) -> None:
    """Also when what is known of it has faded below what float32 can hold."""
    generator = make_generator()
    method = MovingAverage(generator, decay=0.5)
    outputs = outputs_of(generator, [speech[:4, :, :WINDOW]])
    counts = counts_of(outputs)
    before = rows_of(generator)
    for _ in range(200):
        method.follow(generator, outputs, counts)  # the codes are those of the first time
    unused = counts == 0
    assert unused.any() and not torch.equal(rows_of(generator)[~unused], before[~unused])
    torch.testing.assert_close(rows_of(generator)[unused], before[unused])
    assert all(tensor.isfinite().all() for tensor in method.state_dict().values())


def test_moving_averages_stand_still_while_the_encoder_is_held(make_accelerator: MakeAccelerator, speech: Tensor) -> None:
    accelerator = make_accelerator()
    state = begin(accelerator, "moving_average")
    before = rows_of(state.generator)
    state.optimizers["generator"].param_groups[0]["lr"] = 0.0
    run(state, accelerator, speech, 1, "moving_average")
    assert torch.equal(rows_of(state.generator), before)


# A shared linear map


def test_the_map_is_trained_by_the_chain_rule(speech: Tensor) -> None:
    """The gradients of matrix and offset, against autograd through a codebook computed from them."""
    generator = make_generator()
    method = Reparametrised(generator)
    with torch.no_grad():  # anywhere but at the start
        method.matrix += 0.1 * torch.randn(method.matrix.shape)
        method.offset += 0.1 * torch.randn(method.offset.shape)
        for level, rows in zip(levels(generator), method.base @ method.matrix + method.offset, strict=True):
            level.codebook.weight.copy_(rows)
    audio = speech[:4, :, :WINDOW]
    generator(audio).codebook.backward()
    method.take_gradients(generator, torch.optim.AdamW(generator.parameters(), lr=0.0))
    found = [method.matrix.grad, method.offset.grad]
    matrix, offset = (x.detach().clone().requires_grad_() for x in (method.matrix, method.offset))
    computed = method.base @ matrix + offset
    names = [f"quantizer.quantizers.{level}.codebook.weight" for level in range(3)]
    output = torch.func.functional_call(generator, dict(zip(names, computed, strict=True)), (audio,))
    expected = torch.autograd.grad(output.codebook, [matrix, offset])
    assert all(gradient.abs().max() > 0 for gradient in expected)
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-7)


def test_codes_that_nobody_chooses_follow_the_others(make_accelerator: MakeAccelerator, speech: Tensor) -> None:
    accelerator = make_accelerator()
    state = begin(accelerator, "reparametrised")
    before = rows_of(state.generator)
    run(state, accelerator, speech, 3, "reparametrised")
    unused = state.usage.counts == 0
    moved = (rows_of(state.generator) != before).any(-1)
    assert unused.any(-1).all() and moved[unused].all()


# All of them, in steps


@pytest.mark.parametrize("name", OTHERS)
def test_the_optimiser_leaves_the_codebooks_alone(name: str, make_accelerator: MakeAccelerator, speech: Tensor) -> None:
    """They move, but not by it: it has no moments of them, and its weight decay does not shrink them."""
    accelerator = make_accelerator()
    state = begin(accelerator, name)
    before = rows_of(state.generator)
    run(state, accelerator, speech, 2, name)
    assert not torch.equal(rows_of(state.generator), before)
    known = state.optimizers["generator"].state
    assert all(level.codebook.weight not in known for level in levels(state.generator))  # type: ignore[arg-type]
    assert len(known) == len(list(state.generator.parameters())) - 3


@pytest.mark.parametrize("name", OTHERS)
def test_a_restarted_code_is_a_latent_of_which_nothing_is_known(
    name: str, make_accelerator: MakeAccelerator, speech: Tensor
) -> None:
    accelerator = make_accelerator()
    state = begin(accelerator, name)
    run(state, accelerator, speech, 3, name)
    latents: list[list[Tensor]] = []
    hook = state.generator.register_forward_hook(lambda _, __, output: latents.append(output.latents))
    state.usage.age.fill_(10**6)
    run(state, accelerator, speech, 1, name, restart_after=1000.0)
    hook.remove()
    dead = state.usage.restarts
    assert (dead > 0).all() and (state.usage.age == 0).all()
    method = state.codebook_method
    for index, rows in enumerate(rows_of(state.generator)):
        vectors = latents[0][index].transpose(1, 2).flatten(0, 1)
        restarted = (rows[:, None] == vectors).all(-1).any(-1)
        assert restarted.sum() == dead[index]
        if isinstance(method, MovingAverage):
            assert torch.equal(method.number[index] == 0, restarted)
            assert torch.equal((method.total[index] == 0).all(-1), restarted)
        if isinstance(method, Reparametrised):
            torch.testing.assert_close(method.base[index] @ method.matrix[index] + method.offset[index], rows)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("restart_after", [None, 4.0])
def test_each_remedy_finds_latents_that_lie_far_from_the_codes(
    name: str, restart_after: float | None, make_accelerator: MakeAccelerator, speech: Tensor
) -> None:
    """Codebooks far off and all in a heap, the encoder frozen: twenty steps bring them to the latents of speech never seen.

    Restarts spread them over the latents as well, which nothing else does from there.
    """
    accelerator = make_accelerator()
    state = begin(accelerator, name, discriminators={}, learning_rate=0.02)
    state.schedules["generator"].lr_lambdas = [lambda step: 1.0] * 2  # type: ignore[attr-defined]
    torch.manual_seed(7)
    for level in levels(state.generator):  # type: ignore[arg-type]
        level.in_proj.requires_grad_(False)
        level.codebook.weight.data.copy_(0.4 + 0.01 * torch.randn(level.codebook.weight.shape))
    state.generator.encoder.requires_grad_(False)  # type: ignore[union-attr]
    state.codebook_method = codebook_method(name, state.generator, decay=0.9)  # type: ignore[arg-type]
    before = relative_error(state.generator, speech[20:])
    run(state, accelerator, speech, 20, name, restart_after=restart_after)
    assert relative_error(state.generator, speech[20:]) < 0.3 * before
    if restart_after is not None:
        held_out = count_codes(state.generator.encode(speech[20:]), K)  # type: ignore[operator]
        assert perplexity(held_out).sum() > 6  # 3: one code on each level


def relative_error(generator: Any, audio: Tensor) -> float:
    """Mean square of latent less code, over that of the latent, on the coarsest level."""
    codebook = levels(generator)[0].codebook.weight.detach()
    with torch.no_grad():
        vectors = generator(audio).latents[0].transpose(1, 2).flatten(0, 1)
    nearest = codebook[(functional.normalize(vectors) @ functional.normalize(codebook).T).argmax(-1)]
    return float((vectors - nearest).square().mean() / vectors.square().mean())


# Checkpoints and exports


def save(state: TrainState, folder: Path) -> Path:
    return save_checkpoint(folder, state, config=to_dict(TrainingConfig()) | {"model": MODEL}, config_hash="x")


@pytest.mark.parametrize("name", OTHERS)
def test_a_loaded_run_goes_on_bit_by_bit(
    name: str, make_accelerator: MakeAccelerator, speech: Tensor, tmp_path: Path
) -> None:
    accelerator = make_accelerator()
    state = begin(accelerator, name)
    run(state, accelerator, speech, 3, name, restart_after=2.0)
    loaded = begin(accelerator, name, seed=5)
    load_checkpoint(save(state, tmp_path), loaded)
    assert differences(snapshot(state), snapshot(loaded)) == []
    for one in (state, loaded):
        run(one, accelerator, speech, 3, name, restart_after=2.0)
    assert differences(snapshot(state), snapshot(loaded)) == []


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_may_begin_with_a_checkpoint_that_knows_nothing_of_it(
    name: str, make_accelerator: MakeAccelerator, speech: Tensor, tmp_path: Path
) -> None:
    accelerator = make_accelerator()
    state = begin(accelerator, "gradient")
    run(state, accelerator, speech, 2, "gradient")
    path = save(state, tmp_path)
    assert not (path / METHOD_FILE).exists()
    loaded, fresh = begin(accelerator, name, seed=5), codebook_method(name, state.generator, decay=0.9)  # type: ignore[arg-type]
    load_checkpoint(path, loaded)
    assert fresh is not None and loaded.codebook_method is not None
    found = loaded.codebook_method.state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in fresh.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_export_is_plain_snac(name: str, make_accelerator: MakeAccelerator, speech: Tensor, tmp_path: Path) -> None:
    """Whatever moved the codebooks, the stock package gives the codes of the model that was trained."""
    accelerator = make_accelerator()
    state = begin(accelerator, name)
    run(state, accelerator, speech, 4, name, restart_after=2.0)
    export_checkpoint(save(state, tmp_path / "checkpoints"), tmp_path / "export")
    assert isinstance(state.generator, TrainableSNAC)
    check_export(tmp_path / "export", state.generator.eval(), speech[20:])
