"""The one way from a study to the data of its sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from secfed.canonical import digest
from secfed.data.blocks import documents_to_blocks
from secfed.data.files import load_external
from secfed.data.held_back import draw_held_back
from secfed.data.icd10cm import load_icd10cm
from secfed.data.partition import (
    assign_sites,
    at_most,
    cap_units,
    split_holdout,
    without_groups_of,
)
from secfed.data.prompts import records_to_prompts
from secfed.data.records import RecordTable
from secfed.errors import DataError
from secfed.study import MIN_UNITS, Study
from secfed.types import LabelledTexts, SiteData

__all__ = [
    "StudyData",
    "fingerprint",
    "load_sites",
    "require_subgroups",
    "site_data",
]

_MOST_SUBGROUPS: Final = 50
_LEAST_OF_SUBGROUP: Final = 10


@dataclass(frozen=True)
class StudyData:
    """Everything the sites of a simulated study hold, and the public test set.

    Attributes:
        sites: Private records by site, in the study's order.
        holdout: Public test records; no group and no person is also at a site.
        label_names: Class names, in the order of the head's rows.
        nominal_units: Public number of units by site: declared by the study, or
            counted where the text itself is public.
        rows: Which rows of the source each site holds, counted from 1, one entry per
            record: a document that was cut stands once for each block. Private.
        holdout_rows: The rows of the test set, in its own file where it has one.
        holdout_subgroups: The public group of each test record, where the study names
            a column of them.
    """

    sites: Mapping[str, SiteData]
    holdout: LabelledTexts
    label_names: tuple[str, ...]
    nominal_units: Mapping[str, int]
    rows: Mapping[str, tuple[int, ...]]
    holdout_rows: tuple[int, ...]
    holdout_subgroups: tuple[str, ...] = ()


def load_sites(study: Study, base_dir: Path) -> StudyData:
    """Read, check, split and divide the study's records.

    Args:
        study: The checked study.
        base_dir: The study file's folder; relative sources start there.

    Raises:
        DataError: Anything about the records does not fit the study. Its text
            holds row numbers, never a record.
        ModelError: Documents are to be cut, and the tokenizer is not here.
    """
    section, privacy = study.data, study.privacy
    # 1. All records, checked.
    table = _all_records(study, base_dir, subgroups=section.holdout.source is None)
    # 2. The public test set first, so that it does not depend on max_records.
    training, holdout = _with_holdout(table, study, base_dir)
    holdout = at_most(
        holdout, section.holdout.max_records, section.seed, "holdout-records"
    )
    training = at_most(training, section.max_records, section.seed, "records")
    # 3. Sites; the cap comes after, because it is a promise of each site.
    sites, rows_of = {}, {}
    for site, rows in assign_sites(training, section).items():
        own = cap_units(
            training.select(rows), privacy.max_records_per_unit, section.seed
        )
        sites[site] = site_data(site, own, study)
        rows_of[site] = own.row_numbers()
    return StudyData(
        sites=sites,
        holdout=holdout.labelled(),
        label_names=table.label_names,
        nominal_units=dict(
            privacy.nominal_units
            or {site: data.num_units for site, data in sites.items()}
        ),
        rows=rows_of,
        holdout_rows=holdout.row_numbers(),
        holdout_subgroups=require_subgroups(holdout.subgroups),
    )


def _all_records(study: Study, base_dir: Path, *, subgroups: bool) -> RecordTable:
    """The source's rows, cut or asked as the task says."""
    if study.data.is_builtin:
        return _as_tokens(load_icd10cm().numbered(), study, base_dir)
    prompt = study.task.template if study.task else None
    table = load_external(study.data, base_dir, prompt, subgroups=subgroups).numbered()
    return _as_tokens(table, study, base_dir)


def _with_holdout(
    table: RecordTable, study: Study, base_dir: Path
) -> tuple[RecordTable, RecordTable]:
    """Training and public test records: split, or the test set's own file."""
    section = study.data
    if section.holdout.source is None:
        fraction = section.holdout.fraction or 0.0
        return split_holdout(table, fraction, section.seed)
    # Its records are at no site.
    changes = {"source": section.holdout.source, "site_column": None}
    own = section.model_copy(update=changes)
    read = study.model_copy(update={"data": own})
    test = _all_records(read, base_dir, subgroups=True)
    return without_groups_of(table, test), test


def require_subgroups(subgroups: tuple[str, ...]) -> tuple[str, ...]:
    """The groups of a test set, each large enough for a score.

    Raises:
        DataError: There are too many of them, or one is too small. No group is named:
            where the column is the wrong one, its values may be people's names.
    """
    counts = Counter(subgroups)
    if len(counts) > _MOST_SUBGROUPS:
        raise DataError(
            f"data.holdout.subgroup_column: {len(counts)} subgroups, at most "
            f"{_MOST_SUBGROUPS} are told apart; is it the column of a grouping?"
        )
    least = min(counts.values(), default=_LEAST_OF_SUBGROUP)
    if least < _LEAST_OF_SUBGROUP:
        raise DataError(
            "data.holdout.subgroup_column: the smallest of "
            f"{len(counts)} subgroups has {least} test records, and scores of "
            f"fewer than {_LEAST_OF_SUBGROUP} say nothing; join it with another, or "
            "raise holdout.max_records"
        )
    return subgroups


def _as_tokens(table: RecordTable, study: Study, base_dir: Path) -> RecordTable:
    """What a language model reads; a classifier reads the texts themselves."""
    if study.is_prompted:
        return records_to_prompts(table, study, base_dir)
    if study.is_causal_lm:
        return documents_to_blocks(table, study, base_dir)
    return table


def fingerprint(data: SiteData) -> str:
    """SHA-256 of a site's records, classes and units; private, as they are.

    A budget lists it as one version of its population. Adding a row gives
    another version of the same population.
    """
    records = data.records
    parts = [list(records.texts), records.labels.tolist(), data.units.tolist()]
    return digest([*parts, list(records.pairs)] if records.pairs else parts)


def site_data(site: str, table: RecordTable, study: Study) -> SiteData:
    """One site's records, with its privacy units numbered and drawn for evaluation.

    Raises:
        DataError: There are too few units to take part.
    """
    if not len(table):
        raise DataError(f"site {site!r} has no training records")
    number: dict[str, int] = {}
    keys = table.unit_keys()
    units = [number.setdefault(key, len(number)) for key in keys]
    if len(number) < MIN_UNITS:
        raise DataError(
            f"site {site!r} has fewer than {MIN_UNITS} privacy units; "
            "it cannot take part"
        )
    section = study.evaluation
    return SiteData(
        site=site,
        records=table.labelled(),
        units=np.array(units, dtype=np.int64),
        held_back=None if section is None else draw_held_back(section, keys),
    )
