"""Verify a release, or a candidate for one, offline: numbered checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from secfed.gate.checking import Candidate, check_candidate, check_release
from secfed.gate.layout import RELEASE
from secfed.gate.requirements import check_requirements
from secfed.signing import fingerprint, parse_fingerprint
from secfed.verify import Pins, VerificationReport, check_run
from secfed.verify.checks import Checklist

__all__ = ["examine", "look_at", "verify_release"]


def verify_release(
    path: str | Path,
    trust: str | None = None,
    approvers: Collection[str] = (),
    *,
    witnesses: Mapping[str, str] | None = None,
    seen: Sequence[str | Path] = (),
    records: Sequence[str | Path] = (),
) -> VerificationReport:
    """Check a release from its files alone; never raises because of what they hold.

    Args:
        path: The folder. A candidate is no release, and does not pass.
        trust: Fingerprint of the coordinator's key, known from elsewhere.
        approvers: Fingerprints of the people who may approve, known from elsewhere;
            empty: their keys are only told.
        witnesses: As for ``verify_run``.
        seen: As for ``verify_run``.
        records: As for ``verify_run``.

    Raises:
        ValueError: A fingerprint of ``approvers`` or ``witnesses`` is malformed.
    """
    root, checklist = Path(path), Checklist()
    known, pins = _known(approvers), Pins.read(trust, witnesses, seen, records)
    release, pinned = check_release(root, trust, checklist)
    if release is None:
        return _report(path, "release", None, checklist)
    found = check_candidate(
        root, release, known, checklist, partial(check_run, pins=pins)
    )
    if found is not None:
        check_requirements(found, checklist)
    signer = fingerprint(bytes.fromhex(release.coordinator_key))
    return _report(path, "release", signer, checklist, pinned=pinned)


def look_at(path: str | Path, approvers: Collection[str] = ()) -> VerificationReport:
    """As ``verify_release``, but a folder without the last signature is a candidate."""
    root, checklist = Path(path), Checklist()
    if (root / RELEASE).exists():
        return verify_release(path, None, approvers)
    found = examine(root, checklist, _known(approvers))
    key = None if found is None else found.evidence.manifest.coordinator_key
    signer = None if key is None else fingerprint(key)
    return _report(path, "candidate", signer, checklist)


def _known(approvers: Collection[str]) -> tuple[str, ...]:
    return tuple(parse_fingerprint(pin) for pin in approvers)


def examine(
    root: Path, checklist: Checklist, approvers: Collection[str] = ()
) -> Candidate | None:
    """Make all checks of a candidate; None where it cannot be read."""
    found = check_candidate(
        root, None, approvers, checklist, partial(check_run, pins=Pins())
    )
    if found is not None:
        check_requirements(found, checklist)
    return found


def _report(
    path: str | Path,
    kind: str,
    signer: str | None,
    checklist: Checklist,
    *,
    pinned: bool = False,
) -> VerificationReport:
    done = tuple(checklist.done)
    return VerificationReport(str(path), kind, signer, pinned, done)
