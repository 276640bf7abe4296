"""A picture of how evenly the codes of each level are used.

Shapes: K codebook size, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .use import perplexity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def usage_figure(counts: Mapping[str, Tensor], title: str) -> Figure:
    """Codes by how often they were chosen, a panel for each level, a line for each of `counts` (L, K) by name.

    1 on the vertical axis is an equal share. A flat line at 1 is a codebook in full use; a line that falls off early leaves the
    codes to the right of its fall to nobody.
    """
    from matplotlib.figure import Figure  # only where something is drawn; without pyplot: no global state, no display

    num_levels, size = next(iter(counts.values())).shape
    figure = Figure(figsize=(3.2 * num_levels, 3.2), layout="constrained")
    axes = figure.subplots(1, num_levels, sharey=True, squeeze=False)[0]
    for level, axis in enumerate(axes):
        for name, all_levels in counts.items():
            chosen = all_levels[level].double().cpu()
            share = (chosen * size / chosen.sum().clamp_min(1)).sort(descending=True).values
            axis.plot(torch.linspace(0, 1, size), share, label=f"{name}: perplexity {perplexity(chosen):.0f}")
        axis.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set(title=f"level {level}, {size} codes", xlabel="share of the codes, most used first")
        axis.legend(fontsize="small")
    axes[0].set_ylabel("times chosen / equal share")
    axes[0].set_ylim(bottom=0)  # of all panels, once all lines are there
    figure.suptitle(title)
    return figure
