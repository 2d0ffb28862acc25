"""What a coordinator's ledger tells besides rounds: keys, withdrawals, incidents.

Records lie under the run's ``private/``, each beside a salt of its own. What the ledger
does not bind yet is *due*, and is appended before the next round. The ledger has a
commitment only: whoever deletes the salt leaves an entry that says nothing of persons.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from secfed.canonical import jcs, parse_jcs
from secfed.entries import (
    ApprovalEntry,
    IncidentEntry,
    KeyEntry,
    Notice,
    WithdrawalEntry,
    commit,
)
from secfed.errors import VerificationError
from secfed.ledger import Entry
from secfed.runtime.directory import write_atomically
from secfed.runtime.roster import Roster
from secfed.runtime.signed_records import read_record

__all__ = [
    "Notices",
    "approvals_bytes",
    "keep_record",
    "receive_withdrawal",
]

_INCIDENTS: Final = "incidents"
_WITHDRAWALS: Final = "withdrawals"
_SALT_BYTES: Final = 32
_MOST_APPROVALS: Final = 64
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def keep_record(path: Path, data: bytes) -> None:
    """Keep a signed record with a fresh salt; the salt is written first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _salt_of(path).exists():
        write_atomically(_salt_of(path), secrets.token_bytes(_SALT_BYTES))
        _salt_of(path).chmod(0o600)
    write_atomically(path, data)


def receive_withdrawal(run_dir: Path, roster: Roster, data: bytes, where: Path) -> str:
    """Keep what a site signed to withdraw; from the next round on it is not asked.

    Returns:
        The site.

    Raises:
        VerificationError: It is no withdrawal from this study by a site of the roster.
    """
    fields = read_record(data, where)
    site = fields["by"]
    if fields["kind"] != "withdrawal" or fields["study"] != roster.study.digest():
        raise VerificationError(f"{where}: not a withdrawal from this run's study")
    if site not in roster.identities or fields["key"] != roster.identities[site].hex():
        raise VerificationError(f"{where}: not signed by a site of the roster")
    keep_record(run_dir / "private" / _WITHDRAWALS / f"{site}.json", data)
    return str(site)


def approvals_bytes(digests: Collection[str]) -> bytes:
    """A site's word that these approvals count there, as it travels."""
    return jcs({"approvals": sorted(digests)})


def _approvals(body: bytes) -> tuple[str, ...]:
    """Read what ``approvals_bytes`` wrote.

    Raises:
        VerificationError: It is malformed.
    """
    try:
        match parse_jcs(body):
            case {"approvals": list(digests), **rest} if (
                not rest
                and len(digests) <= _MOST_APPROVALS
                and all(isinstance(d, str) and _SHA256.fullmatch(d) for d in digests)
            ):
                return tuple(digests)
    except ValueError as error:
        raise VerificationError(f"not a list of approvals: {error}") from error
    raise VerificationError("not a list of approvals")


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
        """Hear which approvals count at a site.

        Raises:
            VerificationError: It is malformed.
        """
        for digest in _approvals(body):
            self._approved[site, digest] = None

    def due(self, entries: Sequence[Entry], next_round: int) -> tuple[Notice, ...]:
        """What the ledger does not say yet, and who is away from now on.

        Whom the ledger itself shows as gone stays away, whatever the roster says.

        Raises:
            VerificationError: A record is damaged.
        """
        bodies = [entry.parsed() for entry in entries]
        told = [body for body in bodies if isinstance(body, Notice)]
        found: list[Notice] = [
            *self._revoked(),
            *self._withdrawals(next_round),
            *self._incidents(),
        ]
        found += [
            ApprovalEntry(
                site=site, study_digest=self.roster.study.digest(), commitment=digest
            )
            for site, digest in self._approved
        ]
        said = {_without_round(body) for body in told}
        self.away = {
            body.site: "revoked" if isinstance(body, KeyEntry) else "withdrawn"
            for body in (*told, *found)
            if isinstance(body, KeyEntry | WithdrawalEntry)
        }
        return tuple(body for body in found if _without_round(body) not in said)

    def _revoked(self) -> Iterator[KeyEntry]:
        for site in self.roster.revoked:
            key = self.roster.requests[site].fingerprint
            yield KeyEntry(site=site, event="revoked", fingerprint=key)

    def _withdrawals(self, next_round: int) -> Iterator[WithdrawalEntry]:
        for site, commitment in self._bound(_WITHDRAWALS):
            yield WithdrawalEntry(
                site=site, from_round=next_round, commitment=commitment
            )

    def _incidents(self) -> Iterator[IncidentEntry]:
        for _, commitment in self._bound(_INCIDENTS):
            yield IncidentEntry(commitment=commitment)

    def _bound(self, folder: str) -> Iterator[tuple[str, str]]:
        """Whose each record is, and what binds it; without a salt nothing does."""
        for path in sorted((self.private / folder).glob("*.json")):
            data = path.read_bytes()
            signer = str(read_record(data, path)["by"])
            if _salt_of(path).exists():
                yield signer, commit(data.decode(), _salt_of(path).read_bytes())


def _without_round(body: Notice) -> Notice:
    """For comparison: a withdrawal counts from the round before which it was told."""
    if isinstance(body, WithdrawalEntry):
        return body.model_copy(update={"from_round": 1})
    return body


def _salt_of(path: Path) -> Path:
    return path.with_suffix(".salt")
