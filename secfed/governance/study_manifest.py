"""What operators approve: the study, and whose keys take part in it.

Its canonical JSON is

    {"coordinator": hex or null, "format": 1, "identities": {site: hex}, "study": ...}

In a deployment coordinator and identities are those of the roster, which the
coordinator signed; a study that runs in one process has none. Addresses,
certificates and revocations are no part of it: none changes what leaves a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from secfed import canonical
from secfed.errors import StudyError, VerificationError
from secfed.study import Study, load_study_dict

__all__ = ["SHORT_DIGITS", "StudyManifest"]

SHORT_DIGITS: Final = 8
"""Digits that an operator types to confirm; the whole digest is what is signed."""

_FIELDS: Final = {"format", "study", "coordinator", "identities"}
_KEY_DIGITS: Final = 64


@dataclass(frozen=True)
class StudyManifest:
    """A study with the public keys of those who take part."""

    study: Study
    coordinator: bytes | None = None
    identities: Mapping[str, bytes] = field(default_factory=dict)

    def canonical(self) -> dict[str, Any]:
        """As JSON-able values; equal manifests have equal ones."""
        key = self.coordinator
        return {
            "format": 1,
            "study": self.study.canonical(),
            "coordinator": None if key is None else key.hex(),
            "identities": {site: k.hex() for site, k in self.identities.items()},
        }

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: what is signed."""
        return canonical.digest(self.canonical())

    @property
    def short(self) -> str:
        """The digest's first digits."""
        return self.digest()[:SHORT_DIGITS]

    @classmethod
    def from_canonical(cls, values: object) -> StudyManifest:
        """Read back what ``canonical`` gave.

        Raises:
            VerificationError: It is something else.
        """
        if not isinstance(values, dict) or values.keys() != _FIELDS:
            raise VerificationError("the fields are not those of a study's manifest")
        study, keys = values["study"], values["identities"]
        if not isinstance(study, dict) or not isinstance(keys, dict):
            raise VerificationError("a study's manifest without a study or its keys")
        coordinator = values["coordinator"]
        try:
            found = cls(
                load_study_dict(study, "the study of an approval"),
                None if coordinator is None else _key(coordinator),
                {site: _key(key) for site, key in keys.items()},
            )
        except StudyError as error:
            raise VerificationError(str(error)) from error
        # Equal values are not enough: 1 and 1.0 and True are equal, and not the same.
        if canonical.canonical_json(found.canonical()) != canonical.canonical_json(
            values
        ):
            raise VerificationError("the study's manifest is not in its one form")
        return found


def _key(value: object) -> bytes:
    if not isinstance(value, str) or len(value) != _KEY_DIGITS:
        raise VerificationError("a key of a study's manifest is malformed")
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise VerificationError("a key of a study's manifest is malformed") from error
