"""``[data]``: where records come from, whose they are, and the public test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from secfed.study.fields import (
    Count,
    NotNegative,
    Positive,
    Seed,
    SiteName,
    SiteNames,
    Text,
    Texts,
    require_unique,
)
from secfed.study.reading import ContradictionError, Table, nearest

__all__ = ["BUILTIN_SOURCES", "DataSection", "HoldoutSection", "PartitionSection"]

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
        require_unique("sites", self.sites)
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
        require_unique("home", labels)
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
        require_unique("columns", self.columns or ())

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
        require_unique("labels", labels)
        for label in (
            label for own in (self.partition.home or {}).values() for label in own
        ):
            if label not in labels:
                raise ContradictionError(
                    "partition.home", f"unknown {label!r}; {nearest(label, labels)}"
                )
