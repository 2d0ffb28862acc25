"""Which privacy units a site holds back for evaluation, and never trains on.

A unit is held back where the hash of its key, under the study's public seed, falls
below the share that the study names. So all records of a unit are on one side, one
unit more or less moves no other, and a person whom two sites know by the same key is
held back at both. Who knows a unit's key knows its side; that is not a secret, and
noise protects either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secfed.data.records import stable_uniforms
from secfed.study.evaluation import EvaluationSection
from secfed.types import LabelledTexts, SiteData

_T = TypeVar("_T")

__all__ = ["draw_held_back", "held_part", "single_records", "training_part"]


def draw_held_back(
    section: EvaluationSection, keys: Sequence[str]
) -> NDArray[np.bool_]:
    """Whether each record is held back, by the key of its unit; one entry a record."""
    return stable_uniforms(section.seed, "evaluation", keys) < section.fraction


def training_part(site: SiteData) -> SiteData:
    """What a site that evaluates trains on, with its units numbered anew."""
    return site if site.held_back is None else _part(site, ~site.held_back)


def held_part(site: SiteData) -> SiteData:
    """What it holds back; empty where the draw, or the study, left nothing."""
    held = site.held_back
    chosen = np.zeros(len(site.units), dtype=np.bool_) if held is None else held
    return _part(site, chosen)


def single_records(records: LabelledTexts) -> Iterator[LabelledTexts]:
    """Every record by itself."""
    for row in range(len(records.texts)):
        yield _texts_at(records, np.array([row]))


def _part(site: SiteData, chosen: NDArray[np.bool_]) -> SiteData:
    rows = np.flatnonzero(chosen)
    _, units = np.unique(site.units[rows], return_inverse=True)
    return SiteData(
        site=site.site,
        records=_texts_at(site.records, rows),
        units=units.astype(np.int64),
    )


def _texts_at(records: LabelledTexts, rows: NDArray[np.int64]) -> LabelledTexts:
    return LabelledTexts(
        texts=_at(records.texts, rows),
        labels=records.labels[rows],
        tokens=_at(records.tokens, rows),
        pairs=_at(records.pairs, rows),
        prompt_tokens=_at(records.prompt_tokens, rows),
    )


def _at(column: tuple[_T, ...], rows: NDArray[np.int64]) -> tuple[_T, ...]:
    return tuple(column[row] for row in rows.tolist()) if column else ()
