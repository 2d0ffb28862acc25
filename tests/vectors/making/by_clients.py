"""Clients that deviate, and the server that refuses (or cannot go on)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols.agreement import KemSecret
from protocols.secagg import messages
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.hybrid import seal_vault
from protocols.secagg.params import PHASES
from tests.vectors.making.changes import (
    edited,
    flipped,
    parsed,
    raw,
    resigned,
    signed,
    with_item,
    without,
    wrong_share,
)
from tests.vectors.making.encapsulations import MASK, Link
from tests.vectors.making.failures import VICTIM, Failure, by_client
from tests.vectors.making.play import Game, Place, Script

FOUR = "four-clients"
LOST = "four-clients-one-leaves-before-masked-input"
HYBRID = "suite-2-three-clients"
HYBRID_LOST = "suite-2-four-clients-one-leaves-before-masked-input"
LOW_ORDER = (1).to_bytes(32, "little")
KEM_PART = 32  # where it begins in a hybrid public key


def sent_by(game: Game, phase: Any, name: str) -> Any:
    return parsed(game.sent[Place(phase, "up", name)])


# ---------------------------------------------------- phase 0: advertise keys


def key_of_another(game: Game, message: bytes) -> bytes:
    taken = sent_by(game, "advertise-keys", "site-0").channel_key
    return resigned(lambda m: replace(m, mask_key=taken))(game, message)


def encapsulation_key_of_another(game: Game, message: bytes) -> bytes:
    taken = sent_by(game, "advertise-keys", "site-0").mask_key[KEM_PART:]
    edit = resigned(lambda m: replace(m, mask_key=m.mask_key[:KEM_PART] + taken))
    return edit(game, message)


def not_reduced(m: Any) -> Any:
    """The first coefficient of the encapsulation key is 4095; q is 3329."""
    key = m.channel_key[:KEM_PART] + b"\xff\xff" + m.channel_key[KEM_PART + 2 :]
    return replace(m, channel_key=key)


KEYS = (
    by_client(
        "advertise-truncated",
        FOUR,
        "advertise-keys",
        raw(lambda data: data[:-1]),
        "The message lacks its last byte.",
    ),
    by_client(
        "advertise-of-another-model",
        FOUR,
        "advertise-keys",
        resigned(lambda m: replace(m, session=bytes(32))),
        "site-1 received another model, so its session has another id.",
    ),
    by_client(
        "advertise-in-the-name-of-another",
        FOUR,
        "advertise-keys",
        resigned(lambda m: replace(m, sender=2)),
        "site-1 writes the index of site-2.",
    ),
    by_client(
        "advertise-with-a-flipped-signature",
        FOUR,
        "advertise-keys",
        edited(lambda m: replace(m, signature=flipped(m.signature, 0))),
        "One bit of the signature is wrong.",
    ),
    by_client(
        "advertise-low-order-key",
        FOUR,
        "advertise-keys",
        resigned(lambda m: replace(m, channel_key=LOW_ORDER)),
        "With this channel key every exchange gives the same secret.",
    ),
    by_client(
        "advertise-key-that-is-not-canonical",
        FOUR,
        "advertise-keys",
        resigned(lambda m: replace(m, mask_key=b"\xff" * 32)),
        "The mask key is not below 2^255 - 19.",
    ),
    by_client(
        "advertise-key-of-another",
        FOUR,
        "advertise-keys",
        key_of_another,
        "site-1 signs the channel key of site-0 as its mask key.",
    ),
    by_client(
        "advertise-one-key-twice",
        FOUR,
        "advertise-keys",
        resigned(lambda m: replace(m, mask_key=m.channel_key)),
        "Channel key and mask key are the same.",
    ),
    by_client(
        "advertise-a-second-time",
        FOUR,
        "advertise-keys",
        resigned(lambda m: replace(m, nonce=bytes(32))),
        "A second message with another nonce follows the first.",
        second=True,
    ),
    by_client(
        "advertise-encapsulation-key-that-is-not-reduced",
        HYBRID,
        "advertise-keys",
        resigned(not_reduced),
        "A coefficient of the ML-KEM-768 key is not below 3329.",
    ),
    by_client(
        "advertise-encapsulation-key-of-another",
        HYBRID,
        "advertise-keys",
        encapsulation_key_of_another,
        "The ML-KEM-768 half of the mask key is that of site-0.",
    ),
)


# -------------------------------------------------------- phase 1: share keys


def over_another_directory(game: Game, message: bytes) -> bytes:
    other = game.session + bytes(32)
    return signed(game, VICTIM, parsed(message), other).to_bytes()


def corrupted_boxes(m: Any) -> Any:
    return replace(
        m, boxes=tuple(replace(box, sealed=flipped(box.sealed, 40)) for box in m.boxes)
    )


def uninvited(kind: Any, *fields: Any) -> Any:
    """A well-signed message of a client that left before."""

    def change(game: Game, _: bytes) -> bytes:
        index = game.spec.names.index("site-2")
        head = (game.params.primitives, game.session, index, b"")
        return signed(game, "site-2", kind(*head, *fields)).to_bytes()

    return change


SHARES = (
    by_client(
        "share-keys-over-another-directory",
        FOUR,
        "share-keys",
        over_another_directory,
        "site-1 saw another directory: its signature covers that one.",
        because=("SA-106",),
    ),
    by_client(
        "share-keys-box-missing",
        FOUR,
        "share-keys",
        resigned(lambda m: replace(m, boxes=m.boxes[1:])),
        "There is no box for site-0.",
    ),
    by_client(
        "share-keys-box-for-a-stranger",
        FOUR,
        "share-keys",
        resigned(lambda m: replace(m, boxes=(*m.boxes, replace(m.boxes[0], peer=9)))),
        "There is a box for an index that is not in the directory.",
    ),
    by_client(
        "share-keys-box-for-itself",
        FOUR,
        "share-keys",
        resigned(
            lambda m: replace(
                m, boxes=with_item(m.boxes, 0, replace(m.boxes[0], peer=1))
            )
        ),
        "There is a box for site-1 itself and none for site-0.",
    ),
    by_client(
        "share-keys-a-second-time",
        FOUR,
        "share-keys",
        resigned(corrupted_boxes),
        "A second message with other boxes follows the first.",
        second=True,
    ),
    by_client(
        "share-keys-of-a-client-that-left",
        "five-clients-one-leaves-before-advertise-keys",
        "share-keys",
        uninvited(messages.ShareKeys, ()),
        "site-2 has no entry in the directory.",
        client="site-2",
        second=True,
    ),
    by_client(
        "share-keys-offer-missing",
        HYBRID,
        "share-keys",
        resigned(lambda m: replace(m, offers=(), vault=m.vault[:28])),
        "There is no offer for site-2, which has the higher index.",
    ),
    by_client(
        "share-keys-offer-for-a-lower-index",
        HYBRID,
        "share-keys",
        resigned(lambda m: replace(m, offers=(replace(m.offers[0], peer=0),))),
        "The offer is for site-0, which has the lower index.",
    ),
)


# ------------------------------------------------------ phase 2: masked input


def cohort(*indices: int) -> Any:
    return resigned(lambda m: replace(m, cohort=indices))


INPUTS = (
    by_client(
        "masked-input-too-short",
        FOUR,
        "masked-input",
        resigned(lambda m: replace(m, vector=m.vector[:-4])),
        "The vector lacks its last element.",
    ),
    by_client(
        "masked-input-of-a-wider-ring",
        FOUR,
        "masked-input",
        resigned(lambda m: replace(m, vector=m.vector + m.vector[8:])),
        "The body has twice the bytes of this session's ring.",
    ),
    by_client(
        "masked-input-cohort-without-itself",
        FOUR,
        "masked-input",
        cohort(0, 2, 3),
        "The cohort leaves out the client that names it.",
    ),
    by_client(
        "masked-input-cohort-with-a-stranger",
        FOUR,
        "masked-input",
        cohort(0, 1, 2, 3, 4),
        "The cohort names an index that is not in the directory.",
    ),
    by_client(
        "masked-input-cohort-with-a-dropout",
        "five-clients-one-leaves-before-share-keys",
        "masked-input",
        cohort(0, 1, 2, 3, 4),
        "The cohort names site-2, whose boxes were never delivered.",
    ),
    by_client(
        "masked-input-cohort-too-small",
        FOUR,
        "masked-input",
        cohort(0, 1),
        "The cohort has two members, where three shares give a secret back.",
    ),
    by_client(
        "masked-input-a-second-time",
        FOUR,
        "masked-input",
        resigned(lambda m: replace(m, vector=bytes(len(m.vector)))),
        "A second message with another vector follows the first.",
        second=True,
    ),
    by_client(
        "masked-input-of-a-client-that-left",
        "five-clients-one-leaves-before-share-keys",
        "masked-input",
        uninvited(messages.MaskedInput, (2,), b""),
        "site-2 sent no shares.",
        client="site-2",
        second=True,
    ),
    by_client(
        "masked-input-with-a-flipped-element",
        FOUR,
        "masked-input",
        edited(lambda m: replace(m, vector=flipped(m.vector, 9))),
        "One bit of the vector changes on its way.",
    ),
)


# ------------------------------------------------- phase 3: confirm survivors


def of_a_shorter_list(game: Game, message: bytes) -> bytes:
    listed = confirmed_context(game.server.context, (0, 1, 2))
    return signed(game, VICTIM, parsed(message), listed).to_bytes()


CONFIRMS = (
    by_client(
        "confirm-another-list",
        FOUR,
        "confirm-survivors",
        of_a_shorter_list,
        "site-1 signs a list without site-3.",
        because=("SA-404",),
    ),
    by_client(
        "confirm-of-a-client-that-left",
        LOST,
        "confirm-survivors",
        uninvited(messages.Confirm),
        "site-2 is not in the list that it signs.",
        client="site-2",
        second=True,
    ),
)


# ------------------------------------------------------------ phase 4: unmask


def reveals(edit: Any) -> Any:
    return resigned(lambda m: replace(m, reveals=edit(m.reveals)))


def of_other_kind(position: int) -> Any:
    """The share is called that of the other secret of the same peer."""
    return reveals(
        lambda all_reveals: with_item(
            all_reveals,
            position,
            replace(all_reveals[position], kind=3 - all_reveals[position].kind),
        )
    )


UNMASKS = (
    by_client(
        "unmask-recovery-share-of-a-survivor",
        FOUR,
        "unmask",
        of_other_kind(0),
        "A share of R for site-0, whose input is in the sum.",
        because=("SA-502",),
    ),
    by_client(
        "unmask-self-share-of-a-dropout",
        LOST,
        "unmask",
        of_other_kind(2),
        "A share of b for site-2, whose input is not in the sum.",
        because=("SA-502",),
    ),
    by_client(
        "unmask-recovery-share-of-itself",
        FOUR,
        "unmask",
        of_other_kind(1),
        "site-1 reveals a share of its own R.",
        because=("SA-503",),
    ),
    by_client(
        "unmask-share-missing",
        FOUR,
        "unmask",
        reveals(lambda all_reveals: without(all_reveals, 0)),
        "There is no share for site-0.",
    ),
    by_client(
        "unmask-share-of-a-stranger",
        FOUR,
        "unmask",
        reveals(lambda all_reveals: (*all_reveals, replace(all_reveals[0], peer=9))),
        "There is a share for an index that is not in the directory.",
    ),
    by_client(
        "unmask-a-second-time",
        FOUR,
        "unmask",
        reveals(lambda all_reveals: tuple(map(wrong_share, all_reveals))),
        "A second message with other shares follows the first.",
        second=True,
    ),
    by_client(
        "unmask-of-a-client-that-did-not-confirm",
        "five-clients-one-leaves-before-confirm-survivors",
        "unmask",
        uninvited(messages.Unmask, ()),
        "site-2 did not confirm the list.",
        client="site-2",
        second=True,
    ),
    by_client(
        "wrong-share",
        LOST,
        "unmask",
        reveals(
            lambda all_reveals: with_item(all_reveals, 3, wrong_share(all_reveals[3]))
        ),
        "A wrong share of the secret of site-3, and no more shares than are needed: "
        "the dealer or a holder deviated.",
        because=("SA-505",),
    ),
)


# -------------------------------------------- what comes out after the last one


def other_secret(field: str) -> Script:
    """After it published its keys, site-… shares another secret."""
    name = "site-1" if field == "self_secret" else "site-2"
    return Script(
        states={
            ("share-keys", name): lambda state: replace(state, **{field: b"\7" * 32})
        }
    )


def other_vault(game: Game, message: bytes) -> bytes:
    """Well sealed under R, with secrets that site-2 did not offer."""
    shares = parsed(message)
    record = game.records["site-2"].state
    wrong = {
        peer: KemSecret(secret.ciphertext, bytes(32))
        for peer, secret in record.offered.items()
    }
    vault = seal_vault(
        record.recovery, wrong, 2, game.context, game.spec.fresh("other vault")
    )
    return signed(game, "site-2", replace(shares, vault=vault)).to_bytes()


def other_ciphertext(pair: KemSecret) -> KemSecret:
    """Decapsulates to an unrelated secret (implicit rejection)."""
    return KemSecret(flipped(pair.ciphertext, 0), pair.secret)


SECRETS = (
    Failure(
        "shares-of-another-self-mask-secret",
        "site-1 shares another b than the one it committed to; all shares agree.",
        FOUR,
        ("site-1",),
        other_secret("self_secret"),
        because=("SA-505",),
    ),
    Failure(
        "shares-of-another-recovery-key",
        "site-2 shares another R than the one behind its mask key, and leaves.",
        "five-clients-one-leaves-before-masked-input",
        ("site-2",),
        other_secret("recovery"),
        because=("SA-505",),
    ),
    by_client(
        "box-that-leaves-too-few",
        "three-clients-threshold-2",
        "share-keys",
        resigned(
            lambda m: replace(
                m,
                boxes=(
                    m.boxes[0],
                    replace(m.boxes[1], sealed=flipped(m.boxes[1].sealed, 40)),
                ),
            )
        ),
        "The box from site-1 to site-2 does not open, and of three inputs none can be "
        "missed. site-2 cannot tell who spoilt it: it refuses what the server sent.",
        because=("SA-205",),
    ),
    by_client(
        "vault-of-other-secrets",
        HYBRID_LOST,
        "share-keys",
        other_vault,
        "The vault of site-2 opens, with another secret than it offered to site-3.",
        client="site-2",
    ),
    by_client(
        "vault-that-does-not-open",
        HYBRID_LOST,
        "share-keys",
        resigned(lambda m: replace(m, vault=flipped(m.vault, 20))),
        "The vault of site-2 does not open under its R.",
        client="site-2",
    ),
    Failure(
        "offer-of-another-secret-to-a-dropout",
        "What site-0 offered to site-2 decapsulates to another secret than its tag "
        "shows; site-2, which could have seen it, has left.",
        HYBRID_LOST,
        ("site-0",),
        Script(encapsulations={Link("site-0", "site-2", MASK): other_ciphertext}),
    ),
    Failure(
        "offer-of-another-secret",
        "What site-0 offered to site-2 decapsulates to another secret than its tag "
        "shows. For site-2 this counts as a box that does not open, and too few are "
        "left.",
        HYBRID,
        ("site-0",),
        Script(encapsulations={Link("site-0", "site-2", MASK): other_ciphertext}),
        because=("SA-208",),
    ),
)

SHORTAGES = tuple(
    Failure(
        f"too-few-before-{phase}",
        f"Two of four clients are silent from phase {phase} on; three are needed.",
        FOUR,
        (),
        leaves={"site-0": phase, "site-2": phase},
    )
    for phase in PHASES
)

FAILURES: tuple[Failure, ...] = (
    *KEYS,
    *SHARES,
    *INPUTS,
    *CONFIRMS,
    *UNMASKS,
    *SECRETS,
    *SHORTAGES,
)
