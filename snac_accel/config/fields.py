"""What all sections of the configuration share: strictness, common types, and how a check speaks."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


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


Item = TypeVar("Item")
# JSON and YAML give lists; tuples keep a frozen section really frozen.
Pair = Annotated[tuple[Item, Item], BeforeValidator(_tuple_from_list)]
Several = Annotated[tuple[Item, ...], BeforeValidator(_tuple_from_list), Field(min_length=1)]
AnyNumber = Annotated[tuple[Item, ...], BeforeValidator(_tuple_from_list)]

LIMIT = 2**31  # above any sensible count, below what a C integer or a seed takes

Count = Annotated[int, Field(ge=1, lt=LIMIT)]
CountOrZero = Annotated[int, Field(ge=0, lt=LIMIT)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[
    str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")
]  # of a folder, repository, split or column


def inconsistent(setting: str, value: Any, problem: str) -> PydanticCustomError:
    """The error of a check across settings; `setting` is the name inside the section that is checked."""
    return PydanticCustomError(
        "inconsistent", "{problem}", {"setting": setting, "value": value, "problem": problem}
    )
