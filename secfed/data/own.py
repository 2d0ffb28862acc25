"""The records of one party, where sites are on different machines.

Built-in text is public, so every party derives the same partition and takes its own
part. Of other sources each party has its own file under the name in the study: a
site's file holds its private records, the coordinator's the public test set.
"""

from __future__ import annotations

from pathlib import Path

from secfed.data.blocks import documents_to_blocks
from secfed.data.files import load_external
from secfed.data.loading import (
    StudyData,
    load_sites,
    require_subgroups,
    site_data,
)
from secfed.data.partition import at_most, cap_units
from secfed.data.records import RecordTable
from secfed.errors import DataError
from secfed.study import Study
from secfed.types import LabelledTexts

__all__ = ["load_holdout", "load_own"]


def load_own(study: Study, base_dir: Path, site: str) -> StudyData:
    """What one site holds; its hold-out is empty.

    Args:
        study: The checked study.
        base_dir: Folder that relative sources start from.
        site: One of the study's sites.

    Raises:
        DataError: The records do not fit the study, or ``site`` is not in it. Its text
            holds row numbers, never a record.
    """
    if site not in study.sites:
        raise DataError(f"{site!r} is not a site of the study {study.name!r}")
    if study.data.is_builtin:
        everything = load_sites(study, base_dir)
        held = everything.sites[site]
        names, units = everything.label_names, everything.nominal_units
    else:
        table = _table(study, base_dir, subgroups=False)
        limit = study.privacy.max_records_per_unit
        own = cap_units(table, limit, study.data.seed)
        held = site_data(site, own, study)
        names, units = table.label_names, dict(study.privacy.nominal_units or {})
    return StudyData(
        sites={site: held},
        holdout=_nothing(held.records),
        label_names=names,
        nominal_units=units,
        rows={},
        holdout_rows=(),
    )


def load_holdout(study: Study, base_dir: Path) -> StudyData:
    """What the coordinator holds: the public test set and no site's records.

    Raises:
        DataError: The records do not fit the study.
    """
    if study.data.is_builtin:
        everything = load_sites(study, base_dir)
        return StudyData(
            sites={},
            holdout=everything.holdout,
            label_names=everything.label_names,
            nominal_units=everything.nominal_units,
            rows={},
            holdout_rows=(),
        )
    table = _table(study, base_dir, subgroups=True)
    section = study.data
    kept = at_most(table, section.holdout.max_records, section.seed, "holdout-records")
    return StudyData(
        sites={},
        holdout=kept.labelled(),
        label_names=table.label_names,
        nominal_units=dict(study.privacy.nominal_units or {}),
        rows={},
        holdout_rows=(),
        holdout_subgroups=require_subgroups(kept.subgroups),
    )


def _table(study: Study, base_dir: Path, *, subgroups: bool) -> RecordTable:
    """All rows of a party's own file, as blocks where the study trains on text."""
    # No column says whose record it is: the whole file is one party's.
    section = study.data.model_copy(update={"site_column": None})
    table = load_external(section, base_dir, subgroups=subgroups).numbered()
    if study.is_causal_lm:
        table = documents_to_blocks(table, study, base_dir)
    return table


def _nothing(records: LabelledTexts) -> LabelledTexts:
    return LabelledTexts((), records.labels[:0])
