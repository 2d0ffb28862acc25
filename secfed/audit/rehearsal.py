"""A copy of the pipeline: the study's own rounds, on a folder of their own.

The copy calls what a run calls: a site's budget and policy, its training, encoding,
masks, the sum, the rule. It differs from a run in three things, none of which can
change the guarantee: the optimizer is plain SGD (what an optimizer does to noisy
gradients is post-processing, and SGD hides least of them), sites do not drop out, and
nothing is ever released from its folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from protocols.keys import SigningKey
from secfed.client import BudgetGuard, Contribution, NoGuard, Site
from secfed.errors import BudgetExceededError
from secfed.policy import SitePolicy
from secfed.privacy.budget import Budget
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.arms import Arm
from secfed.runtime.kept import KeptTensors
from secfed.runtime.progress import NoProgress, Progress
from secfed.runtime.receipts import keep_receipt, read_receipts
from secfed.runtime.rounds import play_round
from secfed.runtime.setup import Prepared, open_budget, site_identities
from secfed.runtime.site_training import contribute, learning_rate_of, settings_of
from secfed.strategies import check_maskable, strategy_of
from secfed.strategies.base import ServerState, Strategy
from secfed.study import Study
from secfed.training import PrivateRecords, RecordLoss
from secfed.types import Adapter, Tensors

__all__ = ["Played", "Rehearsal", "copy_of"]

_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class Played:
    """A finished rehearsal; ``changes`` are private until they are scored.

    Attributes:
        changes: Per round what the audited site released, before masks.
        means: Per round the opened mean.
        survivors: Sites in each mean.
        adapter: What a run would have released.
    """

    changes: tuple[Tensors, ...] = field(repr=False)
    means: tuple[Tensors, ...] = field(repr=False)
    survivors: int
    adapter: Adapter


@dataclass(frozen=True)
class Rehearsal:
    """A study's rounds at all sites of a simulation, or at one site alone.

    Attributes:
        study: As ``copy_of`` made it.
        prepared: Records, plans and model.
        policy: Of the sites; it may refuse, and its budget is charged.
        folder: Private; holds keys, receipts and rehearsals' budgets.
        site: The audited site.
        progress: Told about rounds.
    """

    study: Study
    prepared: Prepared
    policy: SitePolicy
    folder: Path
    site: str
    progress: Progress = field(default_factory=NoProgress)

    @property
    def arm(self) -> Arm:
        """The study as the pipeline's functions take it."""
        return Arm(self.study.training.method, self.study)

    @property
    def plan(self) -> PrivacyPlan:
        """The audited site's."""
        return self.prepared.plans[self.site]

    @property
    def rounds(self) -> int:
        """That the copy plays."""
        return self.study.training.rounds

    @cached_property
    def strategy(self) -> Strategy:
        """The study's rule."""
        return check_maskable(strategy_of(self.study))

    def begin(self) -> ServerState:
        """The state before round 1."""
        model = self.prepared.model
        base = model.base_weights() if self.strategy.uses_base else {}
        return self.strategy.init(self.prepared.start, self.study.adapter.seed, base)

    def rate_of(self, tensor: str) -> float:
        """The step size of a tensor."""
        if tensor.startswith("head."):
            return settings_of(self.arm).head_rate
        return learning_rate_of(self.arm)

    def train(
        self,
        site: Site,
        before: ServerState,
        round_number: int,
        loss: RecordLoss | None = None,
    ) -> Contribution:
        """One site's part of a round, exactly as a run computes it."""
        own = replace(self.prepared, loss=loss or self.prepared.loss)
        kept = KeptTensors(self.folder / "kept" / site.name)
        return contribute(
            self.arm, own, self.strategy, site, before, round_number, kept
        )

    def site_of(self, name: str, records: PrivateRecords) -> Site:
        """A site of the copy, with these records."""
        key = self._identities[name]
        return Site(name, key, records, self.prepared.plans[name], self.policy)

    def play(
        self,
        records: Mapping[str, PrivateRecords],
        losses: Mapping[str, RecordLoss] | None = None,
        *,
        charged: bool,
    ) -> Played:
        """All rounds, with these records in place of the sites' own.

        Args:
            records: By site; one site plays alone, where others are elsewhere.
            losses: By site where they differ from the study's.
            charged: Whether private records take part. Then every site reserves each
                round in its budget before it trains; nothing is given back.

        Raises:
            BudgetExceededError, PolicyError: A site refuses, before anything ran.
        """
        sites = {name: self.site_of(name, held) for name, held in records.items()}
        guards = self._guards(sites, charged=charged)
        state = self.begin()
        changes, means, survivors = [], [], 1
        for number in range(1, self.rounds + 1):
            self.progress.round("audit", number, self.rounds)
            change, mean, survivors = self._round(
                sites, guards, state, number, losses or {}
            )
            state = self.strategy.apply(state, mean, number)
            changes.append(change)
            means.append(mean)
        return Played(tuple(changes), tuple(means), survivors, state.adapter)

    def _round(
        self,
        sites: Mapping[str, Site],
        guards: Mapping[str, BudgetGuard | NoGuard],
        state: ServerState,
        number: int,
        losses: Mapping[str, RecordLoss],
    ) -> tuple[Tensors, Tensors, int]:
        def train(site: Site) -> Contribution:
            return self.train(site, state, number, losses.get(site.name))

        if len(sites) == 1 or self.strategy.needs == "nothing":
            return self._alone(sites, guards, number, train)
        played = play_round(
            self.study,
            sites,
            guards,
            state.adapter,
            train,
            number,
            self.prepared.base.digest,
            self.arm.name,
            NoProgress(),
        )
        mean = played.result.mean
        change = played.updates[self.site].change
        return change, mean, len(played.result.survivors)

    def _alone(
        self,
        sites: Mapping[str, Site],
        guards: Mapping[str, BudgetGuard | NoGuard],
        number: int,
        train: Callable[[Site], Contribution],
    ) -> tuple[Tensors, Tensors, int]:
        """What the site would send is the whole mean: others are elsewhere."""
        guard, site = guards[self.site], sites[self.site]
        guard.before_training(site, self.study, number)
        sent = train(site)
        guard.before_sending()
        return sent.update.change, sent.payload, 1

    @cached_property
    def _identities(self) -> Mapping[str, SigningKey]:
        return site_identities(self.study, self.folder)

    def _guards(
        self, sites: Mapping[str, Site], *, charged: bool
    ) -> dict[str, BudgetGuard | NoGuard]:
        if not charged:
            return {name: NoGuard() for name in sites}
        run_id = f"audit-{secrets.token_hex(8)}/{self.arm.name}"
        budgets = {name: self.budget(name) for name in sites}
        for name, budget in budgets.items():
            cost = [self.prepared.plans[name].round_event()] * self.rounds
            if not budget.can_afford(cost):
                raise BudgetExceededError(
                    name,
                    f"an audit of {self.rounds} rounds costs as much as a run of them, "
                    f"and epsilon {budget.spent_epsilon():.3f} is spent already; "
                    "nothing was spent. Audit fewer rounds (--rounds), or public "
                    "records",
                )
        return {
            name: BudgetGuard(
                budget,
                run_id,
                {receipt.head for receipt in read_receipts(self.folder, name)},
                partial(keep_receipt, self.folder, name),
            )
            for name, budget in budgets.items()
        }

    def budget(self, site: str) -> Budget:
        """A site's budget: its own where its policy names a folder."""
        return open_budget(
            self.study, self.policy, self.folder, site, self.prepared.fingerprints[site]
        )


def copy_of(study: Study, rounds: int | None = None, shadow: int = 0) -> Study:
    """A study's copy for an audit: plain SGD, no dropouts, maybe fewer rounds.

    Args:
        study: The study.
        rounds: At most those of the study; None: all of them.
        shadow: Under a simulation seed, another number gives other noise.
    """
    training, simulation = study.training, study.simulation
    changed = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "rounds": min(rounds or training.rounds, training.rounds),
    }
    seed = simulation.seed
    if seed is not None:
        seed += _SEED_STEP * shadow
    apart = {"dropouts": (), "seed": seed}
    return study.model_copy(
        update={
            "training": training.model_copy(update=changed),
            "simulation": simulation.model_copy(update=apart),
        }
    )
