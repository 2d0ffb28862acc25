"""The local runtime: every site and the coordinator in one process.

``run_arm`` is the round loop. What it does to the disk stands in ``record.py``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secfed.client import BudgetGuard, NoGuard
from secfed.errors import RoundAbortedError
from secfed.policy import SitePolicy
from secfed.report.html import build_report
from secfed.runtime.classes import keep_classes
from secfed.runtime.directory import create_run
from secfed.runtime.noise import round_noise
from secfed.runtime.partition import keep_partition
from secfed.runtime.progress import Progress
from secfed.runtime.record import Arm, ArmRecord
from secfed.runtime.rounds import play_alone, play_round
from secfed.runtime.scores import mean_scores, scores_of
from secfed.runtime.setup import Prepared, prepare
from secfed.runtime.site_training import contribute, view_of
from secfed.strategies import (
    check_maskable,
    check_ranks,
    strategy_of,
    trained_names,
)
from secfed.strategies.base import ServerState, Strategy
from secfed.study import Study

__all__ = ["run_arm", "run_study"]


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
    record = create_run(run_dir, study, base_dir, policy, kind="run")
    keep_partition(study, base_dir, run_dir / "private")
    prepared = prepare(study, base_dir, policy, progress)
    keep_classes(prepared.records, prepared.label_names, run_dir / "private")
    arm = Arm(name=study.training.method, study=study)
    progress.arm(arm.name, 1, 1)
    return run_arm(
        arm, prepared, run_dir, run_dir / "private", record.run_id, policy, progress
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
    """The round loop of one arm, from its first missing round to its release.

    1. open keys, budgets and the ledger; settle what an interruption left;
    2. for each remaining round: train, sum, apply, evaluate, commit;
    3. write the statement, the release, the report and the manifest.

    Returns:
        The arm's object of ``comparison.json``.
    """
    strategy = check_maskable(strategy_of(arm.study))
    check_ranks(strategy, arm.study.adapter.ranks)
    # 1
    with ArmRecord(arm, prepared, arm_dir, private_dir, run_id, policy) as record:
        base = prepared.model.base_weights() if strategy.uses_base else {}
        start = strategy.init(prepared.start, arm.study.adapter.seed, base)
        for sentence in strategy.remarks(start.adapter):
            progress.note(sentence)
        state = record.recover(start, scores_of(prepared, start.adapter), progress)
        # 2
        rounds = arm.study.training.rounds
        for round_number in range(record.next_round, rounds + 1):
            progress.round(arm.name, round_number, rounds)
            state = _play(record, strategy, prepared, state, round_number, progress)
        # 3
        if not record.released:
            record.release(state.adapter)
        if not (arm_dir / "report.html").exists():  # a crash may have come between
            build_report(arm_dir)
        record.seal()
        trains = trained_names(strategy, start.adapter, 1)
        return record.summary(sum(start.adapter.tensors[n].size for n in trains))


def _play(
    record: ArmRecord,
    strategy: Strategy,
    prepared: Prepared,
    before: ServerState,
    round_number: int,
    progress: Progress,
) -> ServerState:
    """One round, committed by its ledger entry; an aborted one is recorded."""
    started = time.perf_counter()
    arm = record.arm
    play = play_alone if strategy.needs == "nothing" else play_round
    try:
        played = play(
            arm.study,
            record.sites,
            _guards(record),
            before.adapter,
            lambda site: contribute(
                arm,
                prepared,
                strategy,
                site,
                before,
                round_number,
                record.kept[site.name],
            ),
            round_number,
            prepared.base.digest,
            arm.name,
            progress,
        )
        after = strategy.apply(before, played.result.mean, round_number)
    except RoundAbortedError as error:
        record.interrupted(round_number, str(error))
        raise
    metrics = {
        "round": round_number,
        "status": "completed",
        **_site_scores(record, prepared, strategy, after),
        "survivors": list(played.result.survivors),
        # A site that never answered did not start and spent nothing.
        "dropouts": {s: p for s, p in played.result.dropouts.items() if p},
        "silent": dict(played.result.silent),
        "sums_equal": played.sums_equal,
        "saturated": played.result.saturated,
        "bytes_up": played.bytes_up,
        "bytes_down": played.bytes_down,
        "seconds": round(time.perf_counter() - started, 3),
        "epsilon": record.epsilon(round_number),
        "noise": round_noise(record, prepared, strategy, before, played, round_number),
    }
    record.commit(after, played, metrics)
    progress.finished_round(metrics)
    return after


def _guards(record: ArmRecord) -> Mapping[str, BudgetGuard | NoGuard]:
    """Who asks before training: the budget, except in the non-private baseline."""
    if not record.arm.private:
        return {name: NoGuard() for name in record.sites}
    return {name: record.guard(name) for name in record.budgets}


def _site_scores(
    record: ArmRecord, prepared: Prepared, strategy: Strategy, after: ServerState
) -> dict[str, Any]:
    """Of the global adapter, or the mean over the sites' own models."""
    if not strategy.personal:
        return scores_of(prepared, after.adapter)
    scores = []
    for name in record.sites:
        view = view_of(record.arm, name, record.kept[name], after.round + 1)
        scores.append(scores_of(prepared, strategy.start(after.adapter, view)))
    return mean_scores(scores)
