"""A coordinator and its sites as objects of one process, with the real messages.

What carries the messages is a list of function calls; everything else is what runs
over a network: signed orders and answers, the sites' durable state, the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

from protocols.keys import SigningKey, generate_identity
from secfed.errors import VerificationError
from secfed.governance import SiteApprovals
from secfed.policy import SitePolicy
from secfed.privacy.budget import Budget
from secfed.privacy.held_back import is_evaluation
from secfed.runtime.background import Background, Job
from secfed.runtime.deployed import Deadlines
from secfed.runtime.envelope import Sealed
from secfed.runtime.progress import NoProgress
from secfed.runtime.roster import (
    Roster,
    make_request,
    make_roster,
    read_request,
    read_roster,
)
from secfed.runtime.serve import serve_rounds
from secfed.runtime.setup import Prepared
from secfed.runtime.site_worker import SiteWorker
from secfed.signing import CoordinatorKey
from secfed.study import Study

KEY = CoordinatorKey(b"\x07" * 32)
RUN_ID = "0123456789abcdef"


def identity_of(site: str) -> SigningKey:
    return generate_identity(site.encode().ljust(32, b".")[:32])


def roster_of(study: Study) -> Roster:
    requests = [
        read_request(make_request(identity_of(site), site, f"node key of {site}"), site)
        for site in study.sites
    ]
    data = make_roster(KEY, study, "coordinator.example:8443", "no authority", requests)
    return read_roster(data, "roster")


class AtOnce(Background):
    """Every job ends before the next message: the sites here share one model."""

    def start(self, work: Callable[[], Any]) -> Job[Any]:
        job = super().start(work)
        job.thread.join()
        return job


class LostError(Exception):
    """The coordinator's process ends here."""


class Notes(NoProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Cast:
    """Everybody of a deployment; a test says who is away and when."""

    prepared: Prepared
    study: Study
    policy: SitePolicy
    folder: Path
    # (round, phase): sites that are away from then on, before they get the order. Of
    # the evaluation after a round the phase begins with "evaluation ".
    gone: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    # (round, phase): sites whose answer is lost, while they stay.
    deaf: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    # (round, phase): sites that start anew before they get the order.
    restarts: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    crash: tuple[int, str] | None = None
    run_id: str = RUN_ID
    workers: dict[str, SiteWorker] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    orders: list[tuple[str, str, Sealed]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    background: Background = field(default_factory=AtOnce)
    approvals: dict[str, SiteApprovals] = field(default_factory=dict)
    also: Sequence[Signer] = ()

    def __post_init__(self) -> None:
        self.roster = roster_of(self.study)
        self.begin(*self.study.sites)

    def begin(self, *sites: str) -> None:
        """Start these sites' processes; what was in memory is gone."""
        for site in sites:
            self.workers[site] = SiteWorker(
                self.roster,
                site,
                identity_of(site),
                self.prepared,
                self.policy,
                self.folder / site,
                self.notes.note,
                self.background,
                approvals=self.approvals.get(site),
            )

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        del seconds
        first = next(iter(orders.values())).open_order(KEY.public_bytes)
        evaluates = is_evaluation(first.run_id)
        now = (first.round, f"evaluation {phase}" if evaluates else phase)
        if self.crash == now:
            raise LostError
        self.away |= self.gone.get(now, set())
        self.begin(*self.restarts.get(now, set()))
        for site, order in orders.items():
            if site in self.away:
                continue
            self.orders.append((site, phase, order))
            try:
                answer = self.workers[site].answer(phase, order)
            except VerificationError as error:
                self.notes.note(f"{site} ignores an order: {error}")
                continue
            if site not in self.deaf.get(now, set()):
                yield site, answer

    def serve(self, run: Path, *, rehearsal: bool = True) -> dict[str, Any]:
        return serve_rounds(
            self.roster,
            replace(self.prepared, records={}, held_back={}, fingerprints={}),
            run,
            self.run_id,
            KEY,
            self,
            Deadlines(1, 1, 1),
            self.notes,
            rehearsal=rehearsal,
            also=self.also,
        )

    def rounds_charged(self, site: str, *, evaluated: bool = False) -> list[int]:
        """What the site's own budget holds of rounds, or of evaluations, in order."""
        path = self.folder / site / "sites" / site / "budget.sqlite"
        charges = Budget.read(path)[0].charges
        return [c.round for c in charges if is_evaluation(c.run_id) == evaluated]
