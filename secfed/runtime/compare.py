"""A comparison: arms side by side, on the same sites, with the same epsilon.

Arms run one after the other and share the model, the encoded texts and each
site's budget: what one private arm spends, the next cannot spend again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secfed.canonical import canonical_json
from secfed.errors import PolicyError, StudyError
from secfed.manifest import write_manifest
from secfed.policy import SitePolicy
from secfed.report.conclusion import conclude
from secfed.report.html import build_report
from secfed.report.results import HEAD_ONLY, NON_PRIVATE, POOLED
from secfed.report.tables import write_csv
from secfed.runtime.arms import Arm
from secfed.runtime.classes import keep_classes
from secfed.runtime.directory import RunRecord, create_run, write_atomically
from secfed.runtime.local import run_arm
from secfed.runtime.partition import keep_partition
from secfed.runtime.pooled import RULE, pooled_plan, run_pooled
from secfed.runtime.progress import Progress
from secfed.runtime.scores import reference_scores
from secfed.runtime.setup import open_budget, prepare, with_seed_of
from secfed.runtime.watching import watched
from secfed.signing import load_or_create
from secfed.strategies import check_maskable, check_ranks, get_strategy, strategy_of
from secfed.study import Study

__all__ = ["plan_arms", "require_public", "run_comparison"]

_KINDS = ("private", "baseline")

_WITHOUT_NOISE = "trains without noise and its scores would be released"
_IN_ONE_PLACE = "trains on all sites' records in one place"

_UPPER_BOUND = "fedavg"
"""The rule of the non-private arm: both factors, what plain LoRA training does."""


def run_comparison(
    study: Study,
    base_dir: Path,
    run_dir: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    policy: SitePolicy,
    progress: Progress,
) -> dict[str, Any]:
    """Run every arm to its release and write the comparison and its report.

    Continues where an earlier call with the same arguments stopped.

    Returns:
        The content of ``comparison.json``.

    Raises:
        SecfedError: What went wrong; the run directory stays resumable.
    """
    started = time.perf_counter()
    arms = plan_arms(study, methods, seeds)
    record = create_run(
        run_dir, study, base_dir, policy, kind="compare", methods=methods, seeds=seeds
    )
    with watched(run_dir, study, record.run_id, progress, policy=policy) as logged:
        return _compared(
            study, base_dir, run_dir, arms, record, policy, logged, started
        )


def _compared(
    study: Study,
    base_dir: Path,
    run_dir: Path,
    arms: Sequence[Arm],
    record: RunRecord,
    policy: SitePolicy,
    progress: Progress,
    started: float,
) -> dict[str, Any]:
    """Every arm, one after the other, and what they say together."""
    private = run_dir / "private"
    (run_dir / "manifest.json").unlink(missing_ok=True)
    summaries: list[dict[str, Any]] = []
    prepared = prepare(study, base_dir, policy, progress)
    # Refused before anything is spent, if at all.
    pooled = [pooled_plan(study, prepared.plans) for a in arms if a.kind == POOLED][:1]
    keep_partition(study, base_dir, private)
    keep_classes(prepared.records, prepared.label_names, private)
    for index, arm in enumerate(arms, start=1):
        progress.arm(arm.name, index, len(arms))
        own = with_seed_of(prepared, arm.study)
        if arm.kind == POOLED:
            path = run_dir / POOLED / f"{arm.name}.json"
            summaries.append(run_pooled(arm, own, pooled[0], path, progress))
            continue
        arm_dir = run_dir / "arms" / arm.name
        summaries.append(
            run_arm(arm, own, arm_dir, private, record.run_id, policy, progress)
        )
    comparison: dict[str, Any] = {
        "format": 1,
        "title": study.study.title,
        "study_digest": study.digest(),
        **_task(study),
        "arms": summaries,
        **reference_scores(study, prepared),
        "dropouts": _dropouts(summaries),
        "budget": _budgets(study, private, policy),
        "seconds": round(time.perf_counter() - started, 3),
        "simulation_seed": study.simulation.seed,
        "conclusion": "",
    }
    comparison["conclusion"] = conclude(comparison)
    data = canonical_json(comparison) + b"\n"
    write_atomically(run_dir / "comparison.json", data)
    write_csv(comparison, run_dir / "comparison.csv")
    build_report(run_dir)
    key = load_or_create(private / "coordinator.key")
    write_manifest(run_dir, study.digest(), key)
    return comparison


def _task(study: Study) -> dict[str, Any]:
    """What the scores are of, where it is not the default."""
    task = study.canonical().get("task", {})
    named = {key: task[key] for key in ("kind", "score", "positive") if key in task}
    return {"task": named} if named else {}


def plan_arms(
    study: Study, methods: Sequence[str], seeds: Sequence[int]
) -> tuple[Arm, ...]:
    """Every arm of a comparison, baselines last, seed by seed.

    Raises:
        StudyError: A method is unknown, cannot be masked, has no learning rate, or
            does not fit the study.
        PolicyError: Training without privacy, or with all records in one place, is
            asked for on records that are not public.
    """
    if study.evaluation is not None:
        raise StudyError(
            f"study {study.name}",
            "evaluation",
            "belongs to `secfed run`; arms of a comparison are scored on the public "
            "hold-out, where the best of many costs nothing",
        )
    for method in methods:
        check_maskable(get_strategy(method, path="--methods", key=method))
    without = study.compare is not None and study.compare.without_privacy is True
    baselines = _baselines(study, methods, without=without)
    private, baseline = (NON_PRIVATE, NON_PRIVATE) if without else _KINDS
    arms = []
    for seed in seeds:
        suffix = f"-s{seed}" if len(seeds) > 1 else ""
        own = study.with_seed(seed)
        arms += [
            Arm(f"{method}{suffix}", own.with_method(method), private, seed)
            for method in methods
            if method != HEAD_ONLY
        ]
        if HEAD_ONLY in baselines or HEAD_ONLY in methods:
            head = own.with_method(HEAD_ONLY)
            arms.append(Arm(f"{HEAD_ONLY}{suffix}", head, baseline, seed))
        if POOLED in baselines:
            together = own.with_method(RULE)
            arms.append(Arm(f"{POOLED}{suffix}", together, POOLED, seed))
        if NON_PRIVATE in baselines:
            upper = own.with_method(_UPPER_BOUND)
            arms.append(Arm(f"{NON_PRIVATE}{suffix}", upper, NON_PRIVATE, seed))
    for arm in arms:
        check_ranks(strategy_of(arm.study), arm.study.adapter.ranks)
    return tuple(arms)


def _baselines(
    study: Study, methods: Sequence[str], *, without: bool
) -> tuple[str, ...]:
    """What is run beside the methods, if the records allow it.

    Raises:
        PolicyError: As ``plan_arms``.
    """
    names: tuple[str, ...] = (HEAD_ONLY, NON_PRIVATE)
    if study.compare is not None:
        names = study.compare.baselines
    elif study.is_causal_lm:  # Its head is frozen.
        names = (NON_PRIVATE,)
    if without:
        require_public(study, "compare.epsilons", '"inf"')
        # It is the baseline; and where there is no epsilon there is none to share.
        gone = {POOLED, NON_PRIVATE} if _UPPER_BOUND in methods else {POOLED}
        return tuple(name for name in names if name not in gone)
    if NON_PRIVATE in names:
        require_public(study, "compare.baselines", f"'{NON_PRIVATE}'")
    if POOLED in names:
        require_public(study, "compare.baselines", f"'{POOLED}'", _IN_ONE_PLACE)
    return names


def require_public(
    study: Study, key: str, what: str, why: str = _WITHOUT_NOISE
) -> None:
    """Refuse on records that are not public what no site would allow on its own.

    Args:
        study: The study.
        key: Where in it this is asked for.
        what: The value that asks for it.
        why: What it does.

    Raises:
        PolicyError: The records are neither built in nor simulated.
    """
    if study.data.is_builtin or study.simulation.seed is not None:
        return
    raise PolicyError(
        f"{key}: {what} {why}; it runs on built-in public text or under an explicit "
        f"simulation seed only. Remove it from {key}"
    )


def _dropouts(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm["name"],
            "round": line["round"],
            "site": site,
            "phase": phase,
            "sum_exact": line["sums_equal"],
        }
        for arm in summaries
        for line in arm["rounds"]
        for site, phase in (line["dropouts"] | line["silent"]).items()
    ]


def _budgets(
    study: Study, private: Path, policy: SitePolicy
) -> dict[str, dict[str, float]]:
    found = {}
    for site in study.sites:
        budget = open_budget(study, policy, private, site)
        found[site] = {"spent": budget.spent_epsilon(), "limit": policy.max_epsilon}
    return found
