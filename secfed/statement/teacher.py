"""What a privacy statement says of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from secfed.earlier_runs import events_at
from secfed.entries import JsonObject, RunCosts
from secfed.errors import PlanError

__all__ = ["teacher_limits", "teacher_section"]

_TEACHER_LIMIT: Final = (
    "the teacher is public by declaration, and the data it was trained on are not "
    "covered"
)

_MENTOR_LIMIT: Final = (
    "the mentor's base is public by declaration, and the data it was trained on are "
    "not covered; its adapter is, at every site where it stayed, by the site's epsilon"
)
_MENTOR: Final = (
    "mutual: it learned at every site beside the student and stayed there; nothing of "
    "it was sent, and nothing is released"
)
_JOINT: Final = (
    "student and mentor are clipped as one vector and noised together, so a site's "
    "epsilon holds for what was sent and for what stayed"
)

_COMPOSED: Final = (
    "the student's adapters depend on the teacher's records too; what both runs spent "
    "of the same site is composed under sites.<site>.with_named_runs and in "
    "across_sites. "
    "The study's epsilon limits its own steps only"
)


def teacher_limits(
    distillation: Mapping[str, Any] | None, costs: RunCosts | None
) -> list[str]:
    """What is not covered, where the teacher is public or a mentor; else nothing."""
    if distillation is None or costs is not None:
        return []
    return [_MENTOR_LIMIT if distillation.get("mutual") else _TEACHER_LIMIT]


def teacher_section(
    distillation: Mapping[str, Any],
    costs: RunCosts | None,
    cost: Callable[[Sequence[Any]], JsonObject],
) -> JsonObject:
    """Who teaches, by which loss, and what the teacher's own training cost.

    Args:
        distillation: The study's table.
        costs: Of a private teacher.
        cost: What events cost the unit that is protected.

    Raises:
        PlanError: The teacher is private and nobody says what it cost.
    """
    teacher = distillation["teacher"]
    said: JsonObject = {
        "weight": distillation["weight"],
        "temperature": distillation["temperature"],
        "sha256": teacher["sha256"],
    }
    if costs is None and teacher.get("run") is not None:
        raise PlanError("the ledger does not say what the private teacher cost")
    if distillation.get("mutual"):
        return said | {
            "kind": _MENTOR,
            "trained_on": teacher["trained_on"],
            "adaptive": bool(distillation.get("adaptive")),
            "note": _JOINT,
        }
    if costs is None:
        return said | {
            "kind": "frozen and public, by declaration",
            "trained_on": teacher["trained_on"],
            "adapter_sha256": teacher.get("adapter_sha256"),
        }
    return said | {
        "kind": "frozen, released by a private run under its own plan",
        "ledger_sha256": costs.ledger_sha256,
        "study_digest": costs.study_digest,
        "runs": sorted({c.run_id for own in costs.spent.values() for c in own}),
        "sites": {site: cost(events_at([costs], site)) for site in costs.spent},
        "note": _COMPOSED,
    }
