"""Mutated bytes against everything that reads bytes; ``make fuzz`` runs a million.

Every input must give a value whose encoding is the input, or a refusal; nothing
else may be raised, and memory stays below ``MEMORY_FACTOR`` times the input and
``MEMORY_BYTES``. Every input is made from a seed and a number, so a finding can be
made again.
"""

# ruff: noqa: T201, S311

from __future__ import annotations

import argparse
import os
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from random import Random

from protocols import aead, shamir
from protocols.errors import MessageError, MisuseError
from protocols.kem import verify_encapsulation_key
from protocols.keys import verify_exchange_key
from protocols.ring import RingVector
from protocols.secagg import messages
from protocols.suites import SUITES, Suite
from tests.protocols.fuzz_steps import fuzz_steps
from tests.protocols.mutations import Seed, mutated
from tests.protocols.tape import Tape, complete, sparse
from tests.session import make_inputs, make_params, randomness

MEMORY_FACTOR = 32
"""A list of two-byte indices becomes Python integers: 20 times its bytes, and
half again while it grows."""
MEMORY_BYTES = 64 * 1024

MESSAGES = (
    messages.Advertise,
    messages.Roster,
    messages.ShareKeys,
    messages.Delivery,
    messages.MaskedInput,
    messages.Survivors,
    messages.Confirm,
    messages.Confirmations,
    messages.Unmask,
    messages.Neighbourhood,
)
_SHARD = 5000
_STEPS_PER_INPUT = 0.1


class Finding(AssertionError):  # noqa: N818
    """One input that gave what it must not."""


@dataclass(frozen=True)
class Target:
    """A reader of bytes, and real bytes that it reads.

    ``again`` reads bytes and encodes what it read; it raises ``refusals`` only.
    """

    name: str
    seeds: tuple[Seed, ...]
    again: Callable[[bytes], bytes]
    refusals: tuple[type[Exception], ...] = (MessageError,)

    def check(self, data: bytes) -> bool:
        """Whether ``data`` is accepted; tracemalloc must be running."""
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        try:
            encoded = self.again(data)
        except self.refusals:
            encoded = None
        except Exception as error:
            raise Finding(f"{self.name}: {error!r} from {data.hex()}") from error
        used = tracemalloc.get_traced_memory()[1] - before
        if encoded is not None and encoded != data:
            raise Finding(f"{self.name}: not the encoding: {data.hex()}")
        if used > MEMORY_FACTOR * len(data) + MEMORY_BYTES:
            raise Finding(f"{self.name}: {used} bytes of memory for {data.hex()}")
        return encoded is not None


# ------------------------------------------------------------------ the readers


@cache
def targets() -> tuple[Target, ...]:
    found = []
    for suite in SUITES.values():
        tapes = (complete(suite.number), sparse(suite.number))
        found.extend(_message_targets(suite, tapes))
        found.append(_record_target(tapes[0]))
    found.extend(_vector_target(bits) for bits in (16, 32, 64))
    found.extend(_part_targets())
    return tuple(found)


def _message_targets(suite: Suite, tapes: Sequence[Tape]) -> list[Target]:
    seen: dict[int, dict[int, bytes]] = {kind.tag: {} for kind in MESSAGES}
    for tape in tapes:
        for step in (*tape.client_steps, *tape.server_steps):
            seen[step.message[0]][len(step.message)] = step.message
    for message in _long_messages(suite):
        seen[message[0]][len(message)] = message
    return [
        _target(
            f"suite {suite.number} {kind.__name__}",
            seen[kind.tag].values(),
            lambda data, kind=kind: kind.from_bytes(data, suite).to_bytes(),
        )
        for kind in MESSAGES
    ]


def _long_messages(suite: Suite) -> list[bytes]:
    """Many entries, so that memory per entry shows."""
    session, many = bytes(32), tuple(range(1000, 3000))
    signatures = tuple(messages.Confirmation(i, bytes(64)) for i in range(300))
    reveals = tuple(messages.Reveal(i, 1, bytes(36)) for i in range(300))
    return [
        messages.Survivors(suite, session, many).to_bytes(),
        messages.MaskedInput(suite, session, 0, bytes(64), many, bytes(64)).to_bytes(),
        messages.Confirmations(suite, session, signatures).to_bytes(),
        messages.Unmask(suite, session, 0, bytes(64), reveals).to_bytes(),
    ]


def _target(
    name: str,
    seeds: Sequence[bytes],
    again: Callable[[bytes], bytes],
    refusals: tuple[type[Exception], ...] = (MessageError,),
) -> Target:
    traced = tuple(Seed.traced(data, again) for data in seeds)
    return Target(name, traced, again, refusals)


def _record_target(tape: Tape) -> Target:
    """Records as a client's disk has them; those of others are a misuse."""
    name = tape.params.roster[0].name
    own = [step.record for step in tape.client_steps if step.name == name]
    return _target(
        f"suite {tape.params.suite} record",
        [*own, tape.records[-tape.params.threshold]],
        lambda data: tape.restored(name, data).to_bytes(),
        (MessageError, MisuseError),
    )


def _vector_target(bits: int) -> Target:
    params = make_params(4, ring_bits=bits)
    shape = (params.body_length, params.lane_length, bits)
    data = make_inputs(params)["site-0"].to_bytes()
    return _target(
        f"vector of {bits} bits",
        [data],
        lambda found: RingVector.from_bytes(found, *shape).to_bytes(),
    )


def _part_targets() -> list[Target]:
    """Boxes, shares and keys: read without a reader of fields."""
    key, nonce = randomness("box key"), bytes(aead.NONCE_BYTES)
    plain = bytes(range(72))
    box = aead.seal_box(key, nonce, plain, b"header")
    step = complete(2).server_steps[0]
    entry = messages.Advertise.from_bytes(step.message, SUITES[2])

    def opened(data: bytes) -> bytes:
        found = aead.open_box(key, data, b"header")
        return aead.seal_box(key, data[: aead.NONCE_BYTES], found, b"header")

    return [
        _target("box", [box], opened),
        _target("share", [bytes(range(36))], shamir.verify_share),
        _target("exchange key", [entry.channel_key[:32]], verify_exchange_key),
        _target(
            "encapsulation key", [entry.channel_key[32:]], verify_encapsulation_key
        ),
    ]


# -------------------------------------------------------------------- the driver


def fuzz_readers(seed: object, count: int) -> Counter[tuple[str, bool]]:
    """Give ``count`` mutated inputs to the readers; count what each accepted."""
    random, chosen = Random(f"readers {seed}"), targets()
    corpus = [one for target in chosen for one in target.seeds]
    outcome: Counter[tuple[str, bool]] = Counter()
    tracemalloc.start()
    try:
        for _ in range(count):
            target = random.choice(chosen)
            data = mutated(random, random.choice(target.seeds), corpus)
            outcome[target.name, target.check(data)] += 1
    finally:
        tracemalloc.stop()
    return outcome


def _shard(seed: int, number: int, count: int) -> tuple[int, int, int]:
    """One part of a long run: inputs, how many of them are accepted, and steps."""
    place = f"{seed}/{number}"
    try:
        outcome = fuzz_readers(place, count)
        steps = fuzz_steps(place, round(count * _STEPS_PER_INPUT))
    except AssertionError as error:
        raise Finding(f"seed {seed}, part {number}: {error}") from error
    accepted = sum(many for (_, good), many in outcome.items() if good)
    return count, accepted, sum(steps.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    parts = -(-chosen.count // _SHARD)
    start, done = time.perf_counter(), [0, 0, 0]
    with ProcessPoolExecutor(chosen.processes) as pool:
        jobs = [
            pool.submit(_shard, chosen.seed, number, _SHARD) for number in range(parts)
        ]
        for job in as_completed(jobs):
            done = [one + more for one, more in zip(done, job.result(), strict=True)]
            seconds = time.perf_counter() - start
            print(
                f"{done[0]:,} inputs ({done[1]:,} accepted) and {done[2]:,} steps, "
                f"{done[0] / seconds:,.0f} inputs/s",
                end="\r",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    print(
        f"{done[0]:,} inputs to {len(targets())} readers and {done[2]:,} to the steps "
        f"of both roles in {time.perf_counter() - start:.0f} s: "
        f"{done[1]:,} inputs accepted with their one encoding, all others refused"
    )


if __name__ == "__main__":
    main()
