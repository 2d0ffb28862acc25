"""What every aggregation rule is, and what two of them share.

A rule says which tensors a site trains in a round and how the mean of the
updates moves the global adapter. An update is the change relative to the
adapter that the site received, so ``new = old + mean(updates)`` is the mean of
the sites' tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from secfed.errors import RoundAbortedError
from secfed.types import Adapter, Tensors

__all__ = [
    "HEAD",
    "Needs",
    "ServerState",
    "Strategy",
    "add_mean",
    "trained_names",
]

HEAD = "head."
"""Prefix of the classifier's tensors, which every rule trains and averages."""

Needs = Literal["sum", "singles"]
"""What the coordinator must learn: one sum per round, or each site's update."""


@dataclass(frozen=True)
class ServerState:
    """The coordinator's memory between rounds.

    Attributes:
        adapter: The global adapter, as the sites receive it.
        round: The last round that was applied; 0 before training.
    """

    adapter: Adapter
    round: int


class Strategy(Protocol):
    """An aggregation rule. Rounds are numbered from 1."""

    @property
    def name(self) -> str:
        """The name in a study file."""
        ...

    @property
    def title(self) -> str:
        """What it does, in one line."""
        ...

    @property
    def reference(self) -> str:
        """Where it was published."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the aggregated product is the mean of the sites' products."""
        ...

    @property
    def needs(self) -> Needs:
        """What the coordinator must learn."""
        ...

    @property
    def refusal(self) -> str:
        """Why masked aggregation cannot serve this rule; empty when it can."""
        ...

    def trains(self, tensor: str, round_number: int, /) -> bool:
        """Whether sites train, noise and send this tensor in this round."""
        ...

    def init(self, adapter: Adapter, seed: int, /) -> ServerState:
        """The state before round 1.

        Args:
            adapter: The study's initial adapter: A random, B zero.
            seed: Public; for rules that need random factors of their own.
        """
        ...

    def apply(
        self, state: ServerState, mean_update: Tensors, round_number: int, /
    ) -> ServerState:
        """The state after a round.

        Args:
            state: The state that the sites trained from.
            mean_update: The mean of the survivors' updates, with exactly the
                tensors that the rule trains in this round.
            round_number: Later than ``state.round``; a round that was
                interrupted is skipped, not repeated.

        Raises:
            ValueError: Tensors, shapes or the round are not those of this round.
            RoundAbortedError: The mean is not finite; nothing may be published.
        """
        ...


def trained_names(
    strategy: Strategy, adapter: Adapter, round_number: int
) -> tuple[str, ...]:
    """The tensors that sites train and send in this round, in wire order."""
    return tuple(
        name for name in adapter.tensors if strategy.trains(name, round_number)
    )


def add_mean(
    strategy: Strategy, state: ServerState, mean_update: Tensors, round_number: int
) -> ServerState:
    """Add the mean of the updates to the tensors that were trained."""
    if round_number <= state.round:
        raise ValueError(f"round {round_number} after round {state.round}")
    expected = trained_names(strategy, state.adapter, round_number)
    if mean_update.keys() != set(expected):
        raise ValueError(
            f"{strategy.name} trains {list(expected)} in round {round_number}, "
            f"the mean holds {list(mean_update)}"
        )
    changed = {}
    for name in expected:
        old, change = state.adapter.tensors[name], mean_update[name]
        # Numpy would broadcast a wrong shape without a word.
        if old.shape != change.shape:
            raise ValueError(f"{name}: {change.shape} does not fit {old.shape}")
        new = (old + change).astype(np.float32)
        if not np.isfinite(new).all():
            raise RoundAbortedError(
                "aggregate",
                (),
                f"{name} is not finite; the adapter of round {state.round} stays",
            )
        changed[name] = new
    return ServerState(adapter=state.adapter.replaced(changed), round=round_number)
