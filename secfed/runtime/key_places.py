"""Where a protecting key lies: a file, the keyring, or what systemd hands over.

A place is written as a path, ``keyring`` or ``keyring:NAME``. A key is 64 hexadecimal
digits, made by secfed; a password is none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from secfed.errors import RunDirectoryError
from secfed.private_files import read_private, write_private
from secfed.runtime.protection import KEY_BYTES, VARIABLE, ProtectingKey

__all__ = [
    "CREDENTIAL",
    "CREDENTIALS_FOLDER",
    "absolute_place",
    "find_protecting_key",
    "make_protecting_key",
    "read_protecting_key",
]

CREDENTIALS_FOLDER: Final = "CREDENTIALS_DIRECTORY"  # Set by systemd.
CREDENTIAL: Final = "secfed-protecting-key"
"""What a unit calls the protecting key in ``LoadCredential``."""

_KEYRING: Final = "keyring"
_SERVICE: Final = "secfed"
_TOO_OPEN: Final = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
_WHAT: Final = "the protecting key"
_RECOMMENDED: Final = 1  # Backends below this priority keep plain text, or nothing.


def find_protecting_key(
    named: str | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ProtectingKey | None:
    """The protecting key that is named first; None where nobody names one.

    1. what a person or a site's file names; 2. ``SECFED_PROTECTING_KEY``;
    3. the credential that systemd hands over.

    Args:
        named: A path, ``keyring`` or ``keyring:NAME``.
        folder: Where a relative path of ``named`` starts.
        environment: Of the process.

    Raises:
        RunDirectoryError: It is named, and cannot be used. The next is not tried.
    """
    # 1
    if named is not None:
        return read_protecting_key(named, folder)
    # 2
    if environment.get(VARIABLE):
        return read_protecting_key(environment[VARIABLE])
    # 3
    if environment.get(CREDENTIALS_FOLDER):
        handed = Path(environment[CREDENTIALS_FOLDER]) / CREDENTIAL
        if handed.exists():
            return _parsed(_read_credential(handed), handed)
    return None


def read_protecting_key(where: str, folder: Path | None = None) -> ProtectingKey:
    """A protecting key from a file, or from the keyring.

    Raises:
        RunDirectoryError: It is not there, open to others, or not a protecting key.
    """
    name = _in_keyring(where)
    if name is None:
        path = (folder or Path()) / where
        return _parsed(read_private(path, _WHAT), path)
    held = _Keyring().get_password(_SERVICE, name)
    if held is None:
        raise RunDirectoryError(
            f"keyring: no protecting key {name!r}; `secfed keys protect` makes one"
        )
    return _parsed(held.encode(), f"keyring:{name}")


def make_protecting_key(where: str, folder: Path | None = None) -> ProtectingKey:
    """The protecting key of a place; made there where there is none.

    Raises:
        RunDirectoryError: It cannot be made, or what is there cannot be used.
    """
    text = os.urandom(KEY_BYTES).hex() + "\n"
    name = _in_keyring(where)
    if name is None:
        path = (folder or Path()) / where
        if not path.exists() and not path.is_symlink():
            write_private(path, text.encode())
    elif _Keyring().get_password(_SERVICE, name) is None:
        _Keyring().set_password(_SERVICE, name, text)
    return read_protecting_key(where, folder)


def absolute_place(where: str | None) -> str | None:
    """The same place, whatever folder is the current one."""
    if where is None or _in_keyring(where) is not None:
        return where
    return str(Path(where).resolve())


def _parsed(data: bytes, where: str | Path) -> ProtectingKey:
    try:
        return ProtectingKey(bytes.fromhex(data.decode("ascii").strip()))
    except ValueError:
        # The cause would show the content in a traceback.
        raise RunDirectoryError(
            f"{where}: not a protecting key, which is 64 hexadecimal digits from "
            "`secfed keys protect`; a password is none"
        ) from None


def _read_credential(path: Path) -> bytes:
    """A credential of the unit that systemd started this process in.

    It belongs to this user, or to root with an entry for this user in its access list;
    the list makes the group's bits look set (systemd issue 29435).
    """
    refused = RunDirectoryError(f"{path}: not a credential as systemd hands it over")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise refused from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        plain = stat.S_ISREG(status.st_mode)
        trusted = status.st_uid in {0, os.geteuid()}
        if not plain or not trusted or status.st_mode & _TOO_OPEN:
            raise refused
        return file.read(4 * KEY_BYTES)


def _in_keyring(where: str) -> str | None:
    """The name in the keyring; None for a path."""
    kind, _, name = where.partition(":")
    if kind != _KEYRING:
        return None
    return name or "protecting-key"


class _Keyring:
    """The operating system's keyring, with its errors as ours."""

    def __init__(self) -> None:
        try:
            import keyring  # noqa: PLC0415 - an extra
            from keyring.errors import KeyringError  # noqa: PLC0415
        except ImportError:
            raise RunDirectoryError(
                "keyring: not installed; `pip install 'secfed[keyring]'`, or use a file"
            ) from None
        self._held = keyring.get_keyring()
        self._error = KeyringError
        if self._held.priority < _RECOMMENDED:
            raise RunDirectoryError(
                "keyring: this machine has none that keeps a secret; use a file, or a "
                "credential of systemd"
            )

    def get_password(self, service: str, name: str) -> str | None:
        """What is held, or None."""
        try:
            held: str | None = self._held.get_password(service, name)
        except self._error as error:
            raise self._refused(error) from None
        return held

    def set_password(self, service: str, name: str, text: str) -> None:
        """Keep it."""
        try:
            self._held.set_password(service, name, text)
        except self._error as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> RunDirectoryError:
        kind = type(error).__name__
        return RunDirectoryError(f"keyring: {kind}; unlock it, or use a file")
