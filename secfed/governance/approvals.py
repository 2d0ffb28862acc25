"""Approvals and withdrawals: what an operator signed, as files of the site.

An approval holds the whole manifest, so that the next version can be compared with it,
and the words that the operator was shown. It names no data and nothing that left the
site; the composed epsilon in those words stays here with it.

A withdrawal names the approvals that it ends by their digests, not by a time: a clock
that is set back makes none of them valid again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from secfed.canonical import sha256_hex
from secfed.errors import VerificationError
from secfed.governance.records import (
    open_record,
    parse_time,
    read_files,
    require_hex,
    require_text,
    sealed,
    time_text,
    write_once,
)
from secfed.governance.study_manifest import StudyManifest
from secfed.policy import SEMI_HONEST
from secfed.signing import APPROVAL, WITHDRAWAL, CoordinatorKey, fingerprint

__all__ = ["Approval", "Withdrawal", "approve", "read_approvals", "withdraw"]

_LABELS: Final = {"approval": APPROVAL, "withdrawal": WITHDRAWAL}
_APPROVAL_FIELDS: Final = {
    "format",
    "kind",
    "site",
    "population",
    "manifest",
    "exceptions",
    "shown",
    "approved_at",
    "expires_at",
    "nonce",
    "operator",
}
_WITHDRAWAL_FIELDS: Final = {
    "format",
    "kind",
    "site",
    "population",
    "approvals",
    "reason",
    "withdrawn_at",
    "operator",
}
_NONCE_BYTES: Final = 16


@dataclass(frozen=True)
class Approval:
    """One operator's signature under one manifest.

    Attributes:
        digest: SHA-256 of its file; withdrawals name it.
        site: The deployed site; empty where one policy is for all sites of a run.
        population: Whose budget it is about.
        manifest: What was approved.
        exceptions: To floors of the policy.
        shown: The words that the operator saw.
        approved_at: When, by the site's clock.
        expires_at: From then on it does not count.
        operator: The signer's public key.
    """

    digest: str
    site: str
    population: str
    manifest: StudyManifest
    exceptions: frozenset[str]
    shown: str
    approved_at: datetime
    expires_at: datetime
    operator: bytes

    @property
    def fingerprint(self) -> str:
        """Of the operator's key."""
        return fingerprint(self.operator)


@dataclass(frozen=True)
class Withdrawal:
    """The end of some approvals, named by their digests."""

    site: str
    population: str
    approvals: frozenset[str]
    reason: str
    withdrawn_at: datetime
    operator: bytes

    @property
    def fingerprint(self) -> str:
        """Of the operator's key."""
        return fingerprint(self.operator)


def approve(
    folder: Path,
    key: CoordinatorKey,
    manifest: StudyManifest,
    *,
    site: str,
    population: str,
    exceptions: Sequence[str],
    shown: str,
    approved_at: datetime,
    expires_at: datetime,
    nonce: bytes,
) -> Approval:
    """Sign a manifest and keep the approval in the site's folder.

    Args:
        folder: The site's approvals.
        key: The operator's.
        manifest: What is approved.
        site: As ``Approval.site``.
        population: As ``Approval.population``.
        exceptions: As ``Approval.exceptions``.
        shown: As ``Approval.shown``.
        approved_at: Now.
        expires_at: Later.
        nonce: 16 fresh bytes; two approvals of one study are different files.
    """
    fields = {
        "format": 1,
        "kind": "approval",
        "site": site,
        "population": population,
        "manifest": manifest.canonical(),
        "exceptions": sorted(exceptions),
        "shown": shown,
        "approved_at": time_text(approved_at),
        "expires_at": time_text(expires_at),
        "nonce": nonce.hex(),
    }
    data = sealed(key, APPROVAL, fields)
    made = _approval(data, open_record(data, _LABELS))
    name = f"{manifest.study.name}-{manifest.short}-{made.digest[:8]}.json"
    write_once(folder / name, data)
    return made


def withdraw(
    folder: Path,
    key: CoordinatorKey,
    ended: Sequence[Approval],
    *,
    reason: str,
    withdrawn_at: datetime,
) -> Withdrawal:
    """Sign the end of approvals of one site; their files stay.

    Raises:
        ValueError: There are none.
    """
    if not ended:
        raise ValueError("there is nothing to withdraw")
    fields = {
        "format": 1,
        "kind": "withdrawal",
        "site": ended[0].site,
        "population": ended[0].population,
        "approvals": sorted(approval.digest for approval in ended),
        "reason": reason,
        "withdrawn_at": time_text(withdrawn_at),
    }
    data = sealed(key, WITHDRAWAL, fields)
    made = _withdrawal(open_record(data, _LABELS))
    study = ended[0].manifest.study.name
    write_once(folder / f"{study}-withdrawn-{sha256_hex(data)[:8]}.json", data)
    return made


def read_approvals(folder: Path) -> tuple[tuple[Approval, ...], tuple[Withdrawal, ...]]:
    """Everything that was signed here, oldest first.

    Raises:
        VerificationError: A file is damaged or no record. Nothing counts then: it may
            have been a withdrawal.
    """
    approvals, withdrawals = [], []
    for path, data in read_files(folder).items():
        try:
            fields = open_record(data, _LABELS)
            if fields["kind"] == "approval":
                approvals.append(_approval(data, fields))
            else:
                withdrawals.append(_withdrawal(fields))
        except VerificationError as error:
            raise VerificationError(f"{path}: {error}") from error
    return (
        tuple(sorted(approvals, key=lambda a: (a.approved_at, a.digest))),
        tuple(sorted(withdrawals, key=lambda w: w.withdrawn_at)),
    )


def _approval(data: bytes, fields: dict[str, Any]) -> Approval:
    if fields.keys() != _APPROVAL_FIELDS:
        raise VerificationError("the fields are not those of an approval")
    require_hex(fields, "nonce", 2 * _NONCE_BYTES)
    begin, end = parse_time(fields, "approved_at"), parse_time(fields, "expires_at")
    if end <= begin:
        raise VerificationError("it expires before it was signed")
    exceptions = fields["exceptions"]
    if exceptions not in ([], [SEMI_HONEST]):
        raise VerificationError("'exceptions' names what nobody can except")
    return Approval(
        digest=sha256_hex(data),
        site=require_text(fields, "site"),
        population=require_text(fields, "population"),
        manifest=StudyManifest.from_canonical(fields["manifest"]),
        exceptions=frozenset(exceptions),
        shown=require_text(fields, "shown"),
        approved_at=begin,
        expires_at=end,
        operator=bytes.fromhex(fields["operator"]),
    )


def _withdrawal(fields: dict[str, Any]) -> Withdrawal:
    if fields.keys() != _WITHDRAWAL_FIELDS:
        raise VerificationError("the fields are not those of a withdrawal")
    ended = fields["approvals"]
    if not isinstance(ended, list) or not ended:
        raise VerificationError("'approvals' is not a list of digests")
    for value in ended:
        require_hex({"approvals": value}, "approvals", 64)
    if ended != sorted(set(ended)):
        raise VerificationError("'approvals' is not sorted")
    return Withdrawal(
        site=require_text(fields, "site"),
        population=require_text(fields, "population"),
        approvals=frozenset(ended),
        reason=require_text(fields, "reason"),
        withdrawn_at=parse_time(fields, "withdrawn_at"),
        operator=bytes.fromhex(fields["operator"]),
    )
