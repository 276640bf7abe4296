"""The sections about a run's end, and about the average of its weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .fields import Count, Pair, Section, inconsistent

Width = Annotated[float, Field(gt=0, le=0.28)]  # the plain mean over everything has 1 / √12 = 0.289


class AveragingSettings(Section):
    """A moving average of the generator's weights: what is validated and exported, unless there is none."""

    method: Literal["power", "exponential", "none"] = Field(
        default="power",
        description="power: over the last part of the run so far (Karras et al. 2024), exponential: over a number of steps, or "
        "none. Validation and export use the average.",
    )
    relative_width: Width = Field(
        default=0.05, description="Of power: how far it looks back, standard deviation as a part of the steps so far."
    )
    decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Of exponential: its decay at every step, such as 0.999; given alone it chooses that method."
    )
    snapshot_steps: Count | None = Field(
        default=None,
        description="Steps after which two power averages are saved in the run's folder, each time, for `snac-accel average`; "
        "null: none.",
    )
    snapshot_widths: Pair[Width] = Field(default=(0.05, 0.1), description="Relative widths of these two.")

    @model_validator(mode="before")
    @classmethod
    def _choose_method(cls, values: Any) -> Any:
        """A decay alone means an exponential average, as it did when there was no other."""
        if isinstance(values, dict) and values.get("decay") is not None and "method" not in values:
            return {**values, "method": "exponential"}
        return values

    @model_validator(mode="after")
    def _check(self) -> AveragingSettings:
        if self.decay is not None and self.method != "exponential":
            raise inconsistent("decay", self.decay, "should come with averaging.method = exponential")
        if self.decay is None and self.method == "exponential":
            raise inconsistent("decay", self.decay, "should be given with averaging.method = exponential, such as 0.999")
        if self.snapshot_widths[0] == self.snapshot_widths[1]:
            raise inconsistent("snapshot_widths", list(self.snapshot_widths), "should be two different widths")
        return self


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
