"""Section `hub`: what a run pushes to the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .fields import Section, inconsistent

Repository = Annotated[str, Field(pattern=r"^([\w][\w.-]*/)?[\w][\w.-]*$", max_length=96)]
License = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=60)]


class HubSettings(Section):
    """The repository of the model. Who may write there is found where the ecosystem keeps it: HF_TOKEN, `hf auth login`."""

    repository: Repository | None = Field(
        default=None, description="Repository that the model is pushed to, NAME or OWNER/NAME; null: nothing is pushed."
    )
    push: Literal["end", "save", "best"] = Field(
        default="end", description="What is pushed: the finished model, also that of every checkpoint, or the best ones only."
    )
    private: bool | None = Field(
        default=None, description="Whether a new repository is private; null: as the owner's settings have it."
    )
    license: License | None = Field(
        default=None, description="Licence of the weights, as the Hub names it, such as mit or cc-by-4.0; null: none is stated."
    )
    revisions: Literal["none", "tag", "branch"] = Field(
        default="none", description="What leads to each pushed step beside main: nothing, a tag or a branch named step-00001000."
    )
    training_pack: Literal["none", "branch", "repository"] = Field(
        default="branch",
        description="Where discriminators, optimisers and schedules go, for others to fine-tune from: nowhere, the branch "
        "`training`, or the repository NAME-training.",
    )
    wait_seconds: Annotated[float, Field(ge=0, le=86400)] = Field(
        default=600.0, description="Longest wait at the end for what is not pushed yet; it stays in the run's folder (s)."
    )

    @model_validator(mode="after")
    def _check(self) -> HubSettings:
        name = self.repository or ""
        if name.endswith(".git") or ".." in name or "--" in name or name.endswith(("-", ".")):
            problem = "should be a name that the Hub takes: no '--', no '..', no '.git', no '-' or '.' at the end"
            raise inconsistent("repository", name, problem)
        return self
