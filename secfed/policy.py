"""What a site's operator allows; it outranks every study and fails closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from secfed.errors import PolicyError
from secfed.study import METHODS, MIN_SITES, MIN_UNITS, Study
from secfed.study.evaluation import MetricName
from secfed.study.reading import ContradictionError, Table, checked, read_toml
from secfed.study.sections import Sha256, SiteName, Texts, check_method

__all__ = ["SitePolicy", "check", "load_policy"]


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
    require_mode: Literal["malicious"] = "malicious"
    # Folder of the budget files, shared by all runs on these people.
    budget_dir: str | None = None

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        for index, name in enumerate(self.allowed_methods):
            check_method(f"allowed_methods[{index + 1}]", name)
        if not self.allowed_methods:
            raise ContradictionError(
                "allowed_methods", f"name at least one of: {', '.join(METHODS)}"
            )
        return self


def load_policy(path: str | Path) -> SitePolicy:
    """Read and check a site's policy file; ``budget_dir`` becomes absolute.

    Raises:
        StudyError: Missing, not UTF-8, not TOML, an unknown key, or a value
            below a floor.
    """
    policy = checked(SitePolicy, read_toml(Path(path)), path)
    if policy.budget_dir is None:
        return policy
    folder = Path(path).resolve().parent / policy.budget_dir
    return policy.model_copy(update={"budget_dir": str(folder)})


def check(policy: SitePolicy, study: Study, num_units: int) -> None:
    """Let a study pass, or say everything that stands against it.

    Args:
        policy: The site's own rules.
        study: What the coordinator asks for.
        num_units: Privacy units at this site; it does not appear in errors.

    Raises:
        PolicyError: At least one rule refuses; the message lists all that do.
    """
    refusals = [text for rule in _RULES for text in rule(policy, study, num_units)]
    if refusals:
        listed = "".join(f"\n  - {text}" for text in refusals)
        raise PolicyError(
            f"the policy of {policy.population!r} refuses study {study.name!r}:{listed}"
        )


_Rule = Callable[[SitePolicy, Study, int], list[str]]


def _privacy(policy: SitePolicy, study: Study, _num_units: int) -> list[str]:
    asked = study.privacy
    refusals = []
    if asked.epsilon > policy.max_epsilon:
        refusals.append(
            f"privacy.epsilon {asked.epsilon:g} is above max_epsilon "
            f"{policy.max_epsilon:g}"
        )
    if asked.delta > policy.delta:
        refusals.append(
            f"privacy.delta {asked.delta:g} is above delta {policy.delta:g}"
        )
    return refusals


def _cohort(policy: SitePolicy, study: Study, num_units: int) -> list[str]:
    refusals = []
    # The floors are repeated here, so that a policy built in code obeys them too.
    if num_units < max(policy.min_units, MIN_UNITS):
        refusals.append(
            f"this site holds fewer than {max(policy.min_units, MIN_UNITS)} "
            f"units (min_units)"
        )
    least = max(policy.min_sites, MIN_SITES, study.secagg.colluders + 2)
    if len(study.sites) < least:
        refusals.append(
            f"{len(study.sites)} sites are fewer than {least} (min_sites, and two "
            "more than secagg.colluders)"
        )
    return refusals


def _durable(policy: SitePolicy, study: Study, _num_units: int) -> list[str]:
    """Real people's budget must outlive a run directory (PITFALLS 2)."""
    rehearsal = study.data.is_builtin or study.simulation.seed is not None
    if rehearsal or policy.budget_dir is not None:
        return []
    return [
        "site.toml names no budget_dir, so what earlier runs spent would be forgotten"
    ]


def _mode(_policy: SitePolicy, study: Study, _num_units: int) -> list[str]:
    if study.secagg.mode == "malicious":
        return []
    return [f"secagg.mode {study.secagg.mode!r} is not 'malicious'"]


def _allowed(policy: SitePolicy, study: Study, _num_units: int) -> list[str]:
    refusals = []
    if study.training.method not in policy.allowed_methods:
        refusals.append(
            f"training.method {study.training.method!r} is not in allowed_methods"
        )
    if study.model.sha256 not in policy.allowed_model_sha256:
        refusals.append(
            f"model.sha256 {study.model.sha256} is not in allowed_model_sha256"
        )
    quantisation = study.model.quantisation or "none"
    if quantisation not in policy.allowed_quantisations:
        refusals.append(
            f"model.quantisation {quantisation!r} is not in allowed_quantisations"
        )
    if study.privacy.unit not in policy.allowed_units:
        refusals.append(
            f"privacy.unit {study.privacy.unit!r} is not in allowed_units"
            + (_WHOLE_SITE if study.privacy.unit == "site" else "")
        )
    return refusals


_WHOLE_SITE = (
    ": epsilon would speak of the whole site, and one person's records would cost more "
    "than that (secfed plan shows both)"
)


def _teacher(policy: SitePolicy, study: Study, _num_units: int) -> list[str]:
    digests = study.teacher.digests if study.teacher else ()
    return [
        f"distillation.teacher {digest} is not in allowed_teacher_sha256"
        for digest in digests
        if digest not in policy.allowed_teacher_sha256
    ]


def _evaluation(policy: SitePolicy, study: Study, _num_units: int) -> list[str]:
    """Decided from what is declared: a refusal says nothing about records."""
    asked = study.evaluation
    if asked is None:
        return []
    refusals = [
        f"evaluation.metrics {name!r} is not in allowed_metrics"
        for name in asked.metrics
        if name not in policy.allowed_metrics
    ]
    floor = max(policy.min_evaluation_units, MIN_UNITS)
    if asked.min_units < floor:
        refusals.append(
            f"evaluation.min_units {asked.min_units} is below {floor} "
            "(min_evaluation_units)"
        )
    return refusals


_RULES: tuple[_Rule, ...] = (
    _privacy,
    _durable,
    _cohort,
    _mode,
    _allowed,
    _teacher,
    _evaluation,
)
