"""What the parts of the training benchmark share, and how a model is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.sections import Findings, Section
from benchmarks.training_causal import causal, natural_tokens
from benchmarks.training_encoder import encoder
from benchmarks.training_plans import Case, Plan
from benchmarks.training_subject import Subject
from benchmarks.training_systems import Batches, Work

__all__ = ["Part", "Run", "System", "build"]

System = Callable[[Batches], Work]


@dataclass(kw_only=True)
class Run(Findings):
    """Sizes, and how many rounds were found to have done the same work."""

    plan: Plan
    rounds_checked: int = 0


Part = Callable[[Run], Iterator[Section]]
"""Measures, and yields its tables when they are full."""


def build(case: Case, *, exact: bool = False) -> Subject:
    """The model, adapter and records of a case."""
    if case.model == "encoder":
        return encoder(case, exact=exact)
    return causal(case, natural_tokens, exact=exact)
