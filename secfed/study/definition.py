"""The study: all tables together, their mutual rules, and their digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from protocols.secagg.params import MAX_COMPLETE
from secfed import canonical
from secfed.errors import StudyError
from secfed.study.data_sections import DataSection
from secfed.study.distillation import (
    DistillationSection,
    TeacherSection,
    check_distillation,
    mentor_adapter,
)
from secfed.study.evaluation import EvaluationSection, check_evaluation
from secfed.study.kinds import refusal
from secfed.study.reading import ContradictionError, Table, checked, nearest, read_toml
from secfed.study.sections import (
    MIN_SITES,
    AdapterSection,
    CompareSection,
    LedgerSection,
    ModelSection,
    PrivacySection,
    SecaggSection,
    SimulationSection,
    StudySection,
    TrainingSection,
)
from secfed.study.task import TaskSection
from secfed.study.task_rules import check_task
from secfed.study.tuning import TuningRun, TuningSection

__all__ = ["Study", "load_study", "load_study_dict"]

_DEFAULT_SCORE = ("score", "accuracy")


def _default_as_missing(value: object) -> object:
    # What a study that says nothing means, and equal studies have equal digests.
    if not isinstance(value, Mapping):
        return value
    kept = {key: own for key, own in value.items() if (key, own) != _DEFAULT_SCORE}
    return None if kept == {"kind": "classification"} else kept


class Study(Table):
    """What all sites agree on before a run; equal studies have equal digests."""

    format: Literal[1]
    study: StudySection
    task: Annotated[TaskSection | None, BeforeValidator(_default_as_missing)] = None
    data: DataSection
    model: ModelSection
    adapter: AdapterSection
    training: TrainingSection
    privacy: PrivacySection
    secagg: SecaggSection = Field(default_factory=SecaggSection)
    simulation: SimulationSection = Field(default_factory=SimulationSection)
    compare: CompareSection | None = None
    distillation: DistillationSection | None = None
    evaluation: EvaluationSection | None = None
    ledger: LedgerSection | None = None
    tuning: TuningSection | None = None

    @property
    def name(self) -> str:
        """The study's short name."""
        return self.study.name

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites, in the order of the file."""
        return self.data.partition.sites

    @property
    def teacher(self) -> TeacherSection | None:
        """The teacher that it distils, if any; of a mentor its public base."""
        return None if self.distillation is None else self.distillation.teacher

    @property
    def tuning_runs(self) -> tuple[TuningRun, ...]:
        """The runs on private records by which its settings were chosen."""
        return () if self.tuning is None else self.tuning.runs or ()

    @property
    def mentor_adapter(self) -> AdapterSection | None:
        """The adapter of the mentor that learns beside the student, if any."""
        asked = self.distillation
        if asked is None or asked.mutual is None:
            return None
        return mentor_adapter(asked, self.adapter)

    @property
    def is_causal_lm(self) -> bool:
        """Whether it trains a causal language model, and no classifier."""
        return self.task is not None and self.task.kind != "classification"

    @property
    def is_prompted(self) -> bool:
        """Whether that model learns to answer a prompt, and nothing else."""
        return self.task is not None and self.task.kind == "prompted-lm"

    @property
    def score(self) -> str:
        """The score that decides, as ``[task]`` names it; of texts perplexity."""
        if self.is_causal_lm and not self.is_prompted:
            return "perplexity"
        return (self.task and self.task.score) or "accuracy"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_task(self)
        check_distillation(self)
        self._check_kind()
        self._check_cohort()
        self._check_units()
        self._check_nominal_units()
        if self.ledger is not None and (self.ledger.witnesses or 1) > len(self.sites):
            raise ContradictionError(
                "ledger.witnesses", f"there are {len(self.sites)} sites"
            )
        for site in self.adapter.ranks or {}:
            if site not in self.sites:
                raise ContradictionError(
                    "adapter.ranks",
                    f"unknown site {site!r}; {nearest(site, self.sites)}",
                )
        if self.data.labels is not None:
            self._check_class_weights(self.data.labels)
        self._check_compare()
        check_evaluation(self)
        for index, dropout in enumerate(self.simulation.dropouts):
            key = f"simulation.dropouts[{index + 1}]"
            if dropout.site not in self.sites:
                raise ContradictionError(
                    f"{key}.site",
                    f"unknown site {dropout.site!r}; "
                    f"{nearest(dropout.site, self.sites)}",
                )
            if dropout.round > self.training.rounds:
                raise ContradictionError(
                    f"{key}.round", f"the study has {self.training.rounds} rounds"
                )
        return self

    def _check_kind(self) -> None:
        """The method can train this kind of adapter on this base."""
        kind, quantisation = self.adapter.how, self.model.quantisation
        if quantisation is not None and not kind.by_rules:
            raise ContradictionError(
                "model.quantisation",
                f"kind = {kind.name!r} takes gradients that are vectorised over "
                f"records, and the layers of a base in {quantisation} cannot be",
            )
        if self.data.text_pair_column is not None and not kind.in_modules:
            raise ContradictionError(
                "data.text_pair_column",
                f"kind = {kind.name!r} puts virtual tokens before the text, which "
                "belong to neither text of a pair; use another kind",
            )
        asked = {"training.method": self.training.method}
        for index, name in enumerate(self.compare.methods if self.compare else ()):
            asked[f"compare.methods[{index + 1}]"] = name
        for key, method in asked.items():
            reason = refusal(kind, method, quantisation)
            if reason:
                raise ContradictionError(key, reason)
        if self.compare and self.compare.ranks and not kind.has_rank:
            raise ContradictionError(
                "compare.ranks", f"kind = {kind.name!r} has no rank"
            )

    def _check_compare(self) -> None:
        if self.compare is None:
            return
        if self.compare.is_grid and self.tuning_runs:
            raise ContradictionError(
                "tuning.runs",
                "a grid is a search itself; name these runs and the grid's own in the "
                "study that follows it",
            )
        for method in self.compare.methods:
            _below("training", self.training.require_learning_rate, method)
        if self.compare.alphas is not None and self.data.partition.kind != "dirichlet":
            raise ContradictionError(
                "compare.alphas", "belongs to data.partition.kind = 'dirichlet' only"
            )
        if self.compare.ranks is not None and self.adapter.ranks is not None:
            raise ContradictionError(
                "compare.ranks", "the sites have ranks of their own (adapter.ranks)"
            )

    def _check_cohort(self) -> None:
        num_sites, colluders = len(self.sites), self.secagg.colluders
        threshold = self.secagg.threshold
        floor = max(MIN_SITES, colluders + 2)
        # 1. Whoever colludes must not be left alone with one honest site.
        if num_sites < floor:
            raise ContradictionError(
                "data.partition.sites",
                f"{num_sites} sites; {colluders} colluders need at least {floor}",
            )
        if threshold == 0:  # The protocol derives the default from the roster.
            return
        if num_sites > MAX_COMPLETE:
            raise ContradictionError(
                "secagg.threshold",
                f"more than {MAX_COMPLETE} sites are summed in cohorts, each with a "
                "threshold of its own; 0 derives them",
            )
        # 2. Enough sites must exist.
        if threshold > num_sites:
            raise ContradictionError(
                "secagg.threshold",
                f"{num_sites} sites are fewer than the threshold {threshold}",
            )
        # 3. A smaller sum would show too much; two disjoint groups of this size
        #    could be shown different survivors (Bonawitz et al., 2017, section 6).
        least = max(floor, (num_sites + colluders) // 2 + 1)
        if threshold < least:
            raise ContradictionError(
                "secagg.threshold",
                f"{threshold} is too small: {num_sites} sites with {colluders} "
                f"colluders need at least {least} (0 chooses one)",
            )

    def _check_units(self) -> None:
        if self.privacy.unit == "person":
            if self.data.is_builtin:
                raise ContradictionError("privacy.unit", "built-in text has no persons")
            if self.data.unit_column is None:
                raise ContradictionError(
                    "data.unit_column", "required where privacy.unit = 'person'"
                )
        elif self.data.unit_column is not None:
            raise ContradictionError(
                "data.unit_column",
                f"names persons, but privacy.unit = {self.privacy.unit!r}; to keep a "
                "person's records out of the hold-out, use data.group_column",
            )

    def _check_class_weights(self, labels: tuple[str, ...]) -> None:
        for name in self.training.class_weights or ():
            if name not in labels:
                raise ContradictionError(
                    "training.class_weights",
                    f"no label {name!r}; {nearest(name, labels)}",
                )

    def _check_nominal_units(self) -> None:
        declared = self.privacy.nominal_units
        if declared is None:
            if not self.data.is_builtin:
                raise ContradictionError(
                    "privacy.nominal_units",
                    "declare a public number of units for every site; "
                    "the true ones are private",
                )
            return
        for site in declared:
            if site not in self.sites:
                raise ContradictionError(
                    f"privacy.nominal_units.{site}",
                    f"not one of the sites; {nearest(site, self.sites)}",
                )
        for site in self.sites:
            if site not in declared:
                raise ContradictionError(
                    f"privacy.nominal_units.{site}", "this site is missing"
                )

    def class_weights(self, labels: tuple[str, ...]) -> tuple[float, ...] | None:
        """The weight of every class in the loss, in the order of ``labels``.

        Raises:
            StudyError: A weight is declared for a class that does not exist.
        """
        declared = self.training.class_weights
        if declared is None:
            return None
        try:
            self._check_class_weights(labels)
        except ContradictionError as error:
            raise StudyError(f"study {self.name}", error.key, str(error)) from error
        return tuple(declared.get(label, 1.0) for label in labels)

    def canonical(self) -> dict[str, Any]:
        """The study as JSON-able values; ``load_study_dict`` reads it back."""
        return self.model_dump(mode="json", exclude_none=True)

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: what sites approve."""
        return canonical.digest(self.canonical())

    def with_method(self, name: str) -> Study:
        """This study with another aggregation method.

        Raises:
            StudyError: The method is unknown, cannot be masked, or has no
                learning rate in this study.
        """
        return self._changed({"training": {"method": name}})

    def with_seed(self, offset: int) -> Study:
        """This study with its public seeds moved by ``offset``; 0 changes nothing.

        The records stay where they are, so that runs over seeds are paired. Only
        the adapter's start moves, and the simulation seed where there is one.
        """
        changes: dict[str, dict[str, object]] = {
            "adapter": {"seed": self.adapter.seed + offset}
        }
        if self.simulation.seed is not None:
            changes["simulation"] = {"seed": self.simulation.seed + offset}
        return self._changed(changes)

    def _changed(self, changes: Mapping[str, Mapping[str, object]]) -> Study:
        values = self.canonical()
        for table, entries in changes.items():
            values[table] = {**values[table], **entries}
        return load_study_dict(values, f"study {self.name}")


def _below(table: str, check: Any, value: str) -> None:
    try:
        check(value)
    except ContradictionError as error:
        raise ContradictionError(f"{table}.{error.key}", str(error)) from error


def load_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises:
        StudyError: Missing, not UTF-8, not TOML, an unknown key or value, or
            tables that contradict each other. ``key`` names the place.
    """
    return load_study_dict(read_toml(Path(path)), path)


def load_study_dict(values: Mapping[str, object], where: str | Path) -> Study:
    """Check a study given as nested tables; ``where`` names it in errors."""
    return checked(Study, values, where)
