"""Verify a bundle: offline, without PyTorch, without the library that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from secfed.airgap.manifest import (
    MODEL_REQUIREMENTS_NAME,
    REQUIREMENTS_NAME,
    SBOM_NAME,
    STUDY_NAME,
    WHEELS,
    BundleManifest,
    files_of,
    here,
    read_manifest,
)
from secfed.airgap.sbom import read_sbom
from secfed.airgap.weights import check_weights, weights_of
from secfed.airgap.wheels import OWN, Wheel, named_wheel, read_requirements
from secfed.errors import VerificationError
from secfed.manifest import MANIFEST_NAME
from secfed.signing import fingerprint
from secfed.study import Study, load_study
from secfed.verify import VerificationReport
from secfed.verify.checks import Checklist
from secfed.verify.files import check_digests, check_signer, is_directory, read_plain

__all__ = ["verify_bundle"]

_KIND: Final = "bundle"


def verify_bundle(path: str | Path, trust: str | None = None) -> VerificationReport:
    """Check a bundle: signature, every file, nothing else, and what the files say.

    Never raises because of what the folder holds; every finding is a check. What
    files say is looked at only where all have the digests that were signed.

    Args:
        path: The bundle's folder.
        trust: The fingerprint of the coordinator whose signature is expected. None
            gives an UNPINNED report.
    """
    root, checklist = Path(path), Checklist()
    manifest, pinned = None, False
    if checklist.ask("directory", lambda: _check_directory(root)):
        manifest = checklist.read("manifest", lambda: _read(root))
    if manifest is not None:
        known = manifest
        signer = known.public_key
        pinned = bool(
            checklist.read("coordinator key", lambda: check_signer(signer, trust))
        )
        sound = checklist.ask("files", lambda: check_digests(root, known.files))
        alone = checklist.ask("no other files", lambda: _check_alone(root, known))
        if sound and alone:
            _check_content(root, known, checklist)
    return VerificationReport(
        path=str(path),
        kind=_KIND,
        fingerprint=None if manifest is None else fingerprint(manifest.public_key),
        pinned=pinned,
        checks=tuple(checklist.done),
    )


def _check_directory(root: Path) -> str:
    if not is_directory(root):
        raise VerificationError(f"{root}: not a directory; unpack the bundle first")
    return "it exists"


def _read(root: Path) -> tuple[BundleManifest, str]:
    try:
        data = read_plain(root / MANIFEST_NAME, MANIFEST_NAME)
    except FileNotFoundError as error:
        raise VerificationError(f"{MANIFEST_NAME} is missing: not a bundle") from error
    manifest = read_manifest(data)
    return manifest, (
        f"signed; it names {len(manifest.files)} files, made by secfed "
        f"{manifest.secfed} for Python {manifest.python} on {manifest.platform}"
    )


def _check_alone(root: Path, manifest: BundleManifest) -> str:
    extra = sorted(files_of(root).keys() - manifest.files.keys())
    if extra:
        raise VerificationError(
            f"{extra[0]}: not named by the manifest"
            + (f"; and {len(extra) - 1} more" if extra[1:] else "")
        )
    return "there is nothing that the manifest does not name"


def _check_content(root: Path, manifest: BundleManifest, checklist: Checklist) -> None:
    """What the files say, all of which are those that were signed."""
    study = checklist.read("study", lambda: _check_study(root, manifest))
    wheels = checklist.read("wheels", lambda: _check_wheels(root, manifest))
    if study is None or wheels is None:
        return
    checklist.ask("weights", lambda: check_weights(root, study, manifest.files))
    checklist.ask("bill of materials", lambda: _check_sbom(root, study, wheels))
    checklist.ask("this machine", lambda: _check_machine(manifest))


def _check_study(root: Path, manifest: BundleManifest) -> tuple[Study, str]:
    study = load_study(root / STUDY_NAME)
    if study.digest() != manifest.study_digest:
        raise VerificationError("not the study that the manifest names")
    return study, f"{study.name!r}, the one that the manifest names"


def _check_wheels(root: Path, manifest: BundleManifest) -> tuple[set[Wheel], str]:
    """The lists that pip installs from name the wheels, each with its digest."""
    there = {
        named_wheel(name.removeprefix(f"{WHEELS}/"), digest)
        for name, digest in manifest.files.items()
        if name.startswith(f"{WHEELS}/")
    }
    listed: set[Wheel] = set()
    for name in (REQUIREMENTS_NAME, MODEL_REQUIREMENTS_NAME):
        if name in manifest.files:
            listed |= read_requirements(read_plain(root / name, name).decode())
    if listed != there:
        names = sorted({wheel.name for wheel in listed ^ there})
        raise VerificationError(f"lists and wheels differ: {', '.join(names)}")
    if (OWN, manifest.secfed) not in {(wheel.name, wheel.version) for wheel in there}:
        raise VerificationError(f"no wheel of {OWN} {manifest.secfed}")
    return there, f"{len(there)} wheels, each in a list with its SHA-256"


def _check_sbom(root: Path, study: Study, wheels: set[Wheel]) -> str:
    listed, models = read_sbom(read_plain(root / SBOM_NAME, SBOM_NAME))
    if listed != wheels:
        names = sorted({wheel.name for wheel in listed ^ wheels})
        raise VerificationError(f"{SBOM_NAME} and wheels differ: {', '.join(names)}")
    if models != {one.sha256 for one in weights_of(study)}:
        raise VerificationError(f"{SBOM_NAME}: not the weights that the study pins")
    return f"CycloneDX; {len(listed)} packages and {len(models)} files of weights"


def _check_machine(manifest: BundleManifest) -> str:
    """Not a fault of the bundle: where it cannot be installed, pip says so."""
    made, own = (manifest.python, manifest.platform), here()
    if made == own:
        return "of the kind that the bundle was made for"
    return (
        f"Python {own[0]} on {own[1]}: the bundle was made for Python {made[0]} on "
        f"{made[1]}, and pip will not install all of it here"
    )
