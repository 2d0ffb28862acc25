"""What ``benchmarks/utility/*.toml`` say: a data set, and how each arm trains on it.

One file is one data set. ``[recipe]`` holds what all arms share; the tables below
``[private]`` and ``[plain]`` change it for one method, with and without privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from secfed import canonical
from secfed.study.fields import Count, Positive, Texts
from secfed.study.reading import ContradictionError, Table, checked, read_toml
from secfed.study.sections import AdapterSection, ModelSection, TrainingSection

__all__ = ["HEAD", "METHODS", "Recipe", "Utility", "load_utility"]

HEAD: Final = "head-only"
METHODS: Final = ("ffa-lora", "fedavg", HEAD)
"""Both adapters, and the baseline that they have to beat at equal epsilon."""


class Recipe(Table):
    """How one arm is trained.

    Attributes:
        head_rounds: The first so many rounds train the head alone; the adapters
            start from that head. All rounds are charged.
        train_head: False leaves the head at its public start.
        average_last: What is scored is the mean of the adapters after the last so
            many rounds: post-processing of what was released, so it costs nothing.
    """

    layers: Count
    r: Count = 8
    lora_alpha: Positive = 16.0
    target_modules: Texts = ("query", "value")
    head_init: Literal["names", "zero"] = "names"
    rounds: Count
    steps_per_round: Count
    expected_batch: Count
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learning_rate: Positive = 1.0
    head_learning_rate: Positive
    clip_norm: Positive = 1.0
    clip_rule: Literal["flat", "normalised", "per-tensor"] = "flat"
    clip_gamma: Positive | None = None
    head_rounds: Annotated[int, Field(ge=0)] = 0
    train_head: bool = True
    average_last: Count = 1

    @model_validator(mode="after")
    def _rounds(self) -> Self:
        for key in ("head_rounds", "average_last"):
            if getattr(self, key) > self.rounds:
                raise ContradictionError(key, f"there are {self.rounds} rounds only")
        return self

    def adapter(self, seed: int) -> AdapterSection:
        """The adapter's shape and start."""
        return AdapterSection(
            r=self.r,
            lora_alpha=self.lora_alpha,
            target_modules=self.target_modules,
            layers=self.layers,
            head_init=self.head_init,
            seed=seed,
        )

    def training(self, method: str) -> TrainingSection:
        """The optimizer's settings, as a study has them."""
        return TrainingSection(
            method=method,
            rounds=self.rounds,
            steps_per_round=self.steps_per_round,
            expected_batch=self.expected_batch,
            optimizer=self.optimizer,
            momentum=self.momentum,
            head_learning_rate=self.head_learning_rate,
            learning_rate={method: self.learning_rate},
        )

    def changed(self, **changes: object) -> Recipe:
        """This recipe with other values, checked again."""
        return checked(Recipe, {**self.model_dump(), **changes}, "recipe")


class Utility(Table):
    """One data set with a recipe for every arm.

    Attributes:
        name: The file's name.
        title: For people.
        source: A folder below ``--data``, or ``builtin:icd10cm``.
        labels: All classes; None where the text is built in.
        tuned: On which records the recipes were chosen, in words.
        sites: How many sites divide the private records.
        alpha: Dirichlet concentration of that division.
        tuning_share: Share of the groups that is public and only explored on.
        holdout_share: Share of the groups that is the test set; None where the
            source comes with its own.
        max_records: At most so many private records over all sites.
        max_test: At most so many test records.
        delta: Of every site.
        private: Recipes with privacy, by method.
        plain: Recipes without, by method.
    """

    name: str
    title: str
    source: str
    labels: Texts | None = None
    tuned: str
    sites: Annotated[int, Field(ge=3, le=100)]
    alpha: Positive
    tuning_share: Annotated[float, Field(gt=0, lt=1)]
    holdout_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_records: Count | None = None
    max_test: Count | None = None
    delta: Annotated[float, Field(gt=0, lt=1)]
    model: ModelSection
    private: Mapping[str, Recipe]
    plain: Mapping[str, Recipe]

    @model_validator(mode="after")
    def _methods(self) -> Self:
        for table in ("private", "plain"):
            if set(getattr(self, table)) != set(METHODS):
                raise ContradictionError(table, f"one table each: {', '.join(METHODS)}")
        if self.is_builtin == (self.holdout_share is None):
            raise ContradictionError("holdout_share", "belongs to built-in text only")
        return self

    @property
    def is_builtin(self) -> bool:
        """Whether the text comes with an installed package."""
        return self.source.startswith("builtin:")

    def recipe(self, method: str, epsilon: float) -> Recipe:
        """How an arm trains; epsilon is infinite without privacy."""
        return (self.plain if epsilon == float("inf") else self.private)[method]

    def digest(self, recipe: Recipe, *others: object) -> str:
        """SHA-256 of all that decides a result: data, model, recipe and ``others``."""
        data = self.model_dump(
            mode="json",
            exclude_none=True,
            exclude={"private", "plain", "title", "tuned"},
        )
        own = recipe.model_dump(mode="json", exclude_none=True)
        return canonical.digest([data, own, list(map(str, others))])


def load_utility(path: Path) -> Utility:
    """Read and check one file.

    Raises:
        StudyError: The file, the key and what to do.
    """
    values: dict[str, Any] = {"name": path.stem, **read_toml(path)}
    shared = values.pop("recipe", {})
    for table in ("private", "plain"):
        values[table] = {
            method: {**shared, **own} for method, own in values.get(table, {}).items()
        }
    return checked(Utility, values, path)
