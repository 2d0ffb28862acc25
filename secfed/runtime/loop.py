"""The round loop of one arm, from its first missing round to its release.

It is the same loop wherever the sites are; a :class:`Player` says how a round is
played and what can be told about it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from secfed.entries import Notice
from secfed.errors import BudgetExceededError, PolicyError, RoundAbortedError
from secfed.ledger import Entry
from secfed.report.html import build_report
from secfed.runtime.evaluations import EvaluationResult
from secfed.runtime.progress import Progress
from secfed.runtime.record import ArmRecord
from secfed.runtime.rounds import RoundResult
from secfed.runtime.scores import scores_of
from secfed.runtime.setup import Prepared
from secfed.runtime.witnesses import Asked, OfferFrom
from secfed.strategies import trained_names
from secfed.strategies.base import ServerState, Strategy

__all__ = ["Player", "evaluate_due", "run_rounds"]


class Player(Protocol):
    """Where the sites of an arm are, and how a round of them is played."""

    def play(self, before: ServerState, round_number: int) -> RoundResult:
        """One round, from the adapter that is sent to the opened sum.

        Raises:
            RoundAbortedError: Too few sites were left; nothing was learned.
        """

    def evaluate(self, after: ServerState, round_number: int) -> EvaluationResult:
        """The evaluation on held-back records that follows a round.

        Raises:
            PolicyError, BudgetExceededError, RoundAbortedError: Too few sites were
                left; nothing was learned, and what was reserved is spent.
        """

    def due(self, entries: Sequence[Entry], next_round: int) -> Sequence[Notice]:
        """What the ledger has to tell besides rounds, and does not tell yet."""

    def cosign(self, offer_from: OfferFrom) -> Asked:
        """Show the ledger to the sites; what those that agree give."""

    def scores(self, after: ServerState) -> dict[str, Any]:
        """Of the global adapter, or the mean over the sites' own models."""

    def noise(
        self, before: ServerState, played: RoundResult, round_number: int
    ) -> dict[str, Any] | None:
        """The noise that a round left in the weights; None where it is not known."""


def run_rounds(
    record: ArmRecord,
    prepared: Prepared,
    strategy: Strategy,
    player: Player,
    arm_dir: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Run what is missing of an arm; ``record`` is open.

    1. settle what an interruption left;
    2. for each remaining round: note who withdrew and what else is due; train, sum,
       apply, score, commit; show the sites the ledger; then evaluate on held-back
       records, where the study asks for it;
    3. when enough sites have cosigned, write the statement, the release, the report
       and the manifest.

    Returns:
        The arm's object of ``comparison.json``.
    """
    # 1
    base = prepared.model.base_weights() if strategy.uses_base else {}
    start = strategy.init(prepared.start, record.arm.study.adapter.seed, base)
    for sentence in strategy.remarks(start.adapter):
        progress.note(sentence)
    state = record.recover(start, scores_of(prepared, start.adapter), progress)
    # 2
    rounds, cosigning = record.arm.study.training.rounds, record.cosigning(progress)
    for round_number in range(record.next_round, rounds + 1):
        record.note(player.due)
        evaluate_due(record, player, state, progress)
        progress.round(record.arm.name, round_number, rounds)
        state = _play(record, strategy, player, state, round_number, progress)
        if round_number < rounds:
            cosigning.gather(player.cosign)
    record.note(player.due)
    evaluate_due(record, player, state, progress)
    # 3
    if not record.released:
        cosigning.require(player.cosign, record.arm.study)
        record.note(player.due)
        record.release(state.adapter)
    cosigning.require(player.cosign, record.arm.study)
    if not (arm_dir / "report.html").exists():  # a crash may have come between
        build_report(arm_dir)
    record.seal()
    trains = trained_names(strategy, start.adapter, 1)
    return record.summary(sum(start.adapter.tensors[n].size for n in trains))


def evaluate_due(
    record: ArmRecord, player: Player, state: ServerState, progress: Progress
) -> None:
    """Evaluate what stands now, after every round that asks for it and has not been.

    A round without a sum is followed by its evaluation, too: of the adapter that
    stands. An evaluation that fails is recorded and stops nothing. What a site's
    policy or budget said stays out of the ledger.
    """
    for number in record.due_evaluations():
        try:
            found = player.evaluate(state, number)
        except (PolicyError, BudgetExceededError) as error:
            record.evaluation_interrupted(number, "too few sites agreed to evaluate")
            progress.note(f"no evaluation after round {number}: {error}")
        except RoundAbortedError as error:
            record.evaluation_interrupted(number, str(error))
            progress.note(f"no evaluation after round {number}: {error}")
        else:
            record.commit_evaluation(number, state.round, found)
            progress.note(
                f"{len(found.result.survivors)} sites evaluated after round {number}; "
                "the scores stand in the statement and in the report"
            )


def _play(
    record: ArmRecord,
    strategy: Strategy,
    player: Player,
    before: ServerState,
    round_number: int,
    progress: Progress,
) -> ServerState:
    """One round, committed by its ledger entry; an aborted one is recorded."""
    started = time.perf_counter()
    try:
        played = player.play(before, round_number)
        after = strategy.apply(before, played.result.mean, round_number)
    except RoundAbortedError as error:
        record.interrupted(round_number, str(error))
        raise
    metrics = {
        "round": round_number,
        "status": "completed",
        **player.scores(after),
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
        "noise": player.noise(before, played, round_number),
    }
    record.commit(after, played, metrics)
    progress.finished_round(metrics)
    return after
