"""Tree heads of a log, signed by the log and cosigned by witnesses.

Texts and signatures are those of C2SP ``tlog-checkpoint`` and ``tlog-cosignature``:
a log signs with Ed25519, a witness with Ed25519 or with ML-DSA-44, each with the time
at which it looked. What a cosignature says: of this log, this is the largest consistent
tree that the witness has seen.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from protocols.merkle import HASH_BYTES
from secfed.errors import VerificationError
from secfed.notes import NOTE_ED25519, Note, NoteKey, NoteSignature, parse_note

__all__ = [
    "COSIGN_ED25519",
    "COSIGN_ML_DSA_44",
    "LOG_PREFIX",
    "Checkpoint",
    "Cosigned",
    "Cosigner",
    "TextSigner",
    "log_key",
    "log_origin",
    "open_checkpoint",
    "sign_checkpoint",
    "witness_key",
]

COSIGN_ED25519: Final = 0x04
COSIGN_ML_DSA_44: Final = 0x06
LOG_PREFIX: Final = "secfed-log/"

_SITE_PREFIX: Final = "secfed-site/"
_SIGNATURE_BYTES: Final = {COSIGN_ED25519: 64, COSIGN_ML_DSA_44: 2420}
_TIME_BYTES: Final = 8
_LABEL: Final = b"subtree/v1\n\x00"
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")
_LAST_TIME: Final = 2**63 - 1


class TextSigner(Protocol):
    """Whoever signs bytes with Ed25519 and keeps the secret."""

    @property
    def public_bytes(self) -> bytes:
        """The raw public key, 32 bytes."""

    def sign_text(self, text: bytes) -> bytes:
        """The signature over bytes that name their own purpose."""


@dataclass(frozen=True)
class Checkpoint:
    """Which tree a log shows: its name, the number of leaves and the root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The text that is signed."""
        root = base64.b64encode(self.root).decode("ascii")
        return f"{self.origin}\n{self.size}\n{root}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read what ``text`` wrote; extension lines are refused.

        Raises:
            VerificationError: It is not such a text.
        """
        origin, size, root, nothing = [*text.split("\n"), "", "", ""][:4]
        try:
            found = cls(origin, int(size), base64.b64decode(root, validate=True))
        except (ValueError, binascii.Error) as error:
            raise VerificationError(f"not a checkpoint: {error}") from error
        if (
            not origin
            or nothing
            or not _SIZE.fullmatch(size)
            or len(found.root) != HASH_BYTES
            or found.text() != text
        ):
            raise VerificationError("not a checkpoint: three lines are expected")
        return found


@dataclass(frozen=True)
class Cosigned:
    """A checkpoint that its log signed.

    Attributes:
        checkpoint: What was signed.
        note: The whole note as read, lines of unknown keys included.
        times: When each of the asked witnesses cosigned it, seconds since 1970, by
            the witness's name; those without a line are not in it.
    """

    checkpoint: Checkpoint
    note: Note
    times: Mapping[str, int]


@dataclass(frozen=True)
class Cosigner:
    """A witness's key: the public half, and what makes signatures."""

    key: NoteKey
    sign: Callable[[bytes], bytes]

    def cosign(self, checkpoint: Checkpoint, time: int) -> NoteSignature:
        """State that this is the largest consistent tree seen by ``time``.

        Whether that is so, the caller has checked (``secfed.witness``).
        """
        signature = self.sign(_message(self.key, checkpoint, time))
        stamped = time.to_bytes(_TIME_BYTES, "big") + signature
        return NoteSignature(self.key.name, self.key.key_id, stamped)

    def __repr__(self) -> str:
        return f"Cosigner({self.key.name!r})"


def log_origin(study_digest: str, run_id: str) -> str:
    """The name of a run's log, from what every party of the run knows.

    >>> log_origin("ab", "0123/fedavg")
    'secfed-log/ab/0123/fedavg'
    """
    return f"{LOG_PREFIX}{study_digest}/{run_id}"


def log_key(origin: str, coordinator_key: bytes) -> NoteKey:
    """The key that signs the checkpoints of a log."""
    return NoteKey(origin, NOTE_ED25519, coordinator_key)


def witness_key(site: str, public: bytes, kind: int = COSIGN_ED25519) -> NoteKey:
    """The key of a site as a witness."""
    return NoteKey(_SITE_PREFIX + site, kind, public)


def sign_checkpoint(checkpoint: Checkpoint, log: TextSigner) -> Note:
    """The checkpoint with the signature of its log."""
    key = log_key(checkpoint.origin, log.public_bytes)
    signature = log.sign_text(checkpoint.text().encode())
    line = NoteSignature(key.name, key.key_id, signature)
    return Note(checkpoint.text(), (line,))


def open_checkpoint(
    data: bytes, log: NoteKey, witnesses: Iterable[NoteKey] = ()
) -> Cosigned:
    """Read a checkpoint that its log signed, and who of some witnesses cosigned it.

    Lines of keys that are not asked for are passed over.

    Raises:
        VerificationError: It is malformed, of another log, not signed by it, or has a
            line of an asked key that does not verify.
    """
    note = parse_note(data)
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != log.name:
        raise VerificationError(f"a checkpoint of another log: {checkpoint.origin}")
    signature = note.of(log)
    if signature is None:
        raise VerificationError("the log did not sign its checkpoint")
    _verify_ed25519(log, note.text.encode(), signature)
    times = {}
    for witness in witnesses:
        stamped = note.of(witness)
        if stamped is not None:
            times[witness.name] = _verified_time(witness, checkpoint, stamped)
    return Cosigned(checkpoint, note, times)


def _verified_time(key: NoteKey, checkpoint: Checkpoint, stamped: bytes) -> int:
    """When a witness cosigned, if it did."""
    expected = _SIGNATURE_BYTES.get(key.kind)
    time = int.from_bytes(stamped[:_TIME_BYTES], "big")
    if expected is None or len(stamped) != _TIME_BYTES + expected or time > _LAST_TIME:
        raise VerificationError(f"{key.name}: a malformed cosignature")
    message, signature = _message(key, checkpoint, time), stamped[_TIME_BYTES:]
    if key.kind == COSIGN_ED25519:
        _verify_ed25519(key, message, signature)
        return time
    try:
        MLDSA44PublicKey.from_public_bytes(key.public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise VerificationError(f"{key.name}: the signature is not valid") from error
    return time


def _message(key: NoteKey, checkpoint: Checkpoint, time: int) -> bytes:
    """What a witness signs; ML-DSA keys also sign their name (C2SP)."""
    if key.kind == COSIGN_ED25519:
        return f"cosignature/v1\ntime {time}\n{checkpoint.text()}".encode()
    names = [key.name.encode(), checkpoint.origin.encode()]
    witness, origin = (bytes([len(name)]) + name for name in names)
    range_ = struct.pack(">QQ", 0, checkpoint.size)
    stamp = struct.pack(">Q", time)
    return _LABEL + witness + stamp + origin + range_ + checkpoint.root


def _verify_ed25519(key: NoteKey, message: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise VerificationError(f"{key.name}: the signature is not valid") from error
