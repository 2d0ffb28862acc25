"""A private teacher's own record: under which plan it was trained, and what that cost.

A student that learns from a teacher's words depends on everybody whose records the
teacher saw (PITFALLS 12). So a private teacher is one that a secfed run released under
its own plan, and what that run spent is composed with what the student's run spends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from secfed.canonical import sha256_hex
from secfed.entries import (
    Body,
    EvaluationEntry,
    EvaluationInterruptedEntry,
    InterruptedEntry,
    PlanEntry,
    ReleaseEntry,
    RoundEntry,
    StudyEntry,
    TeacherCharge,
    TeacherCosts,
)
from secfed.errors import LedgerError, PolicyError
from secfed.ledger import signer_of, split_lines, verify_entries
from secfed.privacy import accounting
from secfed.privacy.plan import PrivacyPlan
from secfed.study import Study

__all__ = ["TEACHER_LEDGER", "TeacherRun", "read_teacher_run"]

TEACHER_LEDGER: Final = "teacher/ledger.jsonl"
"""Where a run keeps a copy of its private teacher's ledger."""

_LEAST: Final = 3
_REFUSED: Final = (
    "[distillation.teacher] run: a private teacher needs a plan of its own: "
)


@dataclass(frozen=True)
class TeacherRun:
    """What the ledger of a teacher's run says.

    Attributes:
        data: The ledger's bytes.
        costs: What its sites spent on its training; scores on held-back records
            are charged where they were released, and teach nothing.
        release: The digests of the adapter's files.
    """

    data: bytes
    costs: TeacherCosts
    release: ReleaseEntry


def read_teacher_run(data: bytes, study: Study) -> TeacherRun:
    """Check a private teacher's ledger, and read what the teacher cost.

    1. It is the ledger that the study pins, whole and signed.
    2. It ends with a release, over the base that the study names.
    3. The run was private, and every round spent what its sites' plans say.
    4. Its unit is the study's, so that the costs compose.
    5. Its noise was drawn at random, unless the study is a rehearsal itself.

    Args:
        data: The bytes of ``ledger.jsonl``.
        study: Of the student.

    Raises:
        LedgerError: It is another ledger, or damaged.
        PolicyError: The teacher has no plan, or one that cannot be composed.
    """
    # 1
    section = study.teacher
    if section is None or sha256_hex(data) != section.ledger_sha256:
        raise LedgerError(0, "not the teacher's ledger that the study pins")
    bodies = _bodies(data)
    # 2
    first, plan, release = bodies[0], bodies[1], bodies[-1]
    if not (
        isinstance(first, StudyEntry)
        and isinstance(plan, PlanEntry)
        and isinstance(release, ReleaseEntry)
    ):
        raise PolicyError(f"{_REFUSED}that run has not released anything")
    if first.model_sha256 != section.sha256:
        raise PolicyError(
            f"[distillation.teacher] sha256: that run trained {first.model_sha256}"
        )
    # 3
    costs = TeacherCosts(
        ledger_sha256=sha256_hex(data),
        study_digest=first.study_digest,
        unit=_unit(plan),
        simulation_seeds=_seeds(first, plan),
        spent=_spent(first, plan, bodies[2:-1]),
    )
    # 4
    if costs.unit != study.privacy.unit:
        raise PolicyError(
            f"privacy.unit: the teacher's run protects each {costs.unit} and this "
            f"study each {study.privacy.unit}; their costs cannot be composed"
        )
    # 5
    if costs.simulation_seeds and study.simulation.seed is None:
        raise PolicyError(
            f"{_REFUSED}its noise follows from the simulation seed "
            f"{costs.simulation_seeds[0]}, so it is not private"
        )
    return TeacherRun(data, costs, release)


def _bodies(data: bytes) -> list[Body]:
    lines = split_lines(data)
    entries = verify_entries(lines, signer_of(lines))
    bodies = [entry.parsed() for entry in entries]
    if len(bodies) < _LEAST:
        raise PolicyError(f"{_REFUSED}that run has not released anything")
    return bodies


def _unit(plan: PlanEntry) -> Literal["record", "person", "site"]:
    plans = [PrivacyPlan.from_json(own) for own in plan.sites.values() if own]
    if not plan.private or not plans:
        raise PolicyError(f"{_REFUSED}that run was trained without privacy")
    return plans[0].unit


def _seeds(first: StudyEntry, plan: PlanEntry) -> tuple[int, ...]:
    own = () if first.simulation_seed is None else (first.simulation_seed,)
    return own + (plan.teacher.simulation_seeds if plan.teacher else ())


def _spent(
    first: StudyEntry, plan: PlanEntry, rounds: Sequence[Body]
) -> dict[str, tuple[TeacherCharge, ...]]:
    """Each site's charges; a teacher's own private teacher comes first."""
    found: defaultdict[str, list[TeacherCharge]] = defaultdict(list)
    for site, charges in (plan.teacher.spent if plan.teacher else {}).items():
        found[site] += charges
    due = {
        site: accounting.event_to_json(PrivacyPlan.from_json(own).round_event())
        for site, own in plan.sites.items()
    }
    for index, body in enumerate(rounds, start=2):
        # Of records that no training saw: no weight of the teacher depends on them.
        if isinstance(body, EvaluationEntry | EvaluationInterruptedEntry):
            continue
        if not isinstance(body, RoundEntry | InterruptedEntry):
            raise LedgerError(index, "a round is expected here")
        if body.spent != {site: due.get(site) for site in body.participants}:
            raise LedgerError(index, "its sites did not spend what their plans say")
        for site, event in body.spent.items():
            found[site].append(
                TeacherCharge(
                    run_id=first.run_id,
                    study_digest=first.study_digest,
                    round=body.round,
                    event=event,
                )
            )
    return {site: tuple(charges) for site, charges in sorted(found.items())}
