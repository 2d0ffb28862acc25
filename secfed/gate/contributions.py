"""What each site gave to a run, as the ledger shows it.

A record for thanks and for settling costs. It is computed from signed ledger entries
alone, so that anyone can compute it again. It says nothing about how good a site's
updates were: single updates are masked, and a score by leaving a site out would be a
query on its records, to be charged like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from secfed.entries import (
    EvaluationEntry,
    EvaluationInterruptedEntry,
    InterruptedEntry,
    JsonObject,
    PlanEntry,
    RoundEntry,
)
from secfed.errors import LedgerError
from secfed.ledger import Entry
from secfed.privacy import accounting

__all__ = ["RunRecord", "contributions", "size_bucket"]

_UPTIME = (
    "completed over asked, and completed over all rounds that gave a sum; a round that "
    "was interrupted counts for nobody, since the ledger does not say through whom"
)
_NO_SCORE = (
    "none: single updates are masked; leaving a site out would be a query on its "
    "records, and was neither made nor charged"
)


@dataclass(frozen=True)
class RunRecord:
    """A ledger's entries by kind, in order; whether they fit is another question."""

    head: str
    plan: PlanEntry
    rounds: tuple[RoundEntry | InterruptedEntry, ...]
    evaluations: tuple[EvaluationEntry | EvaluationInterruptedEntry, ...]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Self:
        """Sort verified entries.

        Raises:
            LedgerError: There is not one plan.
        """
        bodies = [entry.parsed() for entry in entries]
        plans = [body for body in bodies if isinstance(body, PlanEntry)]
        if len(plans) != 1:
            raise LedgerError(1, f"{len(plans)} plans where one is expected")
        rounds = (RoundEntry, InterruptedEntry)
        evaluations = (EvaluationEntry, EvaluationInterruptedEntry)
        return cls(
            head=entries[-1].digest,
            plan=plans[0],
            rounds=tuple(body for body in bodies if isinstance(body, rounds)),
            evaluations=tuple(body for body in bodies if isinstance(body, evaluations)),
        )


def contributions(study: Mapping[str, Any], record: RunRecord) -> JsonObject:
    """The record of every site.

    Args:
        study: ``Study.canonical()``.
        record: Of the run.

    Returns:
        The content of ``contributions.json``.
    """
    privacy = study["privacy"]
    sites = {
        site: _of_site(site, record, privacy["delta"])
        for site in sorted(record.plan.sites)
    }
    return {
        "format": 1,
        "kind": "contributions",
        "study": study["study"]["name"],
        "ledger_head": record.head,
        "rounds_started": len(record.rounds),
        "rounds_completed": sum(isinstance(b, RoundEntry) for b in record.rounds),
        "unit": privacy["unit"],
        "delta": privacy["delta"] if record.plan.private else None,
        "sites": sites,
        "uptime_means": _UPTIME,
        "score_of_single_updates": _NO_SCORE,
    }


def size_bucket(units: int) -> str:
    """The power of ten that a declared size lies in.

    >>> size_bucket(1000), size_bucket(87)
    ('1000 to 9999', '10 to 99')
    """
    low = 10 ** (len(str(units)) - 1)
    return f"{low} to {10 * low - 1}"


def _of_site(site: str, record: RunRecord, delta: float) -> JsonObject:
    sums = [b for b in record.rounds if isinstance(b, RoundEntry)]
    asked = [body for body in sums if site in body.participants]
    answered = [body for body in asked if site in body.survivors]
    charged = [b for b in (*record.rounds, *record.evaluations) if site in b.spent]
    events = [accounting.event_from_json(body.spent[site]) for body in charged]
    plan = record.plan.sites[site]
    return {
        "rounds_completed": len(answered),
        "rounds_asked": len(asked),
        "rounds_interrupted": sum(
            isinstance(b, InterruptedEntry) and site in b.participants
            for b in record.rounds
        ),
        "uptime_of_asked": len(answered) / len(asked) if asked else None,
        "uptime_of_all": len(answered) / len(sums) if sums else None,
        "evaluations_completed": sum(
            isinstance(b, EvaluationEntry) and site in b.survivors
            for b in record.evaluations
        ),
        "charges": len(charged),
        "epsilon_spent": accounting.epsilon(events, delta) if plan else None,
        "declared_size": size_bucket(plan["nominal_units"]) if plan else "UNKNOWN",
    }
