"""What the tables of a study file share: types of their values, and small checks."""

from __future__ import annotations

import math
from datetime import date
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints

from secfed.study.reading import ContradictionError

__all__ = [
    "WITHOUT_PRIVACY",
    "Count",
    "Decay",
    "Epsilon",
    "NotNegative",
    "Positive",
    "Rank",
    "Seed",
    "Sha256",
    "SiteName",
    "SiteNames",
    "Text",
    "Texts",
    "as_day",
    "list_as_tuple",
    "none_as_missing",
    "require_unique",
]

WITHOUT_PRIVACY: Final = "inf"


def none_as_missing(value: object) -> object:
    """``"none"`` is what a study that says nothing means; equal ones, equal digests."""
    return None if value == "none" else value


def list_as_tuple(value: object) -> object:
    """TOML has lists, a frozen table tuples."""
    return tuple(value) if isinstance(value, list) else value


# Site names become directory names and lines of the ledger.
SiteName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Rank = Annotated[int, Field(ge=1, le=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SiteNames = Annotated[tuple[SiteName, ...], BeforeValidator(list_as_tuple)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(list_as_tuple)]


def _epsilon(value: object) -> float | Literal["inf"]:
    """A finite epsilon, or ``inf``: trained without privacy."""
    if value == WITHOUT_PRIVACY:
        return WITHOUT_PRIVACY
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise ContradictionError(
            "", f'must be a positive number or "inf" (got {value!r:.60})'
        )
    return float(value)  # type: ignore[arg-type]


Epsilon = Annotated[float | Literal["inf"], PlainValidator(_epsilon)]


def as_day(text: str) -> str:
    """A day as 2027-03-31, which sorts as time does."""
    try:
        found = date.fromisoformat(text).isoformat()
    except ValueError:
        found = ""
    if found != text:
        raise ContradictionError("", f"{text!r} is not a day like '2027-03-31'")
    return text


def require_unique(key: str, names: tuple[object, ...]) -> None:
    """Refuse a name that is listed twice, whatever its case."""
    seen: set[object] = set()
    for name in names:
        folded = name.casefold() if isinstance(name, str) else name
        if folded in seen:
            raise ContradictionError(key, f"{name!r} is listed twice")
        seen.add(folded)
