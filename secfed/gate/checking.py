"""A release, checked from its files alone: what was signed, by whom, and the run.

The same checks are made of a *candidate*, which is a release that nobody signed yet,
so that approvers see what an auditor will see.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfed.canonical import file_sha256, parse_json
from secfed.errors import RunDirectoryError, VerificationError
from secfed.gate.contributions import RunRecord
from secfed.gate.documents import Approval, Release, Request
from secfed.gate.layout import (
    APPROVALS,
    EVIDENCE,
    RELEASE,
    REQUEST,
    RUN_MANIFEST,
    is_requested,
    place_of,
)
from secfed.manifest import read_manifest
from secfed.study import Study
from secfed.verify.checks import Checklist
from secfed.verify.files import Bundle, check_signer, check_study, read_plain
from secfed.verify.story import read_ledger

__all__ = [
    "Candidate",
    "Evidence",
    "check_candidate",
    "check_release",
    "list_release",
]

_MAX_FILES = 10_000
_MAX_DEPTH = 8

CheckRun = Callable[[Bundle, Checklist], None]


class Evidence(Bundle):
    """The part of a run that travels in a release, under the run's own manifest."""

    def read(self, name: str) -> bytes:
        """The content of a file of the run that is part of the release.

        Raises:
            VerificationError: The run's manifest does not name it, or it stayed there.
        """
        place = place_of(name)
        if name not in self.manifest.files or place is None:
            raise VerificationError(f"{name}: not in the evidence of this release")
        return read_plain(self.root / place, place)


@dataclass(frozen=True)
class Candidate:
    """Everything that the requirements look at.

    Attributes:
        root: The folder.
        request: Signed by the run's coordinator.
        approvals: By file name; each signature is valid for the key that it names.
        study: Of the run.
        record: What the run's ledger says.
        evidence: The run's files.
        approvers: Fingerprints that are known from elsewhere; empty: none are.
    """

    root: Path
    request: Request
    approvals: Mapping[str, Approval]
    study: Study
    record: RunRecord
    evidence: Evidence
    approvers: Collection[str] = ()

    def read(self, name: str) -> bytes:
        """A file that the request names."""
        if name not in self.request.files:
            raise VerificationError(f"{name}: the request does not name it")
        return read_plain(self.root / name, name)

    def json(self, name: str) -> Any:
        """A JSON file that the request names."""
        try:
            return parse_json(self.read(name))
        except ValueError as error:
            raise VerificationError(f"{name}: not JSON: {error}") from error


def list_release(root: Path) -> dict[str, Path]:
    """Every file below a folder, by relative path.

    Raises:
        RunDirectoryError: A link, something that is neither file nor folder, or more
            files or levels than a release has.
    """
    found: dict[str, Path] = {}
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        children = sorted(folder.iterdir())
        if not children and folder != root:
            raise RunDirectoryError(f"{folder.relative_to(root)}: an empty folder")
        for child in children:
            name = child.relative_to(root).as_posix()
            mode = child.lstat().st_mode
            if stat.S_ISDIR(mode) and depth < _MAX_DEPTH:
                waiting.append((child, depth + 1))
            elif stat.S_ISREG(mode) and len(found) < _MAX_FILES:
                found[name] = child
            else:
                raise RunDirectoryError(f"{name}: not a plain file of a release")
    return dict(sorted(found.items()))


def check_release(
    root: Path, trust: str | None, checklist: Checklist
) -> tuple[Release | None, bool]:
    """Make the checks of the last signature: over every file, and nothing else.

    Returns:
        The release, None where it cannot be read, and whether the signer is pinned.
    """
    release = checklist.read("release", lambda: _read_release(root))
    if release is None:
        return None, False
    key = bytes.fromhex(release.coordinator_key)
    pinned = checklist.read("coordinator key", lambda: check_signer(key, trust))
    checklist.ask("files", lambda: _check_files(root, release))
    return release, bool(pinned)


def check_candidate(
    root: Path,
    release: Release | None,
    approvers: Collection[str],
    checklist: Checklist,
    check_run: CheckRun,
) -> Candidate | None:
    """Make the checks of what two people sign, and of the run behind it.

    Args:
        root: The folder.
        release: Its last signature; None for a candidate.
        approvers: Fingerprints of the people who may approve; empty: anybody.
        checklist: Gets the checks.
        check_run: Makes the checks of a run directory.
    """
    request = checklist.read("request", lambda: _read_request(root, release))
    if request is None:
        return None
    checklist.ask("requested files", lambda: _check_requested(root, request))
    evidence = checklist.read("evidence", lambda: _read_evidence(root, request))
    approvals = checklist.read("signatures of approvals", lambda: _approvals(root))
    if evidence is None or approvals is None:
        return None
    check_run(evidence, checklist)
    return checklist.read(
        "request and run",
        lambda: _candidate(root, request, approvals, evidence, approvers),
    )


def _read_release(root: Path) -> tuple[Release, str]:
    if not (root / RELEASE).exists():
        raise VerificationError(
            f"{RELEASE} is missing: a candidate that nobody released, see `secfed "
            "release show`"
        )
    release = Release.read(read_plain(root / RELEASE, RELEASE), RELEASE)
    return release, f"signed; it names {len(release.files)} files"


def _check_files(root: Path, release: Release) -> str:
    found = list_release(root)
    named = {**release.files, RELEASE: ""}
    if odd := sorted(found.keys() ^ named.keys()):
        where = "not named by the release" if odd[0] in found else "missing"
        raise VerificationError(f"{odd[0]}: {where}")
    _check_digests(found, release.files, "since the release was signed")
    return f"{len(release.files)} files have the digests of the release; no others"


def _check_digests(
    found: Mapping[str, Path], expected: Mapping[str, str], when: str
) -> None:
    changed = [n for n, value in expected.items() if file_sha256(found[n]) != value]
    if changed:
        raise VerificationError(f"{', '.join(sorted(changed)[:8])}: changed {when}")


def _read_request(root: Path, release: Release | None) -> tuple[Request, str]:
    request = Request.read(read_plain(root / REQUEST, REQUEST), REQUEST)
    if release is not None and (
        release.request_digest != request.digest()
        or release.coordinator_key != request.coordinator_key
    ):
        raise VerificationError(f"{REQUEST}: not the request that was released")
    return request, f"signed; digest {request.digest()}"


def _check_requested(root: Path, request: Request) -> str:
    found = {n: p for n, p in list_release(root).items() if is_requested(n)}
    if odd := sorted(found.keys() ^ request.files.keys()):
        where = "not in the request" if odd[0] in found else "missing"
        raise VerificationError(f"{odd[0]}: {where}")
    _check_digests(found, request.files, "since the request was signed")
    return f"{len(request.files)} files are those of the request"


def _read_evidence(root: Path, request: Request) -> tuple[Evidence, str]:
    """The run's manifest, and the files of it that travel, by its own digests."""
    manifest = read_manifest(read_plain(root / RUN_MANIFEST, RUN_MANIFEST))
    if manifest.coordinator_key.hex() != request.coordinator_key:
        raise VerificationError(f"{RUN_MANIFEST}: signed by another key")
    places = {place_of(name): value for name, value in manifest.files.items()}
    places.pop(None, None)
    expected = {place: value for place, value in places.items() if place}
    there = {n for n in request.files if n.startswith(f"{EVIDENCE}/")}
    if odd := sorted(there - expected.keys() - {RUN_MANIFEST}):
        raise VerificationError(f"{odd[0]}: not a file of the run")
    if gone := sorted(expected.keys() - request.files.keys()):
        raise VerificationError(f"{gone[0]}: the run has it, the release has not")
    if other := [n for n, value in expected.items() if request.files[n] != value]:
        raise VerificationError(f"{min(other)}: not the file of the run")
    return Evidence(root, manifest), f"{len(expected)} files are those of the run"


def _approvals(root: Path) -> tuple[dict[str, Approval], str]:
    found: dict[str, Approval] = {}
    for name in list_release(root):
        if name.startswith(f"{APPROVALS}/"):
            approval = Approval.read(read_plain(root / name, name), name)
            if name != f"{APPROVALS}/{approval.file_name()}":
                raise VerificationError(f"{name}: not the name of its key's approval")
            found[name] = approval
    return found, f"{len(found)} are valid for the keys that they name"


def _candidate(
    root: Path,
    request: Request,
    approvals: Mapping[str, Approval],
    evidence: Evidence,
    approvers: Collection[str],
) -> tuple[Candidate, str]:
    study, _ = check_study(evidence)
    record = RunRecord.of(read_ledger(evidence)[0])
    if request.study_digest != evidence.manifest.study_digest:
        raise VerificationError(f"{REQUEST}: of another study")
    if request.ledger_head != record.head:
        raise VerificationError(f"{REQUEST}: the ledger does not end where it says")
    candidate = Candidate(
        root, request, approvals, study, record, evidence, tuple(approvers)
    )
    return candidate, "of this study, and the ledger ends where the request says"
