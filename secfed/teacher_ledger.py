"""A private teacher's own record: under which plan it was trained, and what that cost.

A student that learns from a teacher's words depends on everybody whose records the
teacher saw (PITFALLS 12). So a private teacher is one that a secfed run released under
its own plan, and what that run spent is composed with what the student's run spends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from secfed.canonical import sha256_hex
from secfed.earlier_runs import EarlierRun, costs_of, read_bodies
from secfed.entries import ReleaseEntry, StudyEntry
from secfed.errors import LedgerError, PolicyError
from secfed.study import Study

__all__ = ["TEACHER_LEDGER", "TeacherRun", "read_teacher_run"]

TEACHER_LEDGER: Final = "teacher/ledger.jsonl"
"""Where a run keeps a copy of its private teacher's ledger."""

_REFUSED: Final = (
    "[distillation.teacher] run: a private teacher needs a plan of its own: "
)


@dataclass(frozen=True)
class TeacherRun(EarlierRun):
    """What the ledger of a teacher's run says.

    Scores on held-back records are not among its costs: they are charged where they
    were released, and teach nothing.

    Attributes:
        release: The digests of the adapter's files.
    """

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
    bodies = read_bodies(data)
    # 2
    first, release = bodies[0], bodies[-1]
    if not (isinstance(first, StudyEntry) and isinstance(release, ReleaseEntry)):
        raise PolicyError(f"{_REFUSED}that run has not released anything")
    if first.model_sha256 != section.sha256:
        raise PolicyError(
            f"[distillation.teacher] sha256: that run trained {first.model_sha256}"
        )
    # 3, 4, 5
    costs = costs_of(data, study, _REFUSED, evaluations=False)
    return TeacherRun(data, costs, release)
