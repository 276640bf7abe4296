"""A fixed global batch gives the same run however it is spread: processes × clips per process × accumulation.

Real runs of the tiny model on the shipped speech, with everything switched on that could depend on the layout: both
families of discriminators, all losses, clipping in every step, warm-up and decay, k-means, hold and release of the encoder,
restarts of dead codes, random gains, and one clip of NaN on one rank.

Float64 and AdamW: weights and moments agree to 1e-9 of each tensor's largest value (measured: 3e-12). Float32 and SGD: weights
agree to 2e-6 (measured: 2e-7; training moves them by 6e-5 to 1e-2), momentum of up to 0.9 to 3e-5 (measured: 3e-6).

Rounding is amplified by the spectral losses: they take logarithms of magnitudes down to 1e-5. It is worst where the audio is
silent, in float64 too: the reconstruction is then exactly periodic, most of its magnitudes are 0 but for rounding, and the
gradient of a magnitude at 0 has the direction of that rounding. So the seed is one without silent windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import (
    NAN_ROW,
    NAN_STEP,
    NUM_STEPS,
    TINY,
    Hooks,
    Layout,
    StepRecord,
    Trace,
    global_batches,
    train_in,
)

from snac_accel.optimizers import learning_rate_factor, release_factor

EIGHT = [Layout(1, 8, 1), Layout(1, 4, 2), Layout(1, 2, 4), Layout(2, 4, 1), Layout(2, 2, 2)]
SIX = [Layout(1, 6, 1), Layout(3, 2, 1), Layout(3, 1, 2)]
SPREAD = EIGHT[1:] + SIX[1:]  # what is compared with one process and one micro-batch
FLOAT32 = [EIGHT[0], EIGHT[2], EIGHT[4]]
# Runs that only look at their batches: streaming, workers, layout. Those that train read with no worker, not streaming.
STREAMS = [(True, 0, EIGHT[0]), (True, 0, SIX[0])]
LOOKERS = [
    (False, 2, EIGHT[4]),
    (False, 2, SIX[2]),
    (True, 0, EIGHT[4]),
    (True, 2, SIX[2]),
    (True, 2, EIGHT[3]),
]
LOOKS = 3  # steps of these
DOUBLE, SINGLE = Hooks(float64=True, nan=True), Hooks(sgd=True, nan=True)


class Runs:
    """All runs of this file, two at a time in the background; each test waits for those it needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.executor = ThreadPoolExecutor(2)
        self.futures: dict[object, Future[list[Trace]]] = {}
        for layout in EIGHT + SIX:
            self.start(("float64", layout), layout, DOUBLE)
        for layout in FLOAT32:
            self.start(("float32", layout), layout, SINGLE, losses={"stft": 0.0})
        for streaming, workers, layout in STREAMS + LOOKERS:
            data = {"streaming": streaming, "num_workers": workers}
            self.look((streaming, workers, layout), layout, data)

    def look(self, key: object, layout: Layout, data: dict[str, Any]) -> None:
        """Start a run that does not train."""
        steps, codebook = {"num_iterations": LOOKS}, {"initialization": "random"}
        self.start(key, layout, Hooks(trains=False), training=steps, data=data, codebook=codebook)

    def start(self, key: object, layout: Layout, hooks: Hooks, **changes: dict[str, Any]) -> None:
        folder = self.folder / f"run_{len(self.futures)}"
        self.futures[key] = self.executor.submit(train_in, layout, folder, hooks, **changes)

    def __getitem__(self, key: object) -> list[Trace]:
        return self.futures[key].result()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    everything = Runs(tmp_path_factory.mktemp("runs"))
    yield everything
    everything.executor.shutdown(cancel_futures=True)


def reference(layout: Layout) -> Layout:
    """The same global batch in one process and one micro-batch."""
    return Layout(1, layout.clips, 1)


def differences(ours: Trace, theirs: Trace, part: str) -> dict[str, float]:
    """For each tensor of a part of the state: the largest difference, as a share of the tensor's largest value."""
    assert ours.state.keys() == theirs.state.keys()
    return {
        name: float((ours.state[name] - tensor).abs().max() / tensor.abs().max())
        for name, tensor in theirs.state.items()
        if name.startswith(part)
    }


def numbers(traces: list[Trace], step: int) -> dict[str, float]:
    """Losses, averaged over the ranks, and gradient norms of a step."""
    records = [trace.steps[step] for trace in traces]
    losses = {name: sum(r.losses[name] for r in records) / len(records) for name in records[0].losses}
    return losses | {f"norm of {name}": norm for name, norm in records[0].grad_norms.items()}


def decisions(record: StepRecord) -> tuple[object, ...]:
    """What has to be the very same in all layouts."""
    return record.skipped, record.restarts, record.counts, record.learning_rates


@pytest.mark.parametrize("layout", SPREAD, ids=str)
def test_float64_state_is_the_same_in_every_layout(layout: Layout, runs: Runs) -> None:
    """Weights, moments, usage of the codes; a tensor of zeros would give NaN and fail."""
    ours, theirs = runs["float64", layout][0], runs["float64", reference(layout)][0]
    for part in (
        "weights.generator",
        "weights.mpd",
        "weights.msstftd",
        "moments.generator",
        "moments.discriminator",
    ):
        found = differences(ours, theirs, part)
        assert found and max(found.values()) < 1e-9, max(found.items(), key=lambda item: item[1])
    for name in ("counts", "age", "restarts"):
        assert torch.equal(ours.state[f"usage.{name}"], theirs.state[f"usage.{name}"])


@pytest.mark.parametrize("layout", SPREAD, ids=str)
def test_losses_norms_and_decisions_are_the_same_in_every_layout(layout: Layout, runs: Runs) -> None:
    """Norms are those before clipping, which would hide a wrong scale of all gradients, as AdamW would."""
    ours, theirs = runs["float64", layout], runs["float64", reference(layout)]
    for step in range(NUM_STEPS):
        assert numbers(ours, step) == pytest.approx(numbers(theirs, step), rel=1e-9, nan_ok=True)
        for trace in ours:
            assert decisions(trace.steps[step]) == decisions(theirs[0].steps[step])


@pytest.mark.parametrize("layout", FLOAT32[1:], ids=str)
def test_float32_sgd_is_the_same_to_rounding(layout: Layout, runs: Runs) -> None:
    ours, theirs = runs["float32", layout][0], runs["float32", reference(layout)][0]
    for part, tolerance in (("weights", 2e-6), ("moments", 3e-5), ("usage", 0)):
        for name in (name for name in theirs.state if name.startswith(part)):
            assert (ours.state[name] - theirs.state[name]).abs().max() <= tolerance, name


@pytest.mark.parametrize("layout", [*EIGHT, *SIX], ids=str)
def test_all_ranks_hold_the_same_bits_after_every_step(layout: Layout, runs: Runs) -> None:
    first, *others = runs["float64", layout]
    assert len(first.steps) == NUM_STEPS
    for other in others:
        assert other.start == first.start
        for mine, theirs in zip(first.steps, other.steps, strict=True):
            assert mine.digests == theirs.digests
            assert decisions(mine) == decisions(theirs)


def test_all_layouts_start_from_the_same_bits(runs: Runs) -> None:
    """Weights, and codebooks fitted by k-means."""
    starts = [trace.start for layout in [*EIGHT, *SIX] for trace in runs["float64", layout]]
    assert starts == [starts[0]] * len(starts)


@pytest.mark.parametrize("layout", [*EIGHT, *SIX], ids=str)
def test_nan_on_one_rank_is_skipped_by_all(layout: Layout, runs: Runs) -> None:
    """Not a weight, moment or count of any rank changes in that step; the next one trains again."""
    for trace in runs["float64", layout]:
        assert [step.skipped for step in trace.steps] == [index == NAN_STEP for index in range(NUM_STEPS)]
        digests = [trace.start, *(step.digests for step in trace.steps)]
        assert digests[NAN_STEP + 1] == digests[NAN_STEP]
        moving = [part for part in digests[0] if digests[NAN_STEP + 2][part] != digests[NAN_STEP + 1][part]]
        assert moving == ["weights", "moments", "usage"]


def test_nan_lies_on_one_rank_only() -> None:
    assert {layout.place(NAN_ROW)[1] for layout in SPREAD} == {0, 1}


@pytest.mark.parametrize("layout", [*EIGHT, *SIX], ids=str)
def test_the_learning_rate_counts_steps_whatever_the_processes(layout: Layout, runs: Runs) -> None:
    """Skipped steps count too."""
    settings, codebook = TINY["training"], TINY["codebook"]
    for trace in runs["float64", layout]:
        for index, record in enumerate(trace.steps):
            factor = learning_rate_factor(index + 1, settings["lr_decay"], settings["warmup_steps"])
            encoding = factor * release_factor(index + 1, codebook["hold_steps"], codebook["release_steps"])
            assert record.learning_rates == {
                "generator": pytest.approx([settings["learning_rate"] * f for f in (encoding, factor)]),
                "discriminator": pytest.approx([settings["discriminator_learning_rate"] * factor]),
            }


def test_everything_that_could_differ_took_part(runs: Runs) -> None:
    """Clipping bit in every step, codes were restarted, the schedule moved, all tensors were trained."""
    (trace,) = runs["float64", EIGHT[0]]
    trained = [step for step in trace.steps if not step.skipped]
    assert all(
        norm > TINY["training"]["max_grad_norm"] for step in trained for norm in step.grad_norms.values()
    )
    assert sum(sum(step.restarts) for step in trained) > 2
    assert len({tuple(step.learning_rates["generator"]) for step in trace.steps}) == NUM_STEPS
    assert len({step.digests["weights"] for step in trace.steps}) == NUM_STEPS - 1
    names = {"adversarial", "feature_matching", "multi_scale_mel", "mel", "stft", "commitment", "codebook"}
    assert all(trained[0].losses[name] > 0 for name in names)


@pytest.mark.parametrize("layout", SPREAD, ids=str)
def test_clips_and_windows_are_the_same_in_every_layout(layout: Layout, runs: Runs) -> None:
    ours, theirs = runs["float64", layout], runs["float64", reference(layout)]
    for attribute in ("names", "audio"):
        expected = global_batches(reference(layout), theirs, attribute)
        assert global_batches(layout, ours, attribute) == expected
        assert all(len(step) == layout.clips for step in expected)


@pytest.mark.parametrize(("streaming", "workers", "layout"), LOOKERS, ids=str)
def test_clips_and_windows_are_the_same_with_workers_and_streams(
    streaming: bool, workers: int, layout: Layout, runs: Runs
) -> None:
    whole = reference(layout)
    expected = runs[True, 0, whole] if streaming else runs["float64", whole]
    for attribute in ("names", "audio"):
        found = global_batches(layout, runs[streaming, workers, layout], attribute)
        assert found == global_batches(whole, expected, attribute)[:LOOKS]
        assert len(found) == LOOKS


def test_gains_are_among_what_is_the_same(runs: Runs) -> None:
    """Without the random gain the same clips give other windows."""
    layout = EIGHT[0]
    runs.look("without gain", layout, {"gain_db": [0.0, 0.0]})
    (plain, names), (loud, same) = (
        [global_batches(layout, traces, attribute)[:LOOKS] for attribute in ("audio", "names")]
        for traces in (runs["without gain"], runs["float64", layout])
    )
    assert names == same and not set(sum(plain, [])) & set(sum(loud, []))


def test_a_run_goes_on_exactly_in_another_layout(tmp_path: Path, runs: Runs) -> None:
    """Two processes for half of the run, then one with other micro-batches: still the run of one process."""
    run = tmp_path / "run"
    train_in(Layout(2, 2, 2), run, DOUBLE, training={"num_iterations": NUM_STEPS // 2})
    (rest,) = train_in(Layout(1, 4, 2), run, DOUBLE)
    (whole,) = runs["float64", EIGHT[0]]
    assert len(rest.steps) == NUM_STEPS - NUM_STEPS // 2
    assert max(differences(rest, whole, "").values()) < 1e-9
