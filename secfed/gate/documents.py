"""The three signed documents of a release: request, approvals, and the release itself.

Each is canonical JSON and a newline. The signature is over everything else in it, under
a label of its own. The *digest* of a request is over the same bytes: an approval names
it, and so binds every file that the request names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secfed.canonical import canonical_json, parse_canonical, sha256_hex
from secfed.errors import VerificationError
from secfed.gate.layout import ADAPTER, CONFIG, STATEMENT, is_requested
from secfed.signing import (
    RELEASE,
    RELEASE_APPROVAL,
    RELEASE_REQUEST,
    CoordinatorKey,
    fingerprint,
    verify_signature,
)

__all__ = [
    "LEAST_APPROVALS",
    "Approval",
    "CardFacts",
    "Release",
    "Request",
    "people",
]

LEAST_APPROVALS = 2
"""No request asks for fewer."""

_Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=200)]
_Text = Annotated[str, Field(min_length=1, max_length=4000)]
_Time = Annotated[
    str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|\+00:00)$", max_length=30)
]
_Files = dict[Annotated[str, Field(max_length=400)], _Hex32]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    label: ClassVar[str]
    signer: ClassVar[str]

    signature: _Hex64

    @classmethod
    def signed(cls, key: CoordinatorKey, **fields: Any) -> Self:
        """Make one; the signer's public key is filled in."""
        named = {"format": 1, **fields, cls.signer: key.public_bytes.hex()}
        bare = cls.model_validate_json(canonical_json(named | {"signature": "0" * 128}))
        signature = key.sign(cls.label, bare.content()).hex()
        return bare.model_copy(update={"signature": signature})

    @classmethod
    def read(cls, data: bytes, name: str) -> Self:
        """Read a file of this kind and check its signature by the key that it names.

        Raises:
            VerificationError: Not canonical, a field is missing, unknown or wrong, or
                the signature is not valid.
        """
        try:
            found = cls.model_validate_json(_one_encoding(data))
            key = bytes.fromhex(getattr(found, cls.signer))
            signature = bytes.fromhex(found.signature)
            verify_signature(key, cls.label, found.content(), signature)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise VerificationError(f"{name}: {where}: {first['msg']}") from error
        except (ValueError, VerificationError) as error:
            raise VerificationError(f"{name}: {error}") from error
        return found

    def content(self) -> bytes:
        """What is signed: all fields but the signature."""
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    def digest(self) -> str:
        """The SHA-256 of what is signed."""
        return sha256_hex(self.content())

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"


def _one_encoding(data: bytes) -> bytes:
    if not data.endswith(b"\n"):
        raise ValueError("the file does not end in a newline")
    parse_canonical(data[:-1])
    return data[:-1]


class CardFacts(BaseModel):
    """What the model card says that no file of the run knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base_model: _Line | None = None
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,60}$")] = "unknown"
    intended_use: _Text | None = None


class Request(_Document):
    """What a coordinator asks two people to release.

    Attributes:
        study_digest: Of the study.
        ledger_head: Digest of the last entry of the run's ledger.
        approvals_needed: How many people have to sign.
        waived: Requirements that are not met and shall not stop the release.
        reason: Why; there if and only if something is waived.
        card: For the model card.
        files: Every file but this one and what follows it, with its SHA-256.
    """

    label: ClassVar[str] = RELEASE_REQUEST
    signer: ClassVar[str] = "coordinator_key"

    format: Literal[1]
    kind: Literal["release-request"] = "release-request"
    time: _Time
    secfed_version: _Line
    coordinator_key: _Hex32
    study_digest: _Hex32
    ledger_head: _Hex32
    approvals_needed: Annotated[int, Field(ge=LEAST_APPROVALS, le=20)]
    waived: tuple[_Line, ...] = ()
    reason: _Text | None = None
    card: CardFacts
    files: _Files

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.reason is None) != (not self.waived):
            raise ValueError("a waiver needs a reason, and a reason a waiver")
        if odd := [name for name in self.files if not is_requested(name)]:
            raise ValueError(f"a request cannot name {min(odd)!r}")
        if missing := {ADAPTER, CONFIG, STATEMENT} - self.files.keys():
            raise ValueError(f"it does not name {min(missing)}")
        return self


class Approval(_Document):
    """One person's consent to one request.

    Attributes:
        request_digest: ``Request.digest()``.
        name: Of the person, as it is released.
        role: In which they sign.
    """

    label: ClassVar[str] = RELEASE_APPROVAL
    signer: ClassVar[str] = "public_key"

    format: Literal[1]
    kind: Literal["release-approval"] = "release-approval"
    time: _Time
    request_digest: _Hex32
    name: _Line
    role: _Line
    public_key: _Hex32

    def fingerprint(self) -> str:
        """Of the person's key."""
        return fingerprint(bytes.fromhex(self.public_key))

    def same_person(self, other: Approval) -> bool:
        """Whether both are of one person: the same key or the same name."""
        names = [" ".join(one.name.casefold().split()) for one in (self, other)]
        return self.public_key == other.public_key or names[0] == names[1]

    def file_name(self) -> str:
        """The file's name in ``approvals/``: one for each key."""
        return f"{self.fingerprint()[:16]}.json"


class Release(_Document):
    """Every file of a release by digest."""

    label: ClassVar[str] = RELEASE
    signer: ClassVar[str] = "coordinator_key"

    format: Literal[1]
    kind: Literal["release"] = "release"
    time: _Time
    coordinator_key: _Hex32
    request_digest: _Hex32
    files: _Files


def people(approvals: Mapping[str, Approval]) -> list[Approval]:
    """One approval of each person, in the order of their files."""
    found: list[Approval] = []
    for _, approval in sorted(approvals.items()):
        if not any(known.same_person(approval) for known in found):
            found.append(approval)
    return found
