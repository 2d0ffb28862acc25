"""Every domain-separation label, each used in exactly one place.

A label names one purpose. Two purposes never share a label, so a value
derived or signed for one can never be mistaken for another.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = b"secfed/protocols/1"
"""Specification version; mixed into every derivation and every digest."""

# Digests.
ROSTER: Final = b"secagg roster"
PARAMETERS: Final = b"secagg parameters"
SESSION: Final = b"secagg session"
DIRECTORY: Final = b"secagg directory"
GRAPH: Final = b"secagg graph"
SURVIVOR_LIST: Final = b"secagg survivor list"

# Derivations at one client.
CHANNEL_SECRET: Final = b"secagg channel secret"
SELF_SECRET: Final = b"secagg self-mask secret"
RECOVERY_SECRET: Final = b"secagg recovery secret"
NONCE: Final = b"secagg nonce"
MASK_KEY: Final = b"secagg mask private key"
KEM_SEED: Final = b"secagg encapsulation seed"
COMMITMENT: Final = b"secagg commitment"
COEFFICIENTS: Final = b"secagg share coefficients"
BOX_NONCE: Final = b"secagg box nonce"
VAULT_KEY: Final = b"secagg vault key"
VAULT_NONCE: Final = b"secagg vault nonce"
VAULT_HEADER: Final = b"secagg vault header"

# Derivations between two clients, and masks.
BOX_KEY: Final = b"secagg box key"
BOX_HEADER: Final = b"secagg box header"
OFFER_TAG: Final = b"secagg offer tag"
SELF_MASK: Final = b"secagg self mask"
PAIR_MASK: Final = b"secagg pairwise mask"

# What a stored client has answered.
STORED_ANSWER: Final = b"secagg stored answer"

# Signatures, one label per message.
SIGN_ADVERTISE: Final = b"secagg sign advertise-keys"
SIGN_SHARES: Final = b"secagg sign share-keys"
SIGN_INPUT: Final = b"secagg sign masked-input"
SIGN_SURVIVORS: Final = b"secagg sign survivors"
SIGN_REVEAL: Final = b"secagg sign unmask"
