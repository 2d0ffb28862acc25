"""Signed notes: a text and lines that say who signed it (C2SP signed-note).

A line names a key and starts with four bytes of its hash; lines of unknown keys are
passed over, so that everybody sees only the signatures of keys that they pinned. What
a signature is made of depends on the type of the key; the types that sign checkpoints
are in ``secfed.checkpoints``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from secfed.errors import VerificationError

__all__ = ["NOTE_ED25519", "Note", "NoteKey", "NoteSignature", "parse_note"]

NOTE_ED25519 = 0x01
"""The type of a key that signs the text itself."""

_MAX_SIGNATURES = 100_000
_ID_BYTES = 4
_DASH = "\u2014"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NAME = re.compile(r"[^\s+]+")
_LINE = re.compile(_DASH + r" ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True)
class NoteKey:
    """A public key as notes know it: its name, its type and its bytes."""

    name: str
    kind: int
    public: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of a key")

    @property
    def key_id(self) -> bytes:
        """Four bytes by which its lines are found; nothing relies on them."""
        named = self.name.encode() + b"\n"
        return hashlib.sha256(named + self._typed).digest()[:_ID_BYTES]

    @property
    def vkey(self) -> str:
        """The key as a text: ``name+id+base64``."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(self._typed)}"

    @classmethod
    def parse(cls, vkey: str) -> NoteKey:
        """Read what ``vkey`` wrote.

        Raises:
            ValueError: It is not such a text, or its id is not that of the key.
        """
        name, _, rest = vkey.partition("+")
        identifier, _, typed = rest.partition("+")
        data = _decoded(typed)
        key = cls(name, data[0], data[1:]) if data else None
        if key is None or key.key_id.hex() != identifier:
            raise ValueError("not a verifier key, or not with its own id")
        return key

    @property
    def _typed(self) -> bytes:
        return bytes([self.kind]) + self.public


@dataclass(frozen=True)
class NoteSignature:
    """One line below a note; who made it is checked elsewhere."""

    name: str
    key_id: bytes
    signature: bytes

    def is_of(self, key: NoteKey) -> bool:
        """Whether the line claims to be of this key."""
        return (self.name, self.key_id) == (key.name, key.key_id)

    def line(self) -> str:
        """The line, without its newline."""
        return f"{_DASH} {self.name} {_base64(self.key_id + self.signature)}"

    @classmethod
    def parse(cls, line: str) -> NoteSignature:
        """Read what ``line`` wrote.

        Raises:
            ValueError: It is not such a line.
        """
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError("a malformed signature line")
        data = _decoded(found[2])
        if len(data) <= _ID_BYTES:
            raise ValueError("a signature line without a signature")
        return cls(found[1], data[:_ID_BYTES], data[_ID_BYTES:])


@dataclass(frozen=True)
class Note:
    """A text, which ends in a newline, and the lines below it."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def to_bytes(self) -> bytes:
        """The note as a file."""
        lines = "".join(one.line() + "\n" for one in self.signatures)
        return f"{self.text}\n{lines}".encode()

    def with_signatures(self, more: Iterable[NoteSignature]) -> Note:
        """The same text with further lines."""
        return Note(self.text, (*self.signatures, *more))

    def of(self, key: NoteKey) -> bytes | None:
        """The signature of a key as claimed; None where there is none.

        Raises:
            VerificationError: The key has two lines.
        """
        found = [one.signature for one in self.signatures if one.is_of(key)]
        if len(found) > 1:
            raise VerificationError(f"two signatures of {key.name} under one note")
        return found[0] if found else None


def parse_note(data: bytes) -> Note:
    """Read a note; nothing is verified.

    Raises:
        VerificationError: It does not have the form of a signed note.
    """
    try:
        return _parsed(data.decode("utf-8"))
    except ValueError as error:
        raise VerificationError(f"not a signed note: {error}") from error


def _parsed(data: str) -> Note:
    text, blank, lines = data.rpartition("\n\n")
    if not blank or not lines.endswith("\n") or _CONTROL.search(data):
        raise ValueError("no text and signatures, or control characters")
    parts = lines[:-1].split("\n")
    if len(parts) > _MAX_SIGNATURES:
        raise ValueError(f"more than {_MAX_SIGNATURES} signatures")
    return Note(text + "\n", tuple(map(NoteSignature.parse, parts)))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(text: str) -> bytes:
    """Bytes of base64; every text but the canonical one is refused."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if _base64(data) != text:
        raise ValueError("not canonical base64")
    return data
