"""A site in one round: the only place from which anything leaves a site.

A :class:`SiteRound` answers the coordinator's messages in order. Before anything
else it asks the site's policy and durably reserves the round's privacy budget;
its only output are the bytes that its methods return, all made by
``protocols.secagg.client`` (PITFALLS 22, 29).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocols.keys import SigningKey
from protocols.ring import RingVector
from protocols.secagg import client as secagg
from protocols.secagg.params import SessionParams
from secfed.codec import Codec, RingArray
from secfed.errors import PolicyError
from secfed.policy import SitePolicy, require_running
from secfed.policy import check as check_policy
from secfed.privacy.accounting import DpEvent
from secfed.privacy.budget import Budget, Receipt
from secfed.privacy.held_back import EvaluationPlan
from secfed.privacy.noise import RandomStream
from secfed.privacy.plan import PrivacyPlan
from secfed.study import Study
from secfed.training import HeldBack, LocalUpdate, PrivateRecords
from secfed.types import Tensors

__all__ = [
    "BudgetGuard",
    "Contribution",
    "EvaluationGuard",
    "NoGuard",
    "Site",
    "SiteRound",
]

_RANDOMNESS = 64

_T = TypeVar("_T")


@dataclass(frozen=True)
class Site:
    """What a site keeps between rounds. Holds secrets and private records.

    ``held_back`` is never trained on; a site that does not evaluate has none of it,
    and no ``evaluation``.
    """

    name: str
    identity: SigningKey
    records: PrivateRecords
    plan: PrivacyPlan
    policy: SitePolicy
    held_back: HeldBack | None = None
    evaluation: EvaluationPlan | None = None

    def __repr__(self) -> str:
        return f"Site({self.name!r}, <private>)"


@dataclass(frozen=True)
class Contribution:
    """What local training gave: the update, and what of it enters the sum."""

    update: LocalUpdate
    payload: Tensors

    def __repr__(self) -> str:
        return "Contribution(<private>)"


class BudgetGuard:
    """Reserves a private round in the site's durable budget, or refuses it.

    Args:
        budget: The site's budget, with its population open.
        run_id: The run and arm that are charged.
        known_heads: What the run's ledger and receipts name as this budget. One
            that does not hold them was restored from an older copy.
        keep: Stores the receipt of a reservation, before the first step.
    """

    def __init__(
        self,
        budget: Budget,
        run_id: str,
        known_heads: Iterable[str] = (),
        keep: Callable[[Receipt], None] = lambda _receipt: None,
    ) -> None:
        self._budget = budget
        self._run_id = run_id
        self._known_heads = tuple(known_heads)
        self._keep = keep
        self._reservation: int | None = None

    def before_training(self, site: Site, study: Study, round_number: int) -> None:
        """Check the policy, then make the round's cost durable.

        Raises:
            PolicyError: The policy refuses the study, or the budget is not what
                the ledger knows.
            BudgetExceededError: The budget does not hold this round.
        """
        check_policy(site.policy, study, site.records.num_units)
        self._reservation = self._budget.reserve(
            study.digest(),
            self._run_id,
            round_number,
            self._event(site),
            self._known_heads,
        )
        self._keep(self._budget.receipt(self._reservation))

    def _event(self, site: Site) -> DpEvent:
        """What is about to run."""
        return site.plan.round_event()

    def before_sending(self) -> None:
        """From here on the update is out, whatever happens to the message."""
        if self._reservation is not None:
            self._budget.spend(self._reservation)


class EvaluationGuard(BudgetGuard):
    """Reserves an evaluation, as its own event under a run of its own, or refuses it.

    It is asked as a round is: before anything is computed from held-back records, and
    never given back.
    """

    def _event(self, site: Site) -> DpEvent:
        """One release of noised sums over held-back units.

        Raises:
            PolicyError: The site holds nothing back.
        """
        if site.evaluation is None or site.held_back is None:
            raise PolicyError(f"{site.name} holds nothing back and does not evaluate")
        return site.evaluation.event()


class NoGuard:
    """For the non-private baseline on public records: NOT PRIVATE, no budget."""

    def before_training(self, site: Site, study: Study, round_number: int) -> None:
        """Nothing is reserved, because nothing is protected."""

    def before_sending(self) -> None:
        """Nothing was reserved."""


class SiteRound:
    """One round of one site, from the received adapter to the revealed shares.

    Methods are called in the order of the phases; each returns the one message
    for the coordinator. A failed step sends nothing, and the site is a dropout. Each
    asks the kill switch first: what was sent is sent, and nothing more is.
    """

    def __init__(
        self,
        site: Site,
        study: Study,
        params: SessionParams,
        codec: Codec,
        guard: BudgetGuard | NoGuard,
    ) -> None:
        self.site = site
        self._study = study
        self._params = params
        self._codec = codec
        self._guard = guard
        self._state: object = None
        self._vector: RingVector | None = None

    @property
    def number(self) -> int:
        """The round, from 1."""
        return self._params.round

    @property
    def charged(self) -> bool:
        """Whether a privacy budget pays for the round."""
        return isinstance(self._guard, BudgetGuard)

    def advertise(self, model_digest: bytes, stream: RandomStream) -> bytes:
        """Ask policy and budget, then make this session's keys.

        Args:
            model_digest: Of the adapter bytes and base that *this site* received.
            stream: The site's cryptographic randomness.
        """
        require_running(self.site.policy)
        self._guard.before_training(self.site, self._study, self._params.round)
        self._state, message = secagg.advertise_keys(
            self._params,
            self.site.name,
            self.site.identity,
            model_digest,
            randomness=stream.bytes(_RANDOMNESS),
        )
        return message

    def share(self, roster: bytes, stream: RandomStream) -> bytes:
        """Check the roster and share this session's secrets."""
        require_running(self.site.policy)
        self._state, message = secagg.share_keys(
            self._expect(secagg.Advertised),
            roster,
            randomness=stream.bytes(_RANDOMNESS),
        )
        return message

    def train(
        self, train: Callable[[Site], Contribution], stream: RandomStream
    ) -> LocalUpdate:
        """Train and encode; the encoded payload stays here until it is masked."""
        require_running(self.site.policy)
        trained = train(self.site)
        encoded = self._codec.encode(trained.payload, stream)
        lane = self._codec.lane.encode(encoded.saturated)
        self._vector = RingVector(body=encoded.vector, lane=lane)
        return trained.update

    def evaluate(
        self,
        count: Callable[[Site], NDArray[np.int64]],
        stream: RandomStream,
        noise: RandomStream,
    ) -> None:
        """Count on held-back records, noise the sums, and keep them for masking.

        What ``count`` returns never leaves this method but inside the noised sums.

        Args:
            count: What every held-back unit contributes; see ``EvaluationPlan``.
            stream: The site's cryptographic randomness.
            noise: The same, used for the noise of this evaluation and nothing else.

        Raises:
            ValueError: No evaluation was reserved; nothing was computed.
        """
        require_running(self.site.policy)
        plan = self.site.evaluation
        if plan is None or not isinstance(self._guard, EvaluationGuard):
            raise ValueError("an evaluation is reserved before it is computed")
        released = plan.released(count(self.site), noise)
        encoded = self._codec.encode({}, stream)
        lane = self._codec.lane.encode(encoded.saturated, released)
        self._vector = RingVector(body=encoded.vector, lane=lane)

    def lane_for_simulator(self) -> NDArray[np.uint64]:
        """As ``encoded_for_simulator``, of the lane."""
        return self._unmasked().lane.copy()

    def encoded_for_simulator(self) -> RingArray:
        """A copy of the unmasked encoding, for the simulator's check of the sum.

        Never sent: it is not a message and has no bytes form.

        Raises:
            ValueError: Outside training and masking there is none.
        """
        return self._unmasked().body.copy()

    def _unmasked(self) -> RingVector:
        if self._vector is None:
            raise ValueError("there is no encoded update now")
        return self._vector

    def answer(self, phase: str, message: bytes) -> bytes:
        """Answer one of the phases after training, by the name of the phase.

        Raises:
            ValueError: There is no such phase, or it is not its turn.
        """
        steps = {
            "masked-input": self.mask,
            "confirm": self.confirm,
            "unmask": self.reveal,
        }
        if phase not in steps:
            raise ValueError(f"no phase {phase!r} after training")
        return steps[phase](message)

    def mask(self, delivery: bytes) -> bytes:
        """Mask the encoded update with those whose boxes opened; spends the round."""
        if self._vector is None:
            raise ValueError("train before masking")
        require_running(self.site.policy)
        self._guard.before_sending()
        self._state, message = secagg.mask_input(
            self._expect(secagg.KeysShared), delivery, self._vector
        )
        self._vector = None  # never masked again (PITFALLS 26)
        return message

    def confirm(self, survivors: bytes) -> bytes:
        """Sign the list of survivors that this site was shown."""
        require_running(self.site.policy)
        self._state, message = secagg.confirm_survivors(
            self._expect(secagg.InputMasked), survivors
        )
        return message

    def reveal(self, confirmations: bytes) -> bytes:
        """Reveal one share per neighbour, after enough others confirmed the list."""
        require_running(self.site.policy)
        self._state, message = secagg.unmask(
            self._expect(secagg.SurvivorsConfirmed), confirmations
        )
        return message

    def _expect(self, kind: type[_T]) -> _T:
        if not isinstance(self._state, kind):
            raise ValueError(f"out of order: {kind.__name__} is needed")  # noqa: TRY004
        return self._state

    def __repr__(self) -> str:
        return f"SiteRound({self.site.name!r}, <private>)"
