"""What a site's operator allows; it outranks every study and fails closed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from secfed.errors import PolicyError
from secfed.hours import parse_hours, parse_zone
from secfed.policy_file import SitePolicy, load_policy
from secfed.study import MIN_SITES, MIN_UNITS, Study

__all__ = [
    "MOMENTARY",
    "SEMI_HONEST",
    "SitePolicy",
    "Verdict",
    "check",
    "load_policy",
    "require_running",
    "verdicts",
]

SEMI_HONEST: Final = "semi-honest"
"""The one exception that operators can sign: the coordinator follows the protocol."""

MOMENTARY: Final = frozenset({"approval", "hours", "stop"})
"""Rules that a study can pass later without being changed."""


@dataclass(frozen=True)
class Verdict:
    """What one rule says of a study; ``refusal`` is empty where it passes."""

    rule: str
    key: str
    text: str
    refusal: str = ""

    def to_json(self) -> dict[str, object]:
        """Whether it passes, and why or why not."""
        return {
            "rule": self.rule,
            "key": self.key,
            "passed": not self.refusal,
            "reason": self.refusal or self.text,
        }


@dataclass(frozen=True)
class _Asked:
    """A study before a site's policy; ``num_units`` never appears in a text."""

    policy: SitePolicy
    study: Study
    num_units: int
    now: datetime
    exceptions: frozenset[str] = field(default_factory=frozenset)


def check(
    policy: SitePolicy,
    study: Study,
    num_units: int,
    *,
    without: Collection[str] = (),
    now: datetime | None = None,
) -> None:
    """Let a study pass, or say everything that stands against it.

    Args:
        policy: The site's own rules.
        study: What the coordinator asks for.
        num_units: Privacy units at this site; it does not appear in errors.
        without: Of ``MOMENTARY``, the rules that are asked later.
        now: The moment; by default this one.

    Raises:
        PolicyError: At least one rule refuses; the message lists all that do.
    """
    found = verdicts(policy, study, num_units, without=without, now=now)
    refusals = [verdict.refusal for verdict in found if verdict.refusal]
    if refusals:
        listed = "".join(f"\n  - {text}" for text in refusals)
        raise PolicyError(
            f"the policy of {policy.population!r} refuses study {study.name!r}:"
            f"{listed}",
            [verdict.key for verdict in found if verdict.refusal],
        )


def require_running(policy: SitePolicy) -> None:
    """Ask the kill switch alone; a site does before every step of a round.

    Raises:
        PolicyError: The stop file is there, or nobody can look.
    """
    stop = _stop(policy)
    if stop.refusal:
        raise PolicyError(stop.refusal, [stop.key])


def verdicts(
    policy: SitePolicy,
    study: Study,
    num_units: int,
    *,
    without: Collection[str] = (),
    exceptions: frozenset[str] = frozenset(),
    now: datetime | None = None,
) -> tuple[Verdict, ...]:
    """What every rule says, in their order; as ``check``.

    Args:
        policy: As for ``check``.
        study: As for ``check``.
        num_units: As for ``check``.
        without: As for ``check``.
        exceptions: What an operator is about to sign an exception for. Those that are
            signed count without being named here.
        now: As for ``check``.

    Raises:
        ValueError: ``without`` names a rule that is always asked.
    """
    if not MOMENTARY.issuperset(without):
        raise ValueError(f"these rules are always asked: {set(without) - MOMENTARY}")
    approval, signed = _approval(policy, study)
    moment = now or datetime.now(UTC)
    asked = _Asked(policy, study, num_units, moment, exceptions | signed)
    found = [verdict for rule in _RULES for verdict in rule(asked)] + [approval]
    return tuple(verdict for verdict in found if verdict.rule not in without)


_Rule = Callable[[_Asked], list[Verdict]]


def _privacy(asked: _Asked) -> list[Verdict]:
    policy, wanted = asked.policy, asked.study.privacy
    return [
        _verdict(
            "epsilon of a study",
            "max_epsilon",
            f"{wanted.epsilon:g}, at most {policy.max_epsilon:g}",
            wanted.epsilon <= policy.max_epsilon,
            f"privacy.epsilon {wanted.epsilon:g} is above max_epsilon "
            f"{policy.max_epsilon:g}",
        ),
        _verdict(
            "delta",
            "delta",
            f"{wanted.delta:g}, at most {policy.delta:g}",
            wanted.delta <= policy.delta,
            f"privacy.delta {wanted.delta:g} is above delta {policy.delta:g}",
        ),
    ]


def _cohort(asked: _Asked) -> list[Verdict]:
    policy, study = asked.policy, asked.study
    # The floors are repeated here, so that a policy built in code obeys them too.
    units = max(policy.min_units, MIN_UNITS)
    least = max(policy.min_sites, MIN_SITES, study.secagg.colluders + 2)
    return [
        _verdict(
            "people at this site",
            "min_units",
            f"at least {units} units",
            asked.num_units >= units,
            f"this site holds fewer than {units} units (min_units)",
        ),
        _verdict(
            "sites in the study",
            "min_sites",
            f"{len(study.sites)}, at least {least}",
            len(study.sites) >= least,
            f"{len(study.sites)} sites are fewer than {least} (min_sites, and two "
            "more than secagg.colluders)",
        ),
    ]


def _durable(asked: _Asked) -> list[Verdict]:
    """Real people's budget must outlive a run directory (PITFALLS 2)."""
    study, folder = asked.study, asked.policy.budget_dir
    rehearsal = study.data.is_builtin or study.simulation.seed is not None
    return [
        _verdict(
            "budget outlives a run",
            "budget_dir",
            "kept in a folder of its own" if folder else "a rehearsal needs none",
            rehearsal or folder is not None,
            "site.toml names no budget_dir, so what earlier runs spent would be "
            "forgotten",
        )
    ]


def _mode(asked: _Asked) -> list[Verdict]:
    mode = asked.study.secagg.mode
    excepted = mode == SEMI_HONEST and SEMI_HONEST in asked.exceptions
    return [
        _verdict(
            "secure against a lying coordinator",
            "require_mode",
            "an exception was signed: the coordinator is trusted to follow the protocol"
            if excepted
            else "secagg.mode 'malicious'",
            excepted or mode == "malicious",
            f"secagg.mode {mode!r} is not 'malicious'",
        )
    ]


def _allowed(asked: _Asked) -> list[Verdict]:
    policy, study = asked.policy, asked.study
    return [
        _listed(
            "training.method",
            study.training.method,
            policy,
            "allowed_methods",
            "method",
        ),
        _listed(
            "model.sha256", study.model.sha256, policy, "allowed_model_sha256", "model"
        ),
        _listed(
            "model.quantisation",
            study.model.quantisation or "none",
            policy,
            "allowed_quantisations",
            "how the model is kept",
        ),
        _listed(
            "privacy.unit", study.privacy.unit, policy, "allowed_units", "privacy unit"
        ),
    ]


_WHOLE_SITE = (
    ": epsilon would speak of the whole site, and one person's records would cost more "
    "than that (secfed plan shows both)"
)


def _listed(place: str, value: str, policy: SitePolicy, key: str, rule: str) -> Verdict:
    """A value that the policy must name."""
    shown = value if key.endswith("sha256") else repr(value)
    return _verdict(
        rule,
        key,
        shown,
        value in getattr(policy, key),
        f"{place} {shown} is not in {key}"
        + (_WHOLE_SITE if (place, value) == ("privacy.unit", "site") else ""),
    )


def _teacher(asked: _Asked) -> list[Verdict]:
    digests = asked.study.teacher.digests if asked.study.teacher else ()
    return [
        _listed(
            "distillation.teacher",
            digest,
            asked.policy,
            "allowed_teacher_sha256",
            "teacher",
        )
        for digest in digests
    ]


def _evaluation(asked: _Asked) -> list[Verdict]:
    """Decided from what is declared: a refusal says nothing about records."""
    policy, wanted = asked.policy, asked.study.evaluation
    if wanted is None:
        nothing = "no score of held-back records leaves"
        return [Verdict("metrics", "allowed_metrics", nothing)]
    floor = max(policy.min_evaluation_units, MIN_UNITS)
    return [
        *(
            _listed("evaluation.metrics", name, policy, "allowed_metrics", "metrics")
            for name in wanted.metrics
        ),
        _verdict(
            "people who are evaluated",
            "min_evaluation_units",
            f"{wanted.min_units}, at least {floor}",
            wanted.min_units >= floor,
            f"evaluation.min_units {wanted.min_units} is below {floor} "
            "(min_evaluation_units)",
        ),
    ]


def _recipients(asked: _Asked) -> list[Verdict]:
    named = asked.study.study.recipients
    if not named:
        own = "the study's sites and its coordinator"
        return [Verdict("recipients", "allowed_recipients", own)]
    return [
        _listed(
            "study.recipients", name, asked.policy, "allowed_recipients", "recipients"
        )
        for name in named
    ]


def _expiry(asked: _Asked) -> list[Verdict]:
    last = asked.study.study.expires
    today = asked.now.astimezone(UTC).date().isoformat()
    return [
        _verdict(
            "the study's last day",
            "study.expires",
            last or "none is named",
            last is None or today <= last,
            f"study.expires: its last day was {last}",
        )
    ]


def _hours(asked: _Asked) -> list[Verdict]:
    spans, zone = asked.policy.hours, asked.policy.time_zone or "UTC"
    if spans is None:
        return [Verdict("hours", "hours", "at any time")]
    local = asked.now.astimezone(parse_zone(zone))
    listed = f"{', '.join(spans) or 'never'} ({zone})"
    return [
        _verdict(
            "hours",
            "hours",
            listed,
            any(parse_hours(span).hold(local) for span in spans),
            f"rounds begin in these hours only: {listed}",
        )
    ]


def _stopped(asked: _Asked) -> list[Verdict]:
    return [_stop(asked.policy)]


def _stop(policy: SitePolicy) -> Verdict:
    """The kill switch; whoever cannot look takes it for pulled."""
    path = policy.stop_file
    return _verdict(
        "stop",
        "stop_file",
        "nobody has stopped this site",
        path is None or not _pulled(Path(path)),
        f"the site is stopped: {path}; its operator starts it again by removing it",
    )


def _pulled(path: Path) -> bool:
    try:
        os.lstat(path.parent)  # A folder that is gone hides whether it was pulled.
        os.lstat(path)
    except FileNotFoundError:
        return not path.parent.is_dir()
    except OSError:
        return True
    return True


def _approval(policy: SitePolicy, study: Study) -> tuple[Verdict, frozenset[str]]:
    """Whether enough operators signed this very study, and their exceptions."""
    rule, key = "approval", "approvals"
    if policy.approvals is None:
        return Verdict(rule, key, "none is asked for"), frozenset()
    if policy.consent is None:
        text = "site.toml asks for approvals, and they are not read here"
        hint = "; run the approved study with `secfed run` or `secfed site run`"
        return Verdict(rule, key, "", text + hint), frozenset()
    try:
        exceptions = policy.consent(study)
    except PolicyError as error:
        return Verdict(rule, key, "", str(error)), frozenset()
    return Verdict(rule, key, f"signed by {policy.approvals}"), exceptions


def _verdict(rule: str, key: str, text: str, passes: object, refusal: str) -> Verdict:
    return Verdict(rule, key, text, "" if passes else refusal)


_RULES: tuple[_Rule, ...] = (
    _privacy,
    _durable,
    _cohort,
    _mode,
    _allowed,
    _teacher,
    _evaluation,
    _recipients,
    _expiry,
    _hours,
    _stopped,
)
