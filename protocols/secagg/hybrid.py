"""The post-quantum half of the pairwise masks, in suites that have one.

Of two neighbours the lower index encapsulates a secret for the higher one's
mask key and sends it as an offer. If the higher one drops, the server rebuilds
its key and decapsulates. If the lower one drops, nothing would give the secret
back, because the library has no derandomised encapsulation: so each client puts
what it encapsulated into a vault sealed under its recovery key R, which the
server opens exactly when R is rebuilt.

The tag of an offer comes from the secret alone. The receiver compares it before
it masks, the server after it opened a vault or rebuilt a key (ML-KEM itself
answers a wrong ciphertext with an unrelated secret, FIPS 203 section 6.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hmac import compare_digest

from protocols import aead, agreement, kdf, kem, labels, wire
from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import MessageError
from protocols.secagg.directory import Directory
from protocols.secagg.messages import Offer

__all__ = ["accept_offer", "make_offers", "open_vault", "seal_vault"]


def make_offers(
    own: int, directory: Directory, context: bytes
) -> tuple[dict[int, Offer], dict[int, KemSecret]]:
    """SA-207: one offer for each neighbour with a higher index, and its secret."""
    secrets = {
        peer: agreement.encapsulate(entry.mask_key)
        for peer, entry in directory.items()
        if peer > own
    }
    offers = {
        peer: Offer(peer, one.ciphertext, _tag(own, peer, one, context))
        for peer, one in secrets.items()
    }
    return offers, secrets


def accept_offer(
    own: int, key: AgreementKey, dealer: int, offer: Offer | None, context: bytes
) -> KemSecret:
    """SA-208: the secret behind the offer of ``dealer``, if its tag fits.

    Raises:
        MessageError: The dealer offered nothing, or something else than it tagged.
    """
    if offer is None:
        raise MessageError("an offer is missing")
    found = key.decapsulate(offer.ciphertext)
    _verify_tag(dealer, own, found, offer, context)
    return found


def seal_vault(
    recovery: bytes,
    secrets: Mapping[int, KemSecret],
    own: int,
    context: bytes,
    randomness: bytes,
) -> bytes:
    """The secrets of all offers of ``own``, for whoever rebuilds its R."""
    key = _vault_key(recovery, context)
    nonce = kdf.derive(labels.VAULT_NONCE, randomness, context, aead.NONCE_BYTES)
    plaintext = b"".join(secrets[peer].secret for peer in sorted(secrets))
    return aead.seal_box(key, nonce, plaintext, _vault_header(own, secrets, context))


def open_vault(
    recovery: bytes,
    own: int,
    offers: Mapping[int, Offer],
    vault: bytes,
    context: bytes,
) -> dict[int, KemSecret]:
    """SA-509: the secrets of the offers of ``own``, each with the right tag.

    Raises:
        MessageError: The vault does not open, or holds other secrets than those
            offered: its owner, who signed both, deviated.
    """
    key = _vault_key(recovery, context)
    plaintext = aead.open_box(key, vault, _vault_header(own, offers, context))
    secrets = {}
    for place, peer in enumerate(sorted(offers)):
        secret = plaintext[place * kem.SECRET_BYTES :][: kem.SECRET_BYTES]
        secrets[peer] = KemSecret(offers[peer].ciphertext, secret)
        _verify_tag(own, peer, secrets[peer], offers[peer], context)
    return secrets


def _vault_key(recovery: bytes, context: bytes) -> bytes:
    return kdf.derive(labels.VAULT_KEY, recovery, context, 32)


def _vault_header(own: int, peers: Iterable[int], context: bytes) -> bytes:
    listed = wire.write_indices(sorted(peers))
    parts = (labels.VERSION, labels.VAULT_HEADER, context, wire.u16(own), listed)
    return wire.frame(parts)


def _tag(dealer: int, peer: int, encapsulated: KemSecret, context: bytes) -> bytes:
    ends = wire.u16(dealer) + wire.u16(peer)
    return kdf.derive(labels.OFFER_TAG, encapsulated.secret, context, 32, ends)


def _verify_tag(
    dealer: int, peer: int, encapsulated: KemSecret, offer: Offer, context: bytes
) -> None:
    if not compare_digest(_tag(dealer, peer, encapsulated, context), offer.tag):
        raise MessageError("an offer does not have the secret that its tag shows")
