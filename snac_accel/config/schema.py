"""The whole configuration of a run: its sections, and the checks across them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from .adversaries import DiscriminatorSettings
from .codebook import CodebookSettings
from .data import DataSettings
from .fields import Section, inconsistent
from .guards import GuardSettings
from .hub import HubSettings
from .model import ModelSettings
from .running import AveragingSettings, StoppingSettings
from .sections import (
    CheckpointSettings,
    DistributedSettings,
    LossSettings,
    OptimizerSettings,
    PathSettings,
    PerformanceSettings,
    TrackingSettings,
    TrainingSettings,
)
from .turns import BalancerSettings, TurnSettings
from .validation import ValidationSettings

_ROUNDING_WORTH_SAYING = 0.001  # seconds
# Samples: the longest window of the spectral losses is 2048, and they reflect half of it at the ends.
_SPECTRA_NEED = 1025
ANYTHING = ("true", "all")  # of checkpoint.allow_changes


class TrainingConfig(Section):
    """Everything that decides a run: validated once, frozen, saved beside it."""

    model: ModelSettings = Field(default=ModelSettings(), description="Arguments of snac.SNAC.")
    training: TrainingSettings = Field(
        default=TrainingSettings(), description="The optimisation; a step is one global batch."
    )
    data: DataSettings = Field(default=DataSettings(), description="The audio that is trained on.")
    validation: ValidationSettings = Field(default=ValidationSettings(), description="The held-out clips.")
    discriminators: DiscriminatorSettings = Field(
        default=DiscriminatorSettings(), description="null switches one off."
    )
    losses: LossSettings = Field(default=LossSettings(), description="Weight of each loss; 0: logged only.")
    turns: TurnSettings = Field(
        default=TurnSettings(), description="When the discriminators begin, pause, and who learns how often."
    )
    balancer: BalancerSettings = Field(
        default=BalancerSettings(), description="The losses weighed by their gradients (EnCodec)."
    )
    optimizer: OptimizerSettings = Field(
        default=OptimizerSettings(), description="AdamW, for generator and discriminators."
    )
    codebook: CodebookSettings = Field(
        default=CodebookSettings(), description="Codebooks: their start, what moves them, dead codes."
    )
    performance: PerformanceSettings = Field(
        default=PerformanceSettings(), description="Time and memory of a step."
    )
    guards: GuardSettings = Field(
        default=GuardSettings(), description="What is done about steps whose numbers are wrong."
    )
    averaging: AveragingSettings = Field(
        default=AveragingSettings(), description="A moving average of the generator's weights."
    )
    stopping: StoppingSettings = Field(
        default=StoppingSettings(), description="When a run saves and leaves by itself."
    )
    distributed: DistributedSettings = Field(
        default=DistributedSettings(), description="How the processes of a run work together."
    )
    checkpoint: CheckpointSettings = Field(
        default=CheckpointSettings(), description="Checkpoints of the run."
    )
    tracking: TrackingSettings = Field(
        default=TrackingSettings(), description="Where numbers, audio and pictures go."
    )
    hub: HubSettings = Field(default=HubSettings(), description="What is pushed to the Hugging Face Hub.")
    paths: PathSettings = Field(default=PathSettings(), description="Folders of the run.")

    @property
    def segment_samples(self) -> int:
        """Training window in samples: the whole number of padding quanta nearest to data.segment_length."""
        quantum = self.model.facts.padding_quantum
        return quantum * max(1, round(self.data.segment_length * self.model.sampling_rate / quantum))

    @property
    def segment_note(self) -> str | None:
        """The sentence to show when rounding changed the window by more than a millisecond, else None."""
        seconds = self.segment_samples / self.model.sampling_rate
        if abs(seconds - self.data.segment_length) <= _ROUNDING_WORTH_SAYING:
            return None
        quantum = self.model.facts.padding_quantum
        return (
            f"data.segment_length = {self.data.segment_length:g} s is rounded to {seconds:g} s: "
            f"{self.segment_samples} samples, a whole multiple of the {quantum} to which the model pads"
        )

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        self._check_validation()
        self._check_losses()
        self._check_turns()
        self._check_segment()
        self._check_profile()
        self._check_allowed()
        self._check_hub()
        self._check_freeze()
        return self

    def _check_freeze(self) -> None:
        training = self.training
        if len(set(training.freeze)) == 3:
            raise inconsistent("training.freeze", training.freeze, "leaves nothing to train; should leave out one of them")
        if training.freeze and training.init_from is None:
            problem = "should come with training.init_from: random weights would stay random"
            raise inconsistent("training.freeze", training.freeze, problem)
        stands = "quantizer" in training.freeze or training.generator_wait_steps > 0
        if stands and self.codebook.method != "gradient":
            problem = "should be gradient where the quantizer is frozen or waits: the codes would move all the same"
            raise inconsistent("codebook.method", self.codebook.method, problem)
        if training.generator_wait_steps and not self.discriminators.chosen:
            problem = "should be 0 when all discriminators are null"
            raise inconsistent("training.generator_wait_steps", training.generator_wait_steps, problem)

    def _check_hub(self) -> None:
        if self.hub.push == "best" and not (self.checkpoint.keep_best and self.validation.enabled):
            problem = "should come with validation, and with checkpoint.keep_best above 0: only saved models are pushed"
            raise inconsistent("hub.push", self.hub.push, problem)

    def _check_allowed(self) -> None:
        for name in self.checkpoint.allow_changes:
            if name not in SETTINGS and name not in ANYTHING:
                near = difflib.get_close_matches(name, SETTINGS, n=1)
                advice = f"did you mean {near[0]}?" if near else "should be dotted names, or true for all of them"
                raise inconsistent("checkpoint.allow_changes", name, f"no such setting; {advice}")

    def _check_profile(self) -> None:
        steps, last = self.tracking.profiled_steps, self.training.num_iterations
        if steps is not None and steps[1] > last:
            problem = f"should end by the last step, training.num_iterations = {last}"
            raise inconsistent("tracking.profile", self.tracking.profile, problem)

    def _check_segment(self) -> None:
        needs = {"the spectral losses need": _SPECTRA_NEED}
        needs |= {
            f"discriminators.{name} needs": options.min_samples
            for name, options in self.discriminators.chosen.items()
        }
        for who, samples in needs.items():
            if self.segment_samples < samples:
                problem = f"gives {self.segment_samples} samples; {who} at least {samples}"
                raise inconsistent("data.segment_length", self.data.segment_length, problem)

    def _check_validation(self) -> None:
        sources, held_out = self.data.each_source(), self.validation
        if not held_out.enabled:
            return
        if held_out.is_share:
            if held_out.by == "speaker" and any(source.speaker_column is None for source in sources):
                raise inconsistent("validation.by", held_out.by, "should come with data.speaker_column")
            if held_out.configuration is not None:
                problem = "should come with validation.dataset_path or validation.split"
                raise inconsistent("validation.configuration", held_out.configuration, problem)
            return
        own = (held_out.dataset_path, held_out.configuration, held_out.split)
        for source in sources:
            trained_on = (source.dataset_path, source.configuration, source.split)
            if trained_on == tuple(mine or theirs for mine, theirs in zip(own, trained_on, strict=True)):
                setting = "split" if held_out.split is not None else "dataset_path"
                problem = "is what is trained on; should be another split or source, or null for a held-out share"
                raise inconsistent(f"validation.{setting}", getattr(held_out, setting), problem)

    def _check_turns(self) -> None:
        if self.turns != TurnSettings() and not self.discriminators.chosen:
            problem = "should be left out when all discriminators are null"
            raise inconsistent("turns.start_step", self.turns.start_step, problem)
        wait = self.training.generator_wait_steps
        if wait and self.turns.start_step:
            raise inconsistent("turns.start_step", self.turns.start_step, "should be 0 with training.generator_wait_steps")
        for first, end in self.turns.pauses:
            if first < wait:
                problem = f"should begin at {wait} or later: until then the discriminators alone learn"
                raise inconsistent("turns.pauses", [first, end], problem)
        others = ("multi_scale_mel", "mel", "stft")
        if self.turns.start_step and not any(getattr(self.losses, name) for name in others):
            problem = f"should be 0 unless one of losses.{', losses.'.join(others)} is above 0: nothing would train the generator"
            raise inconsistent("turns.start_step", self.turns.start_step, problem)

    def _check_losses(self) -> None:
        if not self.discriminators.chosen:
            for name in ("adversarial", "feature_matching"):
                weight = getattr(self.losses, name)
                if weight:
                    raise inconsistent(
                        f"losses.{name}", weight, "should be 0 when all discriminators are null"
                    )
        terms = ("adversarial", "feature_matching", "multi_scale_mel", "mel", "stft")
        if not any(getattr(self.losses, name) for name in terms):
            problem = (
                f"should be above 0, or another of {', '.join(terms)}: nothing would train the generator"
            )
            raise inconsistent("losses.multi_scale_mel", self.losses.multi_scale_mel, problem)


def section_of(annotation: object) -> type[Section] | None:
    """The class that an annotation `Section` or `Section | None` names; None for a plain setting, and for a list."""
    if get_origin(annotation) is tuple:
        return None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def setting_fields(
    section: type[Section] = TrainingConfig, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted name of the schema with its field, sections and settings, in the order of the schema."""
    for name, field in section.model_fields.items():
        dotted = f"{prefix}{name}"
        yield dotted, field
        nested = section_of(field.annotation)
        if nested is not None:
            yield from setting_fields(nested, f"{dotted}.")


SETTINGS: dict[str, FieldInfo] = dict(setting_fields())
