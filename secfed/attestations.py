"""A line of a ledger: an in-toto statement in a DSSE envelope, signed.

Envelope and statement are in JCS (RFC 8785), so that a line has one encoding. The
signatures are made and checked by securesystemslib; whoever it can sign with (files,
PKCS#11, a key service) can sign lines beside the coordinator.
"""

from __future__ import annotations

import binascii
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as LibraryError
from securesystemslib.signer import Key, SecretsHandler, Signature, Signer, SSlibKey

from secfed.canonical import jcs, parse_jcs
from secfed.errors import VerificationError
from secfed.signing import CoordinatorKey, fingerprint

__all__ = [
    "CoordinatorSigner",
    "Statement",
    "coordinator_key",
    "open_line",
    "parse_line",
    "read_keys",
    "seal_line",
    "written_keys",
]

_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "urn:secfed:ledger:{}:2"
_ENVELOPE_FIELDS: Final = {"payload", "payloadType", "signatures"}
_STATEMENT_FIELDS: Final = {"_type", "predicateType", "subject", "predicate"}
_PREDICATE_FIELDS: Final = {"index", "previous", "time", "body"}
_OLD_FIELDS: Final = {"body", "digest", "index", "kind", "previous", "signature"}
_DIGEST_BYTES: Final = 32

Subjects = Mapping[str, str]
"""What an entry is about: SHA-256 by name."""


@dataclass(frozen=True)
class Statement:
    """What a line says. ``previous`` is the leaf hash of the line before, hex."""

    index: int
    kind: str
    time: str
    body: Mapping[str, Any]
    previous: str
    subjects: Subjects

    def to_payload(self) -> bytes:
        """The statement as it is signed.

        Raises:
            ValueError: A value has no JCS encoding.
        """
        predicate = {
            "index": self.index,
            "previous": self.previous,
            "time": self.time,
            "body": dict(self.body),
        }
        subject = [
            {"name": name, "digest": {"sha256": value}}
            for name, value in self.subjects.items()
        ]
        fields = {
            "_type": _STATEMENT_TYPE,
            "predicateType": _PREDICATE.format(self.kind),
            "subject": subject,
            "predicate": predicate,
        }
        return jcs(fields)


class CoordinatorSigner(Signer):
    """The coordinator's own key, as securesystemslib asks for signers."""

    def __init__(self, key: CoordinatorKey) -> None:
        self._key = key
        self._public = coordinator_key(key.public_bytes)

    @property
    def public_key(self) -> Key:
        """Named by the coordinator's fingerprint."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Sign the encoding that DSSE prescribes."""
        return Signature(self._public.keyid, self._key.sign_text(payload).hex())

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,
        secrets_handler: SecretsHandler | None = None,
    ) -> Signer:
        """Never: the coordinator's key is opened by ``secfed.signing``."""
        raise NotImplementedError


def coordinator_key(public: bytes) -> Key:
    """A raw Ed25519 key as securesystemslib knows keys.

    Raises:
        ValueError: It is not such a key.
    """
    loaded = Ed25519PublicKey.from_public_bytes(public)
    return SSlibKey.from_crypto(loaded, keyid=fingerprint(public))


def written_keys(signers: Sequence[Signer]) -> dict[str, Any] | None:
    """Further public keys as entry 0 names them; None for none."""
    keys = {s.public_key.keyid: s.public_key.to_dict() for s in signers}
    return keys or None


def read_keys(value: Mapping[str, Any] | None) -> tuple[Key, ...]:
    """What ``written_keys`` wrote, in the order of their names.

    Raises:
        ValueError: One is not a key that securesystemslib verifies with.
    """
    named = sorted((value or {}).items())
    try:
        return tuple(Key.from_dict(name, copy.deepcopy(key)) for name, key in named)
    except (LibraryError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a signing key: {error}") from error


def seal_line(statement: Statement, signers: Sequence[Signer]) -> bytes:
    """The line of a statement, signed by everybody who has to.

    Raises:
        ValueError: A value has no JCS encoding.
        VerificationError: A key does not sign: its module is gone, for example.
    """
    envelope = Envelope(statement.to_payload(), _PAYLOAD_TYPE, {})
    for signer in signers:
        try:
            envelope.sign(signer)
        except (LibraryError, OSError, RuntimeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise VerificationError(
                f"a key beside ours does not sign: {what}"
            ) from error
    return jcs(envelope.to_dict())


def open_line(line: bytes, keys: Sequence[Key]) -> Statement:
    """What a line says, if exactly these keys signed it.

    Raises:
        ValueError: The line is malformed.
        VerificationError: A signature is missing, extra or wrong.
    """
    envelope = _envelope(line)
    if list(envelope.signatures) != [key.keyid for key in keys]:
        raise VerificationError("signed by other keys than those of this log")
    try:
        envelope.verify(list(keys), len(keys))
    except LibraryError as error:
        raise VerificationError("the signature is not valid for this key") from error
    return _statement(envelope.payload)


def parse_line(line: bytes) -> Statement:
    """What a line says; nobody's signature is checked.

    Raises:
        ValueError: The line is malformed.
    """
    return _statement(_envelope(line).payload)


def _envelope(line: bytes) -> Envelope:
    value = parse_jcs(line)
    if isinstance(value, dict) and value.keys() >= _OLD_FIELDS:
        raise ValueError(
            "a ledger of format 1, a hash chain, which an older secfed wrote; this "
            "version reads format 2 (docs/ledger.md): run the study again, or verify "
            "with the version that the first entry names"
        )
    if not isinstance(value, dict) or value.keys() != _ENVELOPE_FIELDS:
        raise ValueError("the fields are not those of a DSSE envelope")
    try:
        envelope = Envelope.from_dict(copy.deepcopy(value))
        # The library keeps fields of a signature that it does not know.
        known = all(not s.unrecognized_fields for s in envelope.signatures.values())
        same = known and jcs(envelope.to_dict()) == line
    except (LibraryError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"not a DSSE envelope: {error}") from error
    if not same or envelope.payload_type != _PAYLOAD_TYPE:
        raise ValueError("not the one encoding of a DSSE envelope of a statement")
    return envelope


def _statement(payload: bytes) -> Statement:
    value = parse_jcs(payload)
    if not isinstance(value, dict) or value.keys() != _STATEMENT_FIELDS:
        raise ValueError("the fields are not those of a statement")
    inner = value["predicate"]
    if not isinstance(inner, dict) or inner.keys() != _PREDICATE_FIELDS:
        raise ValueError("the fields are not those of an entry")
    before, after = _PREDICATE.split("{}")
    kind = str(value["predicateType"]).removeprefix(before).removesuffix(after)
    if type(inner["index"]) is not int or not isinstance(inner["body"], dict):
        raise ValueError("the index or the body has the wrong type")
    if not isinstance(inner["time"], str) or not isinstance(inner["previous"], str):
        raise ValueError("a field that should be text is not")  # noqa: TRY004
    subjects = _subjects(value["subject"])
    found = Statement(kind=kind, subjects=subjects, **inner)
    if found.to_payload() != payload:
        raise ValueError("not the one encoding of a statement")
    return found


def _subjects(value: object) -> Subjects:
    try:
        return {one["name"]: one["digest"]["sha256"] for one in value}  # type: ignore[attr-defined]
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError("the subjects are not digests of files") from error
