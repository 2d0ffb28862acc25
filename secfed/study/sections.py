"""The tables of a study file; each class is one table and knows its own rules.

Rules that need two tables stand in ``secfed.study.definition``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    model_validator,
)

from secfed.study.fields import (
    WITHOUT_PRIVACY,
    Count,
    Decay,
    Epsilon,
    NotNegative,
    Positive,
    Rank,
    Seed,
    Sha256,
    SiteName,
    Text,
    Texts,
    as_day,
    list_as_tuple,
    none_as_missing,
    require_unique,
)
from secfed.study.kinds import KINDS, REFUSED_KINDS, AdapterKind
from secfed.study.reading import ContradictionError, Table, nearest

__all__ = [
    "METHODS",
    "MIN_SITES",
    "MIN_UNITS",
    "REFUSED_METHODS",
    "WITHOUT_PRIVACY",
    "AdapterSection",
    "CompareSection",
    "Dropout",
    "LedgerSection",
    "ModelSection",
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

MIN_SITES: Final = 3
"""With two sites each reads the other's update off the sum."""

MIN_UNITS: Final = 10
"""Below ten people an aggregate is about persons, not about a population."""


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


def _no_dropout(value: object) -> None:
    if isinstance(value, bool) or value not in (None, 0):
        raise ContradictionError(
            "",
            "must be 0: before every round a batch is repeated bit for bit to show "
            "that records do not influence each other, and dropout draws anew; the "
            "noise regularises as dropout would",
        )


class StudySection(Table):
    """``[study]``: names for people and directories."""

    name: SiteName
    title: Text
    # Who gets the release besides the sites and the coordinator, and the last day
    # (UTC) on which a round may begin. Sites approve both with the study.
    recipients: Texts | None = None
    expires: Annotated[str, AfterValidator(as_day)] | None = None

    @model_validator(mode="after")
    def _recipients(self) -> Self:
        if self.recipients is not None and not self.recipients:
            raise ContradictionError("recipients", "name somebody, or leave it out")
        require_unique("recipients", self.recipients or ())
        return self


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
        Literal["nf4", "int8"] | None, BeforeValidator(none_as_missing)
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
        require_unique("target_modules", self.target_modules)
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
        Literal["fedavgm", "fedadam"] | None, BeforeValidator(none_as_missing)
    ] = None
    server_learning_rate: Positive | None = None
    server_momentum: Decay | None = None
    server_betas: Annotated[
        tuple[Decay, Decay] | None, BeforeValidator(list_as_tuple)
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
    dropouts: Annotated[tuple[Dropout, ...], BeforeValidator(list_as_tuple)] = ()

    @model_validator(mode="after")
    def _once(self) -> Self:
        places = tuple((dropout.round, dropout.site) for dropout in self.dropouts)
        require_unique("dropouts", places)
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
        BeforeValidator(list_as_tuple),
    ] = ("head-only", "non-private")
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(list_as_tuple)] = (0,)
    # A grid: one comparison for each combination. None leaves the study's own value.
    epsilons: Annotated[tuple[Epsilon, ...], BeforeValidator(list_as_tuple)] | None = (
        None
    )
    alphas: (
        Annotated[tuple[NotNegative, ...], BeforeValidator(list_as_tuple)] | None
    ) = None
    ranks: Annotated[tuple[Rank, ...], BeforeValidator(list_as_tuple)] | None = None
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
            require_unique(key, getattr(self, key) or ())
        for key in ("methods", "seeds", "epsilons", "alphas", "ranks"):
            if getattr(self, key) == ():
                raise ContradictionError(key, "name at least one")
        if self.without_privacy and self.epsilons is not None:
            raise ContradictionError(
                "without_privacy", 'a grid says this by "inf" in epsilons'
            )
        return self
