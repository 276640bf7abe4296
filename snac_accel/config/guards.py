"""The section about steps with something wrong in their numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .fields import Count, Section


class GuardSettings(Section):
    """What is done about a step whose numbers are wrong; such a step never changes a weight."""

    non_finite: Literal["stop", "skip", "rollback"] = Field(
        default="skip",
        description="When input, loss or gradient is not finite: stop, skip the step, or rollback: go on from the newest "
        "checkpoint, with the data that come next.",
    )
    spikes: Literal["off", "stop", "skip", "rollback"] = Field(
        default="off", description="The same for a loss that jumps; off: jumps are not looked for."
    )
    spike_factor: Annotated[float, Field(gt=1, le=1e6)] = Field(
        default=3.0, description="A jump: the generator's loss is above so many times the median of the last ones."
    )
    spike_window: Count = Field(default=100, description="Steps over which that median is taken.")
    rollback_limit: Count = Field(
        default=3, description="Times that the run goes back to the same checkpoint; the next one stops it."
    )
