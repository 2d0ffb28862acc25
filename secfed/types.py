"""Values that three or more modules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HEAD",
    "IA3",
    "LORA_A",
    "LORA_B",
    "LORA_R",
    "MAGNITUDE",
    "MERGED",
    "VIRTUAL",
    "Adapter",
    "LabelledTexts",
    "SiteData",
    "Tensors",
]

Tensors = Mapping[str, NDArray[np.float32]]
"""Named arrays; iteration order is the order on the wire."""

LORA_A = ".lora_A"
LORA_B = ".lora_B"
LORA_R = ".lora_R"
MERGED = ".merged"
MAGNITUDE = ".magnitude"
IA3 = ".ia3"
VIRTUAL = "virtual.tokens"
HEAD = "head."
"""Prefix of the classifier's tensors, which every rule trains and averages."""


@dataclass(frozen=True)
class Adapter:
    """The trainable numbers of a study between two rounds.

    ``tensors`` maps ``<module>.lora_A`` (r, in), ``<module>.lora_B`` (out, r),
    ``head.weight`` (classes, hidden) and ``head.bias`` (classes,) to arrays.
    The change of module W is ``scaling * B @ A`` with
    ``scaling = lora_alpha / r`` (Hu et al., ICLR 2022, section 4.1).

    Some rules add ``<module>.lora_R`` (r, r) between the factors, for
    ``scaling * B @ R @ A``, or ``<module>.merged`` (out, in), a change that is
    folded into the frozen weight beside the factors.

    Kinds that are no products (``secfed.study.kinds``) have other tensors, in PEFT's
    shapes: ``<module>.magnitude`` (out,) beside the factors of DoRA,
    ``<module>.ia3`` (out, 1) or (1, in), and ``virtual.tokens`` (tokens, numbers) of
    prompts and prefixes. They have no ``modules`` and no ``delta``.
    """

    tensors: Tensors
    scaling: float

    def modules(self) -> tuple[str, ...]:
        """The modules whose change is a product of factors, in wire order."""
        return tuple(
            name.removesuffix(LORA_A)
            for name in self.tensors
            if name.endswith(LORA_A)
            and name.removesuffix(LORA_A) + MAGNITUDE not in self.tensors
        )

    def delta(self, module: str) -> NDArray[np.float64]:
        """The change of one module's weight, dense: float64 of shape (out, in)."""
        own = {
            suffix: self.tensors[module + suffix].astype(np.float64)
            for suffix in (LORA_A, LORA_B, LORA_R, MERGED)
            if module + suffix in self.tensors
        }
        left = own[LORA_B] @ own[LORA_R] if LORA_R in own else own[LORA_B]
        product: NDArray[np.float64] = self.scaling * left @ own[LORA_A]
        return product + own[MERGED] if MERGED in own else product

    def with_tensors(self, added: Tensors) -> Adapter:
        """This adapter with more tensors, or others of the same name, at the end."""
        return Adapter(tensors={**self.tensors, **added}, scaling=self.scaling)

    def replaced(self, changed: Tensors) -> Adapter:
        """This adapter with some tensors replaced; names and order are kept."""
        unknown = changed.keys() - self.tensors.keys()
        if unknown:
            raise KeyError(f"not tensors of this adapter: {sorted(unknown)}")
        merged = {
            name: changed.get(name, value) for name, value in self.tensors.items()
        }
        return Adapter(tensors=merged, scaling=self.scaling)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with class numbers; ``labels`` is int64 of shape (len(texts),).

    ``pairs`` are the second texts, where there are any. ``tokens`` are the ids of
    texts that are blocks of tokens; else empty. ``prompt_tokens`` says how many of
    them ask, where the others answer.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    tokens: tuple[tuple[int, ...], ...] = ()
    pairs: tuple[str, ...] = ()
    prompt_tokens: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"LabelledTexts(<{len(self.texts)} records>)"


@dataclass(frozen=True)
class SiteData:
    """One site's private records; ``units[i]`` is the privacy unit of record i.

    Units are numbered 0..num_units-1. ``held_back[i]`` says whether record i is kept
    for evaluation; None where the study asks for none. Nothing of this object leaves
    the site, not even its sizes.
    """

    site: str
    records: LabelledTexts
    units: NDArray[np.int64]
    held_back: NDArray[np.bool_] | None = None

    @property
    def num_units(self) -> int:
        """Number of privacy units (private: never released)."""
        return int(self.units.max()) + 1 if len(self.units) else 0

    def __repr__(self) -> str:
        return f"SiteData(site={self.site!r}, <private>)"
