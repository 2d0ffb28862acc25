"""Who is to blame, as types.

The type of an error says which party deviated; its docstring says what the
error proves. Every error that cites a rule carries the rule's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = [
    "FaultyBoxesError",
    "FaultyClientError",
    "FaultyServerError",
    "FaultySharesError",
    "MessageError",
    "MisuseError",
    "ProtocolError",
    "RuleBrokenError",
    "SignatureError",
    "TooFewSurvivorsError",
    "blame_client",
    "blame_server",
]


class ProtocolError(Exception):
    """Base of everything that ``protocols`` raises on purpose."""


class MisuseError(ProtocolError):
    """Our own caller broke the rules; no other party did anything wrong."""


class MessageError(ProtocolError):
    """These bytes are not a message of this type.

    Proves nothing about the named sender: anybody can send bytes.
    """


class SignatureError(MessageError):
    """The signature is not one of this key over this text."""


class RuleBrokenError(ProtocolError):
    """A well-formed message breaks a rule; the role that sees it adds the blame."""

    def __init__(self, rule: str, message: str) -> None:
        self.rule = rule
        super().__init__(message)


class FaultyClientError(ProtocolError):
    """Seen by the server: what arrived from this client breaks a rule.

    With a valid signature (every rule but SA-011, SA-012 and SA-014) it is proof that
    the holder of the client's identity key deviated. Otherwise the client, or
    whoever can write to its connection, did.
    """

    def __init__(self, client: str, message: str, rule: str | None = None) -> None:
        self.client = client
        self.rule = rule
        cited = f" ({rule})" if rule else ""
        super().__init__(f"client {client}: {message}{cited}")


class FaultyServerError(ProtocolError):
    """Seen by a client: what the server sent breaks a rule.

    A correct server would have refused whatever another client did wrong, so
    the server (or whoever can write to its connection) is to blame. The one
    thing it cannot check, what is inside a box, is ``FaultyBoxesError``.
    """

    def __init__(self, message: str, rule: str | None = None) -> None:
        self.rule = rule
        cited = f" ({rule})" if rule else ""
        super().__init__(f"server: {message}{cited}")


class FaultySharesError(ProtocolError):
    """Seen by the server: the shares of one dealer do not give its secret.

    They are wrong, or holders say that their box did not open. Proves that the
    dealer or at least one of the holders deviated, not which: a holder cannot check
    the share that it was dealt, and the server cannot look into a box.
    """

    def __init__(self, dealer: str, holders: Sequence[str]) -> None:
        self.dealer = dealer
        self.holders = tuple(holders)
        super().__init__(
            f"shares of {dealer} at {', '.join(self.holders)} are missing or do not "
            f"give the secret it committed to: the dealer or a holder deviated (SA-506)"
        )


class FaultyBoxesError(ProtocolError):
    """Seen by a client: too many boxes that it was sent do not open.

    Proves that the server altered them or that their dealers sealed them wrong,
    not which: the server cannot look into a box.
    """

    def __init__(self, dealers: Sequence[str], have: int, need: int) -> None:
        self.dealers = tuple(dealers)
        self.rule = "SA-206"
        super().__init__(
            f"boxes of {', '.join(self.dealers)} do not open, so that {have} clients "
            f"are left and {need} are needed: they or the server deviated ({self.rule})"
        )


class TooFewSurvivorsError(ProtocolError):
    """Nobody needs to have cheated: too few clients are left to continue."""

    def __init__(self, have: int, need: int, phase: str = "") -> None:
        self.have = have
        self.need = need
        self.phase = phase
        where = f" in phase {phase}" if phase else ""
        super().__init__(f"{have} clients are left{where}, {need} are needed")


@contextmanager
def blame_client(client: str) -> Iterator[None]:
    """Turn a broken rule into ``FaultyClientError``; a ``MessageError`` stays."""
    try:
        yield
    except RuleBrokenError as error:
        raise FaultyClientError(client, str(error), error.rule) from error


@contextmanager
def blame_server() -> Iterator[None]:
    """Turn a broken rule or a malformed message into ``FaultyServerError``."""
    try:
        yield
    except RuleBrokenError as error:
        raise FaultyServerError(str(error), error.rule) from error
    except MessageError as error:
        raise FaultyServerError(str(error), "SA-010") from error
