"""Merkle trees over byte strings: proofs that a leaf is in one, that one grew.

RFC 6962 and RFC 9162, section 2.1, with SHA-256. Leaves and nodes are hashed
under different prefixes, so a node can never be passed off as a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from protocols.errors import MessageError, MisuseError

__all__ = [
    "HASH_BYTES",
    "Tree",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "root",
    "root_from_proof",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES = 32

_LEAF = b"\x00"
_NODE = b"\x01"


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf, 32 bytes (RFC 9162, section 2.1.1)."""
    return hashlib.sha256(_LEAF + leaf).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


class Tree:
    """All hashes of a tree over n leaves, kept to answer many proofs.

    Guarantees: the root and the proofs are those of RFC 9162, sections 2.1.1,
    2.1.3.1 and 2.1.4.1. Building hashes each leaf once and makes n - 1 nodes; a proof
    hashes nothing and has at most ceil(log2(n)) elements.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        # A node without a sibling moves up unchanged. That is the tree of the
        # definition: its left half is always the largest power of two below n.
        self._levels = [[leaf_hash(leaf) for leaf in leaves]]
        while len(self._levels[-1]) > 1:
            self._levels.append(_pair_up(self._levels[-1]))

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The root, 32 bytes; that of the empty tree is SHA-256 of nothing."""
        top = self._levels[-1]
        return top[0] if top else hashlib.sha256(b"").digest()

    def inclusion_proof(self, index: int) -> tuple[bytes, ...]:
        """The siblings on the way from leaf ``index`` to the root.

        Raises:
            MisuseError: There is no such leaf.
        """
        if not 0 <= index < len(self):
            raise MisuseError(f"no leaf {index} in a tree of {len(self)}")
        proof = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                proof.append(level[sibling])
            index >>= 1
        return tuple(proof)

    def consistency_proof(self, size: int) -> tuple[bytes, ...]:
        """The nodes that show this tree to begin with the tree of ``size`` leaves.

        The proof walks up the right edge of the smaller tree. It starts at the
        largest whole subtree that ends there; that one is left out where it is the
        smaller tree itself, whose root the verifier has.

        Raises:
            MisuseError: ``size`` is not between 0 and the number of leaves.
        """
        if not 0 <= size <= len(self):
            raise MisuseError(f"no tree of {size} leaves in a tree of {len(self)}")
        if size in {0, len(self)}:
            return ()
        level = (size & -size).bit_length() - 1
        index = (size >> level) - 1
        proof = [self._levels[level][index]] if index else []
        for nodes in self._levels[level:-1]:
            sibling = index ^ 1
            if sibling < len(nodes):
                proof.append(nodes[sibling])
            index >>= 1
        return tuple(proof)


def _pair_up(level: list[bytes]) -> list[bytes]:
    """The next level: each pair becomes its node, an odd one out moves up."""
    pairs = zip(level[::2], level[1::2], strict=False)
    above = [_node_hash(left, right) for left, right in pairs]
    if len(level) % 2:
        above.append(level[-1])
    return above


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over ``leaves``, 32 bytes (RFC 9162, section 2.1.1)."""
    return Tree(leaves).root


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The proof of one leaf; build a ``Tree`` for more than one.

    Raises:
        MisuseError: There is no such leaf.
    """
    return Tree(leaves).inclusion_proof(index)


def root_from_proof(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes]
) -> bytes:
    """The only root under which ``proof`` shows ``leaf`` at ``index`` of ``size``.

    RFC 9162, section 2.1.3.2, without the final comparison. ``size`` must be
    known from elsewhere, as from a signed text beside the root: a root does not
    tell the size of its tree, and some other sizes give the same path.

    Args:
        leaf: The leaf itself, not its hash.
        index: Position of the leaf, from 0.
        size: Number of leaves of the tree.
        proof: As received; nothing is assumed about it.

    Raises:
        MessageError: No proof for this position of such a tree has this shape.
    """
    if not 0 <= index < size:
        raise MessageError(f"no leaf {index} in a tree of {size}")
    if not all(isinstance(node, bytes) and len(node) == HASH_BYTES for node in proof):
        raise MessageError(f"an inclusion proof is made of {HASH_BYTES}-byte hashes")
    turns = _turns(index, size)
    if len(proof) != len(turns):
        raise MessageError(f"an inclusion proof of {len(turns)} hashes is needed")
    found = leaf_hash(leaf)
    for sibling, is_right in zip(proof, turns, strict=True):
        found = _node_hash(sibling, found) if is_right else _node_hash(found, sibling)
    return found


def _turns(index: int, size: int) -> list[bool]:
    """For each node with a sibling from leaf to root: is it the right one?"""
    turns = []
    last = size - 1  # of the level that ``index`` is in
    while last > 0:
        if index % 2 or index < last:
            turns.append(index % 2 == 1)
        index >>= 1
        last >>= 1
    return turns


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Refuse unless ``proof`` shows ``leaf`` at ``index`` under ``root``.

    Requires: ``size`` and ``root`` come from one source that is trusted to
    name the size of its own tree (see ``root_from_proof``).

    Raises:
        MessageError: The proof is malformed or leads to another root.
    """
    if root_from_proof(leaf, index, size, proof) != root:
        raise MessageError(f"the proof of leaf {index} leads to another root")


def consistency_proof(leaves: Sequence[bytes], size: int) -> tuple[bytes, ...]:
    """The proof that ``leaves`` begin with the tree over the first ``size``.

    Raises:
        MisuseError: ``size`` is not between 0 and the number of leaves.
    """
    return Tree(leaves).consistency_proof(size)


def verify_consistency(
    old_size: int,
    size: int,
    proof: Sequence[bytes],
    old_root: bytes,
    root: bytes,
) -> None:
    """Refuse unless the tree of ``size`` leaves begins with that of ``old_size``.

    RFC 9162, section 2.1.4.2. The empty tree is the beginning of every tree.

    Args:
        old_size: Leaves of the tree that was seen before.
        size: Leaves of the tree that is offered.
        proof: As received; nothing is assumed about it.
        old_root: Root of the former, 32 bytes.
        root: Root of the latter, 32 bytes.

    Raises:
        MessageError: The proof is malformed or leads to other roots.
    """
    if not 0 <= old_size <= size:
        raise MessageError(f"a tree of {size} does not extend one of {old_size}")
    if not all(isinstance(node, bytes) and len(node) == HASH_BYTES for node in proof):
        raise MessageError(f"a consistency proof is made of {HASH_BYTES}-byte hashes")
    if old_size == 0 and old_root != Tree(()).root:
        raise MessageError("that is not the root of the empty tree")
    if old_size == size and old_root != root:
        raise MessageError("two trees of one size have different roots")
    if old_size in {0, size}:
        if proof:
            raise MessageError("no proof is needed between these sizes")
        return
    if _both_roots(old_size, size, proof, old_root) != (old_root, root):
        raise MessageError("the consistency proof leads to other roots")


def _both_roots(
    old_size: int, size: int, proof: Sequence[bytes], old_root: bytes
) -> tuple[bytes, bytes]:
    """The roots of both trees, as the proof has them."""
    # The largest whole subtree at the end of the smaller tree, and what is above it.
    level = (old_size & -old_size).bit_length() - 1
    index, last = (old_size >> level) - 1, (size - 1) >> level
    rest = list(proof) if index else [old_root, *proof]
    turns = _turns(index, last + 1)
    if len(rest) != len(turns) + 1:
        raise MessageError("a consistency proof for these sizes has another length")
    old = new = rest[0]
    for sibling, is_right in zip(rest[1:], turns, strict=True):
        if is_right:
            old = _node_hash(sibling, old)
            new = _node_hash(sibling, new)
        else:
            new = _node_hash(new, sibling)
    return old, new
