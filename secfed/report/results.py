"""The typed form of ``comparison.json``, as tables, charts and pages read it.

Reading is tolerant of what is missing (an absent number is ``None`` and prints
as UNKNOWN, never as zero) and strict about what is there: a value of the wrong
type is an error that names its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secfed.errors import RunDirectoryError
from secfed.report.measures import (
    ACCURACY,
    PERPLEXITY,
    SHARES,
    Measure,
    has_head,
    measure_of,
)

__all__ = [
    "Arm",
    "Comparison",
    "Dropout",
    "NoiseReport",
    "RoundResult",
    "Scores",
    "SiteBudget",
    "Source",
]

NON_PRIVATE = "non-private"
POOLED = "pooled"
"""All sites' records in one place, which no federation has; simulation only."""
HEAD_ONLY = "head-only"


@dataclass(frozen=True)
class Source:
    """A JSON object and where it stands, for errors that name the place."""

    value: Mapping[str, Any]
    where: str

    def get(self, key: str) -> object:
        """The raw value, None when absent."""
        return self.value.get(key)

    def text(self, key: str, default: str = "") -> str:
        """A string; ``default`` when absent."""
        value = self.value.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def number(self, key: str) -> float | None:
        """A finite number; None when absent."""
        value = self.value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        return float(value) if math.isfinite(value) else None

    def whole(self, key: str) -> int | None:
        """A whole number; None when absent."""
        value = self.number(key)
        if value is None:
            return None
        if value != int(value):
            raise self.wrong(key, "a whole number")
        return int(value)

    def flag(self, key: str) -> bool | None:
        """True or false; None when absent."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def child(self, key: str) -> Source | None:
        """An object below this one; None when absent."""
        value = self.value.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Source(value, f"{self.where}.{key}")

    def children(self, key: str) -> tuple[Source, ...]:
        """A list of objects; empty when absent."""
        value = self.value.get(key)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.wrong(key, "a list")
        for number, item in enumerate(value):
            if not isinstance(item, Mapping):
                raise self.wrong(f"{key}[{number}]", "an object")
        return tuple(
            Source(item, f"{self.where}.{key}[{number}]")
            for number, item in enumerate(value)
        )

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        value = self.value.get(key)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.wrong(key, "a list")
        return tuple(str(item) for item in value)

    def numbers(self, key: str) -> dict[str, float] | None:
        """A map of names to numbers; None when absent."""
        source = self.child(key)
        if source is None:
            return None
        found = {name: source.number(name) for name in source.value}
        return {name: value for name, value in found.items() if value is not None}

    def wrong(self, key: str, wanted: str) -> RunDirectoryError:
        """The error for a value of the wrong type."""
        return RunDirectoryError(
            f"{self.where}.{key} is not {wanted}; the file was altered or written "
            "by another version"
        )


@dataclass(frozen=True)
class Scores:
    """Scores on the public hold-out, those that the task has.

    Shares are between 0 and 1; a perplexity is above 0, and less is better; Matthews'
    correlation is between -1 and 1.
    ``by_category`` holds the same of single categories, where these are public.
    """

    accuracy: float | None = None
    macro_f1: float | None = None
    perplexity: float | None = None
    token_accuracy: float | None = None
    f1: float | None = None
    matthews: float | None = None
    ece: float | None = None
    unparsed: float | None = None
    rouge_1: float | None = None
    rouge_2: float | None = None
    rouge_l: float | None = None
    rouge_lsum: float | None = None
    by_category: Mapping[str, Scores] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Source | None) -> Scores:
        """From an object with these keys, or without some of them."""
        if source is None:
            return cls()
        perplexity, parts = source.number("perplexity"), source.child("by_category")
        if perplexity is not None and perplexity <= 0:
            raise source.wrong("perplexity", "above 0")
        return cls(
            **{key: source.number(key) for key in SHARES},
            perplexity=perplexity,
            matthews=source.number("matthews"),
            by_category={}
            if parts is None
            else {name: cls.read(parts.child(name)) for name in parts.value},
        )

    def main(self, measure: Measure) -> float | None:
        """The score that is compared."""
        return self.named(measure.key)

    def second(self, measure: Measure) -> float | None:
        """The score beside it."""
        return self.named(measure.second)

    def named(self, key: str) -> float | None:
        """The score of this name in ``measures.SCORE_KEYS``."""
        value: float | None = getattr(self, key)
        return value


@dataclass(frozen=True)
class NoiseReport:
    """Noise energy ‖·‖² in the change of the weights of one round."""

    measured: float | None
    closed_form: float | None
    quadratic: float | None
    quadratic_share: float | None
    aggregation_gap: float | None
    signal: float | None

    @classmethod
    def read(cls, source: Source) -> NoiseReport:
        """From the ``noise`` object of a metrics line."""
        return cls(
            measured=source.number("measured"),
            closed_form=source.number("closed_form"),
            quadratic=source.number("quadratic"),
            quadratic_share=source.number("quadratic_share"),
            aggregation_gap=source.number("aggregation_gap"),
            signal=source.number("signal"),
        )


@dataclass(frozen=True)
class RoundResult:
    """One line of ``metrics.jsonl``; round 0 is the state before training."""

    round: int
    status: str
    scores: Scores
    survivors: tuple[str, ...]
    dropouts: Mapping[str, str]
    sums_equal: bool | None
    epsilon: Mapping[str, float]
    noise: NoiseReport | None
    bytes_up: float | None
    bytes_down: float | None
    seconds: float | None

    @classmethod
    def read(cls, source: Source) -> RoundResult:
        """From a metrics line."""
        number = source.whole("round")
        if number is None:
            raise source.wrong("round", "a whole number")
        noise = source.child("noise")
        dropouts = source.child("dropouts")
        return cls(
            round=number,
            status=source.text("status", "completed"),
            scores=Scores.read(source),
            survivors=source.texts("survivors"),
            dropouts={}
            if dropouts is None
            else {site: dropouts.text(site) for site in dropouts.value},
            sums_equal=source.flag("sums_equal"),
            epsilon=source.numbers("epsilon") or {},
            noise=None if noise is None else NoiseReport.read(noise),
            bytes_up=source.number("bytes_up"),
            bytes_down=source.number("bytes_down"),
            seconds=source.number("seconds"),
        )


@dataclass(frozen=True)
class Arm:
    """One method with one seed, trained from the same start as the others."""

    name: str
    method: str
    kind: str
    seed: int
    run: str
    rounds: tuple[RoundResult, ...]
    final: Scores
    epsilon: Mapping[str, float] | None
    epsilon_max: float | None
    bytes_up: float | None
    bytes_down: float | None
    seconds: float | None
    trainable: int | None

    @property
    def is_private(self) -> bool:
        """Whether sites trained it and every record of theirs is protected by noise."""
        return self.kind not in {NON_PRIVATE, POOLED} and self.epsilon_max is not None

    @property
    def label(self) -> str:
        """Its name, and that no federation can run it where that is so."""
        return f"{self.name} (no federation)" if self.kind == POOLED else self.name

    @property
    def has_adapters(self) -> bool:
        """Whether it trains more than the head, under differential privacy."""
        return self.is_private and self.method != HEAD_ONLY and self.kind == "private"

    @property
    def trained_rounds(self) -> tuple[RoundResult, ...]:
        """The rounds that ended with a sum."""
        return tuple(r for r in self.rounds if r.round > 0 and r.status == "completed")

    @property
    def noise_rounds(self) -> tuple[tuple[int, NoiseReport], ...]:
        """(round, noise) of the rounds whose noise was measured."""
        return tuple((r.round, r.noise) for r in self.rounds if r.noise is not None)

    @classmethod
    def read(cls, source: Source) -> Arm:
        """From one object of ``arms``."""
        epsilon = source.numbers("epsilon")
        worst = source.number("epsilon_max")
        if worst is None and epsilon:
            worst = max(epsilon.values())
        method = source.text("method", source.text("name"))
        return cls(
            name=source.text("name", method),
            method=method,
            kind=source.text("kind", "private"),
            seed=source.whole("seed") or 0,
            run=source.text("run"),
            rounds=tuple(RoundResult.read(item) for item in source.children("rounds")),
            final=Scores.read(source.child("final")),
            epsilon=epsilon,
            epsilon_max=worst,
            bytes_up=source.number("bytes_up"),
            bytes_down=source.number("bytes_down"),
            seconds=source.number("seconds"),
            trainable=source.whole("trainable"),
        )


@dataclass(frozen=True)
class Dropout:
    """A site that disappeared, and whether the sum of the others was exact."""

    arm: str
    round: int
    site: str
    phase: str
    sum_exact: bool | None


@dataclass(frozen=True)
class SiteBudget:
    """What a site's own budget file says after the run."""

    site: str
    spent: float | None
    limit: float | None

    @property
    def left(self) -> float | None:
        """The limit less what is spent, at least 0; for people, not for sums."""
        if self.spent is None or self.limit is None:
            return None
        return max(0.0, self.limit - self.spent)


@dataclass(frozen=True)
class Comparison:
    """Everything that a run compared; ``Comparison.from_json`` reads it."""

    title: str
    study_digest: str
    arms: tuple[Arm, ...]
    majority: Scores
    untrained: Scores
    conclusion: str
    dropouts: tuple[Dropout, ...]
    budget: tuple[SiteBudget, ...]
    seconds: float | None
    simulation_seed: int | None
    task: Mapping[str, Any] | None
    constants: Mapping[str, Scores]
    source: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def is_prompted(self) -> bool:
        """Whether a language model was taught to answer."""
        return self.task is not None and self.task.get("kind") == "prompted-lm"

    @property
    def has_head(self) -> bool:
        """Whether there is a classifier, which could be trained alone."""
        return self.measure is not PERPLEXITY and has_head(self.task)

    @property
    def measure(self) -> Measure:
        """The main score of the task that was trained."""
        if self.task is not None:
            return measure_of(self.task)
        scores = [self.untrained]
        scores += [found.scores for arm in self.arms for found in arm.rounds]
        if any(score.perplexity is not None for score in scores):
            return PERPLEXITY
        return ACCURACY

    @property
    def reference(self) -> Scores:
        """What learned nothing: the best constant answer, or the base model alone."""
        return self.untrained if self.measure is PERPLEXITY else self.majority

    @property
    def nothing(self) -> Mapping[str, Scores]:
        """Everything that learned nothing, by name, in reading order."""
        if not self.is_prompted:
            return {self.measure.reference: self.reference}
        best_first = sorted(
            self.constants.items(),
            key=lambda pair: (-(pair[1].main(self.measure) or 0), pair[0]),
        )
        always = {f"always {name}": own for name, own in best_first}
        return {PERPLEXITY.reference: self.untrained, **always}

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that spent privacy in some arm, sorted."""
        names = {site for arm in self.arms for site in (arm.epsilon or {})}
        return tuple(sorted(names | {entry.site for entry in self.budget}))

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], where: str = "comparison"
    ) -> Comparison:
        """Read the parsed ``comparison.json``.

        Raises:
            RunDirectoryError: The format number is unknown or a value has the
                wrong type.
        """
        source = Source(value, where)
        if source.get("format") != 1:
            raise RunDirectoryError(
                f"{where}: format is {source.get('format')!r}, this version reads 1"
            )
        budget, task = source.child("budget"), source.child("task")
        constants = source.child("constants")
        sites = (
            ()
            if budget is None
            else tuple((site, budget.child(site)) for site in sorted(budget.value))
        )
        return cls(
            title=source.text("title", "Study"),
            study_digest=source.text("study_digest", "UNKNOWN"),
            arms=tuple(Arm.read(item) for item in source.children("arms")),
            majority=Scores.read(source.child("majority")),
            untrained=Scores.read(source.child("untrained")),
            conclusion=source.text("conclusion"),
            dropouts=tuple(
                Dropout(
                    arm=item.text("arm"),
                    round=item.whole("round") or 0,
                    site=item.text("site"),
                    phase=item.text("phase"),
                    sum_exact=item.flag("sum_exact"),
                )
                for item in source.children("dropouts")
            ),
            budget=tuple(
                SiteBudget(site, entry.number("spent"), entry.number("limit"))
                for site, entry in sites
                if entry is not None
            ),
            seconds=source.number("seconds"),
            simulation_seed=source.whole("simulation_seed"),
            task=None if task is None else task.value,
            constants={}
            if constants is None
            else {name: Scores.read(constants.child(name)) for name in constants.value},
            source=value,
        )
