"""Who sees what, and what nothing protects: the statement's words on trust."""

from __future__ import annotations

from typing import Final

from protocols.secagg.params import MAX_COMPLETE
from protocols.suites import SUITES
from secfed.entries import JsonObject, PlanEntry
from secfed.strategies.base import Strategy

__all__ = ["UNPROTECTED", "hazards", "limits", "trust_section"]


def trust_section(plan: PlanEntry, rule: Strategy) -> list[JsonObject]:
    """Each party: what it sees and what it does not, under a plan and a rule."""
    server = (
        "may lie, drop, replay and equivocate"
        if plan.mode == "malicious"
        else "follows the protocol (an exception, signed by every site's operators)"
    )
    noise = (
        "which is private by its own noise" if plan.private else "which is not private"
    )
    return [
        {
            "party": "site",
            "sees": "its own records; every round's adapter; who takes part"
            + ("; a model of its own, parts of which never leave" * rule.personal),
            "does_not_see": "other sites' records or single updates",
        },
        {
            "party": "coordinator",
            "assumed": f"{server}, with up to {plan.max_colluders} colluding sites",
            **_coordinator(plan, rule, noise),
        },
        {
            "party": "recipient of the release",
            "sees": "the adapters, this statement, the ledger, the metrics on the "
            "public hold-out",
            "does_not_see": "sums or updates of single rounds before the strategy"
            + ("; what stays at the sites" * rule.personal),
        },
        {
            "party": "whoever recorded all messages and has a quantum computer later",
            "sees": "the directory of keys and who took part"
            if SUITES[plan.suite].hybrid
            else f"every site's update of every round, {noise}",
            "does_not_see": "a single site's update: key agreement is hybrid, "
            "with ML-KEM-768"
            if SUITES[plan.suite].hybrid
            else "the records themselves",
        },
        *[_OPERATOR] * (plan.deployed is None),
    ]


_OPERATOR: JsonObject = {
    "party": "operator of a local simulation",
    "sees": "everything, because all sites ran in one process",
    "does_not_see": "nothing is hidden from this party",
}


def _coordinator(plan: PlanEntry, rule: Strategy, noise: str) -> JsonObject:
    """What the coordinator sees under a rule; ``noise`` says what hides an update."""
    if rule.needs == "nothing":
        return {
            "sees": "who takes part and when; no number that was trained",
            "does_not_see": "anything that a site trained",
        }
    what = "updates" if rule.linear else f"what {rule.name} makes of noised factors"
    parts = -(-len(plan.sites) // MAX_COMPLETE)
    over = f"in each of {parts} cohorts " * (parts > 1)
    return {
        "sees": f"masked vectors, the sum over the surviving sites {over}of a round "
        f"of {what}, every adapter, who takes part and when",
        "does_not_see": f"a single site's update, {noise}, while "
        f"{plan.threshold} sites survive a round",
    }


def hazards(seed: int | None) -> list[str]:
    """Where the numbers' own making can leak; ``seed`` is a simulation's, if any."""
    generator = (
        "generator: AES-256 in counter mode keyed by the operating system"
        if seed is None
        else "generator: AES-256 in counter mode keyed by the public simulation seed"
    )
    return [
        generator,
        _FLOATING_POINT,
        "memory: Python cannot prove that secrets were erased",
    ]


_FLOATING_POINT = (
    "floating point: the noise is a continuous Gaussian in floating point; its low "
    "bits can leak (Mironov, CCS 2012), and no discrete mechanism is used; one more "
    "person changes padding and micro-batch splits, which can move other contributions "
    "in their last bits"
)

UNPROTECTED: Final = (
    "which sites take part, drop out or fail in which round, and when",
    "sizes and times of messages, and how long a site trains",
    "site names, label names and what the study declares (nominal sizes, schema)",
    "how many coordinates the codec limited (computed from the noised update)",
    "the error text of a site that stops",
)

_SINGLE_UNITS = (
    "the guarantee covers single units, not facts about whole groups or sites"
)

_LIMITS = (
    "the ledger proves what the coordinator claimed, not that a site added noise",
    _SINGLE_UNITS,
    "a site that sends a poisoned update is limited by clipping only",
    "the base model is public and its own training data are not covered",
    "times are the coordinator's clock",
)


def limits(unit: str) -> tuple[str, ...]:
    """What a statement cannot say, where the unit is this one."""
    if unit != "site":
        return _LIMITS
    single = "the guarantee covers each site and each person alone, not several at once"
    return tuple(single if text == _SINGLE_UNITS else text for text in _LIMITS)
