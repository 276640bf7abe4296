"""Section `model`: the arguments of `snac.SNAC`, with what snac 1.2.1 expects of them checked beforehand."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, model_validator

from .. import presets
from .fields import Count, Section, Several, inconsistent

# A stride of 1 breaks snac: its convolutions then change the length of the signal.
Rates = Several[Annotated[int, Field(ge=2, le=1024)]]

_PUBLISHED = presets.create_snac_24khz_config()


def _default(name: str, description: str) -> Any:
    """A field whose default is that of the published 24 kHz model."""
    return Field(default=_PUBLISHED[name], description=description)


class ModelSettings(Section):
    """Arguments of `snac.SNAC`; the defaults are the published 24 kHz model."""

    sampling_rate: Annotated[int, Field(ge=1000, le=384000)] = _default(
        "sampling_rate", "Samples per second (Hz)."
    )
    encoder_dim: Count = _default("encoder_dim", "Channels of the first convolution; doubled at each rate.")
    encoder_rates: Rates = _default(
        "encoder_rates", "Downsampling factors; their product is the hop in samples."
    )
    latent_dim: Count | None = _default(
        "latent_dim", "Latent channels; null: encoder_dim * 2 ** len(encoder_rates)."
    )
    decoder_dim: Count = _default("decoder_dim", "Channels of the first decoder layer; halved at each rate.")
    decoder_rates: Rates = _default("decoder_rates", "Upsampling factors, with the product of encoder_rates.")
    attn_window_size: Count | None = _default(
        "attn_window_size", "Local attention window in frames; null: none."
    )
    codebook_size: Annotated[int, Field(ge=2, le=2**20)] = _default("codebook_size", "Codes per level.")
    codebook_dim: Count = _default("codebook_dim", "Dimensions in which codes are looked up.")
    vq_strides: Several[Count] = _default("vq_strides", "Frames per code of each level, coarse to fine.")
    noise: bool = _default("noise", "Noise blocks in the decoder.")
    depthwise: bool = _default(
        "depthwise", "Depthwise convolutions (without them training collapsed in the paper)."
    )

    @property
    def facts(self) -> presets.ModelFacts:
        """Hop, padding quantum, token rates and bitrate."""
        return presets.describe_model(self.model_dump())

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        hop, upsampling = math.prod(self.encoder_rates), math.prod(self.decoder_rates)
        if upsampling != hop:
            problem = f"should have the product of encoder_rates, {hop}, but has {upsampling}"
            raise inconsistent("decoder_rates", self.decoder_rates, problem)
        self._check_strides()
        self._check_widths()
        return self

    def _check_strides(self) -> None:
        strides = self.vq_strides
        if list(strides) != sorted(strides, reverse=True) or any(strides[0] % stride for stride in strides):
            problem = "should descend from coarse to fine, each dividing the first, for example [4, 2, 1]"
            raise inconsistent("vq_strides", strides, problem)

    def _check_widths(self) -> None:
        width = self.encoder_dim * 2 ** len(self.encoder_rates)
        if self.latent_dim not in (None, width):
            problem = f"should be null or {width}, which is encoder_dim * 2 ** len(encoder_rates)"
            raise inconsistent("latent_dim", self.latent_dim, problem)
        halvings = 2 ** len(self.decoder_rates)
        if self.decoder_dim % halvings:
            problem = f"should be a multiple of {halvings}: it is halved at each of decoder_rates"
            raise inconsistent("decoder_dim", self.decoder_dim, problem)
        if self.attn_window_size is None:
            return
        for setting, channels in (("encoder_dim", width), ("decoder_dim", self.decoder_dim)):
            if channels % 64:
                problem = (
                    f"gives attention {channels} channels; should give a multiple of 64, the size of a head"
                )
                raise inconsistent(setting, getattr(self, setting), problem)
