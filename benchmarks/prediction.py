"""How a step would scale over GPUs that are not here: arithmetic from bytes, bandwidths and the step of one GPU.

An all-reduce as a ring: every GPU sends and receives 2 (N - 1) / N times the bytes, in 2 (N - 1) turns. The turns go on
everywhere at once, so the slowest link sets the pace: NVLink inside a node, the network between nodes. NCCL lays a ring
over each network card of a node, so a node's cards add up. As a tree it needs the same bytes, but fewer turns: along
the GPUs of a node, and twice the depth of a binary tree over the nodes. NCCL takes the quicker one.

DDP hides a part of this behind the backward pass that makes the gradients; what is left over is added to the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gradients import Network


@dataclass(frozen=True)
class Fabric:
    """What joins GPUs, or nodes."""

    name: str
    bytes_per_second: float  # of one GPU inside a node; of all cards of a node together between nodes
    turn_seconds: float  # latency of one turn


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes."""

    gpus: int
    inside: Fabric
    between: Fabric
    gpus_per_node: int = 8

    @property
    def nodes(self) -> int:
        """Number of nodes that the GPUs fill."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def slowest(self) -> Fabric:
        """The link that sets the pace over all GPUs."""
        fabrics = [self.inside] if self.nodes == 1 else [self.inside, self.between]
        return min(fabrics, key=lambda fabric: fabric.bytes_per_second)

    def transfer(self, num_bytes: float) -> float:
        """Seconds that the bytes of an all-reduce take."""
        return 2 * (self.gpus - 1) / self.gpus * num_bytes / self.slowest.bytes_per_second

    def ring_latency(self) -> float:
        """Seconds that the turns of an all-reduce take as a ring."""
        turn = self.inside.turn_seconds if self.nodes == 1 else self.between.turn_seconds
        return 2 * (self.gpus - 1) * turn

    def tree_latency(self) -> float:
        """Seconds that the turns of an all-reduce take as a tree over nodes, and along the GPUs of each."""
        along = min(self.gpus, self.gpus_per_node) - 1
        depth = math.ceil(math.log2(self.nodes))
        return 2 * (along * self.inside.turn_seconds + depth * self.between.turn_seconds)


class Prediction(NamedTuple):
    """A step on a cluster, in seconds."""

    compute: float  # the step of one GPU alone
    transfer: float  # bytes of all all-reduces over the slowest link
    latency: float  # their turns
    hidden: float  # of both, behind the backward passes

    @property
    def efficiency(self) -> float:
        """Share of the step that is work: the speed-up over one GPU, divided by the number of GPUs."""
        return self.compute / (self.compute + self.transfer + self.latency - self.hidden)


def step_flops(networks: Sequence[Network]) -> int:
    """Of one window in a whole step; spectral losses and optimisers are small beside it and left out."""
    return sum(network.step_flops for network in networks)


def synced_share(networks: Sequence[Network]) -> float:
    """Share of the step in which gradients come up, which is when DDP can send: nothing else hides an all-reduce."""
    synced = sum(network.forward_flops * network.synced_forwards for network in networks)
    return synced / step_flops(networks)


def predict(
    networks: Sequence[Network],
    cluster: Cluster,
    *,
    compute: float,
    overlap: float = 0.0,
    ring_only: bool = False,
    small_bytes: Sequence[int] = (),
) -> Prediction:
    """The step of a cluster from that of one GPU, `compute` seconds.

    `overlap` is the share of the gradients' all-reduce that the backward passes hide, as far as they last.
    `small_bytes` are the other all-reduces of a step; nothing hides them.
    """
    turns = cluster.ring_latency()
    if not ring_only:
        turns = min(turns, cluster.tree_latency())
    buckets = [bucket for network in networks for bucket in network.buckets]
    transfer, latency = cluster.transfer(sum(buckets)), len(buckets) * turns
    hidden = min(overlap * (transfer + latency), synced_share(networks) * compute)
    transfer += cluster.transfer(sum(small_bytes))
    latency += len(small_bytes) * turns
    return Prediction(compute, transfer, latency, hidden)
