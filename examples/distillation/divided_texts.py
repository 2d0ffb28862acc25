"""A data set in four files: for a teacher, for a search, the sites' own, a test set.

What trains the teacher and what a search of step sizes is scored on are declared
public. The division is by the text itself, so that a sentence that occurs twice is in
one file only, and no sentence of the test set is in another.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secfed.data.tsv import read_tsv
from secfed.study import Study, load_study, load_study_dict

__all__ = ["DATASETS", "Labelled", "divide", "read_labelled", "study_over"]

EXAMPLES: Final = Path(__file__).resolve().parents[1]
DATASETS: Final = ("cola", "sst2")
PARTS: Final = ("public", "search", "sites", "holdout")
SEARCH_SHARE: Final = 0.1
"""Of the training records, public too: step sizes are searched on them."""

_TEXT, _LABEL = "sentence", "label"
_LEAST_BATCHES: Final = 3
"""In a site's records: of fewer records than the study's a batch is smaller."""

Row = tuple[str, str]


@dataclass(frozen=True)
class Labelled:
    """Texts and the numbers of their classes."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def divide(name: str, folder: Path, public_share: float) -> None:
    """Write a file for each of ``PARTS``, unless they are there.

    Args:
        name: One of ``DATASETS``.
        folder: Where they are written.
        public_share: Of the training records, by the hash of their text; trains the
            teacher.

    Raises:
        SystemExit: The data set is not on this machine.
    """
    if all((folder / f"{part}.tsv").is_file() for part in PARTS):
        return
    study = load_study(EXAMPLES / name / "study.toml")
    rows = _rows(study, study.data.source, name)
    held = _rows(study, str(study.data.holdout.source), name)
    kept = {text for text, _ in held}
    parts: dict[str, list[Row]] = {part: [] for part in PARTS} | {"holdout": held}
    for row in rows:
        if row[0] not in kept:
            parts[_part(_share(row[0]), public_share)].append(row)
    folder.mkdir(parents=True, exist_ok=True)
    for part, own in parts.items():
        _write(folder / f"{part}.tsv", own)


def _rows(study: Study, source: str, name: str) -> list[Row]:
    path = EXAMPLES / name / source
    if not path.is_file():
        raise SystemExit(f"{path}: the data set is not there; its README says why")
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    columns = read_tsv(path, text, study.data.columns)
    found = (
        columns[str(study.data.text_column)],
        columns[str(study.data.label_column)],
    )
    return [(text.strip(), label) for text, label in zip(*found, strict=True)]


def _part(share: float, public_share: float) -> str:
    if share < public_share:
        return "public"
    return "search" if share < public_share + SEARCH_SHARE else "sites"


def _share(text: str) -> float:
    """Where a text stands in [0, 1), by its hash."""
    plain = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8]) / 2**64


def _write(path: Path, rows: Iterable[Row]) -> None:
    lines = [f"{_TEXT}\t{_LABEL}", *(f"{text}\t{label}" for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_labelled(path: Path, labels: tuple[str, ...], limit: int) -> Labelled:
    """At most ``limit`` records of a file that ``divide`` wrote, in its order."""
    columns = read_tsv(path, path.read_text("utf-8"))
    return Labelled(
        tuple(columns[_TEXT][:limit]),
        tuple(labels.index(label) for label in columns[_LABEL][:limit]),
    )


def study_over(
    name: str,
    folder: Path,
    *,
    full: bool,
    records: int,
    scored_on: str,
    changes: Mapping[str, Mapping[str, Any]],
) -> Study:
    """The shipped study of the data set, over the sites' part and with changes.

    Args:
        name: One of ``DATASETS``.
        folder: Where ``divide`` wrote.
        full: ``study_full.toml`` and not ``study.toml``.
        records: Of all sites; public, and declared in equal shares.
        scored_on: The part that is the study's hold-out.
        changes: Keys by table.
    """
    file = "study_full.toml" if full else "study.toml"
    values = load_study(EXAMPLES / name / file).canonical()
    values["data"].pop("columns", None)
    values["data"] |= {
        "source": str((folder / "sites.tsv").resolve()),
        "text_column": _TEXT,
        "label_column": _LABEL,
        "max_records": records,
        "holdout": {"source": str((folder / f"{scored_on}.tsv").resolve())},
    }
    sites = values["data"]["partition"]["sites"]
    values["privacy"]["nominal_units"] = dict.fromkeys(sites, records // len(sites))
    training = values["training"]
    most = records // len(sites) // _LEAST_BATCHES
    training["expected_batch"] = min(training["expected_batch"], most)
    values.pop("compare", None)
    for table, own in changes.items():
        values[table] = {**values.get(table, {}), **own}
    return load_study_dict(values, f"{name}, distilled")
