"""The sections of the configuration other than `model`: what each setting means, its unit, and its range."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .fields import AnyNumber, Count, CountOrZero, Name, Pair, Section, Weight, inconsistent
from .finetuning import FineTuningSettings

Rate = Annotated[float, Field(gt=0, le=1)]
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # what Accelerate 1.15 knows


class TrainingSettings(FineTuningSettings):
    """The optimisation: batches, learning rates, intervals. A step is one global batch."""

    batch_size: Count = Field(default=16, description="Clips per process and micro-batch.")
    global_batch_size: Count | None = Field(
        default=None, description="Clips per step over all processes; given: accumulation is derived from it."
    )
    gradient_accumulation_steps: Count | None = Field(
        default=None, description="Micro-batches per step; null: as the launcher says, else 1."
    )
    learning_rate: Rate = Field(default=6e-4, description="AdamW learning rate of the generator.")
    discriminator_learning_rate: Rate | None = Field(
        default=None, description="AdamW learning rate of the discriminators; null: as the generator."
    )
    lr_decay: Rate = Field(default=0.999994, description="Factor on both learning rates at every step.")
    warmup_steps: CountOrZero = Field(default=0, description="Steps of linear warm-up of the learning rates.")
    num_iterations: Count = Field(default=800_000, description="Length of the run in steps.")
    save_interval: Count = Field(default=10_000, description="Steps between checkpoints.")
    log_interval: Count = Field(default=100, description="Steps between log lines.")
    validation_interval: Count = Field(default=1_000, description="Steps between validations.")
    seed: CountOrZero = Field(default=0, description="Seed of everything random.")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Gradient norm to clip to; null: no clipping, as in the paper."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        default=None, description="Autocast type; null: as `accelerate launch` says. fp16 needs a GPU."
    )
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        default="highest",
        description="Matrix products in float32: highest (all digits), high (TF32) or medium (bfloat16).",
    )
    tf32_convolutions: bool = Field(default=True, description="Convolutions in float32 may use TF32 (GPUs).")
    non_finite_limit: Count = Field(
        default=100, description="Consecutive skipped (non-finite) steps that stop the run."
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        total = self.global_batch_size
        if total is not None and total % self.batch_size:
            problem = f"should be a multiple of training.batch_size, {self.batch_size}"
            raise inconsistent("global_batch_size", total, problem)
        if total is not None and self.gradient_accumulation_steps is not None:
            problem = "should be left out: it is derived from training.global_batch_size"
            raise inconsistent("gradient_accumulation_steps", self.gradient_accumulation_steps, problem)
        return self


class LossSettings(Section):
    """Weight of each loss; 0: computed and logged only."""

    adversarial: Weight = Field(default=1.0, description="Weight of the least-squares adversarial loss.")
    feature_matching: Weight = Field(
        default=2.0, description="Weight of the L1 distance of discriminator features."
    )
    multi_scale_mel: Weight = Field(default=15.0, description="Weight of DAC's seven-scale log-mel distance.")
    mel: Weight = Field(default=0.0, description="Weight of the single-scale, 80-band log-mel distance.")
    stft: Weight = Field(default=0.0, description="Weight of the multi-resolution STFT loss.")
    commitment: Weight = Field(default=0.25, description="Weight of the pull of latents to their codes.")
    codebook: Weight = Field(default=1.0, description="Weight of the pull of codes to their latents.")


class OptimizerSettings(Section):
    """AdamW, the same for generator and discriminators."""

    betas: Pair[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.8, 0.99), description="Decay of the two moments."
    )
    weight_decay: Weight = Field(default=0.01, description="Decoupled weight decay.")
    epsilon: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1e-8, description="Added to the denominator."
    )


class PerformanceSettings(Section):
    """Time and memory of a step; what is trained stays the same but for rounding."""

    compile: Literal["none", "generator", "all"] = Field(
        default="none",
        description="What torch.compile takes: none, the generator, or all (generator and discriminators).",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute the generator's blocks again in the backward pass instead of keeping what they computed: "
        "less memory, more time.",
    )


class DistributedSettings(Section):
    """How the processes of a run work together."""

    timeout_seconds: Annotated[float, Field(ge=1, le=86400)] = Field(
        default=600.0, description="Longest wait for another process, at the start and in a step (s)."
    )


class CheckpointSettings(Section):
    """Checkpoints of the run."""

    resume: Name = Field(
        default="auto",
        description="auto (newest of this run's folder, if any), never, or a checkpoint folder.",
    )
    allow_changes: AnyNumber[Name] = Field(
        default=(),
        description="Settings by dotted name that may differ from those of the run that goes on, though they change "
        "what is trained; true: all of them.",
    )
    keep_last: Count = Field(default=3, description="Newest checkpoints kept.")
    keep_every: Count | None = Field(
        default=None, description="Steps: checkpoints of multiples of it are kept too, for ever; null: none."
    )
    keep_best: CountOrZero = Field(
        default=0,
        description="Checkpoints kept that were best on the held-out clips; above 0 a new best one is saved at once.",
    )
    max_failed_saves: Count = Field(
        default=3, description="Saves in a row that may fail, on a full disk for instance, before the run ends."
    )


class TrackingSettings(Section):
    """Where numbers, audio and pictures go, besides the JSON-lines log."""

    trackers: AnyNumber[Tracker] = Field(
        default=("tensorboard",), description="Trackers of Accelerate, such as wandb; []: none."
    )
    progress_bar: bool = Field(default=True, description="Show a progress bar.")
    profile: Name | None = Field(
        default=None,
        description="START:STOP: profile what happens after START steps are done until STOP are; null: nothing.",
    )

    @property
    def profiled_steps(self) -> tuple[int, int] | None:
        """The steps done when the profile begins, and when it ends."""
        if self.profile is None:
            return None
        start, _, stop = self.profile.partition(":")
        return int(start), int(stop)

    @model_validator(mode="after")
    def _check(self) -> TrackingSettings:
        if self.profile is not None:
            start, _, stop = self.profile.partition(":")
            if not (_is_count(start) and _is_count(stop) and int(start) < int(stop)):
                problem = "should be START:STOP, two numbers of steps of which the first is smaller, such as 100:110"
                raise inconsistent("profile", self.profile, problem)
        return self


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


class PathSettings(Section):
    """Folders of the run."""

    run_dir: Name | None = Field(
        default=None, description="Folder of the run; null: checkpoint_dir, or a fresh one in runs/."
    )
    run_name: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)] = Field(
        default="snac",
        description="Name of the run: its folder is runs/NAME-TIMESTAMP and runs/NAME leads to the newest.",
    )
    checkpoint_dir: Name | None = Field(
        default=None, description="Folder of the checkpoints; null: checkpoints in the run's folder."
    )
    log_dir: Name | None = Field(
        default=None, description="Folder of the logs; null: logs in the run's folder."
    )
