"""Real data sets as CSV files of the output folder, and what part is used for what.

Three parts that share no group: *tuning* is declared public and hyper-parameters are
chosen on it alone; *private* is divided among the sites; *test* is scored on.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.utility_recipes import Utility
from secfed.data.files import load_external
from secfed.data.icd10cm import load_icd10cm
from secfed.data.partition import assign_sites, at_most, split_holdout
from secfed.data.records import RecordTable, stable_uniforms
from secfed.errors import DataError
from secfed.study.data_sections import DataSection, HoldoutSection, PartitionSection

__all__ = ["SOURCES", "Parts", "load_parts", "missing"]

_SEED = 0
_TUNING_TEST = 0.2

Rows = Iterator[tuple[str, str, str]]
"""Text, label, group (empty: the text itself)."""


@dataclass(frozen=True)
class Parts:
    """Private records by site, and the test records; all of them are public here."""

    sites: tuple[RecordTable, ...]
    test: RecordTable


def _lines(path: Path) -> io.StringIO:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return io.StringIO(text.decode("utf-8"), newline="")


def _sst2(folder: Path, part: str) -> Rows:
    name = {"train": "train.tsv.gz", "test": "dev.tsv"}[part]
    lines = _lines(folder / name)
    for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
        label = ("negative", "positive")[int(row["label"])]
        yield row["sentence"].strip(), label, ""


def _banking77(folder: Path, part: str) -> Rows:
    for row in csv.DictReader(_lines(folder / f"{part}.csv.gz")):
        yield row["text"], row["category"], ""


def _medquad_sections(folder: Path, part: str) -> Rows:
    for row in csv.DictReader(_lines(folder / "medquad_sections.csv.gz")):
        if row["split"] == part:
            yield row["text"], row["label"], row["focus"]


SOURCES: Final[dict[str, Callable[[Path, str], Rows]]] = {
    "glue_sst2": _sst2,
    "banking77": _banking77,
    "medquad_sections": _medquad_sections,
}
"""Folders below ``--data`` and how to read them; their licences stand beside them."""


def missing(utility: Utility, data: Path) -> str:
    """Why a data set cannot be used; empty where it can."""
    if utility.is_builtin:
        return ""
    if utility.source not in SOURCES:
        return f"no reader for {utility.source!r}; known: {', '.join(SOURCES)}"
    folder = data / utility.source
    return "" if folder.is_dir() else f"no folder {folder}; name its parent with --data"


def load_parts(utility: Utility, data: Path, out: Path, *, tuning: bool) -> Parts:
    """The records of every site and the test records.

    Args:
        utility: The data set.
        data: The folder that holds the source's folder.
        out: The data set's output folder; CSV files are written here.
        tuning: One site that holds the tuning part, scored on a fifth of its groups.
    """
    records, test = _tables(utility, data, out)
    public = _is_tuning(records, utility.tuning_share)
    if tuning:
        mine, test = split_holdout(
            records.select(np.flatnonzero(public)), _TUNING_TEST, _SEED
        )
        return Parts((mine,), at_most(test, utility.max_test, _SEED, "test"))
    private = records.select(np.flatnonzero(~public))
    private = at_most(private, utility.max_records, _SEED, "records")
    owners = assign_sites(private, _section(utility, "records.csv"))
    sites = tuple(private.select(rows) for rows in owners.values())
    return Parts(sites, at_most(test, utility.max_test, _SEED, "test"))


def _tables(utility: Utility, data: Path, out: Path) -> tuple[RecordTable, RecordTable]:
    if utility.is_builtin:
        return split_holdout(load_icd10cm(), utility.holdout_share or 0.0, _SEED)
    if reason := missing(utility, data):
        raise DataError(f"{utility.name}: {reason}")
    tables = []
    for part, name in (("train", "records.csv"), ("test", "test.csv")):
        path = out / name
        if not path.exists():
            _write(path, SOURCES[utility.source](data / utility.source, part))
        tables.append(load_external(_section(utility, name), out))
    return tables[0], tables[1]


def _write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "group"))
        writer.writerows((text, label, group or text) for text, label, group in rows)
    partial.replace(path)


def _section(utility: Utility, source: str) -> DataSection:
    builtin = utility.is_builtin
    return DataSection(
        source=utility.source if builtin else source,
        text_column=None if builtin else "text",
        label_column=None if builtin else "label",
        group_column=None if builtin else "group",
        labels=utility.labels,
        seed=_SEED,
        partition=PartitionSection(
            kind="dirichlet",
            alpha=utility.alpha,
            sites=tuple(f"site-{number + 1}" for number in range(utility.sites)),
        ),
        holdout=HoldoutSection(fraction=0.5),  # not used: the parts are made here
    )


def _is_tuning(table: RecordTable, share: float) -> NDArray[np.bool_]:
    """Whole groups, so that no private group takes part in the choice of a recipe."""
    return stable_uniforms(_SEED, "tuning", table.groups) < share
