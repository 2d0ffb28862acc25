"""The coordinator's side of a round whose sites are on other machines.

What carries the orders is a :class:`Post`; Flower's is in ``secfed.runtime.flower``.
The round itself is that of the local runtime: the same terms, the same phases, the
same loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from secfed.entries import Notice
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RoundAbortedError,
    SecfedError,
    TooFewSitesError,
    VerificationError,
)
from secfed.ledger import Entry
from secfed.notes import NoteSignature
from secfed.privacy.held_back import evaluation_run
from secfed.runtime.arms import Arm
from secfed.runtime.cohorts import Cohorts
from secfed.runtime.envelope import (
    ACCEPTED,
    Answer,
    Order,
    Post,
    Sealed,
    sign_order,
)
from secfed.runtime.evaluations import EvaluationResult
from secfed.runtime.notices import Notices
from secfed.runtime.progress import Progress
from secfed.runtime.remote_accounts import RemoteAccounts, Task
from secfed.runtime.rounds import RoundResult
from secfed.runtime.scores import scores_of
from secfed.runtime.sessions import (
    EVALUATING,
    PHASES,
    TRAINING,
    RoundTerms,
    broadcast_of,
    evaluation_terms,
    model_digest,
    sum_under_masks,
    terms_of,
)
from secfed.runtime.setup import Prepared
from secfed.runtime.witnesses import Asked, OfferFrom
from secfed.server import SecureSum
from secfed.signing import CoordinatorKey
from secfed.strategies.base import ServerState
from secfed.types import Adapter
from secfed.witness import read_answer

__all__ = ["Deadlines", "RemoteSites"]

_LEFT_BEFORE_KEYS: Final = "adapter"
_WORDS: Final = ("policy", "budget")


@dataclass(frozen=True)
class Deadlines:
    """How long the coordinator waits, in seconds.

    Attributes:
        joining: For sites to take the round's adapter.
        training: For local training.
        phase: For each phase of the secure sum.
    """

    joining: float = 300.0
    training: float = 3600.0
    phase: float = 120.0

    def of(self, phase: str) -> float:
        """The time for one phase."""
        named = {"adapter": self.joining, "training": self.training}
        return named.get(phase, self.phase)


@dataclass
class RemoteSites:
    """Plays the rounds of an arm with sites on other machines.

    ``prepared`` holds the public test set and no site's records. A site that withdrew,
    or whose keys are revoked, is asked nothing, whoever has its keys; sessions name it
    as one that stays away.
    """

    arm: Arm
    prepared: Prepared
    accounts: RemoteAccounts
    key: CoordinatorKey
    run_id: str
    post: Post
    deadlines: Deadlines
    progress: Progress
    notices: Notices
    # How much of the ledger each site has cosigned, as far as this process knows.
    _seen: dict[str, int] = field(default_factory=dict, init=False)
    _round: int = field(default=1, init=False)

    def play(self, before: ServerState, round_number: int) -> RoundResult:
        """One round, from the adapter that is sent to the opened sum.

        1. send the adapter; 2. note whom the round is asked of; 3. five phases.

        Raises:
            TooFewSitesError: Before anything was asked; the round can be tried again.
            RoundAbortedError: Too few sites were left; nothing was learned.
        """
        self._round = round_number
        self._require_witnesses()
        terms = terms_of(
            self.arm.study,
            self.accounts.plans,
            self.accounts.identities,
            before.adapter,
            round_number,
            self.arm.name,
        )
        result, up, down = self._sum(Task(round_number), terms, before.adapter)
        return RoundResult(result, {}, sums_equal=None, bytes_up=up, bytes_down=down)

    def evaluate(self, after: ServerState, round_number: int) -> EvaluationResult:
        """One evaluation, of the sites that evaluate; steps as of a round.

        Orders and charges name a run of their own (``evaluation_run``).

        Raises:
            PolicyError, BudgetExceededError, RoundAbortedError: Too few sites were
                left or came; an evaluation that fails stops nothing.
        """
        terms = evaluation_terms(
            self.arm.study,
            self.prepared.evaluations,
            self.accounts.identities,
            round_number,
            self.arm.name,
        )
        task = Task(round_number, evaluation=True)
        try:
            result, up, down = self._sum(task, terms, after.adapter)
        except TooFewSitesError as error:
            raise RoundAbortedError("adapter", (), str(error)) from error
        return EvaluationResult(result, sums_equal=None, bytes_up=up, bytes_down=down)

    def _sum(
        self, task: Task, terms: RoundTerms, adapter: Adapter
    ) -> tuple[SecureSum, int, int]:
        """One session's sum, and the bytes that went up and down for it."""
        broadcast = broadcast_of(adapter)
        link = _Away(self, task, terms.enough)
        # 1
        here = link.send_adapter(broadcast, terms.names)
        if not terms.enough(here):
            away = ", ".join(self._away(terms.names, here))
            raise TooFewSitesError(
                f"{task}: {len(here)} of {len(terms.names)} sites answer, "
                f"{terms.threshold} are needed (away: {away}). Nobody was asked "
                "to spend anything; start again when more sites are reachable"
            )
        # 2
        self.accounts.ask(task, here)
        # 3
        digest = model_digest(self.prepared.base.digest, broadcast)
        coordinator = Cohorts(terms, digest)
        result = sum_under_masks(coordinator, link, here)
        for sentence in result.suspected:
            self.progress.note(sentence)
        for site in coordinator.blamed:
            self.refused(site, task.round, "FaultyClientError")
        charged = self.accounts.charges_of(task)
        dropouts = {
            site: phase or (_LEFT_BEFORE_KEYS if site in charged else "")
            for site, phase in result.dropouts.items()
        }
        down = coordinator.bytes_down + len(broadcast) * len(here)
        return replace(result, dropouts=dropouts), coordinator.bytes_up, down

    def _require_witnesses(self) -> None:
        """Nobody pays for a run that could not be released any more.

        Raises:
            TooFewSitesError: Fewer sites are left than have to cosign the ledger.
        """
        section, left = self.arm.study.ledger, len(self.present())
        needed = section.witnesses if section else None
        if needed is not None and left < needed:
            raise TooFewSitesError(
                f"{left} sites are left ({', '.join(sorted(self.notices.away))} are "
                f"not), and {needed} have to cosign the ledger before a release; "
                "nobody was asked to spend anything"
            )

    def refused(self, site: str, number: int, error: str) -> None:
        """Tell the operations log that a message was refused."""
        self.progress.event("message-refused", site=site, round=number, error=error)

    def _away(self, names: Collection[str], here: Collection[str]) -> list[str]:
        missing = sorted(set(names) - set(here))
        away = self.notices.away
        return [f"{site} ({away[site]})" if site in away else site for site in missing]

    def scores(self, after: ServerState) -> dict[str, Any]:
        """Of the global adapter on the public test set."""
        return scores_of(self.prepared, after.adapter)

    def noise(
        self, before: ServerState, played: RoundResult, round_number: int
    ) -> dict[str, Any] | None:
        """Not known: the updates without noise are at the sites, and stay there."""
        del before, played, round_number
        return None

    def cosign(self, offer_from: OfferFrom) -> Asked:
        """Show the ledger to every site; ask again whoever remembers another size."""
        found: dict[str, NoteSignature] = {}
        asked = {site: self._seen.get(site, 0) for site in self.present()}
        for _ in range(2):
            offers = {site: offer_from(size) for site, size in asked.items()}
            bodies = {site: offer.to_bytes() for site, offer in offers.items()}
            asked = {}
            for site, answer in _Away(self, Task(self._round), _anybody).witness(
                bodies
            ):
                if isinstance(answer, int):
                    asked[site] = answer
                    continue
                found[site] = answer
                offer = offers[site]
                self._seen[site] = offer.old_size + len(offer.lines)
            if not asked:
                break
        return found

    def due(self, entries: Sequence[Entry], next_round: int) -> Sequence[Notice]:
        """Revoked keys, withdrawals, incidents, and what sites say they approved."""
        return self.notices.due(entries, next_round)

    def present(self) -> list[str]:
        """The sites that are asked anything."""
        return sorted(set(self.accounts.identities) - self.notices.away.keys())

    def send_final(self, adapter: bytes) -> tuple[str, ...]:
        """Give every site the adapter of the last round; returns who has it."""
        last = Task(self.arm.study.training.rounds + 1)
        link = _Away(self, last, _anybody)
        return link.send_adapter(adapter, self.accounts.identities)


def _anybody(sites: Collection[str]) -> bool:
    """No sum is wanted."""
    del sites
    return True


@dataclass
class _Away:
    """The link of one session whose sites are on other machines."""

    sites: RemoteSites
    task: Task
    enough: Callable[[Collection[str]], bool]
    refusals: list[SecfedError] = field(default_factory=list)

    def send_adapter(self, broadcast: bytes, names: Collection[str]) -> tuple[str, ...]:
        """Offer the adapter to the named sites; returns who took it."""
        self.sites.progress.phase("send the adapter")
        orders = {site: broadcast for site in self.sites.present() if site in names}
        taken = []
        for site, approvals in self._ask("adapter", orders):
            try:
                self.sites.notices.approved(site, approvals)
            except VerificationError as error:
                self.sites.progress.note(f"{site}: {error}")
                self.sites.refused(site, self.task.round, type(error).__name__)
                continue
            taken.append(site)
        return tuple(sorted(taken))

    def witness(
        self, bodies: Mapping[str, bytes]
    ) -> Iterator[tuple[str, NoteSignature | int]]:
        """Offer the ledger; yields cosignatures, or where a site's memory ends."""
        for site, body in self._ask("witness", bodies):
            try:
                yield site, read_answer(body)
            except VerificationError as error:
                self.sites.progress.note(f"{site}: {error}")

    def collect(
        self,
        phase: str,
        messages: Mapping[str, bytes],
        receive: Callable[[str, bytes], None],
    ) -> None:
        """Ask the named sites; they work before they are asked for masked input.

        Where too few have done their work nobody is asked for it: nothing leaves a
        site for a sum that cannot be opened.
        """
        asked = dict(messages)
        if phase == "masked-input":
            self.sites.progress.phase(self._work)
            # Sites work: now the ledger's figure is computed, which is then kept.
            self.sites.accounts.epsilon(self.task.round, evaluated=self.task.evaluation)
            trained = dict(self._ask("training", dict.fromkeys(asked, b"")))
            asked = {site: body for site, body in asked.items() if site in trained}
            if not self.enough(asked):
                return
        self.sites.progress.phase(PHASES[phase])
        for site, body in self._ask(phase, asked):
            receive(site, body)

    @property
    def _work(self) -> str:
        return EVALUATING if self.task.evaluation else TRAINING

    def _ask(
        self, phase: str, bodies: Mapping[str, bytes]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield the bodies that the named sites signed in time."""
        seconds = self.sites.deadlines.of(phase)
        orders = {
            site: sign_order(self.sites.key, self._order(phase, site, seconds), body)
            for site, body in bodies.items()
        }
        done = set()
        for site, sealed in self.sites.post.exchange(phase, orders, seconds):
            answer = self._checked(site, sealed, orders)
            if answer is None or site in done:
                continue
            done.add(site)
            if self._accepted(phase, answer):
                self.sites.progress.site(site, len(done), len(orders))
                yield site, sealed.body
        for site in sorted(orders.keys() - done):
            self.sites.progress.note(f"{site} gave no answer to {phase} in time")
            self._event("deadline-missed", site, phase)

    def _event(self, kind: str, site: str, phase: str, **fields: str) -> None:
        at = {"site": site, "phase": phase, **fields}
        self.sites.progress.event(kind, round=self.task.round, **at)

    def _order(self, phase: str, site: str, seconds: float) -> Order:
        run_id = self.sites.run_id
        return Order(
            study=self.sites.arm.study.digest(),
            run_id=evaluation_run(run_id) if self.task.evaluation else run_id,
            round=self.task.round,
            phase=phase,
            site=site,
            expires=int(time.time() + seconds) + 1,
        )

    def _checked(
        self, site: str, sealed: Sealed, orders: Mapping[str, Sealed]
    ) -> Answer | None:
        """An answer that the pinned site signed to this very order; else None."""
        try:
            answer = sealed.open_answer(self.sites.accounts.identities[site])
        except VerificationError as error:
            self.sites.progress.note(f"an answer in {site}'s name is refused: {error}")
            self.sites.refused(site, self.task.round, type(error).__name__)
            return None
        if answer.site != site or answer.order != orders[site].digest:
            self.sites.progress.note(f"an answer of {site} is to another order")
            self.sites.refused(site, self.task.round, "VerificationError")
            return None
        return answer

    def _accepted(self, phase: str, answer: Answer) -> bool:
        """Note what the site says of itself; whether its answer counts."""
        site, accounts = answer.site, self.sites.accounts
        if answer.status == ACCEPTED:
            if phase == "advertise":
                if not answer.budget_head:
                    self.sites.progress.note(f"{site} names no reservation")
                    return False
                accounts.reserved(self.task, site, answer.budget_head)
                self.sites.progress.event(
                    "budget-reserved", site=site, round=self.task.round
                )
            return True
        self.sites.progress.note(f"{site} declines {phase}: {answer.status}")
        reason = answer.status if answer.status in _WORDS else "failed"
        self._event("site-declined", site, phase, reason=reason)
        refusal = self._refusal(answer)
        if refusal is not None:
            self.refusals.append(refusal)
            if phase == "advertise":
                accounts.declined(self.task, site)
        return False

    def _refusal(self, answer: Answer) -> SecfedError | None:
        told = "its operator finds the reason in the site's log"
        if answer.status == "policy":
            return PolicyError(f"{answer.site}: its own policy refuses; {told}")
        if answer.status == "budget":
            return BudgetExceededError(
                answer.site, f"its privacy budget does not hold the round; {told}"
            )
        return None
