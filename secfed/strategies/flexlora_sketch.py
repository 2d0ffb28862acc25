"""FlexLoRA by two narrow sketches of every product instead of the dense product.

References: Bai et al., NeurIPS 2024, arXiv 2402.11505, for the rule; Tropp, Yurtsever,
Udell and Cevher, SIAM J. Matrix Anal. Appl. 38(4), 2017, for the sketches
(``secfed.lowrank.sketches``).

With public random Omega and Psi a site sends ``B (A Omega)`` and ``(Psi B) A``,
relative to the same of the adapter that it received. Both are linear in the product,
so their masked sums determine the mean product, as long as they are as wide as the sum
of all sites' ranks. That makes the rule know the ranks (``for_sites``). Where sketches
would have more numbers than the dense product, the dense product is sent: it is also
more precise. ``remarks`` says for which modules.

Omega and Psi come from a hash of the adapter that was received. All sites and the
coordinator hold the same one (the session binds its digest), it is public, and it is
another one in every round. They hide nothing, and need not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

import numpy as np

from secfed.errors import MatrixError, RoundAbortedError, StudyError
from secfed.lowrank import (
    Factors,
    Projections,
    Sketch,
    Widths,
    choose_widths,
    from_sketches,
    projections,
    sketch,
    truncated_dense,
)
from secfed.lowrank.widths import OVERSAMPLING
from secfed.strategies.base import (
    NO_WEIGHTS,
    BaseWeights,
    ServerState,
    Shapes,
    SiteView,
    Strategy,
    moved,
)
from secfed.strategies.products import (
    PRODUCT,
    cut_to_rank,
    factors_of,
    head_of,
    mean_product,
    product_changes,
    product_shapes,
    trains_both,
    with_factors,
)
from secfed.types import LORA_A, Adapter, Tensors

__all__ = ["LEFT", "RIGHT", "FlexLoraSketch"]

RIGHT, LEFT = ".sketch_right", ".sketch_left"
"""Suffixes of ``B A Omega`` (out, p) and ``Psi B A`` (q, in) in a payload."""

_LABEL: Final = b"secfed/strategies/flexlora-sketch/1"


@dataclass(frozen=True)
class FlexLoraSketch(Strategy):
    """Sites train A and B at their own ranks and send sketches of ``B @ A``.

    Attributes:
        ranks: Of all sites of the study; empty: not told yet (``for_sites``).
        columns: Of Omega (p); None: what the ranks need and some more.
    """

    name: ClassVar[str] = "flexlora-sketch"
    title: ClassVar[str] = (
        "flexlora by public sketches: fewer numbers where the ranks add up to little"
    )
    reference: ClassVar[str] = (
        "Bai et al., NeurIPS 2024 (arXiv 2402.11505); sketches: Tropp et al. 2017"
    )
    cost: ClassVar[str] = "n (d p + q k) + SVD(d, p)"
    exact: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    unequal_ranks: ClassVar[bool] = True

    ranks: tuple[int, ...] = ()
    columns: int | None = None

    def for_sites(self, ranks: Sequence[int], /) -> Self:
        """Sketches that hold the sum over these sites."""
        return replace(self, ranks=tuple(ranks))

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return trains_both(tensor)

    def init(
        self, adapter: Adapter, _seed: int, _base: BaseWeights = NO_WEIGHTS, /
    ) -> ServerState:
        """The study's initial adapter, if the sketches can hold the sum.

        Raises:
            MatrixError: They are too narrow or wider than a module.
            StudyError: The rule was not told the ranks of the sites.
        """
        for _, widths in self._modules(adapter):
            widths.require(self.ranks)
        return ServerState(adapter=adapter, round=0)

    def remarks(self, adapter: Adapter, /) -> tuple[str, ...]:
        """For which modules the dense product is sent."""
        dense = [(m, w) for m, w in self._modules(adapter) if w.dense_is_smaller]
        if not dense:
            return ()
        module, widths = dense[0]
        sentence = (
            f"{self.name}: the ranks add up to {sum(self.ranks)}, and sketches for it "
            f"have {widths.num_values} numbers where {module} has "
            f"{widths.dense_values}; the dense product is sent for {len(dense)} of "
            f"{len(adapter.modules())} modules"
        )
        return (sentence,)

    def start(self, received: Adapter, site: SiteView, /) -> Adapter:
        """The leading directions, as many as the site's rank."""
        return cut_to_rank(received, site.rank)

    def shapes(self, adapter: Adapter, _round_number: int, /) -> Shapes:
        """Two sketches or a dense matrix for every module, and the head."""
        shapes: dict[str, tuple[int, ...]] = {}
        for module, widths in self._modules(adapter):
            if widths.dense_is_smaller:
                shapes[module + PRODUCT] = (widths.d, widths.k)
            else:
                shapes[module + RIGHT] = (widths.d, widths.right)
                shapes[module + LEFT] = (widths.left, widths.k)
        return shapes | {n: v.shape for n, v in head_of(adapter.tensors).items()}

    def payload(self, received: Adapter, start: Adapter, change: Tensors, /) -> Tensors:
        """The change of every sketch or product, and of the head."""
        own, public = moved(start, change), self._public(received)
        dense = [m for m in received.modules() if m not in public]
        sent = dict(product_changes(received, start, change, dense))
        for module, matrices in public.items():
            seen = _sketch_of_change(received, own, module, matrices)
            sent[module + RIGHT] = seen.y.astype(np.float32)
            sent[module + LEFT] = seen.z.astype(np.float32)
        return sent | dict(head_of(change))

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The mean product, cut to the rank of the adapter.

        Raises:
            ValueError, RoundAbortedError: As in every rule; or the sums of sketches
                do not determine their product, and nothing may be published.
        """
        self.check(state, mean, round_number)
        before, public = state.adapter, self._public(state.adapter)
        cut = {}
        for module in before.modules():
            rank = len(before.tensors[module + LORA_A])
            if module in public:
                cut[module] = _from_mean(before, mean, module, public[module], rank)
            else:
                product = mean_product(before, mean, module)
                cut[module] = truncated_dense(product, rank, split="left")
        after = with_factors(moved(before, head_of(mean)), cut)
        return ServerState(after, round_number, state.memory)

    def _modules(self, adapter: Adapter) -> Iterator[tuple[str, Widths]]:
        """Every module with the widths of its sketches."""
        if not self.ranks:
            raise StudyError(
                "study",
                "training.method",
                f"{self.name} depends on the ranks of all sites (strategy_of)",
            )
        for name, (d, k) in product_shapes(adapter).items():
            widths = choose_widths(self.ranks, d, k)
            if self.columns is not None:
                left = min(self.columns + OVERSAMPLING, d)
                widths = Widths(d, k, self.columns, left)
            yield name.removesuffix(PRODUCT), widths

    def _public(self, received: Adapter) -> dict[str, Projections]:
        """Omega and Psi of every module that is sketched; one pair for each shape."""
        seed, drawn = _seed(received), dict[Widths, Projections]()
        public = {}
        for module, widths in self._modules(received):
            if widths.dense_is_smaller:
                continue
            if widths not in drawn:
                drawn[widths] = projections(seed, widths)
            public[module] = drawn[widths]
        return public


def _seed(received: Adapter) -> bytes:
    """32 public bytes, the same for all who hold this adapter."""
    digest = hashlib.sha256(_LABEL)
    for name, value in received.tensors.items():
        digest.update(f"{len(name)}|{name}|{value.shape}|".encode())
        digest.update(value.astype("<f4").tobytes())
    return digest.digest()


def _sketch_of_change(
    received: Adapter, own: Adapter, module: str, public: Projections
) -> Sketch:
    """The sketches of ``B_i A_i - B A``, which is one product of stacked factors."""
    new, old = factors_of(own, module), factors_of(received, module)
    return sketch(np.hstack([new.b, old.b]), np.vstack([new.a, -old.a]), public)


def _from_mean(
    before: Adapter, mean: Tensors, module: str, public: Projections, rank: int
) -> Factors:
    """The mean product behind the mean of its sketches' changes, cut to a rank.

    The received product's sketches are added first: the sum of changes has a higher
    rank than the sum of products.
    """
    pair = factors_of(before, module)
    old = sketch(pair.b, pair.a, public)
    right, left = old.y + mean[module + RIGHT], old.z + mean[module + LEFT]
    try:
        return from_sketches(right, left, public, rank, split="left").factors
    except MatrixError as error:
        raise RoundAbortedError("aggregate", (), f"{module}: {error}") from error
