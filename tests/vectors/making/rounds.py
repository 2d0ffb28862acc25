"""The rounds that end with a sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols.secagg import messages
from protocols.secagg.params import PHASES, Phase
from tests.vectors.making.changes import resigned, wrong_share
from tests.vectors.making.encapsulations import Encapsulations
from tests.vectors.making.play import (
    MODEL,
    Game,
    Place,
    Round,
    Script,
    UnexpectedEndError,
)

SPARSE = {"degree": 4, "max_dropouts": 1, "max_colluders": 1, "mode": "semi-honest"}


def _one_leaves(phase: Phase, ring_bits: int) -> Round:
    return Round(
        f"five-clients-one-leaves-before-{phase}",
        f"Five clients; site-2 is silent from phase {phase} on.",
        num_clients=5,
        threshold=4,
        leaves={"site-2": phase},
        parameters={"ring_bits": ring_bits, "round": 7, "attempt": 2},
    )


def _corrupted_last_box(message: messages.ShareKeys) -> messages.ShareKeys:
    *others, last = message.boxes
    sealed = last.sealed[:40] + bytes([last.sealed[40] ^ 1]) + last.sealed[41:]
    return replace(message, boxes=(*others, replace(last, sealed=sealed)))


def _wrong_share_of_last(message: messages.Unmask) -> messages.Unmask:
    *others, last = message.reveals
    return replace(message, reveals=(*others, wrong_share(last)))


ROUNDS = (
    Round(
        "three-clients-threshold-2",
        "The smallest round: three clients, of which two can finish it.",
        num_clients=3,
        threshold=2,
    ),
    Round(
        "three-clients-threshold-2-one-leaves-before-unmask",
        "All three inputs are in the sum although site-1 is silent in the last phase.",
        num_clients=3,
        threshold=2,
        leaves={"site-1": "unmask"},
        parameters={"ring_bits": 64},
    ),
    Round(
        "three-clients-threshold-3",
        "Three clients that are all needed; 16-bit ring.",
        num_clients=3,
        threshold=3,
        parameters={"ring_bits": 16, "body_length": 7, "lane_length": 0},
    ),
    Round(
        "four-clients",
        "Four clients, one of which may collude with the server.",
        num_clients=4,
        threshold=3,
        parameters={"max_colluders": 1},
    ),
    Round(
        "four-clients-one-leaves-before-masked-input",
        "Four clients; the masks that the others shared with site-2 are rebuilt.",
        num_clients=4,
        threshold=3,
        leaves={"site-2": "masked-input"},
        parameters={"max_colluders": 1, "lane_length": 9},
    ),
    *(
        _one_leaves(phase, ring_bits)
        for phase, ring_bits in zip(PHASES, (16, 32, 64, 16, 32), strict=True)
    ),
    Round(
        "sparse-six-clients-one-leaves-before-masked-input",
        "A 4-regular graph of six clients, the smallest in which one may leave.",
        num_clients=6,
        threshold=3,
        leaves={"site-4": "masked-input"},
        parameters=SPARSE,
    ),
    Round(
        "suite-3-three-clients",
        "ChaCha20 masks; a lane of 72 bytes, so the body starts at byte 128.",
        num_clients=3,
        threshold=2,
        parameters={"suite": 3, "body_length": 40, "lane_length": 9},
    ),
    Round(
        "suite-3-four-clients-one-leaves-before-masked-input",
        "ChaCha20 masks in the 16-bit ring; site-0 leaves and is recovered.",
        num_clients=4,
        threshold=3,
        leaves={"site-0": "masked-input"},
        parameters={"suite": 3, "ring_bits": 16, "purpose": "evaluation"},
    ),
    Round(
        "suite-2-three-clients",
        "Hybrid keys.",
        num_clients=3,
        threshold=2,
        parameters={"suite": 2},
    ),
    Round(
        "suite-2-four-clients-one-leaves-before-masked-input",
        "Hybrid keys; for the lost site-2 the server opens its vault for what it "
        "offered to site-3, and decapsulates what site-0 and site-1 offered to it.",
        num_clients=4,
        threshold=3,
        leaves={"site-2": "masked-input"},
        parameters={"suite": 2, "ring_bits": 64},
    ),
    Round(
        "box-that-does-not-open",
        "The box from site-1 to site-3 does not open: the two have no common mask. "
        "The input that comes second counts as dropped, and the pair is named.",
        num_clients=4,
        threshold=3,
        deviates={"site-1": "flips a bit in its box for site-3"},
        script=Script(
            {Place("share-keys", "up", "site-1"): resigned(_corrupted_last_box)}
        ),
    ),
    Round(
        "wrong-share-among-enough",
        "site-1 reveals a wrong share of the secret of site-3: the other three give "
        "the secret, so the pair of dealer and holder is named.",
        num_clients=4,
        threshold=3,
        deviates={"site-1": "changes the share of site-3 that it reveals"},
        script=Script(
            {Place("unmask", "up", "site-1"): resigned(_wrong_share_of_last)}
        ),
    ),
)


# ------------------------------------------------------------------ as a file


def as_json(game: Game) -> dict[str, Any]:
    """Everything that a second implementation needs to play this round."""
    spec, result = game.spec, game.result
    if result is None:
        raise UnexpectedEndError(spec.name)
    return {
        "about": spec.about,
        "parameters": _parameters(spec),
        "model_digest": MODEL.hex(),
        "session_id": game.session.hex(),
        "clients": [_client(spec, name) for name in spec.names],
        "deviates": dict(spec.deviates),
        "encapsulations": _encapsulations(game.encapsulations),
        "phases": [_phase(game, phase) for phase in PHASES],
        "result": {
            "lane": result.total.lane.tobytes().hex(),
            "body": result.total.body.tobytes().hex(),
            "survivors": list(result.survivors),
            "dropouts": dict(sorted(result.dropouts.items())),
            "suspicions": [
                {"rule": one.rule, "clients": list(one.clients)}
                for one in result.blamed
            ],
        },
    }


def _parameters(spec: Round) -> dict[str, Any]:
    names = (
        "study_digest round attempt purpose threshold max_colluders body_length "
        "lane_length ring_bits suite mode degree max_dropouts"
    )
    values = {name: getattr(spec.params, name) for name in names.split()}
    return {**values, "study_digest": spec.params.study_digest.hex()}


def _client(spec: Round, name: str) -> dict[str, Any]:
    identity, vector = spec.identity(name), spec.input(name)
    return {
        "name": name,
        "identity_seed": identity.to_bytes().hex(),
        "identity": identity.public_bytes.hex(),
        "randomness": {
            phase: spec.fresh("randomness", phase, name).hex()
            for phase in ("advertise-keys", "share-keys")
        },
        "input": {
            "lane": vector.lane.tobytes().hex(),
            "body": vector.body.tobytes().hex(),
        },
        "leaves": spec.leaves.get(name),
    }


def _encapsulations(recorded: Encapsulations) -> list[dict[str, str]]:
    return [
        {
            **link._asdict(),
            "ciphertext": pair.ciphertext.hex(),
            "secret": pair.secret.hex(),
        }
        for link, pair in sorted(recorded.pairs.items())
    ]


def _phase(game: Game, phase: Phase) -> dict[str, Any]:
    """Messages down, each once with all who get it, then messages up."""
    down: dict[bytes, list[str]] = {}
    up = []
    for place, message in game.sent.items():
        if place.phase != phase:
            continue
        if place.way == "down":
            down.setdefault(message, []).append(place.client)
        else:
            up.append({"from": place.client, "bytes": message.hex()})
    return {
        "phase": phase,
        "down": [{"to": to, "bytes": message.hex()} for message, to in down.items()],
        "up": up,
    }
