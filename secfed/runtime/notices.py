"""What a coordinator's ledger tells besides rounds: keys, withdrawals, incidents.

Records lie under the run's ``private/``, each beside a salt of its own. What the ledger
does not bind yet is *due*, and is appended before the next round. The ledger has a
commitment only: whoever deletes the salt leaves an entry that says nothing of persons.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from secfed.canonical import jcs, parse_jcs
from secfed.entries import (
    ApprovalEntry,
    IncidentEntry,
    KeyEntry,
    Notice,
    WithdrawalEntry,
    commit,
)
from secfed.errors import RunDirectoryError, VerificationError
from secfed.ledger import Entry
from secfed.runtime.directory import write_atomically
from secfed.runtime.roster import Roster
from secfed.runtime.signed_records import read_record

__all__ = [
    "Notices",
    "approval_bytes",
    "keep_record",
    "receive_withdrawal",
]

_MOST_APPROVALS: Final = 64
"""How many different approvals of one site a ledger tells of."""

_INCIDENTS: Final = "incidents"
_WITHDRAWALS: Final = "withdrawals"
_SALT_BYTES: Final = 32
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def keep_record(path: Path, data: bytes) -> None:
    """Keep a signed record with a fresh salt; the salt is written first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(_salt_of(path), secrets.token_bytes(_SALT_BYTES))
    _salt_of(path).chmod(0o600)
    write_atomically(path, data)


def receive_withdrawal(run_dir: Path, roster: Roster, data: bytes, where: Path) -> str:
    """Keep what a site signed to withdraw; from the next round on it is not asked.

    A site withdraws once: what came first stays.

    Returns:
        The site.

    Raises:
        RunDirectoryError: The run is another user's, whose process would not see it.
        VerificationError: It is no withdrawal from this study by a site of the roster.
    """
    private = run_dir / "private"
    if private.stat().st_uid != os.geteuid():
        raise RunDirectoryError(
            f"{private}: belongs to another user; run this as the one whose process "
            "serves the run"
        )
    site = _withdrawn(roster, read_record(data, where), where)
    path = private / _WITHDRAWALS / f"{site}.json"
    if not path.exists():
        keep_record(path, data)
    return site


def _withdrawn(roster: Roster, fields: Mapping[str, Any], where: Path) -> str:
    """The site of the roster that signed a withdrawal from its study."""
    site = str(fields["by"])
    if fields["kind"] != "withdrawal" or fields["study"] != roster.study.digest():
        raise VerificationError(f"{where}: not a withdrawal from this run's study")
    if site not in roster.identities or fields["key"] != roster.identities[site].hex():
        raise VerificationError(f"{where}: not signed by a site of the roster")
    return site


def approval_bytes(commitment: str | None) -> bytes:
    """What binds the approvals that count at a site, as it travels."""
    return jcs({"approval": commitment})


def _approval(body: bytes) -> str | None:
    """Read what ``approval_bytes`` wrote.

    Raises:
        VerificationError: It is malformed.
    """
    try:
        match parse_jcs(body):
            case {"approval": None, **rest} if not rest:
                return None
            case {"approval": str(found), **rest} if not rest and _SHA256.fullmatch(
                found
            ):
                return found
    except ValueError as error:
        raise VerificationError(f"not an approval: {error}") from error
    raise VerificationError("not an approval")


@dataclass
class Notices:
    """What is due to be told, and who takes part no more.

    Attributes:
        roster: Of the run.
        private: The run's private folder.
        away: Sites that are asked nothing any more, and why; ``due`` renews it.
    """

    roster: Roster
    private: Path
    away: Mapping[str, str] = field(init=False)
    _approved: dict[tuple[str, str], None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.away = dict.fromkeys(self.roster.revoked, "revoked")

    def approved(self, site: str, body: bytes) -> None:
        """Hear what binds the approvals that count at a site.

        Raises:
            VerificationError: It is malformed.
        """
        commitment = _approval(body)
        if commitment is not None:
            self._approved[site, commitment] = None

    def due(self, entries: Sequence[Entry], next_round: int) -> tuple[Notice, ...]:
        """What the ledger does not say yet; renews who is away.

        Whom the ledger itself shows as gone stays away, whatever the roster says.

        Raises:
            VerificationError: A record or its salt is damaged, or cannot be read.
        """
        bodies = [entry.parsed() for entry in entries]
        told = [body for body in bodies if isinstance(body, Notice)]
        withdrawn = {b.site for b in told if isinstance(b, WithdrawalEntry)}
        new = {s: c for s, c in self._withdrawals().items() if s not in withdrawn}
        found: list[Notice] = [
            *self._revoked(),
            *(
                WithdrawalEntry(site=site, from_round=next_round, commitment=bound)
                for site, bound in new.items()
                if bound is not None
            ),
            *self._incidents(),
            *self._approvals(told),
        ]
        revoked = {b.site for b in (*told, *found) if isinstance(b, KeyEntry)}
        self.away = {
            **dict.fromkeys(sorted({*withdrawn, *new}), "withdrawn"),
            **dict.fromkeys(sorted(revoked), "revoked"),
        }
        return tuple(body for body in found if body not in told)

    def _revoked(self) -> Iterator[KeyEntry]:
        for site in self.roster.revoked:
            key = self.roster.requests[site].fingerprint
            yield KeyEntry(site=site, event="revoked", fingerprint=key)

    def _withdrawals(self) -> dict[str, str | None]:
        """What binds the record of each site; None where its salt was deleted."""
        return {
            _withdrawn(self.roster, fields, path): bound
            for path, fields, bound in self._records(_WITHDRAWALS)
        }

    def _incidents(self) -> Iterator[IncidentEntry]:
        for path, fields, bound in self._records(_INCIDENTS):
            if fields["kind"] != "incident":
                raise VerificationError(f"{path}: not an incident")
            if bound is not None:
                yield IncidentEntry(commitment=bound)

    def _approvals(self, told: Sequence[Notice]) -> Iterator[ApprovalEntry]:
        """Of each site the first few that are not told yet."""
        study = self.roster.study.digest()
        named = [(b.site, b.commitment) for b in told if isinstance(b, ApprovalEntry)]
        for site, bound in self._approved:
            if sum(own == site for own, _ in named) < _MOST_APPROVALS:
                named.append((site, bound))
                yield ApprovalEntry(site=site, study_digest=study, commitment=bound)

    def _records(
        self, folder: str
    ) -> Iterator[tuple[Path, Mapping[str, Any], str | None]]:
        """The records of a folder, and what binds each; without a salt nothing does."""
        where = self.private / folder
        try:
            # Not glob(), which passes over a folder that cannot be read.
            found = sorted(where.iterdir()) if where.exists() else []
            for path in (one for one in found if one.suffix == ".json"):
                data, salt = path.read_bytes(), _salt_of(path)
                fields, bound = read_record(data, path), None
                if salt.exists():
                    bound = commit(data.decode(), salt.read_bytes())
                yield path, fields, bound
        except (OSError, ValueError) as error:
            raise VerificationError(
                f"{where}: a record or its salt: {error}"
            ) from error


def _salt_of(path: Path) -> Path:
    return path.with_suffix(".salt")
