"""The tables of a study file; each class is one table and knows its own rules.

Rules that need two tables stand in ``secfed.study.definition``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    model_validator,
)

from secfed.study.kinds import KINDS, REFUSED_KINDS, AdapterKind
from secfed.study.reading import ContradictionError, Table, nearest

__all__ = [
    "BUILTIN_SOURCES",
    "METHODS",
    "MIN_SITES",
    "MIN_UNITS",
    "REFUSED_METHODS",
    "WITHOUT_PRIVACY",
    "AdapterSection",
    "CompareSection",
    "DataSection",
    "Dropout",
    "HoldoutSection",
    "LedgerSection",
    "ModelSection",
    "PartitionSection",
    "PrivacySection",
    "SecaggSection",
    "SimulationSection",
    "StudySection",
    "TrainingSection",
    "check_method",
]

METHODS: Final = (
    "fedavg",
    "ffa-lora",
    "ffb-lora",
    "fedsa-lora",
    "fedsa-lora-b",
    "rolora",
    "flexlora",
    "flexlora-sketch",
    "hetlora",
    "fedex-lora",
    "lora-fair",
    "fedsvd",
    "ffa-fresh",
    "fed-sb",
    "fedrot-lora",
    "la-lora",
    "local",
    "head-only",
)
"""Aggregation methods that a masked study can name."""

REFUSED_METHODS: Final[Mapping[str, str]] = {
    "flora": (
        "stacking (Wang et al., 2024) needs every site's own A and B, and masking "
        "shows the coordinator their sum only"
    ),
}
"""Methods that exist but cannot run under secure aggregation, and why."""

BUILTIN_SOURCES: Final = ("builtin:icd10cm",)
TSV_SUFFIXES: Final = (".tsv", ".tsv.gz")
FILE_SUFFIXES: Final = (
    ".csv",
    ".csv.gz",
    *TSV_SUFFIXES,
    ".jsonl",
    ".jsonl.gz",
    ".parquet",
)
HUB_PREFIX: Final = "hub:"

MIN_LABELS: Final = 2

MIN_SITES: Final = 3
"""With two sites each reads the other's update off the sum."""

MIN_UNITS: Final = 10
"""Below ten people an aggregate is about persons, not about a population."""


def _none_as_missing(value: object) -> object:
    # "none" is what a study that says nothing means, and equal studies have equal
    # digests.
    return None if value == "none" else value


def _no_dropout(value: object) -> None:
    if isinstance(value, bool) or value not in (None, 0):
        raise ContradictionError(
            "",
            "must be 0: before every round a batch is repeated bit for bit to show "
            "that records do not influence each other, and dropout draws anew; the "
            "noise regularises as dropout would",
        )


def _list_as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


# Site names become directory names and lines of the ledger.
SiteName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Rank = Annotated[int, Field(ge=1, le=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SiteNames = Annotated[tuple[SiteName, ...], BeforeValidator(_list_as_tuple)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_list_as_tuple)]


def _epsilon(value: object) -> float | Literal["inf"]:
    """A finite epsilon, or ``inf``: trained without privacy."""
    if value == WITHOUT_PRIVACY:
        return WITHOUT_PRIVACY
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise ContradictionError(
            "", f'must be a positive number or "inf" (got {value!r:.60})'
        )
    return float(value)  # type: ignore[arg-type]


WITHOUT_PRIVACY: Final = "inf"
Epsilon = Annotated[float | Literal["inf"], PlainValidator(_epsilon)]


def _day(text: str) -> str:
    """A day as 2027-03-31, which sorts as time does."""
    try:
        found = date.fromisoformat(text).isoformat()
    except ValueError:
        found = ""
    if found != text:
        raise ContradictionError("", f"{text!r} is not a day like '2027-03-31'")
    return text


def check_method(key: str, name: str) -> None:
    """Refuse a method that is unknown or that cannot run under masking."""
    if name in REFUSED_METHODS:
        raise ContradictionError(
            key, f"method {name!r} cannot be masked: {REFUSED_METHODS[name]}"
        )
    if name not in METHODS:
        raise ContradictionError(
            key, f"unknown method {name!r}; {nearest(name, METHODS)}"
        )


def _require_unique(key: str, names: tuple[object, ...]) -> None:
    seen: set[object] = set()
    for name in names:
        folded = name.casefold() if isinstance(name, str) else name
        if folded in seen:
            raise ContradictionError(key, f"{name!r} is listed twice")
        seen.add(folded)


class StudySection(Table):
    """``[study]``: names for people and directories."""

    name: SiteName
    title: Text
    # Who gets the release besides the sites and the coordinator, and the last day
    # (UTC) on which a round may begin. Sites approve both with the study.
    recipients: Texts | None = None
    expires: Annotated[str, AfterValidator(_day)] | None = None

    @model_validator(mode="after")
    def _recipients(self) -> Self:
        if self.recipients is not None and not self.recipients:
            raise ContradictionError("recipients", "name somebody, or leave it out")
        _require_unique("recipients", self.recipients or ())
        return self


class PartitionSection(Table):
    """``[data.partition]``: which site holds which records."""

    kind: Literal["home", "dirichlet", "natural", "iid", "size"]
    sites: SiteNames
    alpha: NotNegative | None = None  # 0: every label is at one site only
    home_share: Annotated[float, Field(gt=0, le=1)] | None = None
    home: Mapping[SiteName, Texts] | None = None
    shares: Mapping[SiteName, Positive] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _require_unique("sites", self.sites)
        self._check_shares()
        if (self.alpha is None) == (self.kind == "dirichlet"):
            raise ContradictionError("alpha", "belongs to kind = 'dirichlet' only")
        for key, value in (("home_share", self.home_share), ("home", self.home)):
            if (value is None) == (self.kind == "home"):
                raise ContradictionError(key, "belongs to kind = 'home' only")
        for site in self.home or ():
            if site not in self.sites:
                raise ContradictionError(
                    f"home.{site}", f"not one of the sites; {nearest(site, self.sites)}"
                )
        labels = tuple(label for own in (self.home or {}).values() for label in own)
        _require_unique("home", labels)
        return self

    def _check_shares(self) -> None:
        if (self.shares is None) == (self.kind == "size"):
            raise ContradictionError("shares", "belongs to kind = 'size' only")
        for site in self.shares or ():
            if site not in self.sites:
                raise ContradictionError(
                    f"shares.{site}",
                    f"not one of the sites; {nearest(site, self.sites)}",
                )
        for site in self.sites if self.shares else ():
            if site not in (self.shares or ()):
                raise ContradictionError(f"shares.{site}", "this site is missing")


class HoldoutSection(Table):
    """``[data.holdout]``: the public test set, split off by group or in a file."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    # A file of its own, with the columns of data.source.
    source: Text | None = None
    max_records: Count | None = None
    # A public grouping of the test set, as an age band: scores by each group.
    subgroup_column: Text | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.fraction is None) == (self.source is None):
            raise ContradictionError("fraction", "give either this or holdout.source")
        return self


class DataSection(Table):
    """``[data]``: where records come from and what their columns mean."""

    source: Text
    # Tab-separated lines, whatever the file is called; quotes are ordinary text.
    format: Literal["tsv"] | None = None
    # Names for the columns of such a file that has no header.
    columns: Texts | None = None
    text_column: Text | None = None
    # A second text; both are read together, as two segments.
    text_pair_column: Text | None = None
    label_column: Text | None = None
    unit_column: Text | None = None
    group_column: Text | None = None
    site_column: Text | None = None
    labels: Texts | None = None
    max_records: Count | None = None
    seed: Seed = 0
    partition: PartitionSection
    holdout: HoldoutSection

    @property
    def is_builtin(self) -> bool:
        """Whether the text comes with an installed package and is public."""
        return self.source.startswith("builtin:")

    @property
    def is_tsv(self) -> bool:
        """Whether the source is read as tab-separated lines."""
        return self.format == "tsv" or self.source.endswith(TSV_SUFFIXES)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.is_builtin:
            self._check_builtin()
        else:
            self._check_external()
        if (self.site_column is None) == (self.partition.kind == "natural"):
            raise ContradictionError(
                "site_column", "belongs to partition.kind = 'natural' only"
            )
        return self

    def _check_builtin(self) -> None:
        if self.source not in BUILTIN_SOURCES:
            raise ContradictionError(
                "source", f"unknown; {nearest(self.source, BUILTIN_SOURCES)}"
            )
        if self.partition.kind == "natural":
            raise ContradictionError(
                "partition.kind",
                "built-in text has no sites; use home, dirichlet, iid or size",
            )
        for key in (
            "format",
            "columns",
            "text_column",
            "text_pair_column",
            "label_column",
            "unit_column",
            "group_column",
        ):
            if getattr(self, key) is not None:
                raise ContradictionError(key, "built-in text knows its own columns")
        if self.labels is not None:
            raise ContradictionError("labels", "built-in text knows its own labels")
        if self.holdout.source is not None:
            raise ContradictionError("holdout.source", "built-in text is split")
        if self.holdout.subgroup_column is not None:
            raise ContradictionError(
                "holdout.subgroup_column", "built-in text has no such column"
            )

    def _check_sources(self) -> None:
        for key, source in (
            ("source", self.source),
            ("holdout.source", self.holdout.source),
        ):
            if source is None or self.format is not None:
                continue
            if not source.endswith(FILE_SUFFIXES) and not source.startswith(HUB_PREFIX):
                raise ContradictionError(
                    key,
                    f"name a file ({', '.join(FILE_SUFFIXES)}), "
                    f"{HUB_PREFIX}owner/name or {BUILTIN_SOURCES[0]}",
                )
        if self.format is not None and self.source.startswith(HUB_PREFIX):
            raise ContradictionError("format", "belongs to files only")
        if self.columns is not None and not self.is_tsv:
            raise ContradictionError("columns", "belongs to files with format = 'tsv'")
        _require_unique("columns", self.columns or ())

    def _check_external(self) -> None:
        self._check_sources()
        for key, other in (("label_column", "labels"), ("labels", "label_column")):
            # Labels found in the records would themselves be released.
            if getattr(self, key) is None and getattr(self, other) is not None:
                raise ContradictionError(key, f"required with {other}")
        if self.labels is None:
            return
        labels = self.labels
        if len(labels) < MIN_LABELS:
            raise ContradictionError(
                "labels", f"at least {MIN_LABELS} labels are needed"
            )
        _require_unique("labels", labels)
        for label in (
            label for own in (self.partition.home or {}).values() for label in own
        ):
            if label not in labels:
                raise ContradictionError(
                    "partition.home", f"unknown {label!r}; {nearest(label, labels)}"
                )


class ModelSection(Table):
    """``[model]``: the frozen base model, by local path and content hash."""

    path: Text | None = None
    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")] | None = (
        None
    )
    subfolder: Text | None = None
    sha256: Sha256
    max_length: Annotated[int, Field(ge=4, le=8192)] = 64
    pooling: Literal["mean"] = "mean"
    dtype: Literal["bfloat16", "float32"] = "float32"
    # How the frozen weights of the layers are kept, at all sites alike.
    quantisation: Annotated[
        Literal["nf4", "int8"] | None, BeforeValidator(_none_as_missing)
    ] = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.package is None):
            raise ContradictionError("", "give either path or package (+ subfolder)")
        if self.subfolder is not None and self.package is None:
            raise ContradictionError("subfolder", "belongs to package only")
        if self.subfolder is not None and (
            self.subfolder.startswith("/") or ".." in self.subfolder.split("/")
        ):
            raise ContradictionError("subfolder", "must stay inside the package")
        return self


def _is_lora(kind: str) -> bool:
    return kind == "lora"


class AdapterSection(Table):
    """``[adapter]``: what is trained besides the classification head.

    What a kind has no use for is 0 or empty, and then not a part of the digest.
    """

    kind: str = Field(default="lora", exclude_if=_is_lora)
    r: Annotated[int, Field(ge=0, le=1024)] = Field(default=0, exclude_if=operator.not_)
    lora_alpha: NotNegative = Field(default=0.0, exclude_if=operator.not_)
    # Of prompt and prefix.
    virtual_tokens: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=0, exclude_if=operator.not_
    )
    target_modules: Texts = ("query", "value")
    # Of ia3: those of the targets whose inputs are scaled and not their outputs.
    feedforward_modules: Texts = Field(default=(), exclude_if=operator.not_)
    layers: Annotated[int, Field(ge=0)] = 0
    # Of sites that train at a smaller rank than r, for rules that allow it.
    ranks: Mapping[str, Annotated[int, Field(ge=1)]] | None = None
    head_init: Literal["names", "zero"] = "zero"
    seed: Seed = 0
    # Always none: a study that asks for it is told why.
    lora_dropout: Annotated[None, BeforeValidator(_no_dropout)] = None

    @property
    def how(self) -> AdapterKind:
        """What the kind of adapter is."""
        return KINDS[self.kind]

    @property
    def scaling(self) -> float:
        """What a product of factors is multiplied by; 1 without factors."""
        return self.how.scaling(self.r, self.lora_alpha)

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if self.kind in REFUSED_KINDS:
            raise ContradictionError(
                "kind", f"{self.kind!r} is not offered: {REFUSED_KINDS[self.kind]}"
            )
        if self.kind not in KINDS:
            raise ContradictionError(
                "kind", f"unknown kind {self.kind!r}; {nearest(self.kind, KINDS)}"
            )
        self._check_numbers(self.how)
        self._check_modules(self.how)
        for site, rank in (self.ranks or {}).items():
            if rank > self.r:
                raise ContradictionError(f"ranks.{site}", f"is above r = {self.r}")
        return self

    def _check_numbers(self, kind: AdapterKind) -> None:
        """Every kind has its own numbers, and no others."""
        for key, belongs in (
            ("r", kind.has_rank),
            ("lora_alpha", kind.has_rank),
            ("virtual_tokens", not kind.in_modules),
        ):
            given = getattr(self, key)
            if bool(given) != belongs:
                said = "does not belong to" if given else "must be above 0 with"
                raise ContradictionError(key, f"{said} kind = {kind.name!r}")
        for key, allowed in (
            ("ranks", kind.is_product),
            ("feedforward_modules", kind.name == "ia3"),
            ("layers", kind.in_modules),
        ):
            if getattr(self, key) and not allowed:
                raise ContradictionError(
                    key, f"does not belong to kind = {kind.name!r}"
                )

    def _check_modules(self, kind: AdapterKind) -> None:
        if not kind.in_modules and self.target_modules:
            raise ContradictionError(
                "target_modules",
                f"kind = {kind.name!r} changes what all layers see and no module of "
                "them; write target_modules = []",
            )
        if kind.in_modules and not self.target_modules:
            raise ContradictionError("target_modules", "name at least one module")
        _require_unique("target_modules", self.target_modules)
        for name in self.feedforward_modules:
            if name not in self.target_modules:
                raise ContradictionError(
                    "feedforward_modules", f"{name!r} is not in target_modules"
                )


class TrainingSection(Table):
    """``[training]``: one method, its schedule and its step sizes."""

    method: str
    rounds: Count
    steps_per_round: Count
    expected_batch: Count
    optimizer: Literal["sgd", "adam"] = "adam"
    momentum: Decay = 0.0
    # Of the classifier, where the task has one.
    head_learning_rate: Positive | None = None
    # Public, by label; a label that is not named weighs 1. Counted from private
    # records they would be a release of their own.
    class_weights: Mapping[str, Positive] | None = None
    learning_rate: Mapping[str, Positive] = Field(default_factory=dict)
    # Adam's, of arms without privacy, whose gradients are not clipped and have another
    # scale; by method, 2e-3 for those that are not named.
    plain_learning_rate: Mapping[str, Positive] | None = None
    # What the coordinator does with the mean change, and its settings.
    server_optimizer: Annotated[
        Literal["fedavgm", "fedadam"] | None, BeforeValidator(_none_as_missing)
    ] = None
    server_learning_rate: Positive | None = None
    server_momentum: Decay | None = None
    server_betas: Annotated[
        tuple[Decay, Decay] | None, BeforeValidator(_list_as_tuple)
    ] = None
    server_tau: Positive | None = None

    @property
    def head_rate(self) -> float:
        """The classifier's step size; 0 where there is no classifier."""
        return self.head_learning_rate or 0.0

    @model_validator(mode="after")
    def _server(self) -> Self:
        chosen = self.server_optimizer
        owners = {
            "server_learning_rate": ("fedavgm", "fedadam"),
            "server_momentum": ("fedavgm",),
            "server_betas": ("fedadam",),
            "server_tau": ("fedadam",),
        }
        for key, names in owners.items():
            if getattr(self, key) is not None and chosen not in names:
                raise ContradictionError(
                    key,
                    f"belongs to server_optimizer = {' or '.join(map(repr, names))}",
                )
        if chosen is not None and self.server_learning_rate is None:
            raise ContradictionError(
                "server_learning_rate", f"required with server_optimizer = {chosen!r}"
            )
        return self

    @model_validator(mode="after")
    def _methods(self) -> Self:
        check_method("method", self.method)
        for name in self.learning_rate:
            if name != "pooled":  # A baseline of a comparison, and no method.
                check_method(f"learning_rate.{name}", name)
        for name in self.plain_learning_rate or {}:
            check_method(f"plain_learning_rate.{name}", name)
        self.require_learning_rate(self.method)
        return self

    def require_learning_rate(self, method: str) -> None:
        """Refuse a method whose adapters have no step size of their own."""
        if method != "head-only" and method not in self.learning_rate:
            raise ContradictionError(
                f"learning_rate.{method}",
                "required: a step size tuned for one method is unfair to another",
            )


class PrivacySection(Table):
    """``[privacy]``: the guarantee that every site's plan is calibrated to."""

    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["record", "person", "site"]
    max_records_per_unit: Count = 1
    clip_norm: Positive = 1.0
    clip_rule: Literal["flat", "normalised", "per-tensor"] = "flat"
    clip_gamma: Positive | None = None
    neighbouring: Literal["add-remove"] = "add-remove"
    nominal_units: Mapping[SiteName, Annotated[int, Field(ge=MIN_UNITS)]] | None = None

    @model_validator(mode="after")
    def _unit(self) -> Self:
        if self.unit != "person" and self.max_records_per_unit != 1:
            raise ContradictionError(
                "max_records_per_unit", f"is 1 where the unit is the {self.unit}"
            )
        return self

    @model_validator(mode="after")
    def _clipping(self) -> Self:
        if (self.clip_gamma is None) == (self.clip_rule == "normalised"):
            raise ContradictionError(
                "clip_gamma", "belongs to clip_rule = 'normalised' only, and is needed"
            )
        return self


_SUITES: Mapping[str, Literal[1, 2, 3]] = {"x25519": 1, "hybrid": 2, "chacha20": 3}


class SecaggSection(Table):
    """``[secagg]``: who may fail and collude in the secure sum, and what it sums."""

    threshold: Annotated[int, Field(ge=0)] = 0
    colluders: Annotated[int, Field(ge=0)] = 1
    ring_bits: Literal[0, 16, 32, 64] = 0
    mode: Literal["malicious", "semi-honest"] = "malicious"
    suite: Literal["x25519", "hybrid", "chacha20"] = "hybrid"
    clip_range: Positive | None = None
    # None and not "none": a study that says nothing keeps its digest.
    rotation: Literal["hadamard"] | None = None

    @property
    def suite_number(self) -> Literal[1, 2, 3]:
        """The suite in ``protocols.suites``."""
        return _SUITES[self.suite]


class Dropout(Table):
    """``[[simulation.dropouts]]``: a site vanishes after sending ``phase``."""

    round: Count
    site: SiteName
    phase: Literal["shares", "masked-input"]


class SimulationSection(Table):
    """``[simulation]``: rehearsed failures; a seed makes a run NOT PRIVATE."""

    seed: Seed | None = None
    dropouts: Annotated[tuple[Dropout, ...], BeforeValidator(_list_as_tuple)] = ()

    @model_validator(mode="after")
    def _once(self) -> Self:
        places = tuple((dropout.round, dropout.site) for dropout in self.dropouts)
        _require_unique("dropouts", places)
        return self


class LedgerSection(Table):
    """``[ledger]``: how many sites cosign the record of a run, and with what.

    ``witnesses`` None asks for as many as the secure sum's threshold.
    """

    witnesses: Count | None = None
    cosignatures: Literal["ed25519", "ml-dsa-44"] = "ed25519"


class CompareSection(Table):
    """``[compare]``: what ``secfed compare`` sets side by side."""

    methods: Texts = ("ffa-lora", "fedavg")
    baselines: Annotated[
        tuple[Literal["head-only", "non-private", "pooled"], ...],
        BeforeValidator(_list_as_tuple),
    ] = ("head-only", "non-private")
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_list_as_tuple)] = (0,)
    # A grid: one comparison for each combination. None leaves the study's own value.
    epsilons: Annotated[tuple[Epsilon, ...], BeforeValidator(_list_as_tuple)] | None = (
        None
    )
    alphas: (
        Annotated[tuple[NotNegative, ...], BeforeValidator(_list_as_tuple)] | None
    ) = None
    ranks: Annotated[tuple[Rank, ...], BeforeValidator(_list_as_tuple)] | None = None
    # Every arm without noise: what a grid's epsilon "inf" makes of its cells.
    without_privacy: Literal[True] | None = None

    @property
    def is_grid(self) -> bool:
        """Whether it names more than one comparison, or the axes of one."""
        axes = (self.epsilons, self.alphas, self.ranks)
        return any(axis is not None for axis in axes)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for index, name in enumerate(self.methods):
            check_method(f"methods[{index + 1}]", name)
        for key in ("methods", "baselines", "seeds", "epsilons", "alphas", "ranks"):
            _require_unique(key, getattr(self, key) or ())
        for key in ("methods", "seeds", "epsilons", "alphas", "ranks"):
            if getattr(self, key) == ():
                raise ContradictionError(key, "name at least one")
        if self.without_privacy and self.epsilons is not None:
            raise ContradictionError(
                "without_privacy", 'a grid says this by "inf" in epsilons'
            )
        return self
