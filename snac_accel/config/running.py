"""The sections about a run's end, and about the average of its weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .fields import Section


class AveragingSettings(Section):
    """A moving average of the generator's weights, for validation and export."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Decay of the average at every step, such as 0.999; with it, validation and export use the average. "
        "null: no average.",
    )


class StoppingSettings(Section):
    """When a run saves and leaves by itself, as if a signal had come."""

    wall_clock_hours: Annotated[float, Field(gt=0, le=8760)] | None = Field(
        default=None,
        description="Hours after the start of the program at which it saves and leaves; null: no limit.",
    )
    slurm_margin_seconds: Annotated[float, Field(ge=0, le=86400)] | None = Field(
        default=120.0,
        description="So long before SLURM_JOB_END_TIME, but at most a tenth of the time until then, the run saves and "
        "leaves (s); null: that time is not looked at.",
    )
