"""Files that only their owner reads: how a key is written, and read back.

What is checked is checked on the open file, so that nothing can be put in its place
between the check and the reading.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from secfed.errors import RunDirectoryError

__all__ = ["read_private", "write_private"]

MODE: Final = 0o600
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_BYTES: Final = 65536


def read_private(path: Path, what: str) -> bytes:
    """A plain file of this user that nobody else can open; at most 64 KiB of it.

    Args:
        path: The file; a link is not followed.
        what: What it is called in an error, for example ``the signing key``.

    Raises:
        RunDirectoryError: It cannot be opened, is a link or no plain file, belongs to
            someone else, or is open to others.
    """
    try:
        file = open(path, "rb", opener=_open_plainly)  # noqa: SIM115 - closed below
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: {what} cannot be opened: {error.strerror}"
        ) from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RunDirectoryError(f"{path}: {what} is not a plain file")
        if status.st_uid != os.geteuid():
            raise RunDirectoryError(f"{path}: {what} belongs to someone else")
        if status.st_mode & _OTHERS:
            raise RunDirectoryError(
                f"{path}: {what} is open to other users; take their access away "
                "(chmod 600), or make a new key if they may have read it"
            )
        return file.read(_MAX_BYTES)


def write_private(path: Path, data: bytes, *, replace: bool = False) -> bool:
    """Write a file of mode 0600 that appears whole or not at all.

    Args:
        path: The file; its folder is made with mode 0700.
        data: What it holds.
        replace: Whether a file that is there gives way.

    Returns:
        Whether it was written; False where one is there and is kept.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(partial, flags, MODE), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            partial.replace(path)
            return True
        try:
            # A link, unlike a rename, fails where another process was faster.
            os.link(partial, path)
        except FileExistsError:
            return False
        return True
    finally:
        partial.unlink(missing_ok=True)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Wait until the disk has the folder's names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_plainly(path: str, flags: int) -> int:
    # Following no link, and not waiting for the other end of a pipe.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
