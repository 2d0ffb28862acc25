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
from secfed.errors import PolicyError
from secfed.evaluation import majority_scores
from secfed.manifest import write_manifest
from secfed.policy import SitePolicy
from secfed.report.conclusion import conclude
from secfed.report.html import build_report
from secfed.report.results import HEAD_ONLY, NON_PRIVATE
from secfed.report.tables import write_csv
from secfed.runtime.directory import create_run, write_atomically
from secfed.runtime.local import run_arm
from secfed.runtime.partition import keep_partition
from secfed.runtime.progress import Progress
from secfed.runtime.record import Arm
from secfed.runtime.setup import Prepared, open_budget, prepare, with_seed_of
from secfed.signing import load_or_create
from secfed.strategies import check_maskable, get_strategy, strategy_of
from secfed.study import Study

__all__ = ["plan_arms", "require_public", "run_comparison"]

_KINDS = ("private", "baseline")

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
    private = run_dir / "private"
    (run_dir / "manifest.json").unlink(missing_ok=True)
    summaries: list[dict[str, Any]] = []
    prepared = prepare(study, base_dir, policy, progress)
    keep_partition(study, base_dir, private)
    for index, arm in enumerate(arms, start=1):
        progress.arm(arm.name, index, len(arms))
        own = with_seed_of(prepared, arm.study)
        arm_dir = run_dir / "arms" / arm.name
        summaries.append(
            run_arm(arm, own, arm_dir, private, record.run_id, policy, progress)
        )
    comparison: dict[str, Any] = {
        "format": 1,
        "title": study.study.title,
        "study_digest": study.digest(),
        "arms": summaries,
        "majority": _majority(prepared),
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
    write_manifest(run_dir, study.digest(), None, key)
    return comparison


def plan_arms(
    study: Study, methods: Sequence[str], seeds: Sequence[int]
) -> tuple[Arm, ...]:
    """Every arm of a comparison, baselines last, seed by seed.

    Raises:
        StudyError: A method is unknown, cannot be masked, has no learning rate, or
            does not fit the study.
        PolicyError: Training without privacy is asked for on records that are not
            public.
    """
    for method in methods:
        check_maskable(get_strategy(method, path="--methods", key=method))
    baselines: tuple[str, ...] = (HEAD_ONLY, NON_PRIVATE)
    if study.compare is not None:
        baselines = study.compare.baselines
    without = study.compare is not None and study.compare.without_privacy is True
    if without:
        require_public(study, "compare.epsilons", '"inf"')
        if _UPPER_BOUND in methods:  # It is the baseline.
            baselines = tuple(name for name in baselines if name != NON_PRIVATE)
    elif NON_PRIVATE in baselines:
        require_public(study, "compare.baselines", f"'{NON_PRIVATE}'")
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
        if NON_PRIVATE in baselines:
            upper = own.with_method(_UPPER_BOUND)
            arms.append(Arm(f"{NON_PRIVATE}{suffix}", upper, NON_PRIVATE, seed))
    for arm in arms:
        strategy_of(arm.study)
    return tuple(arms)


def require_public(study: Study, key: str, what: str) -> None:
    """Refuse to train without noise on records that are not public.

    Args:
        study: The study.
        key: Where in it this is asked for.
        what: The value that asks for it.

    Raises:
        PolicyError: The records are neither built in nor simulated.
    """
    if study.data.is_builtin or study.simulation.seed is not None:
        return
    raise PolicyError(
        f"{key}: {what} trains without noise and its scores would be released; it "
        "runs on built-in public text or under an explicit simulation seed only. "
        f"Remove it from {key}"
    )


def _majority(prepared: Prepared) -> dict[str, float]:
    scores = majority_scores(prepared.holdout_labels, len(prepared.label_names))
    return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1}


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
