"""The records of a source before they are divided, and a stable way to draw them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secfed.types import LabelledTexts

__all__ = ["RecordTable", "stable_uniforms"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class RecordTable:
    """Columns of equal length, one entry per record.

    Attributes:
        texts: What the model reads.
        labels: int64 indices into ``label_names``.
        label_names: The study's classes, in the order of the head.
        groups: Records of one group are held out together.
        units: Whose record it is; empty where every record is its own unit.
        sites: The natural site of each record; empty where there is none.
        rows: Where each record stands in the source, counted from 1; None where
            nobody numbered them.
        tokens: Of each text, where the records are blocks of tokens; else empty.
        pairs: The second text of each record; empty where there is none.
        prompt_tokens: How many of ``tokens`` ask, where the others answer.
        subgroups: Of a public test set whose scores are told by group; else empty.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    groups: tuple[str, ...]
    units: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    rows: NDArray[np.int64] | None = None
    tokens: tuple[tuple[int, ...], ...] = ()
    pairs: tuple[str, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    subgroups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return "RecordTable(<private>)"

    def select(self, rows: NDArray[np.int64]) -> RecordTable:
        """The records at ``rows``, in that order."""
        return RecordTable(
            texts=_at(self.texts, rows),
            labels=self.labels[rows],
            label_names=self.label_names,
            groups=_at(self.groups, rows),
            units=_at(self.units, rows),
            sites=_at(self.sites, rows),
            rows=None if self.rows is None else self.rows[rows],
            tokens=_at(self.tokens, rows),
            pairs=_at(self.pairs, rows),
            prompt_tokens=_at(self.prompt_tokens, rows),
            subgroups=_at(self.subgroups, rows),
        )

    def numbered(self) -> RecordTable:
        """The same records, each with the number of its row."""
        return replace(self, rows=np.arange(1, len(self) + 1))

    def row_numbers(self) -> tuple[int, ...]:
        """The rows of a numbered table as whole numbers."""
        return () if self.rows is None else tuple(self.rows.tolist())

    def unit_keys(self) -> tuple[str, ...]:
        """One key per record; records of one unit share theirs."""
        return self.units or self.record_keys()

    def record_keys(self) -> tuple[str, ...]:
        """One key per record, made of its content; equal records differ by rank."""
        seen: dict[tuple[str, str, int], int] = {}
        keys = []
        owners = self.units or self.groups
        columns = zip(owners, self.contents(), self.labels.tolist(), strict=True)
        for owner, text, label in columns:
            content = (owner, text, label)
            rank = seen[content] = seen.get(content, -1) + 1
            keys.append(f"{owner}\0{text}\0{label}\0{rank}")
        return tuple(keys)

    def contents(self) -> tuple[str, ...]:
        """What each record says: its text, and the second one."""
        if not self.pairs:
            return self.texts
        both = zip(self.texts, self.pairs, strict=True)
        return tuple(f"{text}\0{pair}" for text, pair in both)

    def labelled(self) -> LabelledTexts:
        """What the model reads, and labels."""
        return LabelledTexts(
            texts=self.texts,
            labels=self.labels,
            tokens=self.tokens,
            pairs=self.pairs,
            prompt_tokens=self.prompt_tokens,
        )


def stable_uniforms(
    seed: int, purpose: str, keys: Iterable[str]
) -> NDArray[np.float64]:
    """One public number in [0, 1) per key, fixed by the seed and the key alone.

    Guarantees:
        The number of a key does not depend on the other keys. A generator that
        walks over the records would move everyone when one person is added,
        and the sensitivity of all that follows would be lost.
    """
    start = hashlib.sha256(f"secfed/data/{purpose}/{seed}\0".encode())
    drawn = []
    for key in keys:
        state = start.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        # 53 bits are what a float64 in [0, 1) holds.
        drawn.append((int.from_bytes(state.digest()[:8], "big") >> 11) * 2.0**-53)
    return np.array(drawn, dtype=np.float64)


def _at(column: Sequence[_T], rows: NDArray[np.int64]) -> tuple[_T, ...]:
    return tuple(column[row] for row in rows.tolist()) if column else ()
