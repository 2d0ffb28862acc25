"""The file that names who signs a ledger beside the coordinator.

Example::

    format = 1

    # In a hardware module, by PKCS#11 (ECDSA on P-256 or P-384); PYKCS11LIB names its
    # library. Needs `pip install 'secfed[hsm]'`.
    [[signer]]
    uri = "hsm:2?label=secfed"
    public = "ledger-hsm.pem"
    # A file of mode 0600; without it the PIN is asked for at the terminal.
    pin = "/etc/secfed/hsm.pin"

    # In a PEM file: Ed25519, ECDSA or ML-DSA.
    [[signer]]
    uri = "file2:/etc/secfed/ledger-key.pem"
    public = "ledger.pem"

The keys are opened and used by securesystemslib.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from getpass import getpass
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.exceptions import Error as LibraryError
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import Signer, SSlibKey

from secfed.errors import StudyError
from secfed.private_files import read_private
from secfed.study.reading import Table, checked, read_toml

__all__ = ["open_signers"]

_SCHEMES: Final = ("file2:", "hsm:")


class _Named(Table):
    uri: str
    public: str
    pin: str | None = None


class _SignersFile(Table):
    format: Literal[1]
    signer: list[_Named]


def open_signers(path: Path) -> tuple[Signer, ...]:
    """Open every key that the file names, and let each sign once.

    Args:
        path: The file; the paths in it start in its folder.

    Raises:
        StudyError: The file is malformed, or a key cannot be used; the message says
            which.
        RunDirectoryError: A key's or a PIN's file is open to others.
    """
    named = checked(_SignersFile, read_toml(path), path).signer
    return tuple(_opened(path, number, one) for number, one in enumerate(named))


def _opened(path: Path, number: int, named: _Named) -> Signer:
    where, folder = f"signer[{number + 1}]", path.resolve().parent
    if not named.uri.startswith(_SCHEMES):
        raise StudyError(path, f"{where}.uri", f"starts with one of {_SCHEMES}")
    uri = named.uri
    if uri.startswith("file2:"):
        private = folder / uri.removeprefix("file2:")
        read_private(private, "a signing key")
        uri = f"file2:{private}"
    ask = partial(_pin, folder, named.pin)
    try:
        pem = (folder / named.public).read_bytes()
        public = SSlibKey.from_crypto(load_pem_public_key(pem))
        signer = Signer.from_priv_key_uri(uri, public, _handler(ask))
        public.verify_signature(signer.sign(b"secfed"), b"secfed")
    except UnsupportedLibraryError as error:
        hint = f"{error}; pip install 'secfed[hsm]'"
        raise StudyError(path, where, hint) from error
    # A hardware module's errors are of RuntimeError, and some have a name only.
    except (LibraryError, OSError, RuntimeError, ValueError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise StudyError(path, where, f"the key cannot be used: {what}") from error
    return signer


def _handler(ask: Callable[[], str]) -> Callable[[str], str]:
    return lambda _what: ask()


def _pin(folder: Path, file: str | None) -> str:
    if file is None:
        return getpass("PIN of the hardware module: ")
    return read_private(folder / file, "a PIN").decode("ascii").strip()
