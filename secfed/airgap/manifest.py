"""What belongs to a bundle, digest by digest, signed.

``manifest.json`` is the canonical JSON of

    {"coordinator_key": hex, "files": {path: sha256}, "format": 1, "platform": text,
     "python": text, "secfed": version, "signature": hex, "study_digest": hex}

followed by a newline. It names every file of the bundle except itself. The coordinator
signs everything but the signature, under a label that no other file has.
"""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints, ValidationError

import secfed
from secfed.canonical import canonical_json, file_sha256, parse_canonical
from secfed.errors import RunDirectoryError, VerificationError
from secfed.manifest import MANIFEST_NAME, list_files
from secfed.signing import BUNDLE, CoordinatorKey, verify_signature
from secfed.study.reading import Table

__all__ = [
    "FILES",
    "FOLDERS",
    "INSTALL_NAME",
    "MODEL_REQUIREMENTS_NAME",
    "REQUIREMENTS_NAME",
    "SBOM_NAME",
    "STUDY_NAME",
    "WHEELS",
    "BundleManifest",
    "files_of",
    "here",
    "read_manifest",
    "sign_manifest",
]

INSTALL_NAME: Final = "INSTALL.txt"
REQUIREMENTS_NAME: Final = "requirements.txt"
MODEL_REQUIREMENTS_NAME: Final = "model-requirements.txt"
STUDY_NAME: Final = "study.toml"
SBOM_NAME: Final = "sbom.cdx.json"
WHEELS: Final = "wheels"

FILES: Final = frozenset(
    {
        INSTALL_NAME,
        MODEL_REQUIREMENTS_NAME,
        REQUIREMENTS_NAME,
        SBOM_NAME,
        STUDY_NAME,
    }
)
FOLDERS: Final = frozenset({WHEELS, "model", "teacher", "teacher-adapter"})
"""What may stand in a bundle beside its manifest."""

_Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.+!-]*"
"""No part of a path leads out of the folder, or hides."""

_Name = Annotated[str, StringConstraints(pattern=rf"^{_PART}(/{_PART})?$")]
_Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._+-]{1,64}$")]


class BundleManifest(Table):
    """A manifest; ``files`` maps paths of at most two parts to SHA-256.

    Attributes:
        format: 1.
        secfed: The version that made it.
        python: Its minor version, as in ``3.11``.
        platform: As ``sysconfig`` names it, as in ``linux-x86_64``.
        study_digest: Of the study; what sites approve.
        coordinator_key: Who signed.
        files: Every file of the bundle but the manifest.
        signature: Over all other fields.
    """

    format: Annotated[int, Field(ge=1, le=1)]  # No boolean, which equals 1.
    secfed: _Word
    python: _Word
    platform: _Word
    study_digest: _Hex32
    coordinator_key: _Hex32
    files: dict[_Name, _Hex32]
    signature: _Hex64

    @property
    def public_key(self) -> bytes:
        """The signer's raw public key, 32 bytes."""
        return bytes.fromhex(self.coordinator_key)


def here() -> tuple[str, str]:
    """This machine's Python and platform, as a manifest names them."""
    return ".".join(platform.python_version_tuple()[:2]), sysconfig.get_platform()


def sign_manifest(root: Path, study_digest: str, key: CoordinatorKey) -> BundleManifest:
    """Name and sign what a bundle's folder holds; the last write.

    Raises:
        RunDirectoryError: It holds something that no bundle holds.
    """
    python, machine = here()
    fields = {
        "format": 1,
        "secfed": secfed.__version__,
        "python": python,
        "platform": machine,
        "study_digest": study_digest,
        "coordinator_key": key.public_bytes.hex(),
        "files": {name: file_sha256(path) for name, path in files_of(root).items()},
    }
    signature = key.sign(BUNDLE, canonical_json(fields)).hex()
    data = canonical_json(fields | {"signature": signature}) + b"\n"
    manifest = read_manifest(data)
    (root / MANIFEST_NAME).write_bytes(data)
    return manifest


def read_manifest(data: bytes) -> BundleManifest:
    """Parse a manifest and check the signature by the key that it names.

    Whether that key is the right one is the caller's question.

    Raises:
        VerificationError: Not canonical, a field is missing, extra or malformed, or
            the signature is wrong.
    """
    try:
        fields = _canonical_line(data)
        manifest = BundleManifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerificationError(
            f"{MANIFEST_NAME}: {where}: {first['msg']}; not the manifest of a bundle"
        ) from error
    except ValueError as error:
        raise VerificationError(f"{MANIFEST_NAME}: {error}") from error
    signed = {name: value for name, value in fields.items() if name != "signature"}
    try:
        verify_signature(
            manifest.public_key,
            BUNDLE,
            canonical_json(signed),
            bytes.fromhex(manifest.signature),
        )
    except VerificationError as error:
        raise VerificationError(f"{MANIFEST_NAME}: {error}") from error
    return manifest


def _canonical_line(data: bytes) -> Any:
    if not data.endswith(b"\n"):
        raise ValueError("the file does not end in a newline")
    return parse_canonical(data[:-1])


def files_of(root: Path) -> dict[str, Path]:
    """Every file of a bundle but the manifest, by relative path.

    Raises:
        RunDirectoryError: A link, another thing that is no plain file, or a place
            that bundles do not have.
        OSError: A directory cannot be read.
    """
    for child in root.iterdir():
        folder = child.is_dir() and not child.is_symlink()
        if child.name not in (FOLDERS if folder else FILES | {MANIFEST_NAME}):
            raise RunDirectoryError(f"{child.name!r}: nothing that a bundle holds")
    found = list_files(root)
    for name in found:
        if name.count("/") > 1:
            raise RunDirectoryError(f"{name!r}: a bundle has no folders in folders")
    return found
