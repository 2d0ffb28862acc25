"""A short run of ``make fuzz``, and faulty readers that it catches."""

from __future__ import annotations

import tracemalloc

import pytest

from protocols.errors import MessageError
from protocols.secagg import messages
from tests.protocols.fuzz import Finding, Target, fuzz_readers, targets
from tests.protocols.fuzz_steps import fuzz_steps
from tests.protocols.mutations import Seed
from tests.protocols.tape import complete
from tests.session import SUITE


@pytest.fixture
def traced_memory():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_mutated_bytes_give_the_value_they_encode_or_a_refusal():
    outcome = fuzz_readers(0, 20_000)
    assert outcome.total() == 20_000
    for target in targets():
        assert outcome[target.name, True] > 0
        assert outcome[target.name, False] > 100


def test_mutated_messages_are_blamed_and_change_nothing():
    outcome = fuzz_steps(0, 3000)
    assert outcome.total() == 3000
    assert outcome["client refuses"] > 1000
    assert outcome["server refuses"] > 1000
    assert outcome["client answers"] > 50
    assert outcome["server takes it"] > 20
    assert outcome["server takes it and cannot close"] > 20


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_numbers_that_claim_4_gb_allocate_nothing(target, traced_memory):
    for seed in target.seeds:
        numbers = [field for field in seed.fields if field[1] <= 4]
        for start, size in numbers[:20]:
            end = start + size
            target.check(seed.data[:start] + b"\xff" * size + seed.data[end:])


def test_a_run_can_be_made_again():
    assert fuzz_readers(5, 200) == fuzz_readers(5, 200)
    assert fuzz_readers(5, 200) != fuzz_readers(6, 200)


def test_fields_are_what_the_parser_takes():
    tape = complete(1)
    sent = next(s.message for s in tape.server_steps if s.phase == "unmask")
    seed = Seed.traced(sent, lambda data: messages.Unmask.from_bytes(data, SUITE))
    sizes = [size for _, size in seed.fields]
    assert sizes == [3, 32, 2, 2, *[2, 1, 36] * 4, 64]
    assert [start for start, _ in seed.fields] == [sum(sizes[:i]) for i in range(17)]


# ------------------------------------------------------------- it finds what is wrong


def lenient(data):
    """Ignores what is left over."""
    return messages.Confirm.from_bytes(data[:101], SUITE).to_bytes()


def hasty(data):
    """Trusts a count."""
    if len(data) != 101:
        raise MessageError("size")
    return bytes([data[data[35]] and one for one in data])


def hungry(data):
    """Allocates before it checks."""
    buffer = bytes(1 << 20)
    if data != data[: len(buffer)]:
        raise MessageError("size")
    return data


@pytest.mark.parametrize(
    ("again", "tail", "words"),
    [
        (lenient, b"\0", "not the encoding"),
        (hasty, b"", "IndexError"),
        (hungry, b"", "of memory"),
    ],
)
def test_a_faulty_reader_is_found(again, tail, words, traced_memory):
    tape = complete(1)
    sent = next(s.message for s in tape.server_steps if s.phase == "confirm-survivors")
    target = Target("faulty", (Seed.traced(sent, lenient),), again)
    with pytest.raises(Finding, match=words):
        target.check(sent[:35] + b"\xff" + sent[36:] + tail)
