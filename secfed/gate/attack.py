"""An audit's report against a run: is it of this study, and what does it say?

``secfed audit`` writes ``audit.json`` without a signature: it attacks a copy, and
whoever puts it into a request vouches for it. What binds it to a run is the study's
digest, and the plan in the run's ledger, from which the claim is computed again.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from secfed.canonical import parse_json
from secfed.entries import PlanEntry
from secfed.errors import VerificationError
from secfed.privacy import accounting
from secfed.statement import round_event_json
from secfed.study import Study

__all__ = ["LEVEL", "AttackReport", "Finding", "read_attack_report", "require_of_run"]

LEVEL: Final = 0.01
"""A p-value below this refutes, whatever level the audit was asked to use."""

_P_VALUES: Final = ("p", "p_one_run_fdp")
_BOUNDS: Final = ("epsilon_one_run", "epsilon_one_run_fdp")
_TOLERANCE: Final = 1e-4
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Subject(_Part):
    """What was audited."""

    study: str
    study_digest: str
    site: str
    method: str
    rounds: Annotated[int, Field(ge=1)]
    optimizer: str
    unit: str
    noise_multiplier: _Finite
    sampling_probability: _Finite
    claimed_epsilon: _Finite
    delta: _Finite
    charged_parts: tuple[str, ...]
    charged_rounds: int
    charged_epsilon: _Finite
    budget: str


class Finding(_Part):
    """One result."""

    number: int
    part: Literal["A", "B", "C"]
    name: str
    verdict: Literal["ok", "REFUTED", "not run"]
    text: str
    values: dict[str, JsonValue]

    @property
    def refutes(self) -> bool:
        """By its own verdict, or by a p-value of an attack below 1 %."""
        known = [self.values.get(name) for name in _P_VALUES] if self.is_attack else []
        small = [p for p in known if isinstance(p, int | float) and p < LEVEL]
        return self.verdict == "REFUTED" or bool(small)

    @property
    def is_attack(self) -> bool:
        """Whether somebody attacked: part A looks at code only."""
        return self.part in {"B", "C"}


class AttackReport(_Part):
    """The content of ``audit.json``."""

    format: Literal[1]
    kind: Literal["audit; not a release"]
    subject: Subject
    refuted: bool
    findings: tuple[Finding, ...]
    caution: str

    def refutations(self) -> list[Finding]:
        """The findings that refute the claim."""
        return [found for found in self.findings if found.refutes]

    def attacks(self) -> list[Finding]:
        """The attacks that were run."""
        return [f for f in self.findings if f.is_attack and f.verdict != "not run"]

    def lower_bound(self) -> float | None:
        """The largest lower bound on epsilon of any attack; None without one."""
        held = [f.values.get(name) for f in self.attacks() for name in _BOUNDS]
        return max((float(v) for v in held if isinstance(v, int | float)), default=None)


def read_attack_report(data: bytes) -> AttackReport:
    """Read ``audit.json``.

    Raises:
        VerificationError: It is not an audit's report, or its verdict is not that of
            its findings.
    """
    try:
        parse_json(data)
        found = AttackReport.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerificationError(f"attack report: {where}: {first['msg']}") from error
    except ValueError as error:
        raise VerificationError(f"attack report: {error}") from error
    if found.refuted != any(one.verdict == "REFUTED" for one in found.findings):
        raise VerificationError("attack report: its findings say otherwise")
    return found


def require_of_run(report: AttackReport, study: Study, plan: PlanEntry) -> None:
    """Refuse a report on another study, site or claim.

    Raises:
        VerificationError: Names what is not this run's.
    """
    said, values = report.subject, plan.sites.get(report.subject.site)
    if said.study_digest != study.digest():
        raise VerificationError(
            f"attack report: of another study ({said.study}, {said.method}); audit the "
            "study file of this run, with its method"
        )
    if values is None:
        raise VerificationError(f"attack report: {said.site}: no plan in this run")
    if said.rounds > study.training.rounds:
        raise VerificationError("attack report: of more rounds than the study has")
    expected: dict[str, Any] = {
        "unit": values["unit"],
        "noise_multiplier": values["noise_multiplier"],
        "sampling_probability": values["sampling_probability"],
        "delta": values["delta"],
        "claimed_epsilon": _claim(values, said.rounds),
    }
    for name, value in expected.items():
        if not _same(getattr(said, name), value):
            raise VerificationError(f"attack report: {name} is not that of the ledger")


def _claim(plan: dict[str, Any], rounds: int) -> float:
    event = accounting.event_from_json(round_event_json(plan))
    return float(accounting.epsilon([event] * rounds, plan["delta"]))


def _same(said: Any, value: Any) -> bool:
    if isinstance(value, float):
        return math.isclose(said, value, rel_tol=_TOLERANCE)
    return bool(said == value)
