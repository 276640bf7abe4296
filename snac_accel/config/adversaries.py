"""Section `discriminators`: which there are, and their options."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from .fields import Count, Pair, Section, Several, inconsistent

Width = Annotated[int, Field(ge=1, le=16384)]
Fraction = Annotated[float, Field(ge=0, le=1)]
_WIDTHS = (32, 128, 512, 1024, 1024)


class PeriodSettings(Section):
    """Multi-period discriminator (HiFi-GAN)."""

    periods: Several[Count] = Field(
        default=(2, 3, 5, 7, 11), description="Periods in samples, one sub-discriminator each."
    )
    channels: Several[Width] = Field(default=_WIDTHS, description="Channels of the layers.")

    @property
    def min_samples(self) -> int:
        """Shortest window in samples that it can look at."""
        return max(self.periods)


class STFTSettings(Section):
    """Multi-scale discriminator on complex spectrograms; one sub-discriminator per FFT size."""

    fft_sizes: Several[Annotated[int, Field(ge=16, le=65536)]] = Field(
        default=(1024, 2048, 512), description="FFT sizes in samples."
    )
    hop_lengths: Several[Count] = Field(
        default=(120, 240, 50), description="Hops in samples, one per FFT size."
    )
    win_lengths: Several[Count] = Field(
        default=(600, 1200, 240), description="Windows in samples, one per FFT size."
    )
    channels: Several[Width] = Field(default=_WIDTHS, description="Channels of the layers.")
    bands: Several[Pair[Fraction]] | None = Field(
        default=None,
        description="Bands with weights of their own, pairs of fractions of the spectrum as in DAC: "
        "[[0, 0.1], [0.1, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]]; null: one band.",
    )

    @property
    def min_samples(self) -> int:
        """Shortest window in samples that it can look at: the ends are reflected by half a frame."""
        return max(self.fft_sizes) // 2 + 1

    @model_validator(mode="after")
    def _check(self) -> STFTSettings:
        for setting in ("hop_lengths", "win_lengths"):
            values = getattr(self, setting)
            if len(values) != len(self.fft_sizes):
                raise inconsistent(
                    setting, values, f"should have one entry per FFT size, {len(self.fft_sizes)}"
                )
        for fft_size, hop, window in zip(self.fft_sizes, self.hop_lengths, self.win_lengths, strict=True):
            if window > fft_size:
                raise inconsistent(
                    "win_lengths", self.win_lengths, f"has {window}, more than its FFT size, {fft_size}"
                )
            if hop > window:
                raise inconsistent(
                    "hop_lengths", self.hop_lengths, f"has {hop}, more than its window, {window}"
                )
        self._check_bands()
        return self

    def _check_bands(self) -> None:
        bins = min(self.fft_sizes) // 2 + 1
        for low, high in self.bands or ():
            if int(low * bins) >= int(high * bins):
                problem = f"has [{low:g}, {high:g}]; should be [low, high], a bin of the smallest FFT wide"
                raise inconsistent("bands", self.bands, problem)


class DiscriminatorSettings(Section):
    """The discriminators; null switches one off."""

    mpd: PeriodSettings | None = Field(
        default=PeriodSettings(), description="Multi-period discriminator; null: none."
    )
    msstftd: STFTSettings | None = Field(
        default=STFTSettings(), description="Multi-scale STFT discriminator; null: none."
    )

    @property
    def chosen(self) -> dict[str, PeriodSettings | STFTSettings]:
        """Name -> options of those that are not switched off."""
        settings: dict[str, PeriodSettings | STFTSettings | None] = {"mpd": self.mpd, "msstftd": self.msstftd}
        return {name: options for name, options in settings.items() if options is not None}
