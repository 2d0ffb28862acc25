"""What the record of an arm asks about the privacy budgets of its sites.

In one process the budgets themselves answer. A coordinator whose sites are on other
machines has no budgets; it answers from what it asked and what the sites signed
(``secfed.runtime.remote_accounts``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from secfed.client import BudgetGuard, EvaluationGuard, Site
from secfed.errors import BudgetExceededError
from secfed.governance.outlay import events_of
from secfed.policy import SitePolicy
from secfed.privacy import accounting
from secfed.privacy.budget import Budget
from secfed.privacy.held_back import evaluation_run
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.earlier import charge_earlier
from secfed.runtime.kept import KeptTensors
from secfed.runtime.receipts import keep_receipt, read_receipts
from secfed.runtime.setup import Prepared, open_budget, site_identities
from secfed.runtime.witnesses import witness_vkeys
from secfed.study import Study

__all__ = ["Accounts", "Charged", "LocalSites", "earlier_epsilon"]


_G = TypeVar("_G", bound=BudgetGuard)


@dataclass(frozen=True)
class Charged:
    """One round's event at one site, and what the site's budget was after it.

    ``head`` is None where the site was asked and its answer never arrived: the
    round counts as spent there, because it may be.
    """

    event: Any
    head: str | None


class Accounts(Protocol):
    """The sites of an arm, as far as its record needs to know them."""

    @property
    def plans(self) -> Mapping[str, PrivacyPlan]:
        """Every site's plan, by name."""

    @property
    def identities(self) -> Mapping[str, bytes]:
        """Every site's public identity key, 32 bytes."""

    @property
    def witnesses(self) -> dict[str, str] | None:
        """Every site's verifier key; None where sites cosign with their identities."""

    @property
    def earlier(self) -> Mapping[str, float] | None:
        """Each site's epsilon of other runs on the same people; None: not told."""

    @property
    def elsewhere(self) -> bool:
        """Whether the sites are processes of their own."""

    def require_funds(self, rounds: int) -> None:
        """Refuse what some site cannot afford, where that is known here."""

    def require_known(self, heads: Callable[[str], Collection[str]]) -> None:
        """Refuse a budget that does not hold what the ledger names of it."""

    def charges(self, number: int) -> Mapping[str, Charged]:
        """Each site's charge of one round of this arm."""

    def evaluation_charges(self, number: int) -> Mapping[str, Charged]:
        """Each site's charge of the evaluation after one round of this arm."""

    def epsilon(self, number: int, *, evaluated: bool = False) -> dict[str, float]:
        """Epsilon of this arm so far, of each site that was charged for a round.

        With ``evaluated``, of each site that was charged for the evaluation after it.
        """


class LocalSites:
    """All sites of an arm in this process: their secrets, records and budgets.

    Args:
        study: The study of the arm.
        prepared: Records and plans of every site.
        private_dir: The run's private folder.
        run_id: The run and arm that budgets are charged for.
        policy: The rules of every site.
    """

    elsewhere = False

    def __init__(
        self,
        study: Study,
        prepared: Prepared,
        private_dir: Path,
        run_id: str,
        policy: SitePolicy,
        arm: str,
    ) -> None:
        self._study = study
        self._private = private_dir
        self._run_id = run_id
        keys = site_identities(study, private_dir)
        self.sites = {
            name: Site(
                name,
                keys[name],
                prepared.records[name],
                plan,
                policy,
                prepared.held_back.get(name),
                prepared.evaluations.get(name),
            )
            for name, plan in prepared.plans.items()
        }
        self.plans = dict(prepared.plans)
        self.identities = {name: key.public_bytes for name, key in keys.items()}
        self.witnesses = witness_vkeys(study, private_dir, keys)
        self.budgets = {
            name: open_budget(
                study, policy, private_dir, name, prepared.fingerprints[name]
            )
            for name in self.sites
        }
        for name, budget in self.budgets.items():
            events = events_of(study, prepared.plans[name])
            charge_earlier(budget, prepared.named_runs.all, name, events)
        own = private_dir / "sites"
        self.kept = {
            name: KeptTensors(own / name / "kept" / arm) for name in self.sites
        }
        self.earlier: Mapping[str, float] | None = {
            name: earlier_epsilon(budget, run_id, study.privacy.delta)
            for name, budget in self.budgets.items()
        }

    def guard(self, site: str, known_heads: Collection[str]) -> BudgetGuard:
        """Who asks before one site trains: its budget, and what is known of it."""
        return self._guard(BudgetGuard, site, self._run_id, known_heads)

    def evaluation_guard(
        self, site: str, known_heads: Collection[str]
    ) -> EvaluationGuard:
        """Who asks before one site evaluates: the same budget."""
        run = evaluation_run(self._run_id)
        return self._guard(EvaluationGuard, site, run, known_heads)

    def _guard(
        self, kind: type[_G], site: str, run_id: str, known_heads: Collection[str]
    ) -> _G:
        return kind(
            self.budgets[site],
            run_id,
            {*known_heads, *self._receipts(site)},
            partial(keep_receipt, self._private, site),
        )

    def require_funds(self, rounds: int) -> None:
        """Refuse a study that does not fit some site's budget.

        Raises:
            BudgetExceededError: Nothing was spent.
        """
        for name, budget in self.budgets.items():
            if not budget.can_afford(events_of(self._study, self.plans[name])):
                raise BudgetExceededError(
                    name,
                    f"the study's {rounds} rounds do not fit the budget: epsilon "
                    f"{budget.spent_epsilon():.3f} is spent already. Raise max_epsilon "
                    "in site.toml if the site agrees, or lower the study's epsilon; "
                    "nothing was spent",
                )

    def require_known(self, heads: Callable[[str], Collection[str]]) -> None:
        """Refuse a budget that lacks what the ledger or a receipt names.

        Raises:
            BudgetFileError: It was restored from an older copy.
        """
        for name, budget in self.budgets.items():
            budget.require_known({*heads(name), *self._receipts(name)})

    def charges(self, number: int) -> dict[str, Charged]:
        """Each site's last charge of one round of this arm."""
        return self._charges(self._run_id, number)

    def evaluation_charges(self, number: int) -> dict[str, Charged]:
        """Each site's charge of the evaluation after one round of this arm."""
        return self._charges(evaluation_run(self._run_id), number)

    def _charges(self, run_id: str, number: int) -> dict[str, Charged]:
        return {
            name: Charged(held.event, held.head)
            for name, budget in self.budgets.items()
            for held in budget.history()
            if held.run_id == run_id and held.round == number
        }

    def epsilon(self, number: int, *, evaluated: bool = False) -> dict[str, float]:
        """As ``Accounts.epsilon``, from everything the budgets hold of this arm."""
        asked = evaluation_run(self._run_id) if evaluated else self._run_id
        runs = {self._run_id, evaluation_run(self._run_id)}
        held = {
            name: [r for r in budget.history() if r.run_id in runs]
            for name, budget in self.budgets.items()
        }
        delta = self._study.privacy.delta
        return {
            name: accounting.epsilon([r.event for r in rounds], delta)
            for name, rounds in held.items()
            if any((r.run_id, r.round) == (asked, number) for r in rounds)
        }

    def _receipts(self, site: str) -> set[str]:
        return {receipt.head for receipt in read_receipts(self._private, site)}

    def __repr__(self) -> str:
        return "LocalSites(<private>)"


def earlier_epsilon(budget: Budget, run_id: str, delta: float) -> float:
    """What other runs spent of a budget, at the price that was charged."""
    own = {run_id, evaluation_run(run_id)}
    events = [r.cost for r in budget.history() if r.run_id not in own]
    return accounting.epsilon(events, delta) if events else 0.0
