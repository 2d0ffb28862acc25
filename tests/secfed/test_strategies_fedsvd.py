"""fedsvd, and its identity with an orthonormal ffa-lora under SGD.

Sites are small linear models with known gradients, so that whole trajectories can be
compared and not only single means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from played import (
    IN,
    MODULES,
    OUT,
    SCALING,
    SITES,
    Array,
    R,
    distance,
    initial,
    mean_of,
    play,
    start_of,
)

from secfed.strategies import ServerState, get_strategy
from secfed.types import LORA_A, LORA_B, Adapter


@dataclass(frozen=True)
class Linear:
    """Records x with targets y of a weight: loss |W x - y|^2 / 2 each, W from zero."""

    x: Array
    y: Array

    def step(self, b: Array, a: Array, noise: Array) -> Array:
        """One DP-SGD step on B: records' gradients, each clipped, and their noise."""
        total = noise.copy()
        for x, y in zip(self.x, self.y, strict=True):
            gradient = np.outer(SCALING * b @ (a @ x) - y, SCALING * (a @ x))
            total += gradient * min(1.0, 0.4 / np.linalg.norm(gradient))
        return b - 0.1 * total


def sites_of(seed: int) -> list[Linear]:
    rng = np.random.default_rng(seed)
    sizes = [(6, IN), (6, OUT)]
    return [Linear(*(rng.normal(size=s) for s in sizes)) for _ in range(SITES)]


def linear_round(strategy, state, sites, noises):
    """Three local steps on B at every site, then the rule's coordinator."""
    name = MODULES[0] + LORA_B
    a, b0 = (
        state.adapter.tensors[MODULES[0] + end].astype(float)
        for end in (LORA_A, LORA_B)
    )
    sent = []
    for site, own in zip(sites, noises, strict=True):
        b = b0
        for noise in own:
            b = site.step(b, a, noise)
        sent.append({name: (b - b0).astype(np.float32)})
    return strategy.apply(state, mean_of(sent), state.round + 1)


def one_module() -> Adapter:
    tensors = {n: v for n, v in initial().tensors.items() if n.startswith(MODULES[0])}
    return Adapter(tensors, SCALING)


def in_another_basis(adapter: Adapter) -> Adapter:
    """The same product; A is an orthonormal basis of its row space, by QR alone."""
    a, b = (adapter.tensors[MODULES[0] + end].astype(float) for end in (LORA_A, LORA_B))
    q, r = np.linalg.qr(a.T)
    return adapter.replaced(
        {
            MODULES[0] + LORA_A: q.T.astype(np.float32),
            MODULES[0] + LORA_B: (b @ r.T).astype(np.float32),
        }
    )


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_fedsvd_is_ffa_with_an_orthonormal_a(noise):
    fedsvd, ffa = get_strategy("fedsvd"), get_strategy("ffa-lora")
    sites, rng = sites_of(1), np.random.default_rng(2)
    state = fedsvd.init(one_module(), 0)
    first = state.adapter.tensors[MODULES[0] + LORA_A].astype(float)
    state = linear_round(fedsvd, state, sites, np.zeros((SITES, 3, OUT, R)))
    frozen = replace(state, adapter=in_another_basis(state.adapter))
    steeper = replace(state, adapter=scaled(frozen.adapter, 0.577))
    assert distance(frozen.adapter.delta(MODULES[0]), delta(state)) < 1e-6
    q = frozen.adapter.tensors[MODULES[0] + LORA_A].astype(float)
    bases = []
    for _ in range(8):
        a = state.adapter.tensors[MODULES[0] + LORA_A].astype(float)
        turn = a @ q.T  # From the one basis to the other: orthogonal, so z @ turn'
        np.testing.assert_allclose(turn @ turn.T, np.eye(R), atol=1e-6)
        z = noise * rng.normal(size=(SITES, 3, OUT, R))  # has the law of z.
        state = linear_round(fedsvd, state, sites, z @ turn.T)
        frozen = linear_round(ffa, frozen, sites, z)
        steeper = linear_round(ffa, steeper, sites, z)
        assert distance(delta(state), delta(frozen)) < 1e-5
        bases.append(a)
        # The rows never leave the first row space, and are orthonormal.
        projector = np.linalg.pinv(first) @ first
        np.testing.assert_allclose(a @ projector, a, atol=1e-6)
        np.testing.assert_allclose(a @ a.T, np.eye(R), atol=1e-6)
    # Controls: it is another basis, the weights move, and a step size would be seen.
    assert distance(bases[1], q) > 0.1
    assert distance(bases[-1], bases[1]) > 0.01
    assert distance(delta(state), delta(steeper)) > 0.02


def delta(state: ServerState) -> Array:
    return state.adapter.delta(MODULES[0])


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """The same product with shorter rows in A."""
    a, b = (MODULES[0] + end for end in (LORA_A, LORA_B))
    return adapter.replaced(
        {
            a: (adapter.tensors[a] * factor).astype(np.float32),
            b: (adapter.tensors[b] / factor).astype(np.float32),
        }
    )


def test_fedsvd_factors_are_those_of_the_dense_decomposition():
    strategy = get_strategy("fedsvd")
    state = start_of("fedsvd")
    after, _ = play(strategy, state, 1)
    for module in MODULES:
        a, b = (after.adapter.tensors[module + end] for end in (LORA_A, LORA_B))
        _, s, vt = np.linalg.svd(after.adapter.delta(module) / SCALING)
        np.testing.assert_allclose(b.T @ b, np.diag(s[:R] ** 2), atol=2e-5)
        for row, wanted in zip(a, vt[:R], strict=True):
            assert abs(row @ wanted) == pytest.approx(1.0, abs=1e-5)


def test_fedsvd_keeps_the_row_space_when_nothing_was_learned():
    # With B at zero every basis is a decomposition; only those of A's rows will do.
    strategy, state = get_strategy("fedsvd"), start_of("fedsvd")
    shapes = strategy.shapes(state.adapter, 1).items()
    after = strategy.apply(state, {n: np.zeros(s, np.float32) for n, s in shapes}, 1)
    for module in MODULES:
        a = after.adapter.tensors[module + LORA_A].astype(float)
        first = state.adapter.tensors[module + LORA_A].astype(float)
        np.testing.assert_allclose(a @ a.T, np.eye(R), atol=1e-6)
        np.testing.assert_allclose(a @ np.linalg.pinv(first) @ first, a, atol=1e-6)
        assert not after.adapter.delta(module).any()
