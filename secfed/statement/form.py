"""The form of ``statement.json``: which sections it has, and of which type.

The types here are the only place where the form stands. ``statement.schema.json``
beside this file is the same as a JSON schema (draft 2020-12) for other tools; a test
makes it again and compares. What nobody knows is the text ``UNKNOWN``: a field may
say that, but it may not be missing.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from secfed.canonical import canonical_json
from secfed.errors import VerificationError

__all__ = ["SCHEMA_NAME", "check_form", "packaged_schema", "statement_schema"]

SCHEMA_NAME: Final = "statement.schema.json"

_Unknown = Literal["UNKNOWN"]
_Count = Annotated[int, Field(ge=0)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Rate = Annotated[float, Field(ge=0, le=1)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Unit = Literal["record", "person", "site"]
_Site = Annotated[str, Field(min_length=1, max_length=200)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _missing(value: object) -> bool:
    return value is None


class StudyPart(_Form):
    """Which study was run, by its digest."""

    name: str
    title: str
    method: str
    digest: _Sha256
    base_quantisation: str | None = Field(default=None, exclude_if=_missing)


class Guarantee(_Form):
    """What is promised to whom; ``delta`` is null where nothing is promised."""

    unit: _Unit
    whose: str
    neighbouring: Literal["add-remove", "replace-one"]
    also_reported: str
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    epsilon_limit: _Epsilon | None
    noise: str
    released: str


class AttackRates(_Form):
    """What the guarantee leaves an attacker who guesses membership."""

    advantage: _Rate
    tpr_at_fpr_001: _Rate = Field(alias="tpr_at_fpr_0.01")
    tpr_at_fpr_0001: _Rate = Field(alias="tpr_at_fpr_0.001")


class PersonCost(_Form):
    """What was spent of one person, where the unit is the site."""

    meaning: str
    epsilon: _Epsilon
    epsilon_rdp: _Epsilon
    mu: _Finite | _Unknown
    attack_rates: AttackRates


class Cost(_Form):
    """What was spent of one privacy unit."""

    epsilon: _Epsilon
    epsilon_rdp: _Epsilon
    epsilon_replace_one: _Epsilon
    mu: _Finite | _Unknown
    attack_rates: AttackRates
    of_a_person: PersonCost | None = None


class Mechanism(_Form):
    """Clip, noise and sampling, as the plan in the ledger has them."""

    name: str
    clip_norm: _Finite
    clip_rule: str
    noise_multiplier: _Finite
    sampling_probability: _Rate
    expected_batch: _Count
    nominal_units: _Count


class Rounds(_Form):
    """Rounds of one site as the ledger counts them."""

    completed: _Count
    interrupted: _Count
    dropped_out: _Count


class PaidRounds(Rounds):
    """The same under a plan."""

    planned: _Count
    spent: _Count


class Steps(_Form):
    """Noisy steps; ``spent`` is UNKNOWN where a round was not as planned."""

    planned: _Count
    spent: _Count | _Unknown
    as_planned: bool


class PrivateSite(Cost):
    """A site that trained under a plan."""

    with_named_runs: Cost | None = None
    mechanism: Mechanism
    rounds: PaidRounds
    steps: Steps


class OpenSite(_Form):
    """A site that trained without privacy."""

    epsilon: None
    mechanism: None
    rounds: Rounds


class Across(_Form):
    """Someone who is at every site."""

    meaning: str
    epsilon: _Epsilon | None
    delta: float | None


class Accountant(_Form):
    """Who computed epsilon."""

    reference: str
    second: str
    library: str


class Party(_Form):
    """What one party sees."""

    party: str
    assumed: str | None = Field(default=None, exclude_if=_missing)
    sees: str
    does_not_see: str


class Tuning(_Form):
    """On what data the settings were chosen; what runs on private ones cost."""

    data: Literal["none", "public", "private"]
    note: str
    settings: str | None = Field(default=None, exclude_if=_missing)
    ledgers: tuple[_Sha256, ...] | None = Field(default=None, exclude_if=_missing)
    runs: tuple[str, ...] | None = Field(default=None, exclude_if=_missing)
    sites: dict[_Site, Cost] | None = Field(default=None, exclude_if=_missing)


class Composition(_Form):
    """What was spent before this run."""

    earlier_studies: dict[_Site, _Epsilon | _Unknown]
    tuning: Tuning | _Unknown
    elsewhere: dict[_Site, Cost] | None = Field(default=None, exclude_if=_missing)
    note: str


class Execution(_Form):
    """Where it ran."""

    where: str
    simulation_seed: int | None
    verdict: Literal["NOT PRIVATE", "private under the trust model"]
    reasons: tuple[str, ...]


class Teacher(BaseModel):
    """Who taught the student; what it cost, if it was private."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    weight: float
    temperature: float
    sha256: _Sha256
    kind: str


class Evaluation(BaseModel):
    """What was released of records that sites hold back."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    whose: str
    fraction: float
    nominal_units: dict[_Site, _Count]
    does_not_evaluate: tuple[_Site, ...]
    mechanism: dict[str, JsonValue]
    unprotected: tuple[str, ...]
    composition: str
    rounds: tuple[dict[str, JsonValue], ...]


class Utility(_Form):
    """Scores on the public hold-out, of all of it and of its public subgroups."""

    measured_on: str
    scores: dict[str, _Finite]
    by_subgroup: dict[str, dict[str, _Finite]] | _Unknown


class Statement(_Form):
    """A privacy statement of secfed, format 1."""

    format: Literal[1]
    headline: str
    private: bool
    study: StudyPart
    guarantee: Guarantee
    sites: dict[_Site, PrivateSite | OpenSite]
    across_sites: Across
    accountant: Accountant
    trust: tuple[Party, ...]
    teacher: Teacher | None = None
    composition: Composition
    unprotected: tuple[str, ...]
    hazards: tuple[str, ...]
    execution: Execution
    self_test: dict[str, JsonValue] | _Unknown
    empirical_lower_bound: dict[str, JsonValue] | _Unknown
    provenance: dict[str, str] | _Unknown
    utility: Utility | _Unknown
    limits: tuple[str, ...]
    evaluation: Evaluation | None = None


def check_form(statement: object) -> None:
    """Refuse what has not the form of a statement.

    Args:
        statement: The JSON object.

    Raises:
        VerificationError: Names the first field that is missing, unknown or wrong.
    """
    try:
        Statement.model_validate_json(canonical_json(statement))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerificationError(f"statement.json: {where}: {first['msg']}") from error


def statement_schema() -> dict[str, Any]:
    """The JSON schema of a statement, as the package holds it."""
    schema = Statement.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | schema


def packaged_schema() -> dict[str, Any]:
    """The schema that was written when this version was made."""
    text = files("secfed.statement").joinpath(SCHEMA_NAME).read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
