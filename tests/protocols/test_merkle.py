"""Merkle trees: published roots, and the fast tree against the definition."""

from __future__ import annotations

import hashlib
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import merkle
from protocols.errors import MessageError, MisuseError

# Leaves and roots of the certificate-transparency reference implementation's
# test of RFC 6962; entry i is the root over the first i leaves.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# Proofs for leaf 0 and leaf 5 of all eight, from the same source.
PROOFS = {
    0: [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    5: [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}


def left_half(size):
    """The largest power of two below ``size``."""
    return next(k for k in (2**e for e in itertools.count()) if k < size <= 2 * k)


def slow_root(leaves):
    """RFC 9162, section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = left_half(len(leaves))
    halves = slow_root(leaves[:k]) + slow_root(leaves[k:])
    return hashlib.sha256(b"\x01" + halves).digest()


def slow_proof(leaves, index):
    """RFC 9162, section 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return ()
    k = left_half(len(leaves))
    if index < k:
        return (*slow_proof(leaves[:k], index), slow_root(leaves[k:]))
    return (*slow_proof(leaves[k:], index - k), slow_root(leaves[:k]))


def slow_turns(index, size):
    """From root to leaf: which half the leaf is in."""
    if size == 1:
        return ""
    k = left_half(size)
    if index < k:
        return "L" + slow_turns(index, k)
    return "R" + slow_turns(index - k, size - k)


def numbered(size):
    return [index.to_bytes(4, "big") for index in range(size)]


sizes = st.integers(1, 70)
positions = sizes.flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size):
    assert merkle.root(LEAVES[:size]).hex() == ROOTS[size]
    assert merkle.Tree(LEAVES[:size]).root.hex() == ROOTS[size]


@pytest.mark.parametrize("index", PROOFS)
def test_published_proofs(index):
    proof = merkle.inclusion_proof(LEAVES, index)
    assert [node.hex() for node in proof] == PROOFS[index]
    found = merkle.root_from_proof(LEAVES[index], index, 8, proof)
    assert found.hex() == ROOTS[8]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=70))
def test_tree_is_the_definition(leaves):
    tree = merkle.Tree(leaves)
    assert len(tree) == len(leaves)
    assert tree.root == slow_root(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.inclusion_proof(index)
        assert proof == slow_proof(leaves, index)
        merkle.verify_inclusion(leaf, index, len(leaves), proof, tree.root)


@settings(deadline=None)
@given(positions, st.binary(max_size=8))
def test_proof_is_for_its_own_leaf_and_position(position, other):
    index, size = position
    leaves = numbered(size)
    tree = merkle.Tree(leaves)
    proof = tree.inclusion_proof(index)
    for wrong in range(size):
        if wrong != index:
            with pytest.raises(MessageError):
                merkle.verify_inclusion(leaves[index], wrong, size, proof, tree.root)
    if other != leaves[index]:
        with pytest.raises(MessageError, match="another root"):
            merkle.verify_inclusion(other, index, size, proof, tree.root)


@settings(deadline=None)
@given(positions, positions)
def test_proof_holds_at_another_size_only_with_the_same_path(position, claimed):
    index, size = position
    leaves = numbered(size)
    arguments = (merkle.inclusion_proof(leaves, index), merkle.root(leaves))
    if slow_turns(*position) == slow_turns(*claimed):
        merkle.verify_inclusion(leaves[index], *claimed, *arguments)
    else:
        with pytest.raises(MessageError):
            merkle.verify_inclusion(leaves[index], *claimed, *arguments)


def test_a_root_does_not_tell_its_size():
    # Why ``size`` must be authenticated beside the root: leaf 2 of 3 also
    # passes as leaf 1 of 2.
    leaves = numbered(3)
    proof = merkle.inclusion_proof(leaves, 2)
    merkle.verify_inclusion(leaves[2], 1, 2, proof, merkle.root(leaves))


@settings(deadline=None)
@given(positions, st.data())
def test_changed_proof_is_refused(position, data):
    index, size = position
    leaves = numbered(size)
    tree = merkle.Tree(leaves)
    proof = list(tree.inclusion_proof(index))
    change = data.draw(st.sampled_from(["add", "drop", "flip"] if proof else ["add"]))
    at = data.draw(st.integers(0, max(0, len(proof) - 1)))
    if change == "add":
        proof.insert(at, data.draw(st.binary(min_size=32, max_size=32)))
    elif change == "drop":
        del proof[at]
    else:
        bit = 1 << data.draw(st.integers(0, 255))
        flipped = int.from_bytes(proof[at], "big") ^ bit
        proof[at] = flipped.to_bytes(32, "big")
    with pytest.raises(MessageError):
        merkle.verify_inclusion(leaves[index], index, size, proof, tree.root)


garbage = st.lists(st.one_of(st.binary(max_size=40), st.none(), st.integers()))


@settings(deadline=None)
@given(st.integers(-3, 100), st.integers(-3, 100), garbage)
def test_garbage_is_never_anything_but_a_message_error(index, size, proof):
    with pytest.raises(MessageError):
        merkle.verify_inclusion(b"leaf", index, size, proof, b"\x00" * 32)


@pytest.mark.parametrize("index", [-1, 3])
def test_no_proof_for_a_leaf_that_is_not_there(index):
    with pytest.raises(MisuseError, match=f"no leaf {index}"):
        merkle.inclusion_proof(numbered(3), index)


def test_a_node_is_not_a_leaf():
    # Without the prefixes the two upper nodes would be a tree of two leaves.
    low, high = (slow_root(LEAVES[:4]), slow_root(LEAVES[4:]))
    assert merkle.root([low, high]) != merkle.root(LEAVES)
    with pytest.raises(MessageError):
        merkle.verify_inclusion(low + high, 0, 1, (), merkle.root(LEAVES))


def test_many_proofs_are_cheap():
    leaves = numbered(65_535)
    start = time.process_time()
    tree = merkle.Tree(leaves)
    proofs = [tree.inclusion_proof(index) for index in range(65_535)]
    elapsed = time.process_time() - start
    assert max(map(len, proofs)) == 16
    merkle.verify_inclusion(leaves[-1], 65_534, 65_535, proofs[-1], tree.root)
    assert elapsed < 5  # a quarter of a second alone; quadratic would be minutes


# Consistency. The proofs are those of the certificate-transparency reference
# implementation's test, between trees over the first so many of LEAVES.
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def slow_consistency(leaves, size, whole=True):
    """RFC 9162, section 2.1.4.1, word for word."""
    if size == len(leaves):
        return () if whole else (slow_root(leaves),)
    k = left_half(len(leaves))
    if size <= k:
        return (*slow_consistency(leaves[:k], size, whole), slow_root(leaves[k:]))
    inner = slow_consistency(leaves[k:], size - k, whole=False)
    return (*inner, slow_root(leaves[:k]))


@pytest.mark.parametrize("pair", CONSISTENCY)
def test_published_consistency_proofs(pair):
    old, new = pair
    proof = merkle.consistency_proof(LEAVES[:new], old)
    assert [node.hex() for node in proof] == CONSISTENCY[pair]
    roots = bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new])
    merkle.verify_consistency(old, new, proof, *roots)


grown = st.integers(1, 70).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))


def offered(old, new):
    leaves = numbered(new)
    proof = merkle.consistency_proof(leaves, old)
    return old, new, proof, merkle.root(leaves[:old]), merkle.root(leaves)


@settings(deadline=None)
@given(grown)
def test_consistency_is_the_definition(pair):
    old, new, proof, *roots = offered(*pair)
    assert proof == slow_consistency(numbered(new), old)
    merkle.verify_consistency(old, new, proof, *roots)


def test_every_tree_extends_the_empty_one():
    empty = merkle.root([])
    for size in (0, 1, 8):
        assert merkle.consistency_proof(LEAVES[:size], 0) == ()
    merkle.verify_consistency(0, 0, (), empty, empty)
    merkle.verify_consistency(0, 8, (), empty, bytes.fromhex(ROOTS[8]))
    for sizes, proof, roots, said in (
        ((0, 0), (), (empty, bytes(32)), "different roots"),
        ((0, 8), (), (bytes(32), bytes(32)), "empty tree"),
        ((0, 8), (empty,), (empty, bytes(32)), "no proof"),
    ):
        with pytest.raises(MessageError, match=said):
            merkle.verify_consistency(*sizes, proof, *roots)


@settings(deadline=None)
@given(grown, st.data())
def test_changed_histories_and_proofs_are_refused(pair, data):
    old, new, proof, *roots = offered(*pair)
    leaves = numbered(new)
    changed = data.draw(st.integers(0, old - 1))
    leaves[changed] += b"!"
    honest = merkle.consistency_proof(leaves, old)  # Of a rewritten history.
    with pytest.raises(MessageError):
        merkle.verify_consistency(old, new, honest, roots[0], merkle.root(leaves))
    wrong = [*proof]
    change = data.draw(st.sampled_from(["add", "drop", "flip"] if proof else ["add"]))
    at = data.draw(st.integers(0, max(0, len(proof) - 1)))
    if change == "add":
        wrong.insert(at, data.draw(st.binary(min_size=32, max_size=32)))
    elif change == "drop":
        del wrong[at]
    else:
        wrong[at] = bytes([wrong[at][0] ^ 1]) + wrong[at][1:]
    with pytest.raises(MessageError):
        merkle.verify_consistency(old, new, wrong, *roots)
    with pytest.raises(MessageError):
        merkle.verify_consistency(old, new, proof, roots[0], bytes(32))


@settings(deadline=None)
@given(st.integers(-3, 90), st.integers(-3, 90), garbage)
def test_garbage_proves_no_consistency(old, new, proof):
    with pytest.raises(MessageError):
        merkle.verify_consistency(old, new, proof, b"\x01" * 32, b"\x02" * 32)


@pytest.mark.parametrize("size", [-1, 4])
def test_no_consistency_with_a_tree_that_is_not_there(size):
    with pytest.raises(MisuseError, match=f"no tree of {size}"):
        merkle.consistency_proof(numbered(3), size)
