"""One secure sum by hand: five phases over in-memory queues.

    python examples/protocol_by_hand.py --sites 5 --drop hospital-3@masked-input
    python examples/protocol_by_hand.py --cheat both-shares

Every hospital has a private vector of integers. The server learns their sum and
nothing else, also when a hospital falls silent; and when the server cheats, the
hospitals refuse and say whom they blame. Read ``main`` from top to bottom: each
block is one phase. Nothing here is special to the example; ``stored`` is the
client that a real site runs.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from protocols.errors import FaultyClientError, FaultyServerError, ProtocolError
from protocols.keys import SigningKey, generate_identity
from protocols.ring import RingVector
from protocols.secagg import messages, server, stored
from protocols.secagg.params import PHASES, Member, SessionParams, default_threshold

Numbers = NDArray[np.uint32]
Outgoing = Mapping[str, bytes]
LENGTH = 6  # numbers in each hospital's vector
MODEL_DIGEST = hashlib.sha256(b"the model that everybody received").digest()


# ------------------------------------------------------------- the two parties


@dataclass
class Hospital:
    """A client: its key, its private numbers, its record, and its inbox."""

    name: str
    identity: SigningKey
    numbers: Numbers
    silent_from: str = "never"
    record: stored.Record | None = None
    inbox: deque[bytes] = field(default_factory=deque)

    def start(self, params: SessionParams) -> bytes:
        """Make fresh keys for this session; the first message to the server."""
        self.record = stored.start(
            params,
            self.name,
            self.identity,
            MODEL_DIGEST,
            randomness=secrets.token_bytes(32),
        )
        return self.record.outbound

    def answer(self) -> bytes:
        """Answer the next message in the inbox, or raise what is wrong with it."""
        if self.record is None:
            raise ValueError("start first")
        vector = RingVector(self.numbers, np.array([1], dtype=np.uint64))
        self.record = stored.answer(
            self.record,
            self.inbox.popleft(),
            randomness=secrets.token_bytes(32),
            vector=vector,
        )
        # A real site makes self.record.to_bytes() durable before it sends this.
        return self.record.outbound

    def __repr__(self) -> str:
        return f"Hospital({self.name!r})"


def agreed_parameters(hospitals: list[Hospital]) -> SessionParams:
    """What the signed study fixes; both sides have it before they talk."""
    roster = tuple(Member(one.name, one.identity.public_bytes) for one in hospitals)
    return SessionParams(
        study_digest=hashlib.sha256(b"the signed study").digest(),
        round=1,
        attempt=0,
        purpose="example",
        roster=roster,
        threshold=default_threshold(len(roster), max_colluders=1),
        max_colluders=1,
        body_length=LENGTH,
        lane_length=1,
        suite=2,
    )


# ----------------------------------------------------------------- the session


def main(arguments: list[str] | None = None) -> int:
    """Play one session; 0 if the sum is right, 1 if it was refused."""
    options = parse(arguments)
    hospitals = make_hospitals(options.sites, options.drop)
    params = agreed_parameters(hospitals)
    cheat = CHEATS[options.cheat]
    say(f"{params.primitives.name}")
    say(f"{len(hospitals)} hospitals, any {params.threshold} of them can finish\n")
    try:
        result = play(params, hospitals, cheat)
    except ProtocolError as error:
        say(f"\nNo sum was opened: {error}")
        return 1
    return report(hospitals, result)


def play(
    params: SessionParams, hospitals: list[Hospital], cheat: Cheat
) -> server.SumResult:
    """All five phases, in order."""
    # Phase 0. Everybody announces fresh keys, signed with its pinned identity.
    keys = server.open_session(params, MODEL_DIGEST)
    for one in present(hospitals, "advertise-keys"):
        keys = server.receive_keys(keys, one.name, one.start(params))
    shares, rosters = server.close_keys(keys)

    # Phase 1. Everybody checks the roster and sends the others sealed shares of
    # two secrets: b, which masks its own vector, and R, which gives its pair masks.
    post(hospitals, "roster", cheat(params, rosters))
    for one, message in answers(hospitals, "share-keys"):
        shares = server.receive_shares(shares, one.name, message)
    inputs, deliveries = server.close_shares(shares)

    # Phase 2. Everybody masks with those whose shares it could open, and sends.
    post(hospitals, "boxes", cheat(params, deliveries))
    for one, message in answers(hospitals, "masked-input"):
        say(f"  the server sees of {one.name}: {numbers_in(message, params)}")
        inputs = server.receive_input(inputs, one.name, message)
    confirmed, outgoing = server.close_inputs(inputs)

    # Phase 3. Everybody signs the list of those whose vectors are in the sum.
    post(hospitals, "survivor list", cheat(params, outgoing))
    for one, message in answers(hospitals, "confirm-survivors"):
        try:
            confirmed = server.receive_confirmation(confirmed, one.name, message)
        except FaultyClientError as error:  # it signed another list
            say(f"  the server leaves out {error}")
    reveals, confirmations = server.close_confirmations(confirmed)

    # Phase 4. Once enough others signed the same list, everybody reveals one share
    # for each hospital: of b if its vector is in the sum, of R if it is not.
    post(hospitals, "confirmations", cheat(params, confirmations))
    for one, message in answers(hospitals, "unmask"):
        reveals = server.receive_reveal(reveals, one.name, message)

    # An honest server asks for nothing more.
    again = cheat(params, {})
    if again:
        post(hospitals, "a second request", again)
        answers(hospitals, "unmask")
    return server.close_reveals(reveals)


def present(hospitals: list[Hospital], phase: str) -> list[Hospital]:
    """Those who still answer in this phase."""
    say(phase)
    for one in hospitals:
        if one.silent_from == phase:
            say(f"  {one.name} falls silent")
    after = PHASES[: PHASES.index(phase) + 1]
    return [one for one in hospitals if one.silent_from not in after]


def post(hospitals: list[Hospital], what: str, outgoing: Outgoing) -> None:
    """Put the server's messages into the inboxes."""
    for one in hospitals:
        if one.name in outgoing:
            one.inbox.append(outgoing[one.name])
    size = max(map(len, outgoing.values()))
    say(f"  the server sends {what}: {len(outgoing)} x {size} bytes")


def answers(hospitals: list[Hospital], phase: str) -> list[tuple[Hospital, bytes]]:
    """Each answer, or the first refusal: a hospital that refuses sends nothing."""
    found = []
    for one in present(hospitals, phase):
        if one.inbox:
            try:
                found.append((one, one.answer()))
            except FaultyServerError as error:
                say(f"  {one.name} refuses. It blames the {error}")
                raise
    return found


def report(hospitals: list[Hospital], result: server.SumResult) -> int:
    """Compare with the sum that only this example can see."""
    plain = np.zeros(LENGTH, dtype=np.uint32)
    for one in hospitals:
        if one.name in result.survivors:
            plain += one.numbers
    equal = np.array_equal(plain, result.total.body)
    say(f"\nin the sum: {', '.join(result.survivors)}")
    for name, phase in result.dropouts.items():
        say(f"fell silent: {name} ({phase})")
    say(f"plain sum      {plain}")
    say(f"recovered sum  {result.total.body}")
    say("equal" if equal else "NOT EQUAL")
    return 0 if equal else 1


# ---------------------------------------------------------- a server that cheats

Cheat = Callable[[SessionParams, Outgoing], Outgoing]


def honest(_params: SessionParams, outgoing: Outgoing) -> Outgoing:
    """Relay everything as it is."""
    return outgoing


def swap_key(params: SessionParams, outgoing: Outgoing) -> Outgoing:
    """Show everybody another mask key in place of the last hospital's."""

    def swapped(message: bytes) -> bytes:
        roster = messages.Roster.from_bytes(message, params.primitives)
        own_keys, victim = roster.entries[0], roster.entries[-1]
        forged = replace(victim, mask_key=own_keys.mask_key)
        return replace(roster, entries=(*roster.entries[:-1], forged)).to_bytes()

    return changed(outgoing, messages.Roster.tag, swapped)


def split_view(params: SessionParams, outgoing: Outgoing) -> Outgoing:
    """Tell the first hospital that the last one dropped, and the others that not."""
    first = params.roster[0].name

    def shortened(message: bytes) -> bytes:
        listed = messages.Survivors.from_bytes(message, params.primitives)
        return replace(listed, survivors=listed.survivors[:-1]).to_bytes()

    # The others' signatures are all that there is to show to the first hospital.
    if outgoing and first not in outgoing:
        return {first: next(iter(outgoing.values())), **outgoing}
    return changed(outgoing, messages.Survivors.tag, shortened, only_first=True)


def both_shares(params: SessionParams, outgoing: Outgoing) -> Outgoing:
    """After the reveals, ask again with the last hospital declared dropped."""
    if outgoing:
        return outgoing
    everybody = tuple(range(len(params.roster) - 1))
    again = messages.Survivors(
        params.primitives, params.session_id(MODEL_DIGEST), everybody
    )
    return {params.roster[0].name: again.to_bytes()}


def changed(
    outgoing: Outgoing,
    tag: int,
    change: Callable[[bytes], bytes],
    *,
    only_first: bool = False,
) -> Outgoing:
    """The messages of one type replaced, for everybody or for the first only."""
    chosen = set(list(outgoing)[:1] if only_first else outgoing)
    return {
        name: change(message) if name in chosen and message[0] == tag else message
        for name, message in outgoing.items()
    }


CHEATS: dict[str, Cheat] = {
    "nobody": honest,
    "swap-key": swap_key,
    "split-view": split_view,
    "both-shares": both_shares,
}


# --------------------------------------------------------------------- the rest


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="One secure sum, phase by phase.",
        epilog="example: %(prog)s --sites 5 --drop hospital-3@masked-input",
    )
    parser.add_argument("--sites", type=int, default=5, help="hospitals (default: 5)")
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="SITE@PHASE",
        help=f"a hospital that falls silent in a phase: {', '.join(PHASES)}",
    )
    parser.add_argument(
        "--cheat", choices=sorted(CHEATS), default="nobody", help="what the server does"
    )
    options = parser.parse_args(arguments)
    names = [f"hospital-{number}" for number in range(1, options.sites + 1)]
    if not 3 <= options.sites <= 9:  # noqa: PLR2004
        parser.error("--sites must be 3 to 9")
    for drop in options.drop:
        name, _, phase = drop.partition("@")
        if name not in names or phase not in PHASES:
            parser.error(
                f"--drop {drop}: give one of {', '.join(names)}, then @ and one of "
                f"{', '.join(PHASES)}"
            )
    return options


def make_hospitals(count: int, drops: list[str]) -> list[Hospital]:
    """Hospitals with fresh identities and private numbers."""
    silent = dict(drop.split("@") for drop in drops)
    hospitals = []
    for number in range(1, count + 1):
        name = f"hospital-{number}"
        numbers = np.array(
            [secrets.randbelow(1000) for _ in range(LENGTH)], dtype=np.uint32
        )
        identity = generate_identity(secrets.token_bytes(32))
        hospitals.append(Hospital(name, identity, numbers, silent.get(name, "never")))
    return hospitals


def numbers_in(message: bytes, params: SessionParams) -> Numbers:
    """The vector of a masked input, as the server sees it."""
    masked = messages.MaskedInput.from_bytes(message, params.primitives)
    return RingVector.from_bytes(masked.vector, LENGTH, 1).body


def say(text: str) -> None:
    """Print one line."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
