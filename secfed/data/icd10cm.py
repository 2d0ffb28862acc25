"""The built-in text: diagnosis wordings of ICD-10-CM and their chapters.

The package simple-icd-10-cm carries the official tabular list (CDC/NCHS) as XML.
Only that file is read; the package itself is not imported, because its index of
all codes takes seconds to build.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secfed.data.records import RecordTable
from secfed.errors import DataError

__all__ = ["PACKAGE", "load_icd10cm"]

PACKAGE = "simple_icd_10_cm"
_REQUIREMENT = "simple-icd-10-cm==1.5.0"

_LAST_CHAPTER = 21
"""Chapter 22 (U codes, "special purposes") has 11 wordings: too few to learn, to
hold out by category or to spread over sites."""


@dataclass(frozen=True)
class _Wording:
    text: str
    chapter: int
    category: str


@functools.cache
def load_icd10cm() -> RecordTable:
    """Descriptions and inclusion terms of every code in chapters 1 to 21.

    Guarantees:
        No two texts are equal when lower-cased; a text that occurs in more than
        one chapter is left out altogether. The group is the 3-character
        category, so that sibling wordings can be held out together.

    Raises:
        DataError: The package is not installed or holds another file.
    """
    path = _tabular_list()
    try:
        root = ET.parse(path).getroot()  # noqa: S314 (a file of a pinned package)
    except ET.ParseError as error:
        raise DataError(f"{path}: not well-formed XML: {error}") from error
    chapters = {
        int(chapter.findtext("name", "0")): chapter
        for chapter in root.iterfind("chapter")
    }
    missing = set(range(1, _LAST_CHAPTER + 1)) - chapters.keys()
    if missing:
        raise DataError(f"{path}: no chapter {min(missing)}; install {_REQUIREMENT}")
    wordings = _without_duplicates(
        wording
        for number in range(1, _LAST_CHAPTER + 1)
        for wording in _wordings(number, chapters[number])
    )
    return RecordTable(
        texts=tuple(wording.text for wording in wordings),
        labels=np.array([wording.chapter - 1 for wording in wordings], dtype=np.int64),
        label_names=tuple(
            _title(chapters[number]) for number in range(1, _LAST_CHAPTER + 1)
        ),
        groups=tuple(wording.category for wording in wordings),
    )


def _tabular_list() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            f"builtin:icd10cm needs a package that is not installed: "
            f"pip install {_REQUIREMENT}"
        )
    found = sorted((Path(spec.origin).parent / "data").glob("icd10c-tabular-*.xml"))
    if len(found) != 1:
        raise DataError(
            f"{PACKAGE} holds {len(found)} tabular lists instead of one; "
            f"pip install {_REQUIREMENT}"
        )
    return found[0]


def _title(chapter: ET.Element) -> str:
    # "Neoplasms (C00-D49)": the range of codes is no part of the name.
    return re.sub(r"\s*\([A-Z0-9]+-[A-Z0-9]+\)\s*$", "", chapter.findtext("desc", ""))


def _wordings(number: int, chapter: ET.Element) -> Iterator[_Wording]:
    for code in chapter.iter("diag"):
        category = code.findtext("name", "").split(".")[0]
        terms = [code.findtext("desc")]
        terms += [note.text for note in code.iterfind("inclusionTerm/note")]
        for term in terms:
            text = " ".join((term or "").split())
            if text:
                yield _Wording(text, number, category)


def _without_duplicates(wordings: Iterator[_Wording]) -> list[_Wording]:
    first: dict[str, _Wording] = {}
    ambiguous: set[str] = set()
    for wording in wordings:
        known = first.setdefault(wording.text.lower(), wording)
        if known.chapter != wording.chapter:
            ambiguous.add(wording.text.lower())
    return [wording for text, wording in first.items() if text not in ambiguous]
