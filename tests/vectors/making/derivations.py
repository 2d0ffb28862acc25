"""Each derivation of a session, step by step: what goes in, what comes out.

The steps are not written down here: the functions that derive are watched while
a round is played, so what is recorded is what the protocol does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from protocols import aead, kdf, labels, merkle, shamir
from protocols.agreement import AgreementKey
from protocols.kem import DecapsulationKey
from protocols.keys import SigningKey
from protocols.prg import Stream
from tests.vectors.making.encapsulations import Encapsulations
from tests.vectors.making.play import MODEL, Game, Round

Step = dict[str, Any]

MASKS = {labels.SELF_MASK, labels.PAIR_MASK}

# A stored client's own memory; no other party sees or needs it.
LOCAL = labels.STORED_ANSWER.decode()

# What a hybrid suite changes; the rest is as in suite 1.
HYBRID_ONLY = {
    labels.CHANNEL_SECRET,
    labels.MASK_KEY,
    labels.KEM_SEED,
    labels.BOX_KEY,
    labels.OFFER_TAG,
    labels.VAULT_KEY,
    labels.VAULT_NONCE,
    labels.PAIR_MASK,
}


class Watch:
    """Records the steps of one party while a game is played."""

    def __init__(self, party: str) -> None:
        self.party = party
        self.game: Game | None = None
        self.steps: list[Step] = []
        self._seen: list[Step] = []

    def add(self, function: str, **values: Any) -> None:
        """Record one step, once."""
        acting = self.game.acting if self.game else ("everybody", "before")
        if acting[0] not in (self.party, "everybody"):
            return
        step = {"function": function, **values}
        if step not in self._seen and values.get("label") != LOCAL:
            self._seen.append(step)
            self.steps.append({"party": acting[0], "phase": acting[1], **step})

    @contextmanager
    def on(self) -> Iterator[None]:
        """While this lasts, everything that derives is watched."""
        watched: Sequence[tuple[Any, str, Callable[..., None]]] = (
            (kdf, "digest", self._digest),
            (kdf, "digest_in_pieces", self._digest_in_pieces),
            (kdf, "derive", self._derive),
            (merkle, "root", self._root),
            (shamir, "split", self._split),
            (aead, "seal_box", self._seal),
            (AgreementKey, "_exchanged", self._exchange),
            (DecapsulationKey, "decapsulate", self._decapsulate),
            (SigningKey, "sign", self._sign),
        )
        with ExitStack() as stack:
            for owner, name, record in watched:
                wrapper = _wrapped(getattr(owner, name), record)
                stack.enter_context(mock.patch.object(owner, name, wrapper))
            yield

    def _digest(self, output: bytes, label: bytes, *parts: bytes) -> None:
        self.add("digest", label=label.decode(), parts=_hex(parts), output=output.hex())

    def _digest_in_pieces(
        self, output: bytes, label: bytes, first: bytes, pieces: Sequence[bytes]
    ) -> None:
        self._digest(output, label, first, b"".join(pieces))

    def _derive(
        self,
        output: bytes,
        label: bytes,
        secret: bytes,
        salt: bytes,
        length_bytes: int,
        *info: bytes,
    ) -> None:
        self.add(
            "derive",
            label=label.decode(),
            secret=secret.hex(),
            salt=salt.hex(),
            info=_hex(info),
            length_bytes=length_bytes,
            output=output.hex(),
        )
        if label == labels.COEFFICIENTS:
            self._coefficients_key = output
        if label in MASKS:
            self._mask(output)

    def _mask(self, key: bytes) -> None:
        """The keystream, cut as it is added to the vector."""
        if self.game is None:
            return
        params = self.game.params
        lane_bytes = 8 * params.lane_length
        body_bytes = params.body_length * params.ring_bits // 8
        stream = Stream(key, params.primitives.mask_cipher)
        lane = stream.read(lane_bytes + -lane_bytes % 64)[:lane_bytes]
        self.add(
            "mask",
            key=key.hex(),
            cipher=params.primitives.mask_cipher,
            lane=lane.hex(),
            body=stream.read(body_bytes).hex(),
        )

    def _root(self, output: bytes, leaves: Sequence[bytes]) -> None:
        self.add("merkle root", leaves=_hex(leaves), output=output.hex())

    def _split(
        self,
        output: Sequence[Sequence[bytes]],
        secrets: Sequence[bytes],
        threshold: int,
        points: Sequence[int],
        _: Stream,
    ) -> None:
        width, key = shamir.LIMBS * len(secrets), self._coefficients_key
        drawn = shamir._uniform(Stream(key), (threshold - 1) * width)
        self.add(
            "split",
            key=key.hex(),
            secrets=_hex(secrets),
            threshold=threshold,
            points=list(points),
            coefficients=drawn.reshape(-1, width).tolist(),
            output=[_hex(row) for row in output],
        )

    def _seal(
        self, output: bytes, key: bytes, nonce: bytes, plaintext: bytes, header: bytes
    ) -> None:
        self.add(
            "seal",
            key=key.hex(),
            nonce=nonce.hex(),
            plaintext=plaintext.hex(),
            header=header.hex(),
            output=output.hex(),
        )

    def _exchange(self, output: bytes, key: AgreementKey, public: bytes) -> None:
        private = key.to_bytes()[:32]
        self.add(
            "x25519", private=private.hex(), public=public.hex(), output=output.hex()
        )

    def _decapsulate(
        self, output: bytes, key: DecapsulationKey, ciphertext: bytes
    ) -> None:
        public = key.public_bytes
        self.add(
            "decapsulate",
            public_sha256=hashlib.sha256(public).hexdigest(),
            ciphertext=ciphertext.hex(),
            output=output.hex(),
        )

    def _sign(self, output: bytes, key: SigningKey, message: bytes) -> None:
        self.add(
            "sign",
            seed=key.to_bytes().hex(),
            message=message.hex(),
            output=output.hex(),
        )


def _wrapped(
    function: Callable[..., Any], record: Callable[..., None]
) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        output = function(*args)
        record(output, *args)
        return output

    return wrapper


def _hex(parts: Sequence[bytes]) -> list[str]:
    return [part.hex() for part in parts]


# ------------------------------------------------------------------ the file


def watched(spec: Round, party: str, known: Encapsulations) -> tuple[Game, list[Step]]:
    """One round, and the steps of one party in it."""
    watch = Watch(party)
    with watch.on():
        # Parameters keep what they derived: from the start, so that it is seen.
        spec.__dict__.pop("params", None)
        spec.params.session_id(MODEL)
        game = Game(spec, known)
        watch.game = game
        game.play()
    return game, watch.steps


def derivations(games: Mapping[str, Game]) -> dict[str, Any]:
    """The content of ``derivations.json``."""
    sections = []
    for name, party, wanted in (
        ("three-clients-threshold-2", "site-1", None),
        ("suite-2-three-clients", "site-1", HYBRID_ONLY),
        ("suite-3-three-clients", "site-1", {labels.SELF_MASK}),
        ("sparse-six-clients-one-leaves-before-masked-input", "site-1", {labels.GRAPH}),
    ):
        before = games[name]
        game, steps = watched(before.spec, party, before.encapsulations)
        chosen = [step for step in steps if _is_wanted(step, wanted)]
        section = {"round": name, "party": party, "steps": chosen}
        if game.params.degree:
            section["neighbours"] = _neighbours(game)
        sections.append(section)
    return {"version": labels.VERSION.decode(), "sections": sections}


def _is_wanted(step: Step, wanted: set[bytes] | None) -> bool:
    if wanted is None:
        return True
    if step["function"] in {"decapsulate", "seal"}:
        return labels.VAULT_KEY in wanted
    if step["function"] == "mask":
        return labels.SELF_MASK in wanted
    return "label" in step and step["label"].encode() in wanted


def _neighbours(game: Game) -> list[list[int]]:
    graph = game.params.graph(game.server.context)
    return [sorted(graph.neighbours(index)) for index in range(graph.size)]
