"""What more processes cost: counted from the networks, measured on this machine's CPU, predicted for GPUs.

    python benchmarks/scaling.py                                all three; a few minutes on two cores
    python benchmarks/scaling.py --parts counted predicted      without the measurement
    python benchmarks/scaling.py --parts predicted --batch_size 16 --step_seconds 0.21
                                                                from a step that you measured on one GPU

Measured is what two gloo processes with half of the cores each need for a step, against one process with all of
them, for the same global batch; and what the all-reduce of the gradients has to do with it. Predicted is the
efficiency of 8, 64 and 512 GPUs, by the arithmetic of `prediction.py` and the assumptions printed above the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gradients import Network, networks, small_collectives
from measure import NotMeasured, Ratio, available_cores, machine, positive, table
from prediction import Cluster, Fabric, predict, step_flops, synced_share
from rounds import measure, report, timing_config

from snac_accel.config import load_config

PARTS = ("counted", "measured", "predicted")
PRESETS = ("24khz", "32khz", "44khz", "demo")
GPUS = (8, 64, 512)


def counted() -> str:
    """Tables of the gradients of each network, and of the small all-reduces."""
    rows, small = [], []
    for preset in PRESETS:
        config = load_config(preset, environment={})
        rows += [[preset, *_counted(network)] for network in networks(config)]
        small.append([preset, *(f"{size:,}" for size in small_collectives(config))])
    headers = ["preset", "network", "parameters", "gradients (MB)", "buckets"]
    headers += ["GFLOP forward", "GFLOP in a step"]
    beside = ["preset", "books of the step (B)", "counts of codes (B)", "restarted codes, at most (B)", "verdict (B)"]
    return (
        "COUNTED: gradients that go into the all-reduces of a step (float32), and the work for one window\n\n"
        f"{table(rows, headers)}\n\n"
        f"COUNTED: all-reduced in a step beside the gradients\n\n{table(small, beside)}\n"
    )


def _counted(network: Network) -> list[str]:
    return [
        network.name,
        f"{network.parameters:,}",
        f"{network.gradient_bytes / 1e6:.2f}",
        str(len(network.buckets)),
        f"{network.forward_flops / 1e9:.2f}",
        f"{network.step_flops / 1e9:.2f}",
    ]


def measured(flags: argparse.Namespace) -> str:
    """Table of one process against two."""
    config = timing_config(flags.width, flags.seconds)
    megabytes = sum(network.gradient_bytes for network in networks(config)) / 1e6
    rounds = measure(config, global_batch=flags.global_batch, rounds=flags.rounds, cores=available_cores())
    return (
        f"MEASURED on this CPU, gloo, float32: {flags.global_batch} windows of {flags.seconds:g} s a step over all "
        f"processes, {megabytes:.1f} MB of gradients, {flags.rounds} rounds\n\n{report(rounds)}\n"
    )


def short() -> list[Ratio]:
    """A step of two processes with half of the cores each over one with all of them, for the same global batch."""
    cores = available_cores()
    if cores < 2:
        raise NotMeasured("two processes need two cores")
    found = measure(timing_config(0.25, 0.256), global_batch=2, rounds=15, cores=cores)
    return [Ratio("step of 2 processes / of 1, same cores", tuple(one.ratio for one in found), "lower")]


def predicted(flags: argparse.Namespace) -> str:
    """Table of efficiency on GPUs, with its assumptions."""
    config = load_config(flags.preset, environment={})
    found, small = networks(config), small_collectives(config)
    window = step_flops(found) / (flags.sustained_tflops * 1e12)
    if flags.step_seconds is not None:
        window = flags.step_seconds / flags.batch_size[0]
    rows = []
    for batch_size in flags.batch_size:
        for cluster in clusters(flags):
            sizes = {"compute": window * batch_size, "small_bytes": (*small[:2], small.verdict)}
            worst = predict(found, cluster, ring_only=True, **sizes)
            likely = predict(found, cluster, overlap=flags.overlap, **sizes)
            rows.append(
                [
                    cluster.gpus,
                    cluster.slowest.name,
                    f"{batch_size} / {batch_size * cluster.gpus}",
                    f"{worst.compute:.3f}",
                    f"{worst.transfer * 1e3:.1f}",
                    f"{worst.latency * 1e3:.1f} / {likely.latency * 1e3:.1f}",
                    f"{worst.efficiency:.0%}",
                    f"{likely.efficiency:.0%}",
                ]
            )
    headers = ["GPUs", "slowest link", "windows per GPU / step", "step of 1 GPU (s)", "transfer (ms)"]
    headers += [
        "latency, ring / tree (ms)",
        "efficiency, worst case",
        f"{flags.overlap:.0%} hidden",
    ]
    return f"{assumptions(flags, found)}\n\n{table(rows, headers)}"


def clusters(flags: argparse.Namespace) -> list[Cluster]:
    """The sizes to predict; what is more than one node, for each network."""
    inside = Fabric("NVLink", flags.nvlink_gbytes * 1e9, flags.nvlink_microseconds * 1e-6)
    found = []
    for gpus in GPUS:
        for rate in flags.node_gbytes if gpus > flags.gpus_per_node else flags.node_gbytes[:1]:
            between = Fabric(f"network, {rate:g} GB/s", rate * 1e9, flags.network_microseconds * 1e-6)
            found.append(Cluster(gpus, inside, between, flags.gpus_per_node))
    return found


def assumptions(flags: argparse.Namespace, found: Sequence[Network]) -> str:
    """What the prediction rests on."""
    step = f"{step_flops(found) / 1e9:.0f} GFLOP a window (counted), {flags.sustained_tflops:g} TFLOP/s (assumed)"
    if flags.step_seconds is not None:
        step = f"{flags.step_seconds:g} s for {flags.batch_size[0]} windows (given), in proportion for others"
    rates = " or ".join(f"{rate:g}" for rate in flags.node_gbytes)
    return (
        f"PREDICTED, not measured: preset {flags.preset}. Assumptions:\n"
        f"- step of one GPU: {step}\n"
        f"- {sum(network.gradient_bytes for network in found) / 1e6:.0f} MB of gradients in "
        f"{sum(len(network.buckets) for network in found)} buckets (counted), one after the other\n"
        f"- inside a node of {flags.gpus_per_node}: {flags.nvlink_gbytes:g} GB/s for each GPU, "
        f"{flags.nvlink_microseconds:g} us a turn; between nodes: {rates} GB/s for all cards of a node together, "
        f"{flags.network_microseconds:g} us a turn\n"
        "- worst case: rings, and nothing hidden; else the quicker of ring and tree, and a share of the gradients' all-reduce "
        f"hidden, but no more than the backward passes last ({synced_share(found):.0%} of the step)\n"
        "- no time lost to reading data, validation, checkpoints, or a GPU that is slower than the others"
    )


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])

    def add(name: str, help: str, **options: object) -> None:
        parser.add_argument(f"--{name}", help=f"{help} (default: %(default)s)", **options)  # type: ignore[arg-type]

    add("parts", "tables to print", nargs="+", choices=PARTS, default=PARTS)
    add("rounds", "measured rounds", type=positive, default=25)
    add("global_batch", "windows per step when measuring, an even number", type=positive, default=2)
    add("seconds", "length of a window when measuring", type=float, default=0.256)
    add("width", "of the discriminators when measuring; 1: the original", type=float, default=0.25)
    add("preset", "what is predicted", choices=PRESETS, default="24khz")
    add("batch_size", "windows per GPU", type=positive, nargs="+", default=[16, 2])
    add("step_seconds", "of a step on one GPU with the first --batch_size, if measured", type=float)
    add("sustained_tflops", "of a GPU, where --step_seconds is not given", type=float, default=50.0)
    add("gpus_per_node", "joined by NVLink", type=positive, default=8)
    add("nvlink_gbytes", "GB/s of a GPU inside a node", type=float, default=200.0)
    add("nvlink_microseconds", "of a turn inside a node", type=float, default=3.0)
    add(
        "node_gbytes", "GB/s of a node's network cards together", type=float, nargs="+", default=[160.0, 10.0]
    )
    add("network_microseconds", "of a turn between nodes", type=float, default=8.0)
    add("overlap", "share of the all-reduce that is hidden", type=float, default=0.5)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, measure, predict, print."""
    flags = parse_flags(arguments)
    print(f"{machine()}\n")
    if "counted" in flags.parts:
        print(counted())
    if "measured" in flags.parts:
        print(measured(flags), flush=True)
    if "predicted" in flags.parts:
        print(predicted(flags))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
