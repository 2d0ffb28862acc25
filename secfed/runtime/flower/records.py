"""Sealed messages in Flower's records, and the names of phases in its types."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from secfed.errors import VerificationError
from secfed.runtime.envelope import Sealed

__all__ = ["action_of", "from_record", "to_record", "type_of"]

_NAME = "secfed"
_FIELDS = {"header", "body", "signature"}


def action_of(phase: str) -> str:
    """A phase as the name of a handler: Flower takes identifiers only."""
    return phase.replace("-", "_")


def type_of(phase: str) -> str:
    """A phase as the type of a message."""
    return f"train.{action_of(phase)}"


def to_record(sealed: Sealed) -> RecordDict:
    """The three byte strings, unchanged."""
    fields = {
        "header": sealed.header,
        "body": sealed.body,
        "signature": sealed.signature,
    }
    return RecordDict({_NAME: ConfigRecord(dict(fields))})


def from_record(content: RecordDict) -> Sealed:
    """What ``to_record`` was given.

    Raises:
        VerificationError: There is anything else in the message, or less.
    """
    record = content.get(_NAME)
    if set(content) != {_NAME} or not isinstance(record, ConfigRecord):
        raise VerificationError("a message has other records than one of secfed")
    if set(record) != _FIELDS:
        raise VerificationError("a message has the wrong fields")
    return Sealed.of(record["header"], record["body"], record["signature"])
