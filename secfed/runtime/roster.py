"""Who takes part in a study, pinned: the file that a site is given once.

A site makes its keys itself and sends a *request*, signed by its identity. The
coordinator signs all requests with the study, its address and its certificate
authority into a *roster*. A site trusts a roster because its operator compared the
coordinator's fingerprint by another way, and because its own request is in it
unchanged. What a roster cannot show is that another site in it is who it claims to
be: operators compare the fingerprints of the sites, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.keys import SigningKey
from secfed.canonical import canonical_json, parse_canonical
from secfed.errors import VerificationError
from secfed.governance import StudyManifest
from secfed.signing import (
    KEY_REQUEST,
    ROSTER,
    CoordinatorKey,
    fingerprint,
    framed,
    verify_signature,
)
from secfed.study import Study, load_study_dict

__all__ = [
    "KeyRequest",
    "Roster",
    "make_request",
    "make_roster",
    "read_request",
    "read_roster",
    "revoke",
]

_REQUEST_FIELDS = {"format", "site", "identity", "node_key", "signature"}
_ROSTER_FIELDS = {
    "format",
    "study",
    "address",
    "authority",
    "coordinator_key",
    "requests",
    "signature",
}
_REVOKED = "revoked"  # Absent where nobody's keys are revoked.


@dataclass(frozen=True)
class KeyRequest:
    """A site's public keys as the site signed them; ``node_key`` is a PEM text."""

    site: str
    identity: bytes
    node_key: str
    data: bytes

    @property
    def fingerprint(self) -> str:
        """Of the identity key; people compare it."""
        return fingerprint(self.identity)


@dataclass(frozen=True)
class Roster:
    """A verified roster.

    Attributes:
        study: What is run.
        address: Host and port of the coordinator's fleet API.
        authority: Certificate (PEM) of the authority that signed its server.
        coordinator_key: The coordinator's public signing key.
        requests: Every site's request, by name.
        revoked: Sites whose keys are no longer trusted. They stay in ``requests``:
            the sessions of the study name all its sites, present or not.
    """

    study: Study
    address: str
    authority: str
    coordinator_key: bytes
    requests: Mapping[str, KeyRequest]
    revoked: tuple[str, ...] = ()

    @property
    def identities(self) -> dict[str, bytes]:
        """Every site's public identity key."""
        return {name: request.identity for name, request in self.requests.items()}

    @property
    def manifest(self) -> StudyManifest:
        """What a site's operators approve."""
        return StudyManifest(self.study, self.coordinator_key, self.identities)

    @property
    def nodes(self) -> dict[str, str]:
        """The node key of every site that may connect."""
        return {
            name: request.node_key
            for name, request in self.requests.items()
            if name not in self.revoked
        }


def make_request(identity: SigningKey, site: str, node_key: str) -> bytes:
    """A site's signed request, as the text of a file."""
    fields = {
        "format": 1,
        "site": site,
        "identity": identity.public_bytes.hex(),
        "node_key": node_key,
    }
    signature = identity.sign(framed(KEY_REQUEST, canonical_json(fields)))
    return canonical_json(fields | {"signature": signature.hex()}) + b"\n"


def read_request(data: bytes, where: str | Path) -> KeyRequest:
    """Parse a request and check that the identity in it signed it.

    Raises:
        VerificationError: It is malformed or wrongly signed.
    """
    fields = _parsed(data, _REQUEST_FIELDS, where)
    identity = _hex(fields, "identity", where)
    _verify(identity, KEY_REQUEST, fields, where)
    return KeyRequest(fields["site"], identity, fields["node_key"], data)


def make_roster(
    key: CoordinatorKey,
    study: Study,
    address: str,
    authority: str,
    requests: Sequence[KeyRequest],
) -> bytes:
    """The signed roster of a study, as the text of a file.

    Raises:
        VerificationError: The requests are not one of each site of the study, or two
            name the same key.
    """
    names = sorted(request.site for request in requests)
    if names != sorted(study.sites):
        raise VerificationError(
            f"the study has the sites {', '.join(sorted(study.sites))}; the requests "
            f"are of {', '.join(names) or 'nobody'}"
        )
    for part in ("identity", "node_key"):
        if len({getattr(request, part) for request in requests}) != len(requests):
            raise VerificationError(f"two sites ask with the same {part}")
    fields = {
        "format": 1,
        "study": study.canonical(),
        "address": address,
        "authority": authority,
        "coordinator_key": key.public_bytes.hex(),
        "requests": {request.site: request.data.decode() for request in requests},
    }
    return _signed(key, fields)


def revoke(
    key: CoordinatorKey, data: bytes, sites: Sequence[str], where: str | Path
) -> bytes:
    """The same roster without trust in some sites' keys; nothing else changes.

    A key that is lost, stolen or replaced is revoked. The study goes on without the
    site; new keys of it need a new roster and a new run, because sessions name them.

    Raises:
        VerificationError: The roster is not this coordinator's, or has no such site.
    """
    held = read_roster(data, where)
    if held.coordinator_key != key.public_bytes:
        raise VerificationError(f"{where}: signed by another coordinator's key")
    unknown = sorted(set(sites) - held.requests.keys())
    if unknown:
        raise VerificationError(f"{where}: no site {', '.join(unknown)} in it")
    fields = parse_canonical(data.removesuffix(b"\n"))
    del fields["signature"]
    return _signed(key, fields | {_REVOKED: sorted({*held.revoked, *sites})})


def _signed(key: CoordinatorKey, fields: dict[str, Any]) -> bytes:
    signature = key.sign(ROSTER, canonical_json(fields))
    return canonical_json(fields | {"signature": signature.hex()}) + b"\n"


def read_roster(data: bytes, where: str | Path) -> Roster:
    """Parse a roster; check its signature by the key in it, and every request's.

    Whether that key is the right coordinator's is the caller's question.

    Raises:
        VerificationError: Something is malformed or wrongly signed.
        StudyError: The study in it is not valid.
    """
    fields = _parsed(data, _ROSTER_FIELDS, where, {_REVOKED})
    coordinator = _hex(fields, "coordinator_key", where)
    _verify(coordinator, ROSTER, fields, where)
    if not isinstance(fields["study"], dict) or not isinstance(
        fields["requests"], dict
    ):
        raise VerificationError(f"{where}: not a roster")
    study = load_study_dict(fields["study"], where)
    requests = {
        name: read_request(str(text).encode(), where)
        for name, text in fields["requests"].items()
    }
    if sorted(requests) != sorted(study.sites) or any(
        request.site != name for name, request in requests.items()
    ):
        raise VerificationError(f"{where}: not one request of each site of the study")
    revoked = _revoked(fields, study, where)
    return Roster(
        study, fields["address"], fields["authority"], coordinator, requests, revoked
    )


def _revoked(
    fields: Mapping[str, Any], study: Study, where: str | Path
) -> tuple[str, ...]:
    """Sites of the study, sorted and each once; the field is absent or not empty."""
    found = fields.get(_REVOKED)
    if found is None:
        return ()
    if (
        not isinstance(found, list)
        or not found
        or not set(study.sites).issuperset(
            name if isinstance(name, str) else "" for name in found
        )
    ):
        raise VerificationError(f"{where}: 'revoked' does not list sites of the study")
    if found != sorted(set(found)):
        raise VerificationError(f"{where}: 'revoked' is not sorted")
    return tuple(found)


def _parsed(
    data: bytes,
    expected: set[str],
    where: str | Path,
    optional: AbstractSet[str] = frozenset(),
) -> dict[str, Any]:
    try:
        fields = parse_canonical(data.removesuffix(b"\n"))
    except ValueError as error:
        raise VerificationError(f"{where}: {error}") from error
    if not isinstance(fields, dict) or fields.keys() - optional != expected:
        raise VerificationError(f"{where}: the fields are not those expected")
    if fields["format"] != 1:
        raise VerificationError(f"{where}: unknown format; this version reads 1")
    texts = expected - {"format", "study", "requests"}
    if any(not isinstance(fields[name], str) for name in texts):
        raise VerificationError(f"{where}: a field that should be text is not")
    return fields


def _hex(fields: Mapping[str, Any], name: str, where: str | Path) -> bytes:
    try:
        return bytes.fromhex(fields[name])
    except ValueError as error:
        raise VerificationError(f"{where}: {name!r} is not hexadecimal") from error


def _verify(
    key: bytes, label: str, fields: Mapping[str, Any], where: str | Path
) -> None:
    signed = {name: value for name, value in fields.items() if name != "signature"}
    try:
        verify_signature(
            key, label, canonical_json(signed), _hex(fields, "signature", where)
        )
    except VerificationError as error:
        raise VerificationError(f"{where}: {error}") from error
