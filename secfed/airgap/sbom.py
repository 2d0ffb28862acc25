"""The bill of materials of a bundle: CycloneDX 1.6, JSON, the same bytes each time.

Written with the reference library of CycloneDX, which is needed where bundles are made
(``pip install 'secfed[bundle]'``) and nowhere else: reading it back takes JSON alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from secfed.airgap.weights import Weights
from secfed.airgap.wheels import OWN, Wheel, WheelFacts, facts_of
from secfed.canonical import parse_json
from secfed.errors import BundleError, VerificationError

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

__all__ = ["read_sbom", "sbom_text"]

_SPACE: Final = uuid.UUID("6f1f7a52-6a0e-5d8f-9f51-1d4a0c8f4f7e")
"""The name space of our serial numbers; a random one, drawn once."""


def sbom_text(
    study_digest: str, wheels: Mapping[Wheel, Path], weights: Iterable[Weights]
) -> str:
    """The bill of materials: secfed, every other wheel, every file of weights.

    The serial number follows from the content and there is no date, so that the same
    content has the same bytes.

    Raises:
        BundleError: The library is not installed, or a wheel has no metadata.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415
        from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415
    except ImportError as error:
        raise BundleError(
            "the library that writes the SBOM is not installed: "
            "pip install 'secfed[bundle]'"
        ) from error
    facts = {wheel: facts_of(path) for wheel, path in wheels.items()}
    parts = {wheel.name: _library(wheel, said) for wheel, said in facts.items()}
    models = [_model(one) for one in weights]
    own = parts[OWN]
    content = [study_digest, *(wheel.sha256 for wheel in sorted(wheels))]
    bom = Bom(
        serial_number=uuid.uuid5(_SPACE, " ".join(content)),
        metadata=BomMetaData(component=own),
        components=[part for part in parts.values() if part is not own] + models,
    )
    bom.metadata.timestamp = None  # type: ignore[assignment]
    for wheel, said in facts.items():
        needed = [parts[name] for name in said.needs if name in parts]
        carried = models if wheel.name == OWN else []
        bom.register_dependency(parts[wheel.name], needed + carried)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def read_sbom(data: bytes) -> tuple[set[Wheel], set[str]]:
    """The wheels that a bill of materials lists, and the digests of its weights.

    Raises:
        VerificationError: It is not a CycloneDX file of this form.
    """
    try:
        bom = parse_json(data)
        if bom["bomFormat"] != "CycloneDX" or bom["specVersion"] != "1.6":
            raise VerificationError("not CycloneDX 1.6")
        listed = [bom["metadata"]["component"], *bom["components"]]
        wheels = {
            Wheel(one["name"], one["version"], _sha256(one))
            for one in listed
            if one["type"] != _model_type()
        }
        models = {_sha256(one) for one in listed if one["type"] == _model_type()}
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"not a bill of materials: {error}") from error
    return wheels, models


def _model_type() -> str:
    return "machine-learning-model"


def _sha256(component: dict[str, Any]) -> str:
    (digest,) = (
        one["content"] for one in component["hashes"] if one["alg"] == "SHA-256"
    )
    return str(digest)


def _library(wheel: Wheel, facts: WheelFacts) -> Component:
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    own = wheel.name == OWN
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.APPLICATION if own else ComponentType.LIBRARY,
        bom_ref=f"{wheel.name}@{wheel.version}",
        purl=PackageURL("pypi", None, wheel.name, wheel.version),
        hashes=_hashes(wheel.sha256),
        licenses=_licences(facts.licence),
    )


def _model(weights: Weights) -> Component:
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415

    return Component(
        name=f"{weights.named}/{weights.file}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{weights.what}:{weights.sha256}",
        hashes=_hashes(weights.sha256),
    )


def _hashes(sha256: str) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415

    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _licences(text: str) -> list[Any]:
    from cyclonedx.contrib.license.factories import LicenseFactory  # noqa: PLC0415

    return [LicenseFactory().make_from_string(text)] if text else []
