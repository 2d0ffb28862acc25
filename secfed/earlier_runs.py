"""What earlier runs spent at each site, read from their own ledgers.

A run depends on records that it never trains on: those of a private teacher's run, and
those of the runs by which its settings were chosen. The study pins their ledgers, and
what they spent is composed with what this run spends (PITFALLS 9 and 12).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from secfed.canonical import sha256_hex
from secfed.entries import (
    Body,
    EvaluationEntry,
    EvaluationInterruptedEntry,
    InterruptedEntry,
    Notice,
    PlanEntry,
    ReleaseEntry,
    RoundEntry,
    RunCharge,
    RunCosts,
    StudyEntry,
    TuningEntry,
)
from secfed.errors import LedgerError, PolicyError
from secfed.ledger import signer_of, split_lines, verify_entries
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.held_back import evaluation_run
from secfed.privacy.plan import PrivacyPlan
from secfed.signing import fingerprint, format_fingerprint
from secfed.study import Study

__all__ = [
    "EarlierRun",
    "NamedRuns",
    "charges_at",
    "costs_of",
    "events_at",
    "read_bodies",
    "read_tuning_run",
    "tuning_ledger",
]

_Unit = Literal["record", "person", "site"]
_Evaluated = EvaluationEntry | EvaluationInterruptedEntry


@dataclass(frozen=True)
class EarlierRun:
    """What the ledger of an earlier run says.

    Attributes:
        data: The ledger's bytes.
        costs: What the run spent at its sites.
    """

    data: bytes
    costs: RunCosts

    @property
    def signed(self) -> str:
        """Who signed its ledger, and whether the run came to its end, for people."""
        key = signer_of(split_lines(self.data))
        ended = isinstance(read_bodies(self.data)[-1], ReleaseEntry)
        who = format_fingerprint(fingerprint(key))[:19]
        return f"signed by {who}" + ", not finished" * (not ended)


@dataclass(frozen=True)
class NamedRuns:
    """What the runs spent that a study names, as their own ledgers say.

    Attributes:
        teacher: A private teacher's, if any.
        tuning: Those by which the settings were chosen, in the study's order.
    """

    teacher: RunCosts | None = None
    tuning: tuple[RunCosts, ...] = ()

    @property
    def all(self) -> tuple[RunCosts, ...]:
        """The teacher's first."""
        return (*(() if self.teacher is None else (self.teacher,)), *self.tuning)


def tuning_ledger(index: int) -> str:
    """Where a run keeps a copy of a ledger that its ``[[tuning.runs]]`` pins."""
    return f"tuning/{index + 1:03d}/ledger.jsonl"


def read_bodies(data: bytes) -> list[Body]:
    """The entries of a ledger, each signed by the key that the first one names.

    Raises:
        LedgerError: It is damaged.
    """
    lines = split_lines(data)
    return [entry.parsed() for entry in verify_entries(lines, signer_of(lines))]


def costs_of(data: bytes, study: Study, refused: str, *, evaluations: bool) -> RunCosts:
    """What a run spent at each of its sites, as this study composes it.

    1. The run was private, and every round spent what its sites' plans say.
    2. Its unit is the study's, so that the costs compose.
    3. Its noise was drawn at random, unless the study is a rehearsal itself.

    Args:
        data: The bytes of that run's ``ledger.jsonl``.
        study: The study that depends on it.
        refused: What an error begins with: the key, and why it is asked.
        evaluations: Whether scores on held-back records count, too. They do where
            somebody chose by them; no weight depends on them.

    Raises:
        LedgerError: The ledger is damaged, or its rounds are not as planned.
        PolicyError: The run was not private, or cannot be composed with the study.
    """
    bodies = read_bodies(data)
    first, plan = bodies[0], bodies[1] if len(bodies) > 1 else None
    if not isinstance(first, StudyEntry) or not isinstance(plan, PlanEntry):
        raise PolicyError(f"{refused}that run has not begun")
    # 1
    unit = _unit(plan, refused)
    costs = RunCosts(
        ledger_sha256=sha256_hex(data),
        study_digest=first.study_digest,
        unit=unit,
        simulation_seeds=tuple(_seeds(first, _named(plan, bodies[2:]))),
        spent=_spent(first, plan, bodies[2:], evaluations=evaluations),
    )
    # 2
    if unit != study.privacy.unit:
        raise PolicyError(
            f"privacy.unit: {refused}that run protects each {unit} and this study "
            f"each {study.privacy.unit}; their costs cannot be composed"
        )
    # 3
    if costs.simulation_seeds and study.simulation.seed is None:
        raise PolicyError(
            f"{refused}its noise follows from the simulation seed "
            f"{costs.simulation_seeds[0]}, so it is not private"
        )
    return costs


def read_tuning_run(data: bytes, study: Study, index: int) -> EarlierRun:
    """Read what a run cost by which the study's settings were chosen.

    It may have ended without a release: whoever looked at it has seen its rounds.

    Args:
        data: The bytes of its ledger.
        study: The study, whose ``[tuning]`` pins it.
        index: Which of the runs there, from 0.

    Raises:
        LedgerError: It is another ledger, or damaged.
        PolicyError: The run was not private, or cannot be composed with the study.
    """
    pinned = study.tuning_runs[index]
    if sha256_hex(data) != pinned.sha256:
        raise LedgerError(
            0, f"{pinned.ledger}: not the ledger that [[tuning.runs]] pins"
        )
    refused = f"[[tuning.runs]] {pinned.ledger}: "
    return EarlierRun(data, costs_of(data, study, refused, evaluations=True))


def charges_at(runs: Iterable[RunCosts], site: str) -> tuple[RunCharge, ...]:
    """What runs spent at one site; a round that several of them name counts once.

    Raises:
        PolicyError: They tell differently of one round.
    """
    found: dict[tuple[str, int], RunCharge] = {}
    for costs in runs:
        for charge in costs.spent.get(site, ()):
            known = found.setdefault((charge.run_id, charge.round), charge)
            if known != charge:
                raise PolicyError(
                    f"{site}: two ledgers tell differently what round {charge.round} "
                    f"of {charge.run_id} cost"
                )
    return tuple(found.values())


def events_at(runs: Iterable[RunCosts], site: str) -> list[DpEvent]:
    """The same as the accountant's events."""
    return [accounting.event_from_json(c.event) for c in charges_at(runs, site)]


def _unit(plan: PlanEntry, refused: str) -> _Unit:
    plans = [PrivacyPlan.from_json(own) for own in plan.sites.values() if own]
    if not plan.private or not plans:
        raise PolicyError(
            f"{refused}that run was trained without privacy, so that nothing bounds "
            "what it says of a record"
        )
    return plans[0].unit


def _named(plan: PlanEntry, rest: Iterable[Body]) -> list[RunCosts]:
    """The runs that a run depends on itself: its teacher's, and its tuning's."""
    taught = [] if plan.teacher is None else [plan.teacher]
    return taught + [body.costs for body in rest if isinstance(body, TuningEntry)]


def _seeds(first: StudyEntry, named: Iterable[RunCosts]) -> Iterator[int]:
    if first.simulation_seed is not None:
        yield first.simulation_seed
    for costs in named:
        yield from costs.simulation_seeds


def _spent(
    first: StudyEntry, plan: PlanEntry, rest: Sequence[Body], *, evaluations: bool
) -> dict[str, tuple[RunCharge, ...]]:
    """Each site's charges; those of the runs that this one depends on come first."""
    named = _named(plan, rest)
    found: defaultdict[str, list[RunCharge]] = defaultdict(list)
    for site in {site for costs in named for site in costs.spent}:
        found[site] += charges_at(named, site)
    due = {
        site: accounting.event_to_json(PrivacyPlan.from_json(own).round_event())
        for site, own in plan.sites.items()
        if own
    }
    for index, body in enumerate(rest, start=2):
        if isinstance(body, Notice | TuningEntry | ReleaseEntry):
            continue
        charged = first.run_id
        if isinstance(body, _Evaluated):
            if not evaluations:
                continue
            charged = evaluation_run(first.run_id)
        elif not isinstance(body, RoundEntry | InterruptedEntry):
            raise LedgerError(index, "a round is expected here")
        elif body.spent != {site: due.get(site) for site in body.participants}:
            raise LedgerError(index, "its sites did not spend what their plans say")
        for site, event in body.spent.items():
            found[site].append(
                RunCharge(
                    run_id=charged,
                    study_digest=first.study_digest,
                    round=body.round,
                    event=event,
                )
            )
    return {site: tuple(charges) for site, charges in sorted(found.items())}
