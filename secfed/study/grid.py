"""A grid: one comparison for each combination of epsilon, alpha and rank.

A cell is a study of its own, which differs from the grid's in these values and in
nothing else. Who holds the grid's study can compute every cell's digest.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from secfed.study.definition import Study, load_study_dict
from secfed.study.fields import WITHOUT_PRIVACY
from secfed.study.kinds import KINDS

__all__ = ["CELLS", "Cell", "grid_cells", "is_grid"]

CELLS = "cells"
"""The folder of the cells below a grid's run directory."""

_AXES = ("epsilons", "alphas", "ranks")


@dataclass(frozen=True)
class Cell:
    """One comparison of a grid.

    Attributes:
        name: Of its directory, made of the values on the grid's axes.
        epsilon: Of every private arm; None where nothing is private.
        alpha: Of the Dirichlet partition; None where the partition is another.
        rank: r of the adapters.
        study: The comparison's own study.
    """

    name: str
    epsilon: float | None
    alpha: float | None
    rank: int
    study: Study

    @property
    def run(self) -> str:
        """Its directory below the grid's."""
        return f"{CELLS}/{self.name}"


def is_grid(study: Study) -> bool:
    """Whether the study's ``[compare]`` names an axis of a grid."""
    return study.compare is not None and study.compare.is_grid


def grid_cells(study: Study) -> tuple[Cell, ...]:
    """Every cell, in the order of the study's lists; none if it is no grid.

    Ranks keep the scale of an adapter as in the study (of LoRA ``lora_alpha / r``).

    Raises:
        StudyError: A cell contradicts itself; the message names the cell.
    """
    compare = study.compare
    if compare is None or not compare.is_grid:
        return ()
    epsilons: tuple[float | Literal["inf"] | None, ...] = compare.epsilons or (None,)
    alphas: tuple[float | None, ...] = compare.alphas or (None,)
    ranks: tuple[int | None, ...] = compare.ranks or (None,)
    return tuple(
        _cell(study, *values) for values in itertools.product(epsilons, alphas, ranks)
    )


def _cell(
    study: Study,
    epsilon: float | Literal["inf"] | None,
    alpha: float | None,
    rank: int | None,
) -> Cell:
    axes = {"eps": epsilon, "alpha": alpha, "r": rank}
    name = "-".join(
        f"{key}{_plain(value)}" for key, value in axes.items() if value is not None
    )
    values = study.canonical()
    values["compare"] = {k: v for k, v in values["compare"].items() if k not in _AXES}
    if epsilon == WITHOUT_PRIVACY:
        values["compare"]["without_privacy"] = True
    elif epsilon is not None:
        values["privacy"]["epsilon"] = epsilon
    if alpha is not None:
        values["data"]["partition"]["alpha"] = alpha
    if rank is not None:
        values["adapter"] = _at_rank(values["adapter"], rank)
    own = load_study_dict(values, f"study {study.name}, cell {name}")
    return Cell(
        name=name,
        epsilon=None if epsilon == WITHOUT_PRIVACY else own.privacy.epsilon,
        alpha=own.data.partition.alpha,
        rank=own.adapter.r,
        study=own,
    )


def _at_rank(adapter: Mapping[str, Any], rank: int) -> dict[str, Any]:
    kind = KINDS[adapter.get("kind", "lora")]
    scale = kind.scaling(adapter["r"], adapter["lora_alpha"])
    return {**adapter, "r": rank, "lora_alpha": kind.lora_alpha(rank, scale)}


def _plain(value: float | str) -> str:
    """The shortest text that gives the value back, so that no two cells share one.

    >>> _plain(8.0), _plain(0.1), _plain("inf")
    ('8', '0.1', 'inf')
    """
    return str(value).removesuffix(".0")
