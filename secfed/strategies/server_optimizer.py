"""Optimizers at the coordinator: the mean change is a gradient, not yet the step.

References: FedAvgM, Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", arXiv 1909.06335 (2019), section 3;
FedAdam, Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295,
algorithm 2.

With Delta the mean of what the sites sent, eta the server's learning rate, and all
operations number by number::

    fedavgm   v <- momentum v + Delta                  x <- x + eta v
    fedadam   m <- beta1 m + (1 - beta1) Delta
              v <- beta2 v + (1 - beta2) Delta**2      x <- x + eta m / (sqrt(v) + tau)

v of FedAdam starts at tau**2, and its moments are not corrected for their start, as in
the paper. What the coordinator remembers are functions of earlier sums, so all of this
is post-processing. The optimizer sees the mean, noise and all: FedAdam's v is mostly
the noise's variance where that is the larger part.

Only for rules that add the mean to what the sites received. Where the coordinator
factors, folds or turns afterwards, a number of the next round is another one than it
was, and a moment of it means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from secfed.strategies.base import (
    NO_WEIGHTS,
    BaseWeights,
    ServerState,
    Shapes,
    SiteView,
    Strategy,
    require_finite,
)
from secfed.types import Adapter, Tensors

__all__ = ["FedAdam", "FedAvgM", "ServerOptimizer", "WithServerOptimizer", "adds_means"]

_MOMENTUM: Final = ".momentum"
_FIRST, _SECOND = ".first-moment", ".second-moment"

Wide = NDArray[np.float64]


class ServerOptimizer(Protocol):
    """From the mean of a round to the step that is taken."""

    @property
    def title(self) -> str:
        """Its name, as in a study file."""
        ...

    def step(self, name: str, mean: Wide, memory: Tensors, /) -> dict[str, Wide]:
        """One tensor's step under its name, and its moments under theirs."""
        ...


@dataclass(frozen=True)
class FedAvgM:
    """Momentum at the coordinator.

    Attributes:
        learning_rate: eta.
        momentum: From 0 to below 1.
    """

    learning_rate: float
    momentum: float = 0.9
    title: str = field(default="fedavgm", init=False)

    def step(self, name: str, mean: Wide, memory: Tensors, /) -> dict[str, Wide]:
        """See the module."""
        velocity = self.momentum * _last(memory, name + _MOMENTUM, mean) + mean
        return {name: self.learning_rate * velocity, name + _MOMENTUM: velocity}


@dataclass(frozen=True)
class FedAdam:
    """Adam at the coordinator.

    Attributes:
        learning_rate: eta; with few rounds about the size of the change wanted.
        betas: Of the first and the second moment, from 0 to below 1.
        tau: What is added to the root of the second moment; larger is less adaptive.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3
    title: str = field(default="fedadam", init=False)

    def step(self, name: str, mean: Wide, memory: Tensors, /) -> dict[str, Wide]:
        """See the module."""
        beta1, beta2 = self.betas
        first = beta1 * _last(memory, name + _FIRST, mean) + (1.0 - beta1) * mean
        second = beta2 * _last(memory, name + _SECOND, mean, self.tau**2)
        second += (1.0 - beta2) * mean**2
        step = self.learning_rate * first / (np.sqrt(second) + self.tau)
        return {name: step, name + _FIRST: first, name + _SECOND: second}


def _last(memory: Tensors, key: str, like: Wide, start: float = 0.0) -> Wide:
    """A moment after the last round, or its start."""
    found = memory.get(key)
    return np.full_like(like, start) if found is None else found.astype(np.float64)


@dataclass(frozen=True)
class WithServerOptimizer(Strategy):
    """A rule whose mean goes through an optimizer before it is added.

    Everything else, and every attribute, is the rule's own. ``exact`` speaks of the
    mean, before the optimizer.

    Attributes:
        rule: It must add means (``adds_means``).
        optimizer: One of the two above.
    """

    rule: Strategy
    optimizer: ServerOptimizer

    def __post_init__(self) -> None:
        if not adds_means(self.rule):
            raise ValueError(f"{self.rule.name} does not add the mean of changes")
        for declared in Strategy.__annotations__:
            object.__setattr__(self, declared, getattr(self.rule, declared))
        title = f"{self.rule.title}; {self.optimizer.title} at the coordinator"
        object.__setattr__(self, "title", title)

    def for_sites(self, ranks: Sequence[int], /) -> Self:
        """As the rule."""
        return replace(self, rule=self.rule.for_sites(ranks))

    def remarks(self, adapter: Adapter, /) -> tuple[str, ...]:
        """As the rule."""
        return self.rule.remarks(adapter)

    def rank_at(self, site: SiteView, /) -> int | None:
        """As the rule."""
        return self.rule.rank_at(site)

    def trains(self, tensor: str, round_number: int, /) -> bool:
        """As the rule."""
        return self.rule.trains(tensor, round_number)

    def active(self, tensor: str, step: int, /) -> bool:
        """As the rule."""
        return self.rule.active(tensor, step)

    def init(
        self, adapter: Adapter, seed: int, base: BaseWeights = NO_WEIGHTS, /
    ) -> ServerState:
        """As the rule; nothing is remembered yet."""
        return self.rule.init(adapter, seed, base)

    def start(self, received: Adapter, site: SiteView, /) -> Adapter:
        """As the rule."""
        return self.rule.start(received, site)

    def payload(self, received: Adapter, start: Adapter, change: Tensors, /) -> Tensors:
        """As the rule."""
        return self.rule.payload(received, start, change)

    def shapes(self, adapter: Adapter, round_number: int, /) -> Shapes:
        """As the rule."""
        return self.rule.shapes(adapter, round_number)

    def keeps(self, tensor: str, /) -> bool:
        """As the rule."""
        return self.rule.keeps(tensor)

    def kept(self, start: Adapter, change: Tensors, site: SiteView, /) -> Tensors:
        """As the rule."""
        return self.rule.kept(start, change, site)

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The rule's own, of the step that the optimizer makes of the mean."""
        self.check(state, mean, round_number)
        memory = dict(state.memory)
        step: dict[str, NDArray[np.float32]] = {}
        for name, value in mean.items():
            change = value.astype(np.float64)
            for key, made in self.optimizer.step(name, change, memory).items():
                with np.errstate(over="ignore"):  # It is refused in the next line.
                    narrow = made.astype(np.float32)
                require_finite(key, narrow, state.round)
                (step if key == name else memory)[key] = narrow
        after = self.rule.apply(state, step, round_number)
        return replace(after, memory=memory)


def adds_means(rule: Strategy) -> bool:
    """Whether a rule does nothing with a mean but add it."""
    adds = type(rule).apply is Strategy.apply
    return adds and rule.linear and rule.needs == "sum"
