"""What a comparison allows one to say, and no more.

Scores of two methods are compared per seed, so that what a seed does to both
cancels. With three seeds or more the mean difference carries a 95 % t-interval
and an interval that covers zero reads "no difference"; with fewer seeds the
sentence says which is ahead and that this decides nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secfed.report.measures import ACCURACY, Measure
from secfed.report.results import HEAD_ONLY, NON_PRIVATE, POOLED, Arm, Comparison

__all__ = [
    "MIN_SEEDS",
    "PairedDifference",
    "Scores",
    "compared_scores",
    "conclude",
    "join_names",
    "mean_interval",
    "pair_scores",
    "paired_differences",
]

Scores = Mapping[str, Mapping[int, float]]
"""Method to seed to the merit of its score: more is better."""

MIN_SEEDS = 3
"""Below three pairs a t-interval says nothing worth printing."""

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Merit of ``first`` minus merit of ``second``, seed by seed.

    The merit of an accuracy is the accuracy, that of a perplexity minus its
    logarithm: above zero, ``first`` is better.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    measure: Measure = ACCURACY

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t-interval of the mean; None below ``MIN_SEEDS`` seeds."""
        return mean_interval(self.differences)

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``no difference``, or ``undecided``."""
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if low > 0:
            return "better"
        return "worse" if high < 0 else "no difference"

    @property
    def text(self) -> str:
        """One clause for people, in points of accuracy or per cent of perplexity."""
        shown = f"{self.measure.difference(self.mean)} {self.measure.unit}"
        clause = f"{self.first} against {self.second}: {shown}"
        if self.interval is None:
            return clause
        return f"{clause} {self.measure.bounds(self.interval)}, {self.verdict}"


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t-interval of a mean over seeds; None below ``MIN_SEEDS`` values."""
    count = len(values)
    if count < MIN_SEEDS:
        return None
    half = _t_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def paired_differences(comparison: Comparison) -> tuple[PairedDifference, ...]:
    """Every private adapter method against the head alone, then among each other."""
    return pair_scores(_scores_by_method(comparison), comparison.measure)


def compared_scores(comparison: Comparison) -> Scores:
    """The scores that are set against each other: of the private arms.

    Where nothing is private, of all arms: like is compared with like.
    """
    return _scores_by_method(comparison) or _scores_without_privacy(comparison)


def pair_scores(
    scores: Scores, measure: Measure = ACCURACY
) -> tuple[PairedDifference, ...]:
    """Every adapter method against the head alone, then among each other."""
    adapters = [m for m in scores if m != HEAD_ONLY]
    pairs = [(method, HEAD_ONLY) for method in adapters if HEAD_ONLY in scores]
    pairs += [
        (first, second)
        for index, first in enumerate(adapters)
        for second in adapters[index + 1 :]
    ]
    found = []
    for first, second in pairs:
        seeds = tuple(sorted(scores[first].keys() & scores[second].keys()))
        if seeds:
            gaps = tuple(scores[first][s] - scores[second][s] for s in seeds)
            found.append(PairedDifference(first, second, seeds, gaps, measure))
    return tuple(found)


def conclude(comparison: Comparison | Mapping[str, Any]) -> str:
    """The conclusion of a comparison, in sentences.

    Args:
        comparison: The parsed ``comparison.json``; its own ``conclusion`` is
            not read.

    Raises:
        RunDirectoryError: The mapping is not a comparison.
    """
    if not isinstance(comparison, Comparison):
        comparison = Comparison.from_json(comparison)
    scores = _scores_by_method(comparison)
    if not scores:
        return _without_privacy(comparison)
    pairs = paired_differences(comparison)
    seeds = min((len(pair.seeds) for pair in pairs), default=1)
    sentences = [_against_nothing(comparison, scores)]
    if not pairs:
        sentences.append(_ranking(scores, comparison.measure))
    elif seeds >= MIN_SEEDS:
        sentences += _with_intervals(pairs, seeds)
    else:
        sentences += _without_intervals(pairs, scores, seeds)
    if HEAD_ONLY not in scores and comparison.has_head:
        sentences.append(
            "The private head alone was not run, so whether the adapters earn their "
            "privacy is unknown."
        )
    sentences.append(_pooled(comparison))
    return " ".join(sentence for sentence in sentences if sentence)


def _pooled(comparison: Comparison) -> str:
    """What is no result of a federation, said wherever the results are."""
    measure = comparison.measure
    merits = [
        merit
        for arm in comparison.arms
        if arm.kind == POOLED and (merit := _merit(arm, measure)) is not None
    ]
    if not merits:
        return ""
    shown = measure.shown(measure.value(statistics.fmean(merits)))
    return (
        f"{POOLED} ({shown}) is DP-LoRA on all sites' "
        "records in one place at the same epsilon: a baseline that no federation can "
        "run, and not one of the compared methods."
    )


def _without_privacy(comparison: Comparison) -> str:
    """Of a comparison in which every arm was trained without noise."""
    scores = _scores_without_privacy(comparison)
    pairs = pair_scores(scores, comparison.measure)
    if not pairs:
        return "No private method finished, so there is nothing to conclude."
    opening = "NOT PRIVATE: every arm was trained without noise."
    seeds = min(len(pair.seeds) for pair in pairs)
    if seeds < MIN_SEEDS:
        ranking = _ranking(scores, comparison.measure)
        return f"{opening} {ranking} {_too_few(seeds)}"
    return f"{opening} {_intervals(pairs, seeds)}"


def _with_intervals(pairs: Sequence[PairedDifference], seeds: int) -> list[str]:
    sentences = [_intervals(pairs, seeds)]
    against_head = [pair for pair in pairs if pair.second == HEAD_ONLY]
    better = [pair.first for pair in against_head if pair.verdict == "better"]
    if better:
        sentences.append(f"{join_names(better)} beats the private head alone.")
    elif against_head and all(pair.verdict == "worse" for pair in against_head):
        sentences.append("The private head alone is better than the adapters here.")
    elif against_head:
        sentences.append(
            "Here the adapters do not beat the private head alone: no interval lies "
            "above zero."
        )
    if len(pairs) > 1:
        sentences.append(
            f"The {len(pairs)} intervals are not corrected for being several."
        )
    return sentences


def _without_intervals(
    pairs: Sequence[PairedDifference],
    scores: Scores,
    seeds: int,
) -> list[str]:
    sentences = [_ranking(scores, pairs[0].measure)]
    against_head = [pair for pair in pairs if pair.second == HEAD_ONLY]
    ahead = [pair for pair in against_head if pair.mean > 0]
    if against_head:
        subject = join_names([pair.first for pair in ahead]) if ahead else "no adapter"
        sentences.append(
            f"In this run {subject} "
            f"{'is' if len(ahead) <= 1 else 'are'} ahead of the private head alone "
            f"({'; '.join(pair.text for pair in against_head)})."
        )
    sentences.append(_too_few(seeds))
    return sentences


def _intervals(pairs: Sequence[PairedDifference], seeds: int) -> str:
    listed = "; ".join(pair.text for pair in pairs)
    measure = pairs[0].measure
    opening = f"Over {seeds} seeds, mean paired differences in {measure.name}"
    lower = " (less is better)" if measure.lower_is_better else ""
    return f"{opening}{lower} with 95 % t-intervals: {listed}."


def _too_few(seeds: int) -> str:
    count = "One seed" if seeds == 1 else f"{seeds} seeds"
    return (
        f"{count} cannot decide which is better; run compare with at least "
        f"{MIN_SEEDS} seeds for intervals."
    )


def _ranking(scores: Scores, measure: Measure) -> str:
    means = {method: statistics.fmean(by.values()) for method, by in scores.items()}
    ranked = sorted(means, key=lambda method: (-means[method], method))
    shown = {
        name: f"{name} ({measure.shown(measure.value(means[name]))})" for name in ranked
    }
    if len(ranked) == 1:
        return f"{shown[ranked[0]]} is the only private method."
    best = [name for name in ranked if means[name] == means[ranked[0]]]
    behind = join_names([shown[name] for name in ranked if name not in best])
    if not behind:
        leading = join_names([shown[name] for name in best])
        return f"{leading} are level in {measure.name}."
    verb = "is" if len(best) == 1 else "are level and"
    leading = join_names([shown[name] for name in best])
    lower = ", of which less is better" if measure.lower_is_better else ""
    return f"{leading} {verb} ahead of {behind} in {measure.name}{lower}."


def _against_nothing(comparison: Comparison, scores: Scores) -> str:
    """Whether methods are better than what learned nothing."""
    measure, reference = comparison.measure, comparison.reference
    score = reference.main(measure)
    if score is None:
        return ""
    low = {method: min(by.values()) for method, by in scores.items()}
    failed = [method for method, worst in low.items() if worst <= measure.merit(score)]
    if measure.lower_is_better:
        return _against_the_base(failed, measure.shown(score))
    if measure.key != ACCURACY.key:
        return _against_a_constant(failed, f"{measure.name} {measure.shown(score)}")
    return _against_the_majority(failed, score)


def _against_the_base(failed: Sequence[str], shown: str) -> str:
    if failed:
        return (
            f"{join_names(failed)} did not learn: the base model alone has perplexity "
            f"{shown}, and less is better."
        )
    return f"All private methods are below the base model's perplexity ({shown})."


def _against_a_constant(failed: Sequence[str], shown: str) -> str:
    if failed:
        return (
            f"{join_names(failed)} did not learn: the best constant answer has {shown}."
        )
    return f"All private methods are above the best constant answer ({shown})."


def _against_the_majority(failed: Sequence[str], majority: float) -> str:
    if failed:
        return (
            f"{join_names(failed)} did not learn: always naming the most frequent "
            f"class scores {100 * majority:.1f} %."
        )
    return f"All private methods are above the majority class ({100 * majority:.1f} %)."


def _scores_by_method(comparison: Comparison) -> dict[str, dict[int, float]]:
    scores: dict[str, dict[int, float]] = {}
    for arm in comparison.arms:
        merit = _merit(arm, comparison.measure)
        if merit is not None and (arm.has_adapters or _is_private_head(arm)):
            scores.setdefault(arm.method, {})[arm.seed] = merit
    return scores


def _scores_without_privacy(comparison: Comparison) -> dict[str, dict[int, float]]:
    scores: dict[str, dict[int, float]] = {}
    for arm in comparison.arms:
        merit = _merit(arm, comparison.measure)
        if arm.kind == NON_PRIVATE and merit is not None:
            scores.setdefault(arm.method, {})[arm.seed] = merit
    return scores


def _merit(arm: Arm, measure: Measure) -> float | None:
    score = arm.final.main(measure)
    return None if score is None else measure.merit(score)


def _is_private_head(arm: Arm) -> bool:
    return arm.method == HEAD_ONLY and arm.is_private


def join_names(names: Sequence[str]) -> str:
    """Names as they stand in a sentence: commas, and an and."""
    if len(names) <= 1:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _t_quantile(degrees: int) -> float:
    # Imported here: scipy.stats takes longer to load than everything else.
    from scipy import stats  # noqa: PLC0415

    return float(stats.t.ppf(0.5 + _CONFIDENCE / 2, degrees))
