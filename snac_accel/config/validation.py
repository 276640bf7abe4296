"""The section about held-out clips: which they are, what is measured on them, and what follows from it."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from .fields import Count, CountOrZero, Name, Section, Several, Share, inconsistent

METRIC_NAMES = (  # those of `metrics.METRICS`
    "mel_distance", "mel_distance_two_scale", "stft_distance", "log_spectral_distance_db", "si_sdr_db", "pesq", "stoi", "estoi",
    "visqol", "visqol_speech", "dnsmos", "dnsmos_p808", "f0_error_cents", "voicing_f1",
)  # fmt: skip
ENTRY_POINTS = "snac_accel.metrics"  # of other packages


def _known(name: str) -> str:
    """The name of a metric, of ours, of an entry point, or `module:name`; refuses others."""
    if name in METRIC_NAMES or ":" in name or any(point.name == name for point in entry_points(group=ENTRY_POINTS)):
        return name
    near = difflib.get_close_matches(name, METRIC_NAMES, n=1)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRIC_NAMES)}, and your own as module:name"
    raise PydanticCustomError("metric", "{problem}", {"problem": f"is no metric; {advice}"})


Metric = Annotated[Name, AfterValidator(_known)]


class ValidationSettings(Section):
    """The held-out clips: a split, a second source, or a share of the training source."""

    enabled: bool = Field(default=True, description="Validate at all.")
    dataset_path: Name | None = Field(default=None, description="A second source to validate on.")
    configuration: Name | None = Field(
        default=None, description="Configuration of what is validated on; null: as in data."
    )
    split: Name | None = Field(default=None, description="Another split to validate on.")
    fraction: Share = Field(
        default=0.02, description="Share held out when neither split nor dataset_path is given."
    )
    by: Literal["clip", "speaker"] = Field(
        default="clip", description="What the share is chosen by: hash of clip or speaker."
    )
    max_clips: Count = Field(default=64, description="Clips per validation.")
    max_clip_seconds: Annotated[float, Field(gt=0, le=600)] = Field(
        default=10.0, description="Longest stretch of a clip (s)."
    )
    num_samples: CountOrZero = Field(default=4, description="Clips written as audio and pictures.")
    metrics: Several[Metric] = Field(
        default=("mel_distance", "stft_distance", "si_sdr_db"), description="What is measured on every clip."
    )
    without_average: bool = Field(
        default=True, description="Where there is a moving average, measure the weights without it too: twice the time."
    )
    best_metric: Metric = Field(default="mel_distance", description="The metric that says which validation is the best.")
    patience: Count | None = Field(
        default=None,
        description="Validations without a better one after which the run ends, with the best model exported; null: never.",
    )
    export_best: bool | None = Field(
        default=None,
        description="Export the model of the best validation at the end, not the last one; null: only with patience.",
    )

    @property
    def is_share(self) -> bool:
        """Whether the clips are held out of the training data."""
        return self.split is None and self.dataset_path is None

    @property
    def exports_best(self) -> bool:
        """Whether the model of the best validation is kept and exported."""
        asked = self.patience is not None if self.export_best is None else self.export_best
        return asked and self.enabled

    @model_validator(mode="after")
    def _check_best(self) -> ValidationSettings:
        if self.best_metric not in self.metrics:
            problem = f"should be one of validation.metrics: {', '.join(self.metrics)}"
            raise inconsistent("best_metric", self.best_metric, problem)
        if len(set(self.metrics)) < len(self.metrics):
            raise inconsistent("metrics", list(self.metrics), "should name each metric once")
        return self
