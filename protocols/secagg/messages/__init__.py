"""The ten messages, byte by byte.

Header of every message: tag (1), version (1), suite (1), session id (32). A
client's message continues with its index in the roster (2) and ends with an
Ed25519 signature (64). ``from_bytes`` takes the suite of the session, accepts
exactly what ``to_bytes`` writes, and raises ``MessageError`` for everything else
(SA-010).
"""

from protocols.secagg.messages.framing import (
    NONCE_BYTES,
    SignedMessage,
    advertise_bytes,
    box_bytes,
    vault_bytes,
)
from protocols.secagg.messages.from_client import (
    REVEAL_RECOVERY,
    REVEAL_SELF,
    Advertise,
    Confirm,
    MaskedInput,
    Reveal,
    ShareKeys,
    Unmask,
    kind_for,
)
from protocols.secagg.messages.from_server import (
    Confirmation,
    Confirmations,
    Delivery,
    Listing,
    Neighbourhood,
    Roster,
    Survivors,
)
from protocols.secagg.messages.parts import Box, Offer

__all__ = [
    "NONCE_BYTES",
    "REVEAL_RECOVERY",
    "REVEAL_SELF",
    "Advertise",
    "Box",
    "Confirm",
    "Confirmation",
    "Confirmations",
    "Delivery",
    "Listing",
    "MaskedInput",
    "Neighbourhood",
    "Offer",
    "Reveal",
    "Roster",
    "ShareKeys",
    "SignedMessage",
    "Survivors",
    "Unmask",
    "advertise_bytes",
    "box_bytes",
    "kind_for",
    "vault_bytes",
]
