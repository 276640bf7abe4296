"""Codebooks: statistics with known values, k-means that finds what is there, restarts that last."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as functional
from accelerate import Accelerator
from torch import Tensor

from snac_accel.codebook import (
    CodebookUsage,
    count_codes,
    initialize_codebooks,
    levels,
    perplexity,
    restart_dead_codes,
    share_used,
    spherical_kmeans,
)
from snac_accel.generator import GeneratorOutput, TrainableSNAC
from snac_accel.state import TrainState
from snac_accel.step import train_step
from tiny import MODEL, WINDOW, make_generator, make_state, step_settings

MakeAccelerator = Callable[..., Accelerator]
K = MODEL["codebook_size"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7, 0, 0, 0], 1.0),
        ([5, 5, 5, 5], 4.0),
        ([3, 3, 0, 0], 2.0),
        ([1, 3, 0, 0], math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3))),
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_perplexity_of_known_counts(counts: list[int], expected: float) -> None:
    assert float(perplexity(torch.tensor(counts))) == pytest.approx(expected)


def test_perplexity_lies_between_one_and_the_codes_in_use() -> None:
    counts = torch.randint(0, 4, (50, 16), generator=torch.Generator().manual_seed(0))
    counts[:, 0] += 1
    used = (counts > 0).sum(-1)
    assert ((perplexity(counts) >= 1) & (perplexity(counts) <= used + 1e-9)).all()
    assert torch.equal(share_used(counts) * 16, used.double())


def test_counts_are_of_all_rows_and_frames() -> None:
    codes = [torch.tensor([[0, 2], [2, 2]]), torch.tensor([[1, 1, 1, 3], [0, 0, 0, 0]])]
    assert count_codes(codes, 4).tolist() == [[1, 0, 3, 0], [4, 3, 0, 1]]


def test_age_counts_the_lookups_since_a_code_was_chosen() -> None:
    usage = CodebookUsage(num_levels=2, codebook_size=3)
    usage.observe(torch.tensor([[4, 0, 2], [0, 1, 0]]))
    usage.observe(torch.tensor([[0, 0, 5], [1, 0, 0]]))
    assert usage.age.tolist() == [[5, 11, 0], [0, 1, 2]]  # each level counts its own lookups
    assert usage.counts.tolist() == [[4, 0, 7], [1, 1, 0]]
    assert usage.age.tolist() == [[5, 11, 0], [0, 1, 2]]
    assert usage.dead(11 / 3).tolist() == [[False, True, False], [False] * 3]


def test_loading_copies_usage() -> None:
    usage, other = CodebookUsage(1, 4), CodebookUsage(1, 4)
    usage.observe(torch.tensor([[1, 0, 0, 2]]))
    other.load_state_dict(usage.state_dict())
    usage.observe(torch.tensor([[1, 0, 0, 2]]))
    assert other.counts.tolist() == [[1, 0, 0, 2]]
    assert other.age.tolist() == [[0, 3, 3, 0]]


# Restarts, through whole training steps


class Restarted:
    """A training step with restarts, beside the same step without; what was restarted, and the latents of the step."""

    def __init__(self, accelerator: Accelerator, batches: list[Tensor]) -> None:
        self.accelerator, self.batches = accelerator, batches
        self.plain = make_state(accelerator)
        train_step(batches, self.plain, accelerator, step_settings())
        self.state = make_state(accelerator)
        self.latents: list[list[Tensor]] = []
        hook = self.state.generator.register_forward_hook(self._note)
        self.report = train_step(batches, self.state, accelerator, step_settings(restart_after=0.5))
        hook.remove()
        assert self.report.counts is not None
        self.dead = self.report.counts == 0  # after one step: every code that it did not choose

    def _note(self, _: object, __: object, output: GeneratorOutput) -> None:
        self.latents.append(output.latents)

    def rows(self, state: TrainState, level: int) -> Tensor:
        return levels(state.generator)[level].codebook.weight.detach()  # type: ignore[arg-type]


@pytest.fixture
def restarted(make_accelerator: MakeAccelerator, speech: Tensor) -> Restarted:
    return Restarted(make_accelerator(2), list(speech[:8, :, :WINDOW].split(4)))


def test_restarted_rows_are_latents_of_the_step_after_it(restarted: Restarted) -> None:
    assert restarted.report.restarts is not None
    assert torch.equal(restarted.report.restarts, restarted.dead.sum(-1))
    assert (restarted.report.restarts > 0).all()
    for level, dead in enumerate(restarted.dead):
        rows = restarted.rows(restarted.state, level)
        latents = torch.cat([batch[level].transpose(1, 2).flatten(0, 1) for batch in restarted.latents])
        is_latent = (
            (rows[:, None] == latents).all(-1).any(-1)
        )  # bitwise: the optimiser did not touch them again
        assert torch.equal(is_latent, dead)
        assert len(rows[dead].unique(dim=0)) == dead.sum()  # there were latents enough: none was given twice


def test_restart_changes_nothing_but_the_dead_rows(restarted: Restarted) -> None:
    before, after = restarted.plain.generator.state_dict(), restarted.state.generator.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"quantizer.quantizers.{level}.codebook.weight" for level in range(3)}
    for level, dead in enumerate(restarted.dead):
        living = restarted.rows(restarted.state, level)[~dead]
        assert torch.equal(living, restarted.rows(restarted.plain, level)[~dead])


def test_restart_forgets_age_and_moments(restarted: Restarted) -> None:
    """In a second step, before which every code has moments and a great age."""
    state = restarted.state
    weights = [level.codebook.weight for level in levels(state.generator)]  # type: ignore[arg-type]
    moments = [state.optimizers["generator"].state[weight] for weight in weights]
    for entry in moments:
        entry["exp_avg"].fill_(0.5)
        entry["exp_avg_sq"].fill_(0.5)
    state.usage.age.fill_(10**6)
    before = state.usage.restarts.clone()
    settings = step_settings(restart_after=1000.0)
    report = train_step(restarted.batches, state, restarted.accelerator, settings)
    assert report.counts is not None
    dead = report.counts == 0
    assert dead.any(-1).all() and (~dead).any(-1).all()
    assert (state.usage.age == 0).all()  # the chosen ones by being chosen
    assert torch.equal(state.usage.restarts - before, dead.sum(-1))
    for entry, mask in zip(moments, dead, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert (entry[name][mask] == 0).all()
            assert (entry[name][~mask] != 0).any(-1).all()


@pytest.mark.parametrize("restart", [True, False])
def test_restarted_codes_are_chosen_again(
    restart: bool, make_accelerator: MakeAccelerator, speech: Tensor
) -> None:
    """In a generator that has trained a little, codes that were moved out of reach come back within three steps."""
    accelerator, lost = make_accelerator(), [1, 9, 20, 30]
    state = make_state(accelerator, discriminators={})
    initialize_codebooks(state.generator, speech.split(8))  # type: ignore[arg-type]
    batches = [[speech[i : i + 4, :, 4000 : 4000 + WINDOW]] for i in range(0, 24, 4)]
    for i in range(12):
        train_step(batches[i % 6], state, accelerator, step_settings(restart_after=4.0))
    with torch.no_grad():
        for level in levels(state.generator):  # type: ignore[arg-type]
            level.codebook.weight[lost] = -level.codebook.weight.mean(0)
    state.usage.age.zero_()
    state.usage.age[:, lost] = 10**6
    train_step(batches[0], state, accelerator, step_settings(restart_after=1000.0 if restart else None))
    counts = [train_step(batches[i], state, accelerator, step_settings()).counts for i in range(1, 4)]
    chosen = (torch.stack([one for one in counts if one is not None]).sum(0)[:, lost] > 0).double().mean(-1)
    assert ((chosen >= 0.5) if restart else (chosen == 0)).all(), chosen


def test_no_restart_before_a_code_is_dead(make_accelerator: MakeAccelerator, speech: Tensor) -> None:
    accelerator = make_accelerator()
    state = make_state(accelerator)
    report = train_step([speech[:2, :, :WINDOW]], state, accelerator, step_settings(restart_after=100.0))
    assert report.restarts is not None and report.restarts.sum() == 0


def split_of(latents: list[Tensor], batch_size: int, num_processes: int, rank: int) -> list[list[Tensor]]:
    """The micro-batches of one rank, as the data order deals them: micro-batch, rank, row."""
    blocks = list(zip(*(level.split(batch_size) for level in latents), strict=True))
    return [list(block) for block in blocks[rank::num_processes]]


def restart_on(
    generator: TrainableSNAC, latents: list[Tensor], batch_size: int, num_processes: int
) -> list[dict[str, Tensor]]:
    """State dicts of all ranks after a restart of codes 0, 3 and 5 and up; ranks take turns, sums are handed on."""

    def run(rank: int, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        own = copy.deepcopy(generator)
        usage = CodebookUsage(3, K)
        usage.age[:, [0, 3, *range(5, K)]] = 1000
        restart_dead_codes(
            own,
            usage,
            split_of(latents, batch_size, num_processes, rank),
            torch.optim.AdamW(own.parameters()),
            restart_after=1.0,
            seed=3,
            step=17,
            rank=rank,
            num_processes=num_processes,
            reduce=reduce,
        )
        return own.state_dict()

    sums: dict[int, Tensor] = {}  # by the number of the call: one for each level
    for rank in range(num_processes):
        calls = iter(range(3))

        def add(rows: Tensor, calls: Iterator[int] = calls) -> Tensor:
            call = next(calls)
            sums[call] = sums.get(call, torch.zeros_like(rows)) + rows
            return rows

        run(rank, add)
    results = []
    for rank in range(num_processes):
        calls = iter(range(3))
        results.append(run(rank, lambda rows, calls=calls: sums[next(calls)]))  # type: ignore[misc]
    return results


@pytest.mark.parametrize(("batch_size", "num_processes"), [(4, 1), (1, 1), (4, 2), (2, 2), (2, 4), (1, 4)])
def test_restarts_do_not_depend_on_micro_batches_and_ranks(batch_size: int, num_processes: int) -> None:
    generator = make_generator()
    latents = [torch.randn(8, 4, frames) for frames in (10, 20, 40)]
    (whole,) = restart_on(generator, latents, batch_size=8, num_processes=1)
    assert not torch.equal(
        whole["quantizer.quantizers.0.codebook.weight"], generator.quantizer.quantizers[0].codebook.weight
    )
    for result in restart_on(generator, latents, batch_size, num_processes):
        assert [name for name in whole if not torch.equal(whole[name], result[name])] == []


def test_more_dead_codes_than_latents_still_all_restart() -> None:
    generator = make_generator()
    latents = [torch.randn(1, 4, 3) for _ in range(3)]
    (result,) = restart_on(generator, latents, batch_size=1, num_processes=1)
    rows = result["quantizer.quantizers.0.codebook.weight"][5:]
    assert len(rows.unique(dim=0)) == 3


# K-means


def directions(number: int, dimension: int = 6, seed: int = 0) -> Tensor:
    """Orthonormal rows."""
    random = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(random).Q[:number]


def test_kmeans_finds_separate_directions() -> None:
    """Twelve directions (six axes, both ways), lengths from 0.1 to 10: length must not matter."""
    random = torch.Generator().manual_seed(1)
    axes = torch.cat([directions(6), -directions(6)])
    lengths = 10 ** (2 * torch.rand(600, 1, generator=random) - 1)
    noise = 0.05 * torch.randn(600, 6, generator=random)
    vectors = lengths * functional.normalize(axes.repeat(50, 1) + noise)
    found = functional.normalize(spherical_kmeans(vectors, 12, seed=0, iterations=20))
    best = (axes @ found.T).max(-1)
    assert (best.values > 0.99).all()
    assert len(best.indices.unique()) == 12


def test_kmeans_centres_stay_at_the_scale_of_their_members() -> None:
    vectors = 7 * directions(3).repeat(40, 1)
    norms = spherical_kmeans(vectors, 3, seed=2).norm(dim=-1)
    assert torch.allclose(norms, torch.full((3,), 7.0), rtol=1e-5)


def test_kmeans_is_deterministic() -> None:
    vectors = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    first = spherical_kmeans(vectors, 16, seed=5)
    torch.manual_seed(99)
    torch.rand(3)
    assert torch.equal(first, spherical_kmeans(vectors, 16, seed=5))
    assert not torch.equal(first, spherical_kmeans(vectors, 16, seed=6))


def members(vectors: Tensor, centres: Tensor) -> Tensor:
    """How many vectors each centre is nearest to."""
    nearest = (functional.normalize(vectors) @ functional.normalize(centres).T).argmax(-1)
    return torch.bincount(nearest, minlength=len(centres))


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_leaves_no_cluster_empty(seed: int) -> None:
    """Crowded at one direction, as the latents of an untrained encoder are (FACTS: mean resultant length 0.97)."""
    random = torch.Generator().manual_seed(seed)
    vectors = torch.tensor([1.0, 0, 0, 0]) + 0.2 * torch.randn(1000, 4, generator=random)
    assert (members(vectors, spherical_kmeans(vectors, 64, seed=seed)) > 0).all()


@pytest.mark.parametrize("kind", ["few", "many equal", "one", "silence"])
def test_kmeans_rows_are_distinct_whatever_comes(kind: str) -> None:
    few = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    vectors = {"few": few, "many equal": few.repeat(20, 1), "one": few[:1], "silence": torch.ones(50, 4)}[
        kind
    ]
    centres = spherical_kmeans(vectors, 16, seed=0)
    assert centres.shape == (16, 4)
    assert centres.isfinite().all()
    assert len(centres.unique(dim=0)) == 16


def held_out_perplexity(generator: TrainableSNAC, audio: Tensor) -> Tensor:
    return perplexity(count_codes(generator.encode(audio), K))


@pytest.mark.parametrize("seed", [0, 1])
def test_initialisation_spreads_the_codes_over_speech_never_seen(seed: int, speech: Tensor) -> None:
    generator = make_generator(seed)
    before = copy.deepcopy(generator.state_dict())
    perplexity_before = held_out_perplexity(generator, speech[16:])
    initialize_codebooks(generator, speech[:16].split(4), seed=seed)
    after = held_out_perplexity(generator, speech[16:])
    assert (after > 0.4 * K).all() and (after > 2 * perplexity_before).all(), (perplexity_before, after)
    changed = {
        name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {f"quantizer.quantizers.{level}.codebook.weight" for level in range(3)}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in generator.parameters())


def test_initialisation_fits_the_codebooks_as_they_will_be_used(speech: Tensor) -> None:
    """The perplexity that it reports, level by level, is what the finished generator has on the same clips."""
    generator = make_generator()
    reported = initialize_codebooks(generator, speech[:8].split(2))
    torch.testing.assert_close(reported, held_out_perplexity(generator, speech[:8]), rtol=0.02, atol=0)
    again = make_generator()
    assert torch.equal(initialize_codebooks(again, speech[:8].split(2)), reported)
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), again.parameters(), strict=True))
