"""The ledger by itself: is it whole, and do its entries follow each other?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from secfed.entries import (
    ApprovalEntry,
    Body,
    EvaluationEntry,
    EvaluationInterruptedEntry,
    IncidentEntry,
    InterruptedEntry,
    KeyEntry,
    Notice,
    PlanEntry,
    ReleaseEntry,
    RoundEntry,
    RunCosts,
    StudyEntry,
    TuningEntry,
    WithdrawalEntry,
)
from secfed.errors import LedgerError
from secfed.ledger import LEDGER_NAME, Entry, split_lines, verify_entries
from secfed.signing import fingerprint
from secfed.statement.evaluated import evaluations_of
from secfed.study import MIN_SITES, Study
from secfed.verify.files import Bundle

__all__ = ["Story", "read_ledger", "tell"]

Started = RoundEntry | InterruptedEntry
Evaluated = EvaluationEntry | EvaluationInterruptedEntry


@dataclass(frozen=True)
class Story:
    """A ledger's entries in the roles that they play; keys are entry numbers.

    ``release`` is None while the run goes on. ``notices`` spend nothing; ``tuning`` is
    what earlier runs spent.
    """

    study: StudyEntry
    plan: PlanEntry
    rounds: Mapping[int, RoundEntry | InterruptedEntry]
    release: ReleaseEntry | None
    evaluations: Mapping[int, EvaluationEntry | EvaluationInterruptedEntry]
    notices: Mapping[int, Notice]
    tuning: tuple[RunCosts, ...] = ()

    def charged(self) -> dict[int, Started | Evaluated]:
        """Everything that spent privacy, in order."""
        return dict(sorted({**self.rounds, **self.evaluations}.items()))

    def completed(self) -> tuple[RoundEntry, ...]:
        """The rounds that gave a sum."""
        return tuple(r for r in self.rounds.values() if isinstance(r, RoundEntry))


def read_ledger(bundle: Bundle) -> tuple[tuple[Entry, ...], str]:
    """The entries, if each is signed and follows the one before it."""
    lines = split_lines(bundle.read(LEDGER_NAME))
    entries = verify_entries(lines, bundle.manifest.coordinator_key)
    return entries, f"{len(entries)} entries, signed, each after the one it names"


def tell(
    entries: Sequence[Entry],
    coordinator_key: bytes,
    study: Study,
    *,
    finished: bool = True,
) -> tuple[Story, str]:
    """Give every entry its role and check that they follow each other.

    1. Entry 0 is the study, entry 1 the plan, the last one the release; a run that is
       not ``finished`` may have no release yet.
    2. The study is this study, recorded under this key. After the plan come the runs
       that its ``[tuning]`` pins, in its order, and nowhere else.
    3. Rounds are numbered 1, 2, … without a gap and none occurs twice. An evaluation
       follows a round after which the study asks for one, and none occurs twice.
    4. Participants belong to the plan, and none withdrew before or had its key revoked;
       a sum has at least threshold survivors.
    5. The release counts the rounds rightly.

    Raises:
        LedgerError: Names the first entry that does not fit.
    """
    bodies = [entry.parsed() for entry in entries]
    # 1
    study_entry = _role(bodies, 0, StudyEntry)
    plan = _role(bodies, 1, PlanEntry)
    last = len(bodies) - 1
    release: ReleaseEntry | None = None
    if finished or isinstance(bodies[last], ReleaseEntry):
        release = _role(bodies, last, ReleaseEntry)
    # 2
    _check_study_entry(study_entry, coordinator_key, study)
    if set(plan.sites) != set(study.sites):
        raise LedgerError(1, "the plan's sites are not the study's")
    tuning = _tuning(bodies, study)
    rounds: dict[int, RoundEntry | InterruptedEntry] = {}
    evaluations: dict[int, EvaluationEntry | EvaluationInterruptedEntry] = {}
    notices: dict[int, Notice] = {}
    told: set[Notice] = set()
    left: dict[str, str] = {}
    for index in range(2 + len(tuning), last if release else len(bodies)):
        body = bodies[index]
        if isinstance(body, Notice):
            _check_notice(index, body, plan, study, len(rounds), told)
            notices[index] = body
            told.add(body)
            left |= _left(body)
            continue
        # 3
        if isinstance(body, EvaluationEntry | EvaluationInterruptedEntry):
            done = [found.round for found in evaluations.values()]
            _check_evaluation(index, body, plan, study, len(rounds), done)
            evaluations[index] = body
        else:
            rounds[index] = _round(index, body, study, len(rounds))
            _check_cohort(index, rounds[index], plan)
        _check_present(index, {**rounds, **evaluations}[index], left)
    # 5
    completed = sum(isinstance(body, RoundEntry) for body in rounds.values())
    if release and (release.rounds_completed, release.rounds_interrupted) != (
        completed,
        len(rounds) - completed,
    ):
        raise LedgerError(last, "the release counts other rounds than the ledger")
    story = Story(study_entry, plan, rounds, release, evaluations, notices, tuning)
    said = [f"{len(rounds)} rounds in order, {completed} of them completed"]
    if evaluations:
        said.append(f"{len(evaluations)} evaluations")
    approving = {n.site for n in notices.values() if isinstance(n, ApprovalEntry)}
    if approving:
        said.append(f"{len(approving)} of {len(plan.sites)} sites named approvals")
    return story, "; ".join(said + [_told(n) for n in notices.values() if _told(n)])


def _tuning(bodies: Sequence[Body], study: Study) -> tuple[RunCosts, ...]:
    """What the runs spent that the study pins; a run that just began has not all."""
    found: list[RunCosts] = []
    for index, run in enumerate(study.tuning_runs, start=2):
        if index == len(bodies):
            break
        body = bodies[index]
        if not isinstance(body, TuningEntry) or body.costs.ledger_sha256 != run.sha256:
            raise LedgerError(index, f"the tuning run {run.ledger} is expected here")
        found.append(body.costs)
    return tuple(found)


def _round(index: int, body: Body, study: Study, rounds_so_far: int) -> Started:
    if not isinstance(body, RoundEntry | InterruptedEntry):
        raise LedgerError(index, f"a second {body.kind!r} entry")
    if body.round != rounds_so_far + 1:
        raise LedgerError(
            index, f"it records round {body.round} where {rounds_so_far + 1} follows"
        )
    if body.round > study.training.rounds:
        raise LedgerError(index, f"the study has {study.training.rounds} rounds")
    return body


def _check_notice(
    index: int,
    body: Notice,
    plan: PlanEntry,
    study: Study,
    rounds_so_far: int,
    before: AbstractSet[Notice],
) -> None:
    """It is about a site of the plan, says what is so, and says it once."""
    site = getattr(body, "site", None)
    if site is not None and site not in plan.sites:
        raise LedgerError(index, f"not in the plan: {site}")
    if body in before:
        raise LedgerError(index, f"a second {body.kind!r} entry that says the same")
    match body:
        case ApprovalEntry() if body.study_digest != study.digest():
            raise LedgerError(index, f"{body.site} approved another study")
        case KeyEntry() if body.fingerprint != _pinned(plan, body.site):
            raise LedgerError(index, f"not the key of {body.site}")
        case WithdrawalEntry() if any(
            isinstance(other, WithdrawalEntry) and other.site == body.site
            for other in before
        ):
            raise LedgerError(index, f"{body.site} withdraws a second time")
        case WithdrawalEntry() if body.from_round != rounds_so_far + 1:
            raise LedgerError(
                index,
                f"{body.site} withdraws from round {body.from_round} on where round "
                f"{rounds_so_far + 1} follows",
            )


def _pinned(plan: PlanEntry, site: str) -> str | None:
    key = plan.identities.get(site)
    return None if key is None else fingerprint(bytes.fromhex(key))


def _left(body: Notice) -> dict[str, str]:
    """The site that takes part no more, and why."""
    match body:
        case KeyEntry():
            return {body.site: "had its key revoked"}
        case WithdrawalEntry():
            return {body.site: "withdrew"}
    return {}


def _told(body: Notice) -> str:
    """What an auditor is told of a notice; empty for an approval."""
    match body:
        case KeyEntry():
            return f"{body.site}'s key was revoked"
        case WithdrawalEntry():
            return f"{body.site} withdrew before round {body.from_round}"
        case IncidentEntry():
            return "an incident was recorded"
    return ""


def _check_present(
    index: int, body: Started | Evaluated, left: Mapping[str, str]
) -> None:
    for site in sorted(left.keys() & set(body.participants)):
        raise LedgerError(index, f"{site} takes part after it {left[site]}")


def _role(bodies: Sequence[Body], index: int, role: type[Any]) -> Any:
    if not 0 <= index < len(bodies) or not isinstance(bodies[index], role):
        raise LedgerError(max(index, 0), f"a {role.kind!r} entry is expected here")
    return bodies[index]


def _check_study_entry(entry: StudyEntry, key: bytes, study: Study) -> None:
    expected: dict[str, object] = {
        "study_digest": study.digest(),
        "coordinator_key": key.hex(),
        "name": study.name,
        "method": study.training.method,
        "simulation_seed": study.simulation.seed,
        "model_sha256": study.model.sha256,
    }
    for name, value in expected.items():
        if getattr(entry, name) != value:
            raise LedgerError(0, f"{name} is not that of study.json and manifest")


def _check_evaluation(
    index: int,
    body: Evaluated,
    plan: PlanEntry,
    study: Study,
    rounds_so_far: int,
    done: Sequence[int],
) -> None:
    section = study.evaluation
    due = () if section is None else section.due(study.training.rounds)
    if body.round not in due or body.round > rounds_so_far or body.round in done:
        raise LedgerError(
            index, f"an evaluation after round {body.round} is not due here"
        )
    evaluating = evaluations_of(study.canonical(), plan)
    if strangers := set(body.participants) - evaluating.keys():
        raise LedgerError(
            index, f"too small to evaluate: {', '.join(sorted(strangers))}"
        )
    # A smaller sum would show too much of one site.
    least = max(MIN_SITES, plan.max_colluders + 2)
    if isinstance(body, EvaluationEntry) and len(body.survivors) < least:
        raise LedgerError(index, f"an evaluation of fewer than {least} sites")


def _check_cohort(
    index: int, body: RoundEntry | InterruptedEntry, plan: PlanEntry
) -> None:
    # 4
    strangers = set(body.participants) - plan.sites.keys()
    if strangers:
        raise LedgerError(index, f"not in the plan: {', '.join(sorted(strangers))}")
    if isinstance(body, RoundEntry) and len(body.survivors) < plan.threshold:
        raise LedgerError(
            index,
            f"a sum of {len(body.survivors)} survivors, below the threshold "
            f"{plan.threshold}",
        )
