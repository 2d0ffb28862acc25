"""Keys on disk are encrypted under one more key, which lies elsewhere.

A *protecting key* is 32 random bytes: in a file of its own, in the operating system's
keyring, or handed to a service by systemd. With it every secret of a keys folder is
sealed by AES-256-GCM, so that a copied folder, a backup or a stolen disk without the
protecting key says nothing. It protects nothing from who has both, or is root.

A protected file::

    line     "secfed protected file 1"
    8 bytes  which protecting key: the start of a SHA-256 of it
    12       nonce
    rest     ciphertext and tag, bound to the line, the key and the file's name
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from protocols.aead import NONCE_BYTES, open_box, seal_box
from protocols.errors import MessageError
from secfed.errors import RunDirectoryError
from secfed.private_files import read_private, write_private

__all__ = [
    "KEY_BYTES",
    "VARIABLE",
    "ProtectingKey",
    "is_protected",
    "protect_file",
    "read_secret",
]

VARIABLE: Final = "SECFED_PROTECTING_KEY"
"""The environment variable that says where the protecting key is."""

KEY_BYTES: Final = 32
_LABEL: Final = b"secfed/protecting-key/1\n"
_HEADER: Final = b"secfed protected file 1\n"
_IDENTIFIER_BYTES: Final = 8
_WHAT: Final = "the key"


class ProtectingKey:
    """Seals and opens the secret files of a folder. Its ``repr`` shows no secret."""

    __slots__ = ("_secret", "identifier")

    def __init__(self, secret: bytes) -> None:
        """Take 32 secret bytes from a cryptographic source.

        Raises:
            ValueError: There are not 32 of them.
        """
        if len(secret) != KEY_BYTES:
            raise ValueError("a protecting key has 32 bytes")
        self._secret = secret
        self.identifier = hashlib.sha256(_LABEL + secret).digest()[:_IDENTIFIER_BYTES]

    def seal(self, name: str, secret: bytes) -> bytes:
        """The content of a protected file of this name; differs at every call."""
        header = _HEADER + self.identifier
        bound = header + name.encode()
        return header + seal_box(self._secret, os.urandom(NONCE_BYTES), secret, bound)

    def open(self, path: Path, data: bytes) -> bytes:
        """What a protected file holds.

        Raises:
            RunDirectoryError: It is under another key, damaged, or another file.
        """
        start = len(_HEADER) + _IDENTIFIER_BYTES
        header, box = data[:start], data[start:]
        if header[len(_HEADER) :] != self.identifier:
            raise RunDirectoryError(
                f"{path}: encrypted under the protecting key "
                f"{header[len(_HEADER) :].hex()}, and the one given is "
                f"{self.identifier.hex()}; give the right one"
            )
        try:
            return open_box(self._secret, box, header + path.name.encode())
        except MessageError:
            raise RunDirectoryError(
                f"{path}: damaged, or renamed; restore it from a backup, or make new "
                "keys"
            ) from None

    def __repr__(self) -> str:
        return f"ProtectingKey(<{self.identifier.hex()}>)"

    def __reduce__(self) -> str:
        raise TypeError("a protecting key is not copied or pickled")


def is_protected(data: bytes) -> bool:
    """Whether a file's content is encrypted."""
    return data.startswith(_HEADER)


def read_secret(path: Path, protecting: ProtectingKey | None) -> bytes:
    """A secret file, opened if it is protected.

    A file that is not encrypted is read only where no protecting key is given: whoever
    could put a file there must not be able to put a readable one.

    Raises:
        RunDirectoryError: It cannot be read, or is not protected as it should be.
    """
    data = read_private(path, _WHAT)
    if protecting is None:
        if is_protected(data):
            raise RunDirectoryError(
                f"{path}: encrypted. Say where the protecting key is: "
                "`protecting_key` in the site's file, --protecting-key, or "
                f"{VARIABLE}; a path, or keyring:NAME"
            )
        return data
    if not is_protected(data):
        raise RunDirectoryError(
            f"{path}: not encrypted, though a protecting key is given; encrypt the "
            f"folder once with `secfed keys protect {path.parent}`"
        )
    return protecting.open(path, data)


def protect_file(
    path: Path, protecting: ProtectingKey, before: ProtectingKey | None = None
) -> bool:
    """Encrypt a secret file in place, whole or not at all.

    Args:
        path: The file.
        protecting: From now on.
        before: The key that it is encrypted under now, to be replaced.

    Returns:
        Whether it was changed; False where it is under this key already.

    Raises:
        RunDirectoryError: It cannot be read, or is under a third key.
    """
    data = read_private(path, _WHAT)
    if not is_protected(data):
        secret = data
    elif before is not None and before.identifier != protecting.identifier:
        secret = before.open(path, data)
    else:
        protecting.open(path, data)
        return False
    return write_private(path, protecting.seal(path.name, secret), replace=True)
