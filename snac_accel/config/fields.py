"""What all sections of the configuration share: strictness, common types, and how a check speaks."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ..redaction import holds_credentials


class Section(BaseModel):
    """A frozen group of settings: no unknown key, no NaN, no conversion but that of integers to floats."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


def _tuple_from_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _without_credentials(text: str) -> str:
    """The text itself; refuses one with a password or key, since settings are written beside the run and into trackers."""
    if holds_credentials(text):
        raise PydanticCustomError(
            "credentials",
            "should hold no user name, password or key, which would be written beside the run: leave them to where the "
            "client looks, such as HF_TOKEN, AWS_SECRET_ACCESS_KEY or the configuration of fsspec",
        )
    return text


Item = TypeVar("Item")
# JSON and YAML give lists; tuples keep a frozen section really frozen.
Pair = Annotated[tuple[Item, Item], BeforeValidator(_tuple_from_list)]
Several = Annotated[tuple[Item, ...], BeforeValidator(_tuple_from_list), Field(min_length=1)]
AnyNumber = Annotated[tuple[Item, ...], BeforeValidator(_tuple_from_list)]

LIMIT = 2**31  # above any sensible count, below what a C integer or a seed takes

Count = Annotated[int, Field(ge=1, lt=LIMIT)]
CountOrZero = Annotated[int, Field(ge=0, lt=LIMIT)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[  # of a folder, address, repository, split or column
    str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$"), AfterValidator(_without_credentials)
]


def inconsistent(setting: str, value: Any, problem: str) -> PydanticCustomError:
    """The error of a check across settings; `setting` is the name inside the section that is checked."""
    return PydanticCustomError(
        "inconsistent", "{problem}", {"setting": setting, "value": value, "problem": problem}
    )
