"""A site that answers signed orders: one handler per phase, all else refused.

Secrets of a session are in memory only. What is durable is what must not be
forgotten: the budget, its receipts, what the rule keeps at the site, and which
session was begun. A process that starts in the middle of a session cannot go on with
it; the site is a dropout of that round and takes part in the next.

Training begins when the round's budget is reserved, and goes on beside the messages
that bring keys and shares, which need no input (protocols/SPEC.md). The update is
encoded when the coordinator asks for the end of training, after the shares, so that a
site draws its randomness in the same order wherever it runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from protocols.errors import ProtocolError
from protocols.keys import SigningKey
from secfed.adapters import adapter_from_bytes
from secfed.client import (
    BudgetGuard,
    Contribution,
    EvaluationGuard,
    Site,
    SiteRound,
)
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RunDirectoryError,
    SecfedError,
    VerificationError,
)
from secfed.governance import SiteApprovals
from secfed.governance.outlay import events_of
from secfed.operations import left
from secfed.policy import SitePolicy, require_running
from secfed.privacy.held_back import is_evaluation
from secfed.privacy.noise import RandomStream
from secfed.runtime.arms import Arm
from secfed.runtime.background import Background
from secfed.runtime.directory import write_atomically
from secfed.runtime.earlier import charge_earlier
from secfed.runtime.envelope import (
    ACCEPTED,
    ORDERS,
    Answer,
    Order,
    Sealed,
    sign_answer,
)
from secfed.runtime.evaluations import count_of
from secfed.runtime.kept import KeptTensors
from secfed.runtime.ledger_watch import LedgerWatch
from secfed.runtime.notices import approval_bytes
from secfed.runtime.receipts import keep_receipt, read_receipts
from secfed.runtime.roster import Roster
from secfed.runtime.sessions import (
    RoundTerms,
    evaluation_terms,
    model_digest,
    terms_of,
)
from secfed.runtime.setup import Prepared, open_budget, random_stream
from secfed.runtime.site_session import (
    Session,
    last_begun,
    named,
    note_begun,
    run_folder,
)
from secfed.runtime.site_training import contribute
from secfed.runtime.watching import budget_alarms
from secfed.runtime.withdrawal import require_participating
from secfed.strategies import strategy_of
from secfed.strategies.base import ServerState
from secfed.types import Adapter

__all__ = ["SiteWorker"]

_CLOCKS_SECONDS = 60  # Clocks of two machines may differ by so much.
_RUN_ID = re.compile(r"[0-9a-f]{16}/[a-z0-9-]{1,64}(\+evaluation)?")
_FINAL_NAME = "final.safetensors"


def _unheard(kind: str, **fields: str | int | Sequence[str]) -> None:
    """What hears a site that has no operations log."""


class SiteWorker:
    """Answers the orders of one study's coordinator at one site.

    Args:
        roster: Verified, from the coordinator whose fingerprint was compared.
        name: This site.
        identity: Its identity key.
        prepared: Its records, plan and model.
        policy: Its own rules.
        state_dir: Its durable folder; nothing of it ever leaves.
        say: Told in one line what happens, for the site's own log.
        background: Where training runs.
        terms: How a round's parameters are derived; a simulation derives them once for
            all sites of a process.
        approvals: What its operators signed; None in a simulation.
    """

    def __init__(
        self,
        roster: Roster,
        name: str,
        identity: SigningKey,
        prepared: Prepared,
        policy: SitePolicy,
        state_dir: Path,
        say: Callable[[str], None] = lambda _text: None,
        background: Background | None = None,
        terms: Callable[..., RoundTerms] = terms_of,
        approvals: SiteApprovals | None = None,
    ) -> None:
        self._background = background or Background()
        self._terms_of = terms
        self._roster = roster
        self._identity = identity
        self._prepared = prepared
        self._state_dir = state_dir
        self._say = say
        study = roster.study
        self._arm = Arm(study.training.method, study)
        self._strategy = strategy_of(study)
        base = prepared.model.base_weights() if self._strategy.uses_base else {}
        start = self._strategy.init(prepared.start, study.adapter.seed, base)
        self._like = start.adapter
        self._site = Site(
            name,
            identity,
            prepared.records[name],
            prepared.plans[name],
            policy,
            prepared.held_back.get(name),
            prepared.evaluations.get(name),
        )
        self._budget = open_budget(
            study, policy, state_dir, name, prepared.fingerprints[name]
        )
        named_runs = prepared.named_runs
        charge_earlier(
            self._budget,
            named_runs.all,
            name,
            events_of(study, prepared.plans[name]),
        )
        self._watch = LedgerWatch(
            study,
            roster.coordinator_key,
            name,
            identity,
            state_dir,
            self._budget,
            named_runs,
        )
        self._approvals = approvals
        self._session: Session | None = None
        self.finished = False
        # Of the operations log, where the site has one (``watched_site``).
        self.event: Callable[..., None] = _unheard
        self._alarm = 0
        self.last_error = ""  # Its class; the sentence is in the site's log.

    @property
    def training(self) -> bool:
        """Whether local training goes on, of this round or of one that was left."""
        return self._background.busy

    @property
    def budget_file(self) -> Path:
        """Where the site keeps what it has spent."""
        return self._budget.path

    def spent_epsilon(self) -> float:
        """Of all that was reserved on the site's population, by every study."""
        return self._budget.spent_epsilon()

    def answer(self, phase: str, sealed: Sealed) -> Sealed:
        """Answer one order, or decline it in one word; nothing else leaves the site.

        Args:
            phase: As the carrier names it; the signed header must say the same.
            sealed: The order as received.

        Raises:
            VerificationError: The order is not the pinned coordinator's, not for this
                site and study, or too old. It is not answered at all.
        """
        try:
            order = self._verified(phase, sealed)
        except VerificationError as error:
            self.event("message-refused", error=type(error).__name__)
            raise
        session = self._session
        if session is not None and session.serves(order):
            held = session.answered.get(phase)
            if held is not None and held[0] == sealed.digest:
                return held[1]  # The same order again: the same bytes again.
        status, body = self._status_and_body(order, sealed.body)
        session = self._session
        current = session is not None and session.serves(order)
        head = session.budget_head if session is not None and current else ""
        answer = Answer(sealed.digest, self._site.name, status, head)
        result = sign_answer(self._identity, answer, body)
        if session is not None and current and status == ACCEPTED:
            session.answered[phase] = (sealed.digest, result)
            if phase == "unmask":
                self.event("round-answered", round=order.round)
        return result

    # ---------------------------------------------------------------- checks

    def _verified(self, phase: str, sealed: Sealed) -> Order:
        order = sealed.open_order(self._roster.coordinator_key)
        if phase not in ORDERS or order.phase != phase:
            raise VerificationError(f"an order of no known phase: {phase!r}")
        if order.study != self._roster.study.digest():
            raise VerificationError("an order of another study than was approved")
        if order.site != self._site.name:
            raise VerificationError("an order for another site")
        if not _RUN_ID.fullmatch(order.run_id):
            raise VerificationError("an order of a malformed run")
        if time.time() > order.expires + _CLOCKS_SECONDS:
            raise VerificationError("an order that nobody waits for any more")
        return order

    def _status_and_body(self, order: Order, body: bytes) -> tuple[str, bytes]:
        """Run the phase; what goes wrong is told in one word, its text stays here."""
        try:
            return ACCEPTED, self._run(order, body)
        except (PolicyError, BudgetExceededError) as error:
            self.last_error = type(error).__name__
            word = "budget" if isinstance(error, BudgetExceededError) else "policy"
            self._say(f"{named(order)}, {order.phase}: refused: {error}")
            if self._reserved(order):
                word = "failed"
            self._declined(order, word, error)
        except (ProtocolError, SecfedError, OSError) as error:
            self.last_error = type(error).__name__
            word = "failed"
            self._say(f"{named(order)}, {order.phase}: {error}")
            self._declined(order, word, error)
        if word == "failed" or order.phase != "adapter":
            self._leave()
        return word, b""

    def _declined(self, order: Order, word: str, error: Exception) -> None:
        """Write down why; a log that cannot be written changes no answer."""
        why = left(error, site=self._site.name, phase=order.phase, round=order.round)
        if why["kind"] == "site-left":
            why |= {"kind": "order-declined", "reason": word}
            del why["site"]
        try:
            self.event(**why)
        except SecfedError as unwritten:
            self._say(str(unwritten))

    def _leave(self) -> None:
        """Forget the session; its round is over for this site."""
        if self._session is not None:
            for job in (self._session.training, self._session.counting):
                if job is not None:
                    job.drop()
        self._session = None

    # ---------------------------------------------------------------- phases

    def _run(self, order: Order, body: bytes) -> bytes:
        require_running(self._site.policy)
        require_participating(self._state_dir, order.study)
        if order.phase == "adapter":
            return self._take_adapter(order, body)
        if order.phase == "witness":
            return self._cosign(order, body)
        session = self._session
        if session is None or not session.serves(order):
            raise RunDirectoryError(
                "this process did not begin that round, so the site is out of it"
            )
        if order.phase in session.answered:
            raise RunDirectoryError(f"{order.phase} was answered already (SA-009)")
        if order.phase == "advertise":
            return self._advertise(session)
        if session.site is None or session.stream is None:
            raise RunDirectoryError("no keys were advertised in this round")
        if order.phase == "shares":
            return session.site.share(body, session.stream)
        if order.phase == "training":
            self._finish_work(session, session.site, session.stream)
            return b""
        return session.site.answer(order.phase, body)

    def _take_adapter(self, order: Order, body: bytes) -> bytes:
        """A new adapter begins a round; the one after the last round is kept."""
        adapter = adapter_from_bytes(body, self._like)
        rounds = self._roster.study.training.rounds
        if is_evaluation(order.run_id):
            self._check_due(order)
        elif order.round == rounds + 1:
            self._leave()
            write_atomically(run_folder(self._state_dir, order) / _FINAL_NAME, body)
            self.finished = True
            self.event("study-finished")
            self._say("the study is finished; the final adapter is kept")
            return approval_bytes(None)
        elif not 1 <= order.round <= rounds:
            raise RunDirectoryError(f"the study has no round {order.round}")
        if order.round <= last_begun(self._state_dir, order):
            raise RunDirectoryError(
                f"{named(order)} was begun here before and is not repeated"
            )
        if self._session is not None and "unmask" not in self._session.answered:
            self.event("round-interrupted", round=self._session.round)
        self._leave()
        self._session = Session(order.round, order.run_id, body, adapter)
        self._say(f"{named(order)}: adapter received")
        return self._approved()

    def _approved(self) -> bytes:
        """What binds the approvals that count here; noted before it leaves."""
        found = self._approvals.commitment() if self._approvals else None
        if found is not None:
            self._watch.note_approval(found)
        return approval_bytes(found)

    def _check_due(self, order: Order) -> None:
        """Refuse an evaluation that the approved study does not have."""
        study = self._roster.study
        due = study.evaluation.due(study.training.rounds) if study.evaluation else ()
        if order.round not in due or self._site.evaluation is None:
            raise RunDirectoryError(f"the study has no {named(order)} of this site")

    def _cosign(self, order: Order, body: bytes) -> bytes:
        """Check what the ledger says since this site looked last, and cosign it."""
        answer, size = self._watch.cosign(order.run_id, body)
        if size is not None:
            self._say(f"cosigned the ledger's {size} entries")
        return answer

    def _advertise(self, session: Session) -> bytes:
        """Single-use from here on: the round is noted before anything is reserved."""
        terms = self._terms(session)
        note_begun(self._state_dir, session)
        kind = EvaluationGuard if session.evaluates else BudgetGuard
        guard = kind(
            self._budget,
            session.run_id,
            {r.head for r in read_receipts(self._state_dir, self._site.name)},
            partial(keep_receipt, self._state_dir, self._site.name),
        )
        session.stream = self._stream(
            session, "evaluation-protocol" if session.evaluates else "protocol"
        )
        study = self._roster.study
        params = terms.of(self._site.name)
        session.site = SiteRound(self._site, study, params, terms.codec, guard)
        digest = model_digest(self._prepared.base.digest, session.broadcast)
        message = session.site.advertise(digest, session.stream)
        session.budget_head = self._head(session)
        self._paid(session.round)
        self._say(f"{named(session)}: budget reserved, keys advertised")
        self._begin_work(session)
        return message

    def _terms(self, session: Session) -> RoundTerms:
        """What both sides derive from the signed study, here for this site."""
        study, prepared, arm = self._roster.study, self._prepared, self._arm.name
        known, number = self._roster.identities, session.round
        if session.evaluates:
            return evaluation_terms(study, prepared.evaluations, known, number, arm)
        plans = prepared.plans
        return self._terms_of(study, plans, known, session.adapter, number, arm)

    def _stream(self, session: Session, purpose: str) -> RandomStream:
        labels = (self._arm.name, str(session.round), self._site.name, purpose)
        return random_stream(self._roster.study, *labels)

    def _begin_work(self, session: Session) -> None:
        """Train, or count on held-back records, beside the messages."""
        if session.evaluates:
            count = count_of(self._prepared, session.adapter)
            session.counting = self._background.start(partial(count, self._site))
            return
        train = partial(self._train, session.round, session.run_id, session.adapter)
        session.training = self._background.start(train)

    def _finish_work(
        self, session: Session, site: SiteRound, stream: RandomStream
    ) -> None:
        """Wait for the work and encode it; nothing of it is in the answer."""
        if session.counting is not None:
            counted, noise = session.counting, self._stream(session, "evaluation-noise")
            site.evaluate(lambda _site: counted.result(), stream, noise)
            return
        site.train(partial(self._trained, session), stream)

    def _paid(self, number: int) -> None:
        """Write down that a round is paid for, and the step that the budget reached."""
        if self.event is _unheard:
            return
        self.event("budget-reserved", round=number)
        alarm = budget_alarms(self._budget, self._site.policy.population)
        if alarm and alarm["percent"] != self._alarm:
            self._alarm = alarm["percent"]
            self.event("budget-alarm", **alarm)

    def _trained(self, session: Session, _site: Site) -> Contribution:
        """What the round's training gave; waits for it."""
        if session.training is None:
            raise RunDirectoryError("no training was begun in this round")
        return session.training.result()

    def _train(self, number: int, run_id: str, adapter: Adapter) -> Contribution:
        """One round's local training; runs beside the messages."""
        before = ServerState(adapter, number - 1, {})
        own = self._state_dir / "sites" / self._site.name / "kept" / run_id[:16]
        self._say(f"round {number}: training")
        return contribute(
            self._arm,
            self._prepared,
            self._strategy,
            self._site,
            before,
            number,
            KeptTensors(own),
        )

    # ----------------------------------------------------------------- state

    def _head(self, session: Session) -> str:
        return next(
            held.head
            for held in self._budget.history()
            if held.run_id == session.run_id and held.round == session.round
        )

    def _reserved(self, order: Order) -> bool:
        """Whether the round may be charged here, though something went wrong then.

        A coordinator takes a round that was declined by policy or budget as not spent.
        A full disk may stop what comes after the reservation.
        """
        try:
            return any(
                held.run_id == order.run_id and held.round == order.round
                for held in self._budget.history()
            )
        except SecfedError:
            return True

    def __repr__(self) -> str:
        return f"SiteWorker({self._site.name!r}, <private>)"
