"""A site's policy file: what its operator allows, default deny."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from secfed.hours import parse_hours, parse_zone
from secfed.study import METHODS, MIN_SITES, MIN_UNITS, Study
from secfed.study.evaluation import MetricName
from secfed.study.fields import Sha256, SiteName, Text, Texts
from secfed.study.reading import ContradictionError, Table, checked, read_toml
from secfed.study.sections import check_method

__all__ = ["APPROVALS_NAME", "STOP_NAME", "Consent", "SitePolicy", "load_policy"]

STOP_NAME: Final = "STOP"
APPROVALS_NAME: Final = "approvals"

Consent = Callable[[Study], frozenset[str]]
"""Whether the operators approved a study: the exceptions that they signed with it.

It raises ``PolicyError`` where they did not."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


_Digests = Annotated[tuple[Sha256, ...], BeforeValidator(_as_tuple)]
_Units = Annotated[
    tuple[Literal["record", "person", "site"], ...], BeforeValidator(_as_tuple)
]
_Quantisations = Annotated[
    tuple[Literal["none", "nf4", "int8"], ...], BeforeValidator(_as_tuple)
]
_Metrics = Annotated[tuple[MetricName, ...], BeforeValidator(_as_tuple)]


class SitePolicy(Table):
    """The limits of one data set at one site.

    Guarantees:
        No file lowers the floors: ``min_units >= 10``, ``min_sites >= 3`` and
        at least two more sites than colluders, malicious mode. What is not
        allowed by name is refused.
    """

    format: Literal[1]
    population: SiteName
    max_epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    # Declared by the operator: no person has more records in this data. Lets a
    # study per record draw on a budget that is kept per person.
    max_records_per_person: Annotated[int, Field(ge=1)] | None = None
    min_units: Annotated[int, Field(ge=MIN_UNITS)] = MIN_UNITS
    min_sites: Annotated[int, Field(ge=MIN_SITES)] = MIN_SITES
    allowed_methods: Texts
    allowed_model_sha256: _Digests
    # A whole site as the unit is another promise, so it is allowed by name only.
    allowed_units: _Units = ("record", "person")
    # So is a base in few bits: its adapter is fitted to the rounded weights.
    allowed_quantisations: _Quantisations = ("none",)
    # A teacher speaks of records that it was trained on: every digest that pins it.
    allowed_teacher_sha256: _Digests = ()
    # And so is what leaves the site of records that it holds back, noised as it is.
    allowed_metrics: _Metrics = ()
    min_evaluation_units: Annotated[int, Field(ge=MIN_UNITS)] = MIN_UNITS
    # Who may get the release besides the study's sites and its coordinator.
    allowed_recipients: Texts = ()
    require_mode: Literal["malicious"] = "malicious"
    # When rounds may begin; None: at any time.
    hours: Texts | None = None
    time_zone: Text | None = None
    # People who must sign a study before it runs, and whose keys count. A deployed
    # site asks for one in any case.
    approvals: Annotated[int, Field(ge=1, le=16)] | None = None
    operators: _Digests = ()
    approval_days: Annotated[int, Field(ge=1, le=3650)] | None = None
    # Folders and files of the site, beside the policy file.
    approvals_dir: Text | None = None
    stop_file: Text | None = None
    # Folder of the budget files, shared by all runs on these people.
    budget_dir: str | None = None

    # No file sets this: it is attached where the operators' approvals can be read.
    _consent: Consent | None = PrivateAttr(default=None)

    @property
    def consent(self) -> Consent | None:
        """Who is asked whether the operators approved; None: nobody can be."""
        return self._consent

    def asking(self, consent: Consent, approvals: int) -> Self:
        """This policy with somebody to ask; so many people must have signed."""
        found = self.model_copy(update={"approvals": approvals})
        found._consent = consent  # noqa: SLF001 - a copy of our own
        return found

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        for index, name in enumerate(self.allowed_methods):
            check_method(f"allowed_methods[{index + 1}]", name)
        if not self.allowed_methods:
            raise ContradictionError(
                "allowed_methods", f"name at least one of: {', '.join(METHODS)}"
            )
        return self

    @model_validator(mode="after")
    def _known_hours(self) -> Self:
        for index, text in enumerate(self.hours or ()):
            try:
                parse_hours(text)
            except ValueError as error:
                raise ContradictionError(f"hours[{index + 1}]", str(error)) from error
        if self.time_zone is not None and self.hours is None:
            raise ContradictionError("time_zone", "belongs to hours only")
        try:
            parse_zone(self.time_zone or "UTC")
        except ValueError as error:
            raise ContradictionError("time_zone", str(error)) from error
        return self

    @model_validator(mode="after")
    def _enough_operators(self) -> Self:
        if len(set(self.operators)) != len(self.operators):
            raise ContradictionError("operators", "a key is listed twice")
        if (self.approvals or 1) > max(1, len(self.operators)):
            raise ContradictionError(
                "operators",
                f"{self.approvals} people must sign, and {len(self.operators)} keys "
                "are listed; give the fingerprint of each (secfed keys operator)",
            )
        return self


def load_policy(path: str | Path) -> SitePolicy:
    """Read and check a site's policy file; its folders and files become absolute.

    Raises:
        StudyError: Missing, not UTF-8, not TOML, an unknown key, or a value
            below a floor.
    """
    policy = checked(SitePolicy, read_toml(Path(path)), path)
    folder = Path(path).resolve().parent
    places = {
        "approvals_dir": policy.approvals_dir or APPROVALS_NAME,
        "stop_file": policy.stop_file or STOP_NAME,
    }
    if policy.budget_dir is not None:
        places["budget_dir"] = policy.budget_dir
    return policy.model_copy(
        update={key: str(folder / value) for key, value in places.items()}
    )
