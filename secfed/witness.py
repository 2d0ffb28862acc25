"""A site that watches a log: it remembers what it cosigned and checks what is new.

The memory is a folder with the lines of the log and the last checkpoint that the site
cosigned. It is written before a cosignature leaves, so that a site which crashes never
cosigns two histories. What the entries may say is checked by a function of the caller.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocols import merkle
from protocols.errors import MessageError
from secfed.canonical import jcs, parse_jcs
from secfed.checkpoints import (
    COSIGN_ED25519,
    COSIGN_ML_DSA_44,
    Checkpoint,
    Cosigned,
    Cosigner,
    open_checkpoint,
    witness_key,
)
from secfed.entries import PlanEntry
from secfed.errors import LedgerError, StaleOfferError, VerificationError
from secfed.ledger import (
    CHECKPOINT_NAME,
    LEDGER_NAME,
    Entry,
    split_lines,
    verify_entries,
)
from secfed.notes import Note, NoteKey, NoteSignature

__all__ = [
    "Inspect",
    "Offer",
    "Witness",
    "answer_bytes",
    "offer_of",
    "read_answer",
    "witness_keys",
]

Inspect = Callable[[Sequence[Entry]], None]
"""Raises where the entries of a log are not what a site can agree to."""

_FIELDS = {"checkpoint", "old_size", "proof", "leaves", "lines"}


@dataclass(frozen=True)
class Offer:
    """What a log shows a witness that has seen its first ``old_size`` entries.

    Attributes:
        checkpoint: The new tree head, signed by the log.
        old_size: From where on lines are shown.
        proof: That the tree of ``old_size`` leaves is the beginning of the new one.
        leaves: Leaf hashes of the entries before, so that another one is named.
        lines: The new entries.
    """

    checkpoint: bytes
    old_size: int
    proof: tuple[bytes, ...]
    leaves: tuple[bytes, ...]
    lines: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """The offer as it travels."""
        fields = {
            "checkpoint": self.checkpoint.decode(),
            "old_size": self.old_size,
            "proof": [node.hex() for node in self.proof],
            "leaves": [leaf.hex() for leaf in self.leaves],
            "lines": [line.decode() for line in self.lines],
        }
        return jcs(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> Offer:
        """Read what ``to_bytes`` wrote; nothing in it is believed.

        Raises:
            VerificationError: It is malformed.
        """
        try:
            fields = parse_jcs(data)
            if fields.keys() != _FIELDS or type(fields["old_size"]) is not int:
                raise VerificationError("the fields are not those of an offer")
            return cls(
                checkpoint=fields["checkpoint"].encode(),
                old_size=fields["old_size"],
                proof=tuple(bytes.fromhex(node) for node in fields["proof"]),
                leaves=tuple(bytes.fromhex(leaf) for leaf in fields["leaves"]),
                lines=tuple(line.encode() for line in fields["lines"]),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise VerificationError(f"not an offer of a log: {error}") from error


def offer_of(lines: Sequence[bytes], checkpoint: Note, old_size: int) -> Offer:
    """What a log of these lines shows to a witness that has seen the first of them.

    A witness that has seen more than there is gets an offer that it will refuse.
    """
    old_size = min(old_size, len(lines))
    return Offer(
        checkpoint=checkpoint.to_bytes(),
        old_size=old_size,
        proof=merkle.consistency_proof(lines, old_size),
        leaves=tuple(merkle.leaf_hash(line) for line in lines[:old_size]),
        lines=tuple(lines[old_size:]),
    )


def answer_bytes(answer: NoteSignature | int) -> bytes:
    """A witness's answer as it travels: its line, or where its memory ends."""
    if isinstance(answer, int):
        return jcs({"size": answer})
    return jcs({"line": answer.line()})


def read_answer(data: bytes) -> NoteSignature | int:
    """Read what ``answer_bytes`` wrote; the signature is not checked.

    Raises:
        VerificationError: It is malformed.
    """
    try:
        match parse_jcs(data):
            case {"size": int(size), **rest} if not rest and size >= 0:
                return size
            case {"line": str(line), **rest} if not rest:
                return NoteSignature.parse(line)
    except ValueError as error:
        raise VerificationError(f"not an answer of a witness: {error}") from error
    raise VerificationError("not an answer of a witness")


def witness_keys(plan: PlanEntry) -> dict[str, NoteKey]:
    """Every site's key as a witness, as the log's plan names them.

    Raises:
        LedgerError: A key is not one that cosigns, or not named after its site.
    """
    if plan.witnesses is None:
        return {
            site: witness_key(site, bytes.fromhex(key))
            for site, key in plan.identities.items()
        }
    keys = {}
    for site, vkey in plan.witnesses.items():
        try:
            key = NoteKey.parse(vkey)
        except ValueError as error:
            raise LedgerError(1, f"{site}: {error}") from error
        cosigns = key.kind in {COSIGN_ED25519, COSIGN_ML_DSA_44}
        if not cosigns or key.name != witness_key(site, key.public).name:
            raise LedgerError(1, f"{site}: {key.name} is not its key as a witness")
        keys[site] = key
    return keys


class Witness:
    """One site's memory of one log.

    Guarantees: of one log, two cosigned trees are always consistent, across crashes
    and restarts, as long as the folder is not set back.

    Args:
        folder: The memory; made when something is cosigned first.
        log: The key of the log, pinned, under the name that this site expects.
        cosigner: The site's key.
        inspect: What the site asks of the entries themselves.

    Raises:
        VerificationError: The memory is damaged.
    """

    def __init__(
        self, folder: Path, log: NoteKey, cosigner: Cosigner, inspect: Inspect
    ) -> None:
        self._folder = folder
        self._log = log
        self._cosigner = cosigner
        self._inspect = inspect
        self._seen, self._lines = self._remembered()

    @property
    def size(self) -> int:
        """How many entries of the log this site has cosigned."""
        return self._seen.size

    def cosign(self, offer: Offer, time: int) -> NoteSignature:
        """Check an offer, remember it, and cosign it.

        1. The pinned log signed the checkpoint.
        2. It is not smaller than the last one that this site cosigned.
        3. The offer starts where this site's memory ends.
        4. No entry of before is another one, and the consistency proof holds.
        5. The new lines give the new root.
        6. Every entry verifies, and the site agrees with what they say.

        Raises:
            LedgerError: Names the entry that is missing, other or wrong.
            StaleOfferError: The offer starts elsewhere; ask again with that size.
            VerificationError: The checkpoint is not one of this log.
        """
        # 1
        opened = open_checkpoint(offer.checkpoint, self._log)
        offered = opened.checkpoint
        # 2
        if offered.size < self.size:
            raise LedgerError(
                offered.size,
                f"rolled back: the log ends before it, and this site has cosigned "
                f"{self.size} entries",
            )
        # 3
        if offer.old_size != self.size:
            raise StaleOfferError(self.size)
        # 4
        self._require_same_past(offer, offered)
        # 5
        lines = (*self._lines, *offer.lines)
        if len(lines) != offered.size or merkle.root(lines) != offered.root:
            raise LedgerError(self.size, "the lines are not those of the checkpoint")
        # 6
        self._inspect(verify_entries(lines, self._log.public))
        line = self._cosigner.cosign(offered, time)
        self._remember(opened, lines, line)
        return line

    def _require_same_past(self, offer: Offer, offered: Checkpoint) -> None:
        own = [merkle.leaf_hash(line) for line in self._lines]
        for index, leaf in enumerate(own):
            if index >= len(offer.leaves) or offer.leaves[index] != leaf:
                raise LedgerError(
                    index,
                    "two histories of one log: this site has cosigned another entry",
                )
        try:
            merkle.verify_consistency(
                self.size, offered.size, offer.proof, self._seen.root, offered.root
            )
        except MessageError as error:
            raise LedgerError(
                max(self.size - 1, 0),
                f"two histories of one log, here at the latest: {error}",
            ) from error

    def _remembered(self) -> tuple[Checkpoint, tuple[bytes, ...]]:
        path = self._folder / CHECKPOINT_NAME
        if not path.exists():
            return Checkpoint(self._log.name, 0, merkle.root(())), ()
        seen = open_checkpoint(path.read_bytes(), self._log).checkpoint
        kept = (self._folder / LEDGER_NAME).read_bytes()
        # A crash may have come between the lines and the checkpoint.
        lines = tuple(split_lines(kept)[: seen.size])
        if len(lines) != seen.size or merkle.root(lines) != seen.root:
            raise VerificationError(
                f"{self._folder}: the memory of this witness is damaged; restore it "
                "from a backup, or take it away: the site then checks the whole log "
                "against its receipts"
            )
        return seen, lines

    def _remember(
        self, opened: Cosigned, lines: tuple[bytes, ...], line: NoteSignature
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        note = opened.note.with_signatures([line])
        whole = b"".join(one + b"\n" for one in lines)
        _replace(self._folder / LEDGER_NAME, whole)
        _replace(self._folder / CHECKPOINT_NAME, note.to_bytes())
        self._seen, self._lines = opened.checkpoint, lines

    def __repr__(self) -> str:
        return f"Witness({self._cosigner!r}, {self.size} entries)"


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and wait until the disk has it."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
