"""The section about codebooks: how they start, what moves them, and how dead codes are brought back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .fields import Count, CountOrZero, Section


class CodebookSettings(Section):
    """How codebooks start, what moves them, and how dead codes are brought back."""

    initialization: Literal["kmeans", "random"] = Field(
        default="kmeans", description="First codes: clusters of latents, or random."
    )
    initialization_clips: Count = Field(default=1024, description="Clips whose latents k-means clusters.")
    method: Literal["gradient", "moving_average", "reparametrised"] = Field(
        default="gradient",
        description="What moves the codes: the gradient of the codebook loss, moving averages of the latents that chose them, "
        "or one linear map for all codes of a level, trained by that gradient.",
    )
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.99, description="Share of the moving averages that stays at every step; of method moving_average."
    )
    hold_steps: CountOrZero = Field(
        default=0,
        description="Steps at the start in which encoder and codebooks stand still, "
        "so that the decoder learns to read the codes before they move.",
    )
    release_steps: CountOrZero = Field(
        default=0, description="Steps after these over which their learning rate rises to its full value."
    )
    restart: bool = Field(default=True, description="Move dead codes onto current latents.")
    restart_after: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=8.0,
        description="Lookups without being chosen after which a code is dead, in multiples of codebook_size.",
    )
