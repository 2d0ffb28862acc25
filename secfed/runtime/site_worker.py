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

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from protocols.errors import ProtocolError
from protocols.keys import SigningKey
from secfed.adapters import adapter_from_bytes
from secfed.canonical import canonical_json
from secfed.checkpoints import Cosigner, log_key, log_origin, witness_key
from secfed.client import BudgetGuard, Contribution, Site, SiteRound
from secfed.errors import (
    BudgetExceededError,
    PolicyError,
    RunDirectoryError,
    SecfedError,
    StaleOfferError,
    VerificationError,
)
from secfed.policy import SitePolicy
from secfed.privacy.noise import RandomStream
from secfed.runtime.background import Background, Job
from secfed.runtime.directory import write_atomically
from secfed.runtime.envelope import (
    ACCEPTED,
    ORDERS,
    Answer,
    Order,
    Sealed,
    sign_answer,
)
from secfed.runtime.kept import KeptTensors
from secfed.runtime.receipts import keep_receipt, read_receipts
from secfed.runtime.record import Arm
from secfed.runtime.roster import Roster
from secfed.runtime.sessions import model_digest, terms_of
from secfed.runtime.setup import Prepared, open_budget, random_stream
from secfed.runtime.site_training import contribute
from secfed.runtime.teaching import charge_teacher
from secfed.runtime.witnesses import inspection, witness_folder
from secfed.strategies import strategy_of
from secfed.strategies.base import ServerState
from secfed.types import Adapter
from secfed.witness import Offer, Witness, answer_bytes

__all__ = ["SiteWorker"]

_CLOCKS_SECONDS = 60  # Clocks of two machines may differ by so much.
_RUN_ID = re.compile(r"[0-9a-f]{16}/[a-z0-9-]{1,64}")
_FINAL_NAME = "final.safetensors"


@dataclass
class _Session:
    """The round that is being answered; holds secrets and the unmasked update."""

    round: int
    run_id: str
    broadcast: bytes = field(repr=False)
    adapter: Adapter = field(repr=False)
    site: SiteRound | None = None
    stream: RandomStream | None = None
    budget_head: str = ""
    training: Job[Contribution] | None = None
    answered: dict[str, tuple[str, Sealed]] = field(default_factory=dict)


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
    ) -> None:
        self._background = background or Background()
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
            name, identity, prepared.records[name], prepared.plans[name], policy
        )
        self._budget = open_budget(
            study, policy, state_dir, name, prepared.fingerprints[name]
        )
        charge_teacher(self._budget, prepared.teacher, name)
        self._session: _Session | None = None
        self.finished = False

    @property
    def training(self) -> bool:
        """Whether local training goes on, of this round or of one that was left."""
        return self._background.busy

    def answer(self, phase: str, sealed: Sealed) -> Sealed:
        """Answer one order, or decline it in one word; nothing else leaves the site.

        Args:
            phase: As the carrier names it; the signed header must say the same.
            sealed: The order as received.

        Raises:
            VerificationError: The order is not the pinned coordinator's, not for this
                site and study, or too old. It is not answered at all.
        """
        order = self._verified(phase, sealed)
        session = self._session
        if session is not None and order.round == session.round:
            held = session.answered.get(phase)
            if held is not None and held[0] == sealed.digest:
                return held[1]  # The same order again: the same bytes again.
        status, body = self._status_and_body(order, sealed.body)
        session = self._session
        current = session is not None and session.round == order.round
        head = session.budget_head if session is not None and current else ""
        answer = Answer(sealed.digest, self._site.name, status, head)
        result = sign_answer(self._identity, answer, body)
        if session is not None and current and status == ACCEPTED:
            session.answered[phase] = (sealed.digest, result)
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
            word = "budget" if isinstance(error, BudgetExceededError) else "policy"
            self._say(f"round {order.round}, {order.phase}: refused: {error}")
            if self._reserved(order):
                word = "failed"
        except (ProtocolError, SecfedError, OSError) as error:
            word = "failed"
            self._say(f"round {order.round}, {order.phase}: {error}")
        if word == "failed" or order.phase != "adapter":
            self._leave()
        return word, b""

    def _leave(self) -> None:
        """Forget the session; its round is over for this site."""
        if self._session is not None and self._session.training is not None:
            self._session.training.drop()
        self._session = None

    # ---------------------------------------------------------------- phases

    def _run(self, order: Order, body: bytes) -> bytes:
        if order.phase == "adapter":
            return self._take_adapter(order, body)
        if order.phase == "witness":
            return self._cosign(order, body)
        session = self._session
        if session is None or (session.round, session.run_id) != (
            order.round,
            order.run_id,
        ):
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
            session.site.train(partial(self._trained, session), session.stream)
            return b""
        return session.site.answer(order.phase, body)

    def _take_adapter(self, order: Order, body: bytes) -> bytes:
        """A new adapter begins a round; the one after the last round is kept."""
        adapter = adapter_from_bytes(body, self._like)
        rounds = self._roster.study.training.rounds
        if order.round == rounds + 1:
            self._leave()
            write_atomically(self._folder(order) / _FINAL_NAME, body)
            self.finished = True
            self._say("the study is finished; the final adapter is kept")
            return b""
        if not 1 <= order.round <= rounds:
            raise RunDirectoryError(f"the study has no round {order.round}")
        if order.round <= self._last_round(order):
            raise RunDirectoryError(
                f"round {order.round} was begun here before and is not repeated"
            )
        self._leave()
        self._session = _Session(order.round, order.run_id, body, adapter)
        self._say(f"round {order.round}: adapter received")
        return b""

    def _cosign(self, order: Order, body: bytes) -> bytes:
        """Check what the ledger says since this site looked last, and cosign it."""
        witness = self._witness(order.run_id)
        try:
            line = witness.cosign(Offer.from_bytes(body), int(time.time()))
        except StaleOfferError as stale:
            return answer_bytes(stale.size)
        self._say(f"cosigned the ledger's {witness.size} entries")
        return answer_bytes(line)

    def _witness(self, run_id: str) -> Witness:
        """This site's memory of one run's ledger."""
        study, key = self._roster.study, self._roster.coordinator_key
        origin = log_origin(study.digest(), run_id)
        name, identity = self._site.name, self._identity
        return Witness(
            witness_folder(self._state_dir / "sites" / name, origin),
            log_key(origin, key),
            Cosigner(witness_key(name, identity.public_bytes), identity.sign),
            inspection(
                study, key, name, run_id, lambda: read_receipts(self._state_dir, name)
            ),
        )

    def _advertise(self, session: _Session) -> bytes:
        """Single-use from here on: the round is noted before anything is reserved."""
        study, prepared = self._roster.study, self._prepared
        terms = terms_of(
            study,
            prepared.plans,
            self._roster.identities,
            session.adapter,
            session.round,
            self._arm.name,
        )
        self._note_round(session)
        guard = BudgetGuard(
            self._budget,
            session.run_id,
            {r.head for r in read_receipts(self._state_dir, self._site.name)},
            partial(keep_receipt, self._state_dir, self._site.name),
        )
        session.stream = random_stream(
            study, self._arm.name, str(session.round), self._site.name, "protocol"
        )
        session.site = SiteRound(self._site, study, terms.params, terms.codec, guard)
        digest = model_digest(prepared.base.digest, session.broadcast)
        message = session.site.advertise(digest, session.stream)
        session.budget_head = self._head(session)
        self._say(f"round {session.round}: budget reserved, keys advertised")
        train = partial(self._train, session.round, session.run_id, session.adapter)
        session.training = self._background.start(train)
        return message

    def _trained(self, session: _Session, _site: Site) -> Contribution:
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

    def _head(self, session: _Session) -> str:
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

    def _folder(self, order: Order | _Session) -> Path:
        return self._state_dir / "runs" / order.run_id.split("/")[0]

    def _last_round(self, order: Order) -> int:
        path = self._folder(order) / "session.json"
        if not path.exists():
            return 0
        try:
            return int(json.loads(path.read_bytes())["round"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(
                f"{path}: damaged, so it is not known which rounds were begun"
            ) from error

    def _note_round(self, session: _Session) -> None:
        value = {"run_id": session.run_id, "round": session.round, "attempt": 1}
        path = self._folder(session) / "session.json"
        write_atomically(path, canonical_json(value) + b"\n")

    def __repr__(self) -> str:
        return f"SiteWorker({self._site.name!r}, <private>)"
