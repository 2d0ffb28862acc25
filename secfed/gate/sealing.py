"""Approvals, and the last signature over a candidate that met everything."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from secfed.canonical import file_sha256
from secfed.errors import PolicyError, RunDirectoryError, VerificationError
from secfed.gate.candidate import appearing, now
from secfed.gate.checking import Candidate, list_release
from secfed.gate.documents import Approval, Release
from secfed.gate.layout import APPROVALS, RELEASE
from secfed.gate.requirements import REQUIREMENTS
from secfed.gate.verification import examine
from secfed.signing import CoordinatorKey
from secfed.verify.checks import Check, Checklist

__all__ = ["APPROVALS_CHECK", "approve", "make_bundle"]

APPROVALS_CHECK = REQUIREMENTS[-1].name
"""The one requirement that an approver cannot wait for."""


def approve(folder: Path, key: CoordinatorKey, name: str, role: str) -> Approval:
    """Check a candidate as an auditor would, and sign its request's digest.

    Args:
        folder: The candidate, or a copy of it elsewhere.
        key: The person's own.
        name: Of the person; it is released with the adapter.
        role: In which they sign.

    Raises:
        VerificationError: A check failed; nothing was signed.
        PolicyError: This key or this name approved already, or it is the
            coordinator's key.
    """
    candidate = _sound(folder, but=APPROVALS_CHECK)
    request = candidate.request
    if key.public_bytes.hex() == request.coordinator_key:
        raise PolicyError("the coordinator's own key cannot approve; use a person's")
    approval = Approval.signed(
        key, time=now(), request_digest=request.digest(), name=name, role=role
    )
    for known in candidate.approvals.values():
        if known.same_person(approval):
            raise PolicyError(f"{known.name} approved this already")
    path = folder / APPROVALS / approval.file_name()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(approval.to_bytes())
    return approval


def make_bundle(
    folder: Path, key: CoordinatorKey, out: Path, approvers: Sequence[str] = ()
) -> Release:
    """Sign a candidate that meets every requirement; a new folder with all of it.

    Args:
        folder: The candidate with its approvals.
        key: The coordinator's, which signed run and request.
        out: The release; it must not exist.
        approvers: Fingerprints of those who may approve; empty: anybody.

    Raises:
        VerificationError: A check failed.
        PolicyError: Too few people approved.
        RunDirectoryError: ``out`` exists, the candidate is a release already, or the
            key is another one.
    """
    if (folder / RELEASE).exists():
        raise RunDirectoryError(f"{folder}: a release already")
    request = _sound(folder, approvers=approvers).request
    if key.public_bytes.hex() != request.coordinator_key:
        raise RunDirectoryError(f"{folder}: not the key that signed its request")
    with appearing(out) as target:
        for name, path in list_release(folder).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name, follow_symlinks=False)
        files = {n: file_sha256(path) for n, path in list_release(target).items()}
        # The copy is what is signed, so it is looked at again.
        _sound(target, approvers=approvers)
        release = Release.signed(
            key, time=now(), request_digest=request.digest(), files=files
        )
        (target / RELEASE).write_bytes(release.to_bytes())
    return release


def _sound(
    folder: Path, *, but: str | None = None, approvers: Sequence[str] = ()
) -> Candidate:
    checklist = Checklist()
    candidate = examine(folder, checklist, approvers)
    failed = [c for c in checklist.done if not c.passed and c.name != but]
    if failed:
        raise _refusal(folder, failed[0])
    if candidate is None:
        raise VerificationError(f"{folder}: not a candidate for a release")
    return candidate


def _refusal(folder: Path, check: Check) -> Exception:
    if check.name == APPROVALS_CHECK:
        return PolicyError(f"{folder}: {check.reason}")
    return VerificationError(f"{folder}: {check.name}: {check.reason}")
