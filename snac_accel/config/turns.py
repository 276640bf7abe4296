"""The sections about whose turn it is in a step, and how the losses are weighed against each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from .fields import AnyNumber, Count, CountOrZero, Pair, Section, inconsistent


class TurnSettings(Section):
    """When the discriminators begin, pause, and how often each side learns: functions of the step."""

    start_step: CountOrZero = Field(
        default=0, description="Step at which the discriminators begin; before it they cost nothing and say nothing."
    )
    ramp_steps: CountOrZero = Field(
        default=0, description="Steps over which the weights of adversarial and feature_matching then rise to their full values."
    )
    discriminator_every: Count = Field(default=1, description="Steps from one update of the discriminators to the next.")
    generator_every: Count = Field(default=1, description="Steps from one update of the generator to the next.")
    pauses: AnyNumber[Pair[CountOrZero]] = Field(
        default=(),
        description="Stretches of steps, [[FIRST, END], …], in which the discriminators judge and do not learn, up to END - 1.",
    )

    @model_validator(mode="after")
    def _check(self) -> TurnSettings:
        for first, end in self.pauses:
            if first >= end:
                raise inconsistent("pauses", [first, end], "should be [FIRST, END] with FIRST below END")
        if self.discriminator_every > 1 and self.generator_every > 1:
            problem = "should be 1 with turns.discriminator_every above 1: one side learns in every step"
            raise inconsistent("generator_every", self.generator_every, problem)
        return self


class BalancerSettings(Section):
    """EnCodec's gradient balancer: a loss pulls as its weight says, whatever the scale of its gradient."""

    enabled: bool = Field(default=False, description="Balance the gradients of the losses on the audio.")
    total_norm: Annotated[float, Field(gt=0, le=1e9)] = Field(
        default=1.0, description="Norm of the balanced gradient of one clip's audio."
    )
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="Decay per step of the average norms that the gradients are divided by."
    )
