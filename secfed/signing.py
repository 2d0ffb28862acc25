"""The coordinator's signing key: Ed25519, one file, readable by its owner only.

What the signature proves: the holder of this key wrote these bytes for this
purpose. It does not prove that what they say is true, nor that a site added
noise. Every use of the key has its own label, so that a signature made for one
purpose is never valid for another; formats of others that say at their head what they
are (DSSE envelopes, checkpoints) are signed as those formats prescribe.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from secfed.errors import RunDirectoryError, VerificationError
from secfed.private_files import read_private, write_private

__all__ = [
    "ANSWER",
    "APPROVAL",
    "BUNDLE",
    "KEY_REQUEST",
    "MANIFEST",
    "ORDER",
    "RECORD",
    "RELEASE",
    "RELEASE_APPROVAL",
    "RELEASE_REQUEST",
    "ROSTER",
    "WITHDRAWAL",
    "CoordinatorKey",
    "fingerprint",
    "format_fingerprint",
    "framed",
    "load_or_create",
    "parse_fingerprint",
    "signing_key",
    "verify_signature",
]

MANIFEST = "secfed/manifest/1"
ROSTER = "secfed/roster/1"
KEY_REQUEST = "secfed/key-request/1"
ORDER = "secfed/order/1"
ANSWER = "secfed/answer/1"
APPROVAL = "secfed/approval/1"
WITHDRAWAL = "secfed/approval-withdrawal/1"
BUNDLE = "secfed/bundle/1"
RECORD = "secfed/operations-record/1"
RELEASE = "secfed/release/1"
RELEASE_REQUEST = "secfed/release-request/1"
RELEASE_APPROVAL = "secfed/release-approval/1"
_LABELS = frozenset(
    {
        MANIFEST,
        ROSTER,
        KEY_REQUEST,
        ORDER,
        ANSWER,
        APPROVAL,
        WITHDRAWAL,
        BUNDLE,
        RECORD,
        RELEASE,
        RELEASE_REQUEST,
        RELEASE_APPROVAL,
    }
)

# No label's length is written with these first two bytes, so that no text is ever
# taken for a labelled message.
_OWN_HEADS = (b"DSSEv1 ", b"secfed-log/")

_SECRET_BYTES = 32
_PUBLIC_BYTES = 32


class CoordinatorKey:
    """A secret signing key. Its ``repr`` shows the public fingerprint only."""

    __slots__ = ("_secret", "public_bytes")

    def __init__(self, secret: bytes) -> None:
        """Take 32 secret bytes from a cryptographic source.

        Raises:
            ValueError: There are not 32 of them.
        """
        if len(secret) != _SECRET_BYTES:
            raise ValueError("an Ed25519 secret has 32 bytes")
        self._secret = Ed25519PrivateKey.from_private_bytes(secret)
        self.public_bytes: bytes = self._secret.public_key().public_bytes_raw()

    def sign(self, label: str, message: bytes) -> bytes:
        """Sign a message for one purpose; 64 bytes.

        Raises:
            ValueError: The label is not one of this module's.
        """
        return self._secret.sign(framed(label, message))

    def sign_text(self, text: bytes) -> bytes:
        """Sign a text that says at its head what it is; 64 bytes.

        Raises:
            ValueError: It is neither DSSE's encoding nor a checkpoint of a log.
        """
        if not text.startswith(_OWN_HEADS):
            raise ValueError("only DSSE encodings and checkpoints are signed as such")
        return self._secret.sign(text)

    def fingerprint(self) -> str:
        """The SHA-256 of the public key, which people compare and pin."""
        return fingerprint(self.public_bytes)

    def __repr__(self) -> str:
        return f"CoordinatorKey(<{self.fingerprint()[:16]}>)"

    def __reduce__(self) -> str:
        raise TypeError("a signing key is not copied or pickled")


def verify_signature(
    public_key: bytes, label: str, message: bytes, signature: bytes
) -> None:
    """Check that the holder of a key signed this message for this purpose.

    Raises:
        VerificationError: The key or the signature is malformed or wrong.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(signature, framed(label, message))
    except (InvalidSignature, ValueError) as error:
        raise VerificationError("the signature is not valid for this key") from error


def fingerprint(public_key: bytes) -> str:
    """The SHA-256 of a raw public key, as 64 hexadecimal digits."""
    if len(public_key) != _PUBLIC_BYTES:
        raise ValueError("an Ed25519 public key has 32 bytes")
    return hashlib.sha256(public_key).hexdigest()


def format_fingerprint(value: str) -> str:
    """A fingerprint in groups of four, to be read aloud.

    >>> format_fingerprint("00112233" * 8)[:14]
    '0011 2233 0011'
    """
    return " ".join(value[i : i + 4] for i in range(0, len(value), 4))


def parse_fingerprint(text: str) -> str:
    """Read a fingerprint as people write it: any case, spaces, colons or dashes.

    Raises:
        ValueError: It does not have 64 hexadecimal digits.
    """
    digits = "".join(text.split()).replace(":", "").replace("-", "").lower()
    if len(digits) != hashlib.sha256().digest_size * 2 or not set(digits) <= set(
        "0123456789abcdef"
    ):
        raise ValueError(
            "a fingerprint has 64 hexadecimal digits; the run prints it as "
            "'coordinator key'"
        )
    return digits


def load_or_create(path: Path) -> CoordinatorKey:
    """Load the coordinator's key, or make one where there is none.

    Guarantees:
        A new file has mode 0600 and appears whole or not at all.
        An existing key is never replaced.

    Raises:
        RunDirectoryError: The file is a link, belongs to someone else, can be
            read by others, or is not a key.
    """
    if not path.exists() and not path.is_symlink():
        write_private(path, os.urandom(_SECRET_BYTES).hex().encode() + b"\n")
    return signing_key(read_private(path, "the signing key"), path)


def signing_key(data: bytes, path: Path) -> CoordinatorKey:
    """The key of a file's content.

    Raises:
        RunDirectoryError: It is not a key.
    """
    try:
        text = data.decode("ascii").removesuffix("\n")
        return CoordinatorKey(bytes.fromhex(text))
    except ValueError:
        # The cause would show the file's content in a traceback.
        raise RunDirectoryError(f"{path}: not a signing key of secfed") from None


def framed(label: str, message: bytes) -> bytes:
    """The bytes that are signed for one purpose: the label, length first, and all.

    Raises:
        ValueError: The label is not one of this module's.
    """
    if label not in _LABELS:
        raise ValueError(f"unknown signature label {label!r}")
    prefix = label.encode()
    return len(prefix).to_bytes(2, "big") + prefix + message
