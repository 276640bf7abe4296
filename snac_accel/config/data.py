"""Section data: what is trained on, where its windows lie, and what is done to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .fields import AnyNumber, Count, Name, Pair, Section, inconsistent

Decibels = Annotated[float, Field(ge=-120, le=60)]
Loudness = Annotated[float, Field(ge=-70, le=0)]  # LUFS; -70 is the absolute gate of ITU-R BS.1770


class SourceSettings(Section):
    """One source of a mixture. What is null is as in data."""

    dataset_path: Name = Field(description="Hub dataset, folder, file or address.")
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=60)] | None = Field(
        default=None, description="Its name in the logs; null: the last part of dataset_path."
    )
    weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Its share of the windows, in proportion to the others'; null on all: their clips."
    )
    max_passes: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="How often the run may go through it; null: as often as its weight asks."
    )
    configuration: Name | None = Field(default=None, description="Configuration of the Hub dataset.")
    split: Name | None = Field(default=None, description="Split to train on.")
    revision: Name | None = Field(default=None, description="Branch, tag or commit of the Hub dataset.")
    audio_column: Name | None = Field(default=None, description="Column that holds the audio.")
    speaker_column: Name | None = Field(default=None, description="Column that names the speaker.")
    streaming: bool | None = Field(default=None, description="Read while training.")

    @property
    def label(self) -> str:
        """The name under which the logs have it."""
        return self.name or self.dataset_path.rstrip("/").rpartition("/")[2]


class DataSettings(Section):
    """The audio that is trained on."""

    dataset_path: Name = Field(
        default="bad49wolf/ljspeech-simple", description="Hub dataset, local folder or file, or address (s3://…)."
    )
    configuration: Name | None = Field(
        default=None, description="Configuration of the Hub dataset, such as a language."
    )
    split: Name = Field(default="train", description="Split to train on.")
    revision: Name | None = Field(default=None, description="Branch, tag or commit of the Hub dataset.")
    audio_column: Name = Field(default="audio", description="Column that holds the audio.")
    speaker_column: Name | None = Field(default=None, description="Column that names the speaker.")
    streaming: bool = Field(default=False, description="Read while training instead of downloading first.")
    sources: AnyNumber[SourceSettings] = Field(
        default=(), description="Several sources with weights, instead of dataset_path."
    )
    steps_per_epoch: Count | None = Field(
        default=None, description="What the log calls an epoch, in steps; null: as many windows as there are clips."
    )
    segment_length: Annotated[float, Field(gt=0, le=60)] = Field(
        default=0.8, description="Training window in seconds; rounded to the model's padding quantum."
    )
    min_clip_seconds: Annotated[float, Field(ge=0, le=60)] = Field(
        default=0.2, description="Shorter clips are dropped (s)."
    )
    channels: Literal["mean", "left", "random"] = Field(
        default="mean", description="What becomes of stereo: the mean of the channels, the first, or a random one."
    )
    min_loudness: Loudness | None = Field(
        default=None, description="Windows below this are not chosen (LUFS); null: every window is good."
    )
    window_tries: Annotated[int, Field(ge=1, le=100)] = Field(
        default=8, description="Windows of a clip tried for min_loudness before its loudest is taken."
    )
    loudness: Loudness | None = Field(
        default=None, description="Loudness that every window is brought to (LUFS); null: left as recorded."
    )
    gain_db: Pair[Decibels] = Field(default=(0.0, 0.0), description="Range of a random gain per window (dB).")
    random_polarity: bool = Field(default=False, description="Turn half of the windows upside down.")
    random_phase: bool = Field(default=False, description="Turn the phase of each window by a random angle.")
    num_workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=2, description="Decoding processes per rank."
    )
    shuffle_buffer: Count = Field(
        default=1000, description="Clips of a stream that are shuffled among each other."
    )
    cache_dir: Name | None = Field(
        default=None, description="Folder for the parts of a stream being read; null: in the cache of datasets."
    )
    cache_gigabytes: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=10.0, description="Size to which that folder is kept, per machine (GB)."
    )
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05, description="Share of undecodable clips above which the run stops."
    )

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if self.gain_db[0] > self.gain_db[1]:
            raise inconsistent("gain_db", self.gain_db, "should be [lowest, highest]")
        labels = [source.label for source in self.sources]
        for label in labels:
            if labels.count(label) > 1:
                raise inconsistent("sources", label, "is the name of two sources: give them names of their own")
        weights = [source.weight for source in self.sources]
        if None in weights and any(weight is not None for weight in weights):
            raise inconsistent("sources", weights, "should have a weight on each source, or on none")
        return self

    def each_source(self) -> list[SourceSettings]:
        """All sources, with nothing left to look up: those of the mixture, or the single one."""
        shared = ("split", "audio_column", "speaker_column", "streaming")
        if not self.sources:
            own: dict[str, Any] = {name: getattr(self, name) for name in (*shared, "configuration", "revision")}
            return [SourceSettings(dataset_path=self.dataset_path, **own)]
        return [
            source.model_copy(
                update={name: getattr(self, name) for name in shared if getattr(source, name) is None}
            )
            for source in self.sources
        ]
