"""Records that a ledger binds by a commitment: is this the record that it means?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from secfed.entries import IncidentEntry, WithdrawalEntry, commit
from secfed.errors import VerificationError
from secfed.verify.files import read_plain
from secfed.verify.story import Story

__all__ = ["check_records"]


def check_records(story: Story, records: Iterable[Path]) -> str:
    """The ledger binds every record; the salt lies beside it, named ``.salt``.

    Raises:
        VerificationError: It binds none like it, or a file cannot be read.
    """
    return "; ".join(_bound(story, path) for path in records)


def _bound(story: Story, path: Path) -> str:
    salt = path.with_suffix(".salt")
    try:
        text = read_plain(path, str(path)).decode("utf-8")
        commitment = commit(text, read_plain(salt, str(salt)))
    except (OSError, ValueError) as error:
        raise VerificationError(f"{path}: a record or its salt: {error}") from error
    for index, body in story.notices.items():
        match body:
            case IncidentEntry() | WithdrawalEntry() if body.commitment == commitment:
                return f"entry {index}, {body.kind}, binds {path}"
    raise VerificationError(f"{path}: no entry binds this record under this salt")
