"""Settings of section `training` that are about starting from a model that is already good."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .fields import AnyNumber, CountOrZero, Name, Section

Part = Literal["encoder", "quantizer", "decoder"]
Factor = Annotated[float, Field(ge=0, le=1000)]


class FineTuningSettings(Section):
    """What a run starts from, and which parts of it move, how fast, and when."""

    init_from: Name | None = Field(
        default=None,
        description="SNAC folder or Hub repository (owner/name, owner/name@revision) whose weights the run starts from; "
        "null: random.",
    )
    init_discriminators: bool = Field(
        default=True, description="Take the discriminators that lie beside the weights of init_from, if there are any."
    )
    freeze: AnyNumber[Part] = Field(
        default=(),
        description="Parts that stay as they are: encoder, quantizer, decoder. Encoder and quantizer: the codes stay too.",
    )
    encoder_rate: Factor = Field(default=1.0, description="Factor on the learning rate of the encoder.")
    quantizer_rate: Factor = Field(default=1.0, description="Factor on the learning rate of the quantizer.")
    decoder_rate: Factor = Field(default=1.0, description="Factor on the learning rate of the decoder.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Factor on the learning rate of each block against the one after it, counted from the output; 1: none.",
    )
    generator_wait_steps: CountOrZero = Field(
        default=0, description="Steps at the start in which only the discriminators learn."
    )
