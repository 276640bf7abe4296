"""The trainable SNAC against the stock package: the same outputs, codes and weights, and the losses it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from snac import SNAC
from torch import Tensor, nn

from snac_accel.generator import TrainableSNAC, encoding_modules, zero_encoding_biases
from tiny import ATTENTION_MODEL, MODEL, ODD_MODEL, WINDOW, make_generator, stock_twin

MODELS = {
    "tiny": MODEL,
    "attention": ATTENTION_MODEL,
    "odd rates": ODD_MODEL,
    "no noise": {**MODEL, "noise": False},
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@pytest.fixture
def real(speech: Tensor) -> Tensor:
    """(2, 1, WINDOW - 7): no whole number of quanta."""
    return speech[:2, :, : WINDOW - 7]


@each_model
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_codes_are_the_stock_packages(
    model: dict[str, Any], training: bool, real: Tensor
) -> None:
    generator = make_generator(model=model).train(training)
    stock = stock_twin(generator, model)
    torch.manual_seed(5)
    ours = generator(real)
    torch.manual_seed(5)
    audio, codes = stock(real)
    assert ours.audio.shape == real.shape
    assert torch.equal(ours.audio, audio)
    assert len(ours.codes) == len(codes) == len(model["vq_strides"])
    assert all(torch.equal(a, b) for a, b in zip(ours.codes, codes, strict=True))


@each_model
def test_weights_move_both_ways(model: dict[str, Any]) -> None:
    torch.manual_seed(1)
    stock = SNAC(**model)
    generator = make_generator(model=model)
    assert list(generator.state_dict()) == list(stock.state_dict())
    generator.load_state_dict(stock.state_dict(), strict=True)
    SNAC(**model).load_state_dict(generator.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), stock.parameters(), strict=True))


@each_model
def test_encode_and_decode_are_the_stock_packages(model: dict[str, Any], real: Tensor) -> None:
    generator = make_generator(model=model)
    stock = stock_twin(generator, model)
    codes = generator.encode(real)
    assert all(torch.equal(a, b) for a, b in zip(codes, stock.encode(real), strict=True))
    torch.manual_seed(5)
    ours = generator.decode(codes)
    torch.manual_seed(5)
    assert torch.equal(ours, stock.decode(codes))


def test_reconstruction_gradient_is_the_stock_packages(real: Tensor) -> None:
    generator = make_generator(noise=False).train()
    stock = stock_twin(generator, {**MODEL, "noise": False})
    functional.l1_loss(generator(real).audio, real).backward()
    functional.l1_loss(stock(real)[0], real).backward()
    for (name, ours), theirs in zip(generator.named_parameters(), stock.parameters(), strict=True):
        if "codebook" in name:
            assert ours.grad is None and theirs.grad is None  # what the quantizer losses are there for
            continue
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7, msg=name)


@each_model
def test_every_parameter_learns(model: dict[str, Any], real: Tensor) -> None:
    """Without a gradient on every parameter DDP stops at the second step; without one a codebook never moves."""
    generator = make_generator(model=model).train()
    output = generator(real)
    (functional.mse_loss(output.audio, real) + output.commitment + output.codebook).backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []
    for level in generator.quantizer.quantizers:
        assert level.codebook.weight.grad.abs().sum() > 0


def losses_of_snac_1_1(generator: TrainableSNAC, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Commitment and codebook loss as snac <= 1.1.0 defined them, level by level on the vectors that are looked up."""
    residual = generator.encoder(generator.preprocess(audio))
    commitment, codebook = torch.zeros(()), torch.zeros(())
    for level in generator.quantizer.quantizers:
        pooled = residual.unflatten(-1, (-1, level.stride)).mean(-1)  # (B, D, F_l)
        z_e = level.in_proj(pooled)
        rows = level.codebook.weight
        cosine = functional.normalize(z_e.transpose(1, 2), dim=-1) @ functional.normalize(rows, dim=-1).T
        z_q = rows[cosine.argmax(-1)].transpose(1, 2)
        commitment = commitment + (z_e - z_q.detach()).square().mean()
        codebook = codebook + (z_q - z_e.detach()).square().mean()
        straight_through = z_e + (z_q - z_e).detach()
        residual = residual - level.out_proj(straight_through).repeat_interleave(level.stride, -1)
    return commitment, codebook


@pytest.mark.parametrize("name", ["commitment", "codebook"])
def test_quantizer_losses_are_those_of_snac_1_1(name: str, real: Tensor) -> None:
    generator = make_generator().double()
    ours = getattr(generator(real.double()), name)
    theirs = losses_of_snac_1_1(generator, real.double())[name == "codebook"]
    torch.testing.assert_close(ours, theirs)
    parameters = list(generator.parameters())
    pairs = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, theirs))
    for (parameter, _), a, b in zip(generator.named_parameters(), *pairs, strict=True):
        assert (a is None) == (b is None), parameter
        if a is not None:
            torch.testing.assert_close(a, b, msg=parameter)


def test_each_quantizer_loss_pulls_one_side(real: Tensor) -> None:
    generator = make_generator()
    output = generator(real)
    rows = [level.codebook.weight for level in generator.quantizer.quantizers]
    encoder = list(generator.encoder.parameters())
    commitment = torch.autograd.grad(output.commitment, rows + encoder, retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in commitment[: len(rows)])
    assert any(gradient.abs().sum() > 0 for gradient in commitment[len(rows) :])
    codebook = torch.autograd.grad(output.codebook, rows + encoder, allow_unused=True)
    assert all(gradient.abs().sum() > 0 for gradient in codebook[: len(rows)])
    assert all(gradient is None for gradient in codebook[len(rows) :])


def test_quantizer_losses_average_over_micro_batches(speech: Tensor) -> None:
    generator = make_generator(noise=False).double()
    batch = speech[:4, :, :WINDOW].double()
    whole, halves = generator(batch), [generator(half) for half in batch.split(2)]
    for name in ("commitment", "codebook"):
        mean = sum(getattr(half, name) for half in halves) / 2
        torch.testing.assert_close(getattr(whole, name), mean)


def test_latents_are_what_is_looked_up(real: Tensor) -> None:
    generator = make_generator()
    output = generator(real)
    for level, codes, latents in zip(
        generator.quantizer.quantizers, output.codes, output.latents, strict=True
    ):
        assert not latents.requires_grad
        assert torch.equal(level.decode_latents(latents)[1], codes)


class Types:
    """Records the types of what goes into and comes out of modules."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}

    def watch(self, name: str, module: nn.Module) -> None:
        def note(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen[name] = (arguments[0].dtype, output.dtype)

        module.register_forward_hook(note)


def test_bfloat16_stays_out_of_quantizer_and_last_layer(real: Tensor) -> None:
    generator, types = make_generator().train(), Types()
    for index, level in enumerate(generator.quantizer.quantizers):
        types.watch(f"level {index}", level.in_proj)
    types.watch("encoder", generator.encoder.block[0])
    types.watch("decoder", generator.decoder.model[0])
    types.watch("last", generator.decoder.model[-2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = generator(real)
    full = (torch.float32, torch.float32)
    assert types.seen["encoder"][1] == types.seen["decoder"][1] == torch.bfloat16  # autocast was on
    assert (
        types.seen["level 0"] == types.seen["level 1"] == types.seen["level 2"] == types.seen["last"] == full
    )
    assert {output.audio.dtype, output.commitment.dtype, output.codebook.dtype} == {torch.float32}
    (output.audio.square().mean() + output.commitment + output.codebook).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


def test_encode_latent_is_what_the_first_level_quantizes(real: Tensor) -> None:
    generator = make_generator()
    latent = generator.encode_latent(real)
    assert not latent.requires_grad
    assert all(
        torch.equal(a, b)
        for a, b in zip(generator.quantize(latent).codes, generator.encode(real), strict=True)
    )


def crowding(generator: TrainableSNAC, audio: Tensor) -> list[float]:
    """Mean resultant length of the vectors that each level looks up: 1 if all point the same way."""
    return [float(functional.normalize(z, dim=1).mean((0, 2)).norm()) for z in generator(audio).latents]


def test_zero_biases_spread_the_latents_of_speech(speech: Tensor) -> None:
    generator = make_generator()
    decoder = [p.clone() for p in generator.decoder.parameters()]
    before = crowding(generator, speech[:8])
    zero_encoding_biases(generator)
    assert all(a < 0.7 * b for a, b in zip(crowding(generator, speech[:8]), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(decoder, generator.decoder.parameters(), strict=True))


def test_encoding_modules_are_all_that_decides_the_codes(speech: Tensor) -> None:
    """New weights for everything else change no code of the first level; new weights for any of them do."""
    generator = make_generator()
    first = generator.encode(speech[:8])[0]
    encoding = {id(p) for module in encoding_modules(generator) for p in module.parameters()}
    with torch.no_grad():
        for parameter in generator.parameters():
            if id(parameter) not in encoding:
                parameter.normal_()
    assert torch.equal(generator.encode(speech[:8])[0], first)
    for module in encoding_modules(generator)[:2]:
        before = generator.encode(speech[:8])[0]
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        assert not torch.equal(generator.encode(speech[:8])[0], before)
