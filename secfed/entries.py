"""What the entries of a ledger say.

One frozen type per kind. ``to_body()`` gives the JSON object of the entry and
``parse_body`` reads it back strictly: a missing, extra or mistyped field is
refused, when it is written and when it is verified.

==========================  ================================================
kind                        body
==========================  ================================================
``study``                   which study this ledger belongs to; always entry 0
``plan``                    each site's privacy plan and the secure-sum
                            parameters, before anything is spent; always entry 1
``tuning``                  an earlier run on private records by which the study's
                            settings were chosen, and what it spent; they follow the
                            plan, in the study's order
``round``                   a completed round: who took part, what was spent
``round-interrupted``       a started round without a sum; spent all the same
``evaluation``              noised sums over held-back units, after a round
``evaluation-interrupted``  an evaluation without sums; what was reserved is spent
``approval``                a site approved the study
``key``                     a site's key was revoked; it takes part no more
``incident``                something went wrong; what, is said elsewhere
``withdrawal``              a site withdrew; future rounds are without it
``release``                 the final adapter; always last
==========================  ================================================

Sites appear by name. Nothing here is private: no counts of records, no losses. What
an approval, an incident or a withdrawal says of persons stays where it is; the entry
has a commitment to it. That of an incident or a withdrawal has a salt that can be
deleted (``commit``), approvals have nonces.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from secfed.canonical import canonical_json

__all__ = [
    "KINDS",
    "ApprovalEntry",
    "Body",
    "EvaluationEntry",
    "EvaluationInterruptedEntry",
    "IncidentEntry",
    "InterruptedEntry",
    "JsonObject",
    "KeyEntry",
    "Notice",
    "PlanEntry",
    "ReleaseEntry",
    "RoundEntry",
    "RunCharge",
    "RunCosts",
    "StudyEntry",
    "TuningEntry",
    "WithdrawalEntry",
    "commit",
    "parse_body",
]

JsonObject = dict[str, Any]

_SALT_BYTES = 32

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SiteName = Annotated[str, Field(min_length=1, max_length=200)]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
RunId = Annotated[str, Field(pattern=r"^[!-*,-~]{1,128}$")]
RoundNumber = Annotated[int, Field(ge=1, le=1_000_000)]


def _seed(value: object, info: ValidationInfo) -> object:
    """A seed stands in an entry as a text: JCS has no integers beyond 2^53."""
    if info.mode == "python":
        return value
    if not isinstance(value, str) or str(int(value)) != value:
        raise ValueError("a seed is written as a text of digits")
    return int(value)


Seed = Annotated[
    int, BeforeValidator(_seed), PlainSerializer(str, return_type=str, when_used="json")
]


def _missing(value: object) -> bool:
    return value is None


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: ClassVar[str]

    def files(self) -> Mapping[str, str]:
        """The files of the run that the entry is about: SHA-256 by path."""
        return {}

    def to_body(self) -> JsonObject:
        """The entry's JSON object."""
        body: JsonObject = self.model_dump(mode="json")
        return body


class StudyEntry(_Body):
    """The study that this ledger belongs to.

    ``study_digest`` is the digest of ``study.json``; ``simulation_seed`` repeats
    the study's, so that the ledger alone tells a simulation from a real run.
    ``run_id`` is the name under which budgets are charged, and with the study's digest
    the name of this log. ``also_signed_by`` are further keys, by their ids, that sign
    every entry beside the coordinator's.
    """

    kind: ClassVar[str] = "study"

    study_digest: Sha256
    name: str
    method: str
    model_sha256: Sha256 | None
    simulation_seed: Seed | None
    coordinator_key: Sha256
    secfed_version: str
    run_id: RunId
    also_signed_by: dict[str, JsonObject] | None = Field(
        default=None, exclude_if=_missing
    )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RunCharge(_Part):
    """What one round of an earlier run spent at one site."""

    run_id: str
    study_digest: Sha256
    round: RoundNumber
    event: JsonObject


class RunCosts(_Part):
    """What an earlier run spent, from its own ledger.

    ``spent`` maps each site of that run to its charges, those of the runs that it
    depends on itself included; ``simulation_seeds`` are those that its noise follows
    from. ``ledger_sha256`` is the digest of that ledger's file.
    """

    ledger_sha256: Sha256
    study_digest: Sha256
    unit: Literal["record", "person", "site"]
    simulation_seeds: tuple[Seed, ...]
    spent: dict[SiteName, tuple[RunCharge, ...]]


class PlanEntry(_Body):
    """What was fixed before the first round.

    ``sites`` maps every site to its ``PrivacyPlan.to_json()``, or to None in a
    run without privacy (``private`` false). ``identities`` maps every site to
    its public identity key in hexadecimal. ``ring_bits`` is what the study names
    or leaves open, and 32 in a run without privacy. ``suite`` is the number in
    ``protocols/SPEC.md``. ``initial_adapter_sha256`` is the digest of
    ``adapters/round-000.safetensors``. ``witnesses`` maps every site to its verifier
    key where it does not cosign with its identity. ``teacher`` is there where the study
    distils a private teacher, ``deployed`` where the sites were processes of their own.
    """

    kind: ClassVar[str] = "plan"

    private: bool
    sites: dict[SiteName, JsonObject | None]
    identities: dict[SiteName, Sha256]
    threshold: int
    max_colluders: int
    ring_bits: Literal[16, 32, 64]
    mode: Literal["malicious", "semi-honest"]
    suite: Literal[1, 2, 3]
    initial_adapter_sha256: Sha256
    teacher: RunCosts | None = Field(default=None, exclude_if=_missing)
    witnesses: dict[SiteName, str] | None = Field(default=None, exclude_if=_missing)
    deployed: Literal[True] | None = Field(default=None, exclude_if=_missing)

    def files(self) -> Mapping[str, str]:
        """The adapter that everybody starts from."""
        return {"adapters/round-000.safetensors": self.initial_adapter_sha256}

    @model_validator(mode="after")
    def _plans_where_private(self) -> Self:
        for site, plan in self.sites.items():
            if (plan is not None) != self.private:
                raise ValueError(f"{site}: a private run has a plan for every site")
        if self.identities.keys() - self.sites.keys():
            raise ValueError("identities of sites without a plan entry")
        return self


class TuningEntry(_Body):
    """An earlier run by which the study's settings were chosen, and what it spent.

    One for each run that the study's ``[tuning]`` pins, right after the plan.
    """

    kind: ClassVar[str] = "tuning"

    costs: RunCosts


class _Started(_Body):
    round: RoundNumber
    attempt: int = Field(ge=1)
    participants: tuple[SiteName, ...]
    spent: dict[SiteName, JsonObject]
    epsilon: dict[SiteName, Epsilon]
    # What each site's budget was after it reserved this round: a hash that says
    # nothing, by which a budget restored from an older copy is noticed.
    budget_heads: dict[SiteName, Sha256] = {}

    @model_validator(mode="after")
    def _each_participant_once(self) -> Self:
        if len(set(self.participants)) != len(self.participants):
            raise ValueError("a participant is listed twice")
        if not self.spent.keys() <= set(self.participants):
            raise ValueError("a site that did not take part spent something")
        if self.epsilon.keys() != self.spent.keys():
            raise ValueError("epsilon and spent name different sites")
        if not self.budget_heads.keys() <= self.spent.keys():
            raise ValueError("a budget of a site that spent nothing")
        return self


class _Summed(_Started):
    survivors: tuple[SiteName, ...]
    dropouts: dict[SiteName, str]

    @model_validator(mode="after")
    def _survivors_and_dropouts(self) -> Self:
        if len(set(self.survivors)) != len(self.survivors):
            raise ValueError("a survivor is listed twice")
        if set(self.survivors) & self.dropouts.keys():
            raise ValueError("a site is both a survivor and a dropout")
        if set(self.survivors) | self.dropouts.keys() != set(self.participants):
            raise ValueError("survivors and dropouts are not the participants")
        return self


class RoundEntry(_Summed):
    """A completed round.

    ``spent`` maps each participant to its reserved privacy event, survivors and
    dropouts alike; ``epsilon`` is its total after this round. ``dropouts`` maps
    a site to the phase after which it was gone. ``aggregate_sha256`` is the
    digest of the unmasked ring total, ``adapter_sha256`` that of
    ``adapters/round-<round>.safetensors``.
    """

    kind: ClassVar[str] = "round"

    aggregate_sha256: Sha256
    adapter_sha256: Sha256

    def files(self) -> Mapping[str, str]:
        """The adapter that came out."""
        return {f"adapters/round-{self.round:03d}.safetensors": self.adapter_sha256}


class InterruptedEntry(_Started):
    """A round that started and gave no sum: a crash, an abort, a signal.

    Its participants are the sites that had reserved their event. The events
    count as spent, the adapter stays what it was, and the round is not repeated.
    """

    kind: ClassVar[str] = "round-interrupted"

    reason: str


class EvaluationEntry(_Summed):
    """What the sites' held-back units say of an adapter, as a noised sum.

    ``round`` is the round that it follows, ``adapter_sha256`` the adapter that was
    evaluated, the one of the last completed round until then. ``sums`` are the cells
    of ``secfed.privacy.held_back``, over all survivors, each with its own noise.
    """

    kind: ClassVar[str] = "evaluation"

    adapter_sha256: Sha256
    sums: dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class EvaluationInterruptedEntry(_Started):
    """An evaluation that gave no sums; nothing is trained or evaluated again for it."""

    kind: ClassVar[str] = "evaluation-interrupted"

    reason: str


class ApprovalEntry(_Body):
    """A site says that it approved the study of this digest.

    The commitment binds the approvals that counted there
    (``secfed.governance.SiteApprovals.commitment``); it says neither who signed nor how
    many did.
    """

    kind: ClassVar[str] = "approval"

    site: SiteName
    study_digest: Sha256
    commitment: Sha256


class KeyEntry(_Body):
    """A site's identity, by its fingerprint, is not trusted any more.

    The site takes part in nothing that follows. New keys are those of a new run.
    """

    kind: ClassVar[str] = "key"

    site: SiteName
    event: Literal["revoked"]
    fingerprint: Sha256


class IncidentEntry(_Body):
    """Something went wrong; the report, which the commitment binds, is elsewhere."""

    kind: ClassVar[str] = "incident"

    commitment: Sha256


class WithdrawalEntry(_Body):
    """A site withdrew: the rounds from ``from_round`` on are without it.

    What was trained before stays as it is; nothing is unlearned. The commitment binds
    the record that the site signed.
    """

    kind: ClassVar[str] = "withdrawal"

    site: SiteName
    from_round: RoundNumber
    commitment: Sha256


Notice = ApprovalEntry | KeyEntry | IncidentEntry | WithdrawalEntry
"""Entries that train and spend nothing; they may stand between plan and release."""


class ReleaseEntry(_Body):
    """The final adapter and the statement that travels with it."""

    kind: ClassVar[str] = "release"

    adapter_sha256: Sha256
    config_sha256: Sha256
    statement_sha256: Sha256
    rounds_completed: int = Field(ge=0)
    rounds_interrupted: int = Field(ge=0)

    def files(self) -> Mapping[str, str]:
        """What is released."""
        return {
            "adapter/adapter_model.safetensors": self.adapter_sha256,
            "adapter/adapter_config.json": self.config_sha256,
            "statement.json": self.statement_sha256,
        }


Body = (
    StudyEntry
    | PlanEntry
    | TuningEntry
    | RoundEntry
    | InterruptedEntry
    | EvaluationEntry
    | EvaluationInterruptedEntry
    | Notice
    | ReleaseEntry
)

KINDS: dict[str, type[Body]] = {
    "study": StudyEntry,
    "plan": PlanEntry,
    "tuning": TuningEntry,
    "round": RoundEntry,
    "round-interrupted": InterruptedEntry,
    "evaluation": EvaluationEntry,
    "evaluation-interrupted": EvaluationInterruptedEntry,
    "approval": ApprovalEntry,
    "key": KeyEntry,
    "incident": IncidentEntry,
    "withdrawal": WithdrawalEntry,
    "release": ReleaseEntry,
}


def commit(text: str, salt: bytes) -> str:
    """A commitment to a text that does not stand in the ledger, hex.

    Without the salt nobody can tell what it binds, nor try texts; so whoever keeps the
    salt can make the entry say nothing any more.

    Args:
        text: What is bound.
        salt: 32 fresh random bytes, kept with the text and deleted with it.

    Raises:
        ValueError: The salt has another length.
    """
    if len(salt) != _SALT_BYTES:
        raise ValueError(f"a salt has {_SALT_BYTES} bytes")
    return hmac.digest(salt, text.encode(), "sha256").hex()


def parse_body(kind: str, body: object) -> Body:
    """Read an entry's JSON object into its type.

    Raises:
        ValueError: The kind is unknown or a field is missing, extra or wrong.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate_json(canonical_json(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{kind}: {where}: {first['msg']}") from error
