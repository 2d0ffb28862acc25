"""The local runtime: every site and the coordinator in one process.

The round loop stands in ``loop.py``; what it does to the disk, in ``record.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfed.client import BudgetGuard, Contribution, NoGuard, Site
from secfed.entries import Notice
from secfed.governance import SiteApprovals, StudyManifest, consent_of
from secfed.ledger import Entry
from secfed.policy import SitePolicy
from secfed.policy import check as check_policy
from secfed.runtime.accounts import LocalSites
from secfed.runtime.arms import Arm
from secfed.runtime.classes import keep_classes
from secfed.runtime.directory import create_run
from secfed.runtime.evaluations import (
    EvaluationResult,
    count_of,
    play_evaluation,
)
from secfed.runtime.loop import run_rounds
from secfed.runtime.noise import round_noise
from secfed.runtime.partition import keep_partition
from secfed.runtime.progress import Progress
from secfed.runtime.record import ArmRecord
from secfed.runtime.rounds import RoundResult, play_alone, play_round
from secfed.runtime.scores import mean_scores, scores_of
from secfed.runtime.setup import Prepared, prepare
from secfed.runtime.site_training import contribute, view_of
from secfed.runtime.watching import budget_alarms, watched
from secfed.runtime.witnesses import Asked, LocalWitnesses, OfferFrom
from secfed.signing import load_or_create
from secfed.strategies import check_maskable, check_ranks, strategy_of
from secfed.strategies.base import ServerState, Strategy
from secfed.study import Study

__all__ = ["run_arm", "run_study"]

_MANY_UNITS = 10**9
"""A site of any size: what is not about size is refused before records are read."""


def run_study(
    study: Study,
    base_dir: Path,
    run_dir: Path,
    policy: SitePolicy,
    progress: Progress,
) -> dict[str, Any]:
    """Run one study to its release; continues where an earlier call stopped.

    Returns:
        The arm as in ``comparison.json``.

    Raises:
        SecfedError: What went wrong; the run directory stays resumable.
    """
    check_maskable(strategy_of(study))
    if policy.approvals is not None:
        policy = consent_of(SiteApprovals(policy, StudyManifest(study)))
        check_policy(policy, study, _MANY_UNITS)
    record = create_run(run_dir, study, base_dir, policy, kind="run")
    keep_partition(study, base_dir, run_dir / "private")
    with watched(run_dir, study, record.run_id, progress, policy=policy) as logged:
        prepared = prepare(study, base_dir, policy, logged)
        keep_classes(prepared.records, prepared.label_names, run_dir / "private")
        arm = Arm(name=study.training.method, study=study)
        logged.arm(arm.name, 1, 1)
        return run_arm(
            arm, prepared, run_dir, run_dir / "private", record.run_id, policy, logged
        )


def run_arm(
    arm: Arm,
    prepared: Prepared,
    arm_dir: Path,
    private_dir: Path,
    run_id: str,
    policy: SitePolicy,
    progress: Progress,
) -> dict[str, Any]:
    """Run one arm from its first missing round to its release.

    Returns:
        The arm's object of ``comparison.json``.
    """
    strategy = check_maskable(strategy_of(arm.study))
    check_ranks(strategy, arm.study.adapter.ranks)
    key = load_or_create(private_dir / "coordinator.key")
    charged = f"{run_id}/{arm.name}"
    local = LocalSites(arm.study, prepared, private_dir, charged, policy, arm.name)
    with ArmRecord(arm, prepared, arm_dir, charged, local, key) as record:
        witnesses = LocalWitnesses(
            arm.study,
            private_dir,
            charged,
            key.public_bytes,
            {name: site.identity for name, site in local.sites.items()},
            local.budgets,
            prepared.named_runs,
            progress.note,
        )
        player = _Here(arm, prepared, strategy, record, local, witnesses, progress)
        result = run_rounds(record, prepared, strategy, player, arm_dir, progress)
    if policy.budget_dir is not None:
        for site, budget in local.budgets.items():
            if alarm := budget_alarms(budget, policy.population):
                progress.event("budget-alarm", site=site, **alarm)
    return result


@dataclass(frozen=True)
class _Here:
    """All sites of an arm in this process."""

    arm: Arm
    prepared: Prepared
    strategy: Strategy
    record: ArmRecord
    local: LocalSites
    witnesses: LocalWitnesses
    progress: Progress

    def play(self, before: ServerState, round_number: int) -> RoundResult:
        """One round; sums under masks unless the rule sends nothing."""

        def train(site: Site) -> Contribution:
            return contribute(
                self.arm,
                self.prepared,
                self.strategy,
                site,
                before,
                round_number,
                self.local.kept[site.name],
            )

        return (play_alone if self.strategy.needs == "nothing" else play_round)(
            self.arm.study,
            self.local.sites,
            {name: self._guard(name) for name in self.local.sites},
            before.adapter,
            train,
            round_number,
            self.prepared.base.digest,
            self.arm.name,
            self.progress,
        )

    def _guard(self, site: str) -> BudgetGuard | NoGuard:
        """Who asks before training: the budget, except in the non-private baseline."""
        if not self.arm.private:
            return NoGuard()
        return self.local.guard(site, self.record.named_heads(site))

    def evaluate(self, after: ServerState, round_number: int) -> EvaluationResult:
        """The noised sum over the sites that evaluate."""
        evaluating = {n: self.local.sites[n] for n in self.prepared.evaluations}
        return play_evaluation(
            self.arm.study,
            evaluating,
            {
                name: self.local.evaluation_guard(name, self.record.named_heads(name))
                for name in evaluating
            },
            after.adapter,
            count_of(self.prepared, after.adapter),
            round_number,
            self.prepared.base.digest,
            self.arm.name,
            self.progress,
        )

    def due(self, entries: Sequence[Entry], next_round: int) -> Sequence[Notice]:
        """Nothing: in one process nobody withdraws, and no key is revoked."""
        del entries, next_round
        return ()

    def cosign(self, offer_from: OfferFrom) -> Asked:
        """Every site of this process, each with its own memory."""
        return self.witnesses.cosign(offer_from)

    def scores(self, after: ServerState) -> dict[str, Any]:
        """Of the global adapter, or the mean over the sites' own models."""
        if not self.strategy.personal:
            return scores_of(self.prepared, after.adapter)
        scores = []
        for name, kept in self.local.kept.items():
            view = view_of(self.arm, name, kept, after.round + 1)
            own = self.strategy.start(after.adapter, view)
            scores.append(scores_of(self.prepared, own))
        return mean_scores(scores)

    def noise(
        self, before: ServerState, played: RoundResult, round_number: int
    ) -> dict[str, Any] | None:
        """By paired replay of the round's steps without their noise."""
        return round_noise(
            self.arm,
            self.local,
            self.prepared,
            self.strategy,
            before,
            played,
            round_number,
        )
