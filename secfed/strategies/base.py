"""What every aggregation rule is, with the defaults that most rules share.

A rule says which tensors a site trains in a round, what of the result enters the
masked sum, and how the mean moves the global adapter. A new rule is one file: a
frozen dataclass that derives from ``Strategy`` and changes what differs.

The default rule sends the change of every trained tensor, relative to the adapter
that the site received, so that ``new = old + mean(changes)`` is the mean of the
sites' tensors.

Privacy. Everything that a site trains in a round is clipped and noised together
(``trains``), whether it is sent or kept. What a rule computes from the noised
tensors afterwards (``start``, ``payload``, ``kept``, ``apply``) is post-processing
and costs nothing; it may use public numbers and nothing else of the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from secfed.errors import RoundAbortedError
from secfed.types import HEAD, Adapter, Tensors

__all__ = [
    "HEAD",
    "NO_WEIGHTS",
    "BaseWeights",
    "Needs",
    "ServerState",
    "Shapes",
    "SiteView",
    "Strategy",
    "moved",
    "sent_names",
    "trained_names",
]

Needs = Literal["sum", "singles", "nothing"]
"""What the coordinator must learn: a sum per round, each site's update, or nothing."""

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of what a site sends, in wire order."""

BaseWeights = Mapping[str, NDArray[np.float32]]
"""The frozen weight (out, in) of every adapted module."""

_NOTHING: Tensors = MappingProxyType({})
NO_WEIGHTS: BaseWeights = MappingProxyType({})


@dataclass(frozen=True)
class ServerState:
    """The coordinator's memory between rounds.

    Attributes:
        adapter: The global adapter, as the sites receive it.
        round: The last round that was applied; 0 before training.
        memory: What the rule alone remembers, such as an optimizer's moments. It
            depends on earlier sums only and is sent to nobody.
    """

    adapter: Adapter
    round: int
    memory: Tensors = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class SiteView:
    """What a rule may know at a site besides the adapter that was received.

    Attributes:
        rank: The site's own rank where ranks differ; None: the study's.
        kept: What the site kept from the last round that it trained in.
        round: The round that begins.
    """

    rank: int | None = None
    kept: Tensors = field(default_factory=lambda: _NOTHING)
    round: int = 1


@dataclass(frozen=True)
class Strategy:
    """An aggregation rule. Rounds are numbered from 1.

    Attributes:
        name: In a study file.
        title: What it does, in one line.
        reference: Where it was published.
        cost: Operations of the coordinator for one module after the masked vectors are
            there: n sites, W of (d, k), rank r, sketches p and q wide.
        exact: Whether the aggregated product is the mean of the sites' products.
        needs: What the coordinator must learn.
        refusal: Why masked aggregation cannot serve this rule; empty when it can.
        linear: Whether every number sent is the change of one trained number. Then
            the plan bounds its size, and 16 bits may do; else the ring is wide.
        unequal_ranks: Whether sites may train at different ranks.
        personal: Whether sites end with models of their own; scores are means over
            the sites' models.
        uses_base: Whether ``init`` needs the frozen weights.
        plain_steps: Whether every trained tensor moves in every local step, by its
            noisy gradient as it is. Else ``active`` and ``smoothing`` say what moves,
            and the closed forms for SGD bound the noise but do not equal it.
        smoothing: Weights of a low-pass filter over the noisy gradients of the
            factors, along the module's inputs or outputs; empty: none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    cost: ClassVar[str]
    exact: ClassVar[bool] = True
    needs: ClassVar[Needs] = "sum"
    refusal: ClassVar[str] = ""
    linear: ClassVar[bool] = True
    unequal_ranks: ClassVar[bool] = False
    personal: ClassVar[bool] = False
    uses_base: ClassVar[bool] = False
    plain_steps: ClassVar[bool] = True
    smoothing: ClassVar[tuple[float, ...]] = ()

    def for_sites(self, _ranks: Sequence[int], /) -> Self:
        """This rule for the sites of a study; most rules need not know them.

        Args:
            ranks: The rank of every site of the study, whether it drops out or not.
        """
        return self

    def remarks(self, _adapter: Adapter, /) -> tuple[str, ...]:
        """What a user should be told before training: where the rule gives way."""
        return ()

    def trains(self, tensor: str, round_number: int, /) -> bool:
        """Whether sites train, clip and noise this tensor in this round."""
        raise NotImplementedError

    def active(self, _tensor: str, _step: int, /) -> bool:
        """Whether a trained tensor is clipped, noised and moved in a local step.

        Steps are numbered from 1 through all rounds of a study.
        """
        return True

    def init(
        self, adapter: Adapter, _seed: int, _base: BaseWeights = NO_WEIGHTS, /
    ) -> ServerState:
        """The state before round 1: by default the study's initial adapter.

        Args:
            adapter: A random, B zero.
            seed: Public; for rules that need random factors of their own.
            base: The frozen weights, if the rule ``uses_base``.
        """
        return ServerState(adapter=adapter, round=0)

    def rank_at(self, site: SiteView, /) -> int | None:
        """The rank at which a site trains in this round; by default the study's."""
        return site.rank

    def start(self, received: Adapter, _site: SiteView, /) -> Adapter:
        """What a site trains from; it has the names and shapes of ``received``."""
        return received

    def payload(
        self, _received: Adapter, _start: Adapter, change: Tensors, /
    ) -> Tensors:
        """What enters the masked sum, float32; names and shapes as in ``shapes``.

        Args:
            received: What the coordinator sent.
            start: What the site trained from.
            change: Of every trained tensor, relative to ``start``, noised.
        """
        return {n: change[n] for n in change if not self.keeps(n)}

    def shapes(self, adapter: Adapter, round_number: int, /) -> Shapes:
        """Names and shapes of the payload in wire order, the same at all sites.

        By default every trained tensor that is not kept.
        """
        names = trained_names(self, adapter, round_number)
        return {n: adapter.tensors[n].shape for n in names if not self.keeps(n)}

    def keeps(self, _tensor: str, /) -> bool:
        """Whether a trained tensor stays at the site from round to round."""
        return False

    def kept(self, start: Adapter, change: Tensors, _site: SiteView, /) -> Tensors:
        """What the site stores for its next round; by default what it ``keeps``."""
        after = moved(start, change).tensors
        return {name: after[name] for name in after if self.keeps(name)}

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The state after a round; by default the mean is added.

        Args:
            state: The state that the sites trained from.
            mean: The mean of the survivors' payloads.
            round_number: Later than ``state.round``; a round that was interrupted
                is skipped, not repeated.

        Raises:
            ValueError: Tensors, shapes or the round are not those of this round.
            RoundAbortedError: The mean is not finite; nothing may be published.
        """
        self.check(state, mean, round_number)
        return ServerState(moved(state.adapter, mean), round_number, state.memory)

    def check(self, state: ServerState, mean: Tensors, round_number: int) -> None:
        """Refuse a mean that is not one of this round; the first line of ``apply``.

        Raises:
            ValueError, RoundAbortedError: As ``apply``.
        """
        if round_number <= state.round:
            raise ValueError(f"round {round_number} after round {state.round}")
        expected = self.shapes(state.adapter, round_number)
        if mean.keys() != expected.keys():
            raise ValueError(
                f"{self.name} sends {list(expected)} in round {round_number}, "
                f"the mean holds {list(mean)}"
            )
        for name, shape in expected.items():
            # Numpy would broadcast a wrong shape without a word.
            if mean[name].shape != shape:
                raise ValueError(f"{name}: {mean[name].shape} does not fit {shape}")
            require_finite(name, mean[name], state.round)


def trained_names(
    strategy: Strategy, adapter: Adapter, round_number: int
) -> tuple[str, ...]:
    """The tensors that sites train in this round, in the adapter's order."""
    return tuple(
        name for name in adapter.tensors if strategy.trains(name, round_number)
    )


def sent_names(
    strategy: Strategy, adapter: Adapter, round_number: int
) -> tuple[str, ...]:
    """What enters the sum in this round, in wire order."""
    return tuple(strategy.shapes(adapter, round_number))


def moved(adapter: Adapter, change: Tensors) -> Adapter:
    """The adapter with changes added, float32.

    Raises:
        RoundAbortedError: A number is not finite.
    """
    after = {}
    for name, value in change.items():
        after[name] = (adapter.tensors[name] + value).astype(np.float32)
        require_finite(name, after[name], None)
    return adapter.replaced(after)


def require_finite(
    name: str, value: NDArray[np.floating[Any]], standing: int | None
) -> None:
    """Raise unless all numbers are finite.

    Raises:
        RoundAbortedError: They are not; the adapter of the last round stands.
    """
    if not np.isfinite(value).all():
        stays = "" if standing is None else f"; the adapter of round {standing} stays"
        raise RoundAbortedError("aggregate", (), f"{name} is not finite{stays}")
