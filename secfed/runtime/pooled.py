"""The pooled baseline: DP-LoRA on all sites' records in one place.

No federation can run it: it takes a curator whom every site trusts with its records.
It says what the division into sites costs at the same epsilon, and exists in simulation
only. Both factors and the head are trained, as under ``fedavg`` at a single site, with

- n = the sum of the sites' declared units, at the study's epsilon and delta;
- an expected batch as large as those of all sites together, so that a step sees as many
  records as a step of the whole federation and the sampling rate stays where it was;
- the same number of noisy steps, the same start, clip and optimizer at the sites;
- ``learning_rate.pooled`` where the study has one, else that of ``fedavg``.

One noise of sigma C is added to a sum over all sites where the federation adds one for
each: with K sites the noise of a step has about 1 / K of the variance. That is what it
measures, together with what averaging loses.

It is charged to no budget and has no ledger, statement or release: its records are
public or simulated (``compare.require_public``). ``comparison.json`` lists it without a
run directory, which `secfed verify` counts as an arm without evidence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json, parse_json
from secfed.errors import PlanError, PolicyError
from secfed.privacy.asked import plan_for
from secfed.privacy.plan import PrivacyPlan
from secfed.report.measures import score_part
from secfed.report.results import POOLED
from secfed.runtime.arms import Arm
from secfed.runtime.directory import write_atomically
from secfed.runtime.progress import Progress
from secfed.runtime.record import empty_line
from secfed.runtime.scores import scores_of
from secfed.runtime.setup import Prepared, random_stream
from secfed.strategies import STRATEGIES, trained_names
from secfed.strategies.base import moved
from secfed.study import Study
from secfed.training import PrivateRecords, pooled_records, train_privately
from secfed.types import Adapter

__all__ = ["RULE", "pooled_plan", "run_pooled"]

RULE = "fedavg"
"""At a single site it is plain LoRA training of both factors."""


def pooled_plan(study: Study, plans: Mapping[str, PrivacyPlan]) -> PrivacyPlan:
    """The plan of all sites' units in one place.

    Args:
        study: The study.
        plans: Of the sites, for their declared numbers of units.

    Raises:
        PlanError: Delta is too large for so many units.
        PolicyError: The unit is the site, and here there is one.
    """
    if study.privacy.unit == "site":
        raise PolicyError(
            f"compare.baselines: {POOLED!r} has no sites that could be the privacy "
            "unit; remove it, or choose a smaller unit"
        )
    batch = study.training.expected_batch * len(plans)
    training = study.training.model_copy(update={"expected_batch": batch})
    units = sum(plan.nominal_units for plan in plans.values())
    try:
        return plan_for(study.model_copy(update={"training": training}), units)
    except PlanError as error:
        raise PlanError(f"the {POOLED!r} baseline: {error}") from error


def run_pooled(
    arm: Arm, prepared: Prepared, plan: PrivacyPlan, path: Path, progress: Progress
) -> dict[str, Any]:
    """Train the arm, or take it from an earlier call that finished it.

    Args:
        arm: Of the kind ``pooled``.
        prepared: The sites' records, which are put in one place.
        plan: What ``pooled_plan`` returned.
        path: Where the result is kept.
        progress: Told about rounds.

    Returns:
        The arm's object of ``comparison.json``.
    """
    wanted = {"study_digest": arm.study.digest(), "plan": plan.to_json()}
    if path.is_file():
        kept = parse_json(path.read_bytes())
        if {key: kept.get(key) for key in wanted} == wanted:
            return dict(kept["arm"])
    found = _trained(arm, prepared, plan, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = canonical_json({"format": 1, **wanted, "arm": found}) + b"\n"
    write_atomically(path, data)
    return dict(parse_json(data)["arm"])


def _trained(
    arm: Arm, prepared: Prepared, plan: PrivacyPlan, progress: Progress
) -> dict[str, Any]:
    rounds = arm.study.training.rounds
    records = pooled_records([prepared.records[site] for site in arm.study.sites])
    adapter = prepared.start
    trains = trained_names(STRATEGIES[RULE], adapter, 1)
    train = _trainer(arm, prepared, plan, records, trains)
    lines = [_line(prepared, adapter, 0)]
    for number in range(1, rounds + 1):
        progress.round(arm.name, number, rounds)
        started = time.perf_counter()
        adapter = train(adapter, number)
        line = _line(prepared, adapter, number)
        line["seconds"] = round(time.perf_counter() - started, 3)
        lines.append(line)
        progress.finished_round(line)
    return {
        "name": arm.name,
        "method": POOLED,
        "kind": POOLED,
        "seed": arm.seed,
        "run": None,
        "rounds": lines,
        "final": score_part(lines[-1]),
        "epsilon": None,
        "epsilon_max": plan.epsilon(),
        "bytes_up": None,
        "bytes_down": None,
        "seconds": sum(line["seconds"] for line in lines),
        "trainable": sum(adapter.tensors[name].size for name in trains),
    }


def _trainer(
    arm: Arm,
    prepared: Prepared,
    plan: PrivacyPlan,
    records: PrivateRecords,
    trains: tuple[str, ...],
) -> Callable[[Adapter, int], Adapter]:
    """One round of private steps on the records of all sites."""
    training = arm.study.training
    rate = training.learning_rate.get(POOLED, training.learning_rate[RULE])

    def train(adapter: Adapter, number: int) -> Adapter:
        update = train_privately(
            prepared.model,
            adapter,
            trains,
            records,
            plan,
            training,
            rate,
            random_stream(arm.study, arm.name, str(number), "training"),
            loss=prepared.loss,
        )
        return moved(adapter, update.change)

    return train


def _line(prepared: Prepared, adapter: Adapter, number: int) -> dict[str, Any]:
    scores = scores_of(prepared, adapter)
    return empty_line(number, "completed", scores) | {
        "bytes_up": None,
        "bytes_down": None,
    }
