"""A witness: two histories, a shorter log, an altered one; each names the entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import evidence
import pytest

from protocols.merkle import leaf_hash, root
from secfed.checkpoints import Checkpoint, log_key, log_origin, open_checkpoint
from secfed.checkpoints import sign_checkpoint as signed
from secfed.earlier_runs import NamedRuns
from secfed.entries import PlanEntry
from secfed.errors import LedgerError, StaleOfferError, VerificationError
from secfed.ledger import CHECKPOINT_NAME, LEDGER_NAME, Entry, Ledger
from secfed.notes import Note
from secfed.runtime.witnesses import inspection
from secfed.witness import (
    Offer,
    Witness,
    answer_bytes,
    offer_of,
    read_answer,
    witness_keys,
)

STUDY = evidence.make_study()
ORIGIN = log_origin(STUDY.digest(), evidence.RUN_ID)
LOG = log_key(ORIGIN, evidence.KEY.public_bytes)
ROUNDS = evidence.round_entries()
HEADS = {1: "a1" * 32, 2: "a2" * 32, 3: "a3" * 32}


def log_of(folder: Path, *bodies, time: str = evidence.TIME) -> Ledger:
    """A log whose coordinator writes what it likes."""
    folder.mkdir(exist_ok=True, parents=True)
    ledger = Ledger(folder / LEDGER_NAME, evidence.KEY)
    ledger.append("study", evidence.study_entry().to_body(), evidence.TIME)
    ledger.append("plan", evidence.plan_entry().to_body(), evidence.TIME)
    for body in bodies:
        ledger.append(body.kind, body.to_body(), time)
    return ledger


def nothing(_entries: Sequence[Entry]) -> None:
    """Asks nothing of the entries."""


def witness_at(folder: Path, site: str = "north", inspect=nothing) -> Witness:
    return Witness(folder / site, LOG, evidence.cosigner(site), inspect)


def show(ledger: Ledger, witness: Witness, size: int | None = None) -> Offer:
    """What the log shows of its first ``size`` entries."""
    lines = ledger.lines()[:size]
    study = ledger.entries()[0].parsed()
    head = Checkpoint(ORIGIN, len(lines), root(lines))
    assert study.run_id == evidence.RUN_ID
    return offer_of(lines, signed(head, evidence.KEY), witness.size)


def refused(witness: Witness, offer: Offer) -> LedgerError:
    before = witness.size
    with pytest.raises(LedgerError) as caught:
        witness.cosign(offer, 7)
    assert witness.size == before
    return caught.value


# An honest log


def test_a_growing_log_is_cosigned_and_remembered(tmp_path: Path) -> None:
    ledger = log_of(tmp_path, *ROUNDS)
    witness = witness_at(tmp_path)
    for size in (2, 3, 3, 5):
        offer = Offer.from_bytes(show(ledger, witness, size).to_bytes())
        line = read_answer(answer_bytes(witness.cosign(offer, 1000 + size)))
        note = ledger.checkpoint() if size == 5 else Note("", ())
        assert witness_at(tmp_path).size == size  # Also for the next process.
    assert open_checkpoint(
        note.with_signatures([line]).to_bytes(), LOG, [evidence.cosigner("north").key]
    ).times == {"secfed-site/north": 1005}
    # What is kept is the coordinator's own signature, to be shown to others.
    kept = (tmp_path / "north" / CHECKPOINT_NAME).read_bytes()
    assert open_checkpoint(kept, LOG).checkpoint.size == 5


def test_an_offer_from_elsewhere_is_answered_with_the_size(tmp_path: Path) -> None:
    ledger, witness = log_of(tmp_path, *ROUNDS), witness_at(tmp_path)
    whole = show(ledger, witness)
    witness.cosign(show(ledger, witness, 3), 7)
    with pytest.raises(StaleOfferError) as caught:
        witness.cosign(whole, 8)
    assert read_answer(answer_bytes(caught.value.size)) == 3
    with pytest.raises(StaleOfferError):  # No memory, and offered only an end.
        witness_at(tmp_path, "south").cosign(show(ledger, witness), 8)


# Attacks


def test_split_view_at_one_size(tmp_path: Path) -> None:
    ours, other = log_of(tmp_path, *ROUNDS), log_of(tmp_path / "fork", ROUNDS[0])
    other.append("round-interrupted", ROUNDS[1].to_body(), "2026-03-02T12:00:00Z")
    other.append("round", ROUNDS[2].to_body(), evidence.TIME)
    witness = witness_at(tmp_path)
    witness.cosign(show(ours, witness), 7)
    error = refused(witness, show(other, witness))
    assert error.entry == 3
    assert "two histories" in str(error)


def test_two_sizes_without_consistency(tmp_path: Path) -> None:
    ours = log_of(tmp_path, ROUNDS[0])
    other = log_of(tmp_path / "fork", *ROUNDS, time="2026-03-02T12:00:00Z")
    witness = witness_at(tmp_path)
    witness.cosign(show(ours, witness), 7)
    offer = show(other, witness)
    assert refused(witness, offer).entry == 2
    # The log lies about the leaves: the proof does not hold.
    own = tuple(leaf_hash(line) for line in ours.lines())
    error = refused(witness, replace(offer, leaves=own))
    assert (error.entry, "two histories" in str(error)) == (2, True)
    # It lies with the proof of its own tree, too, or shows none.
    for proof in ((), offer.proof[:-1], (b"\x00" * 32,) * len(offer.proof)):
        assert refused(witness, replace(offer, leaves=own, proof=proof)).entry == 2


def test_rollback(tmp_path: Path) -> None:
    ledger, witness = log_of(tmp_path, *ROUNDS), witness_at(tmp_path)
    witness.cosign(show(ledger, witness), 7)
    error = refused(witness, show(ledger, witness, 4))
    assert error.entry == 4
    assert "rolled back" in str(error)
    assert "cosigned 5 entries" in str(error)


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        (lambda x: [*x[:3], x[4], x[3]], 3),  # Reordered.
        (lambda x: [*x[:3], x[4]], 3),  # Dropped.
        (lambda x: [*x[:4], x[4][:-9] + b"AAAA" + x[4][-5:]], 4),  # Forged.
        (lambda x: [*x[:4], x[3]], 4),  # Repeated.
    ],
)
def test_new_entries_that_do_not_follow(tmp_path: Path, change, entry: int) -> None:
    ledger, witness = log_of(tmp_path, *ROUNDS), witness_at(tmp_path)
    witness.cosign(show(ledger, witness, 3), 7)
    lines = change(list(ledger.lines()))
    head = Checkpoint(ORIGIN, len(lines), root(lines))
    offer = offer_of(lines, signed(head, evidence.KEY), witness.size)
    assert refused(witness, offer).entry == entry


def test_lines_that_are_not_those_of_the_checkpoint(tmp_path: Path) -> None:
    ledger, witness = log_of(tmp_path, *ROUNDS), witness_at(tmp_path)
    witness.cosign(show(ledger, witness, 2), 7)
    offer = show(ledger, witness)
    for lines in (offer.lines[:-1], offer.lines[::-1], (*offer.lines, b"{}")):
        assert refused(witness, replace(offer, lines=lines)).entry == 2


def test_checkpoints_of_others(tmp_path: Path) -> None:
    ledger, witness = log_of(tmp_path, *ROUNDS), witness_at(tmp_path)
    head = Checkpoint.parse(ledger.checkpoint().text)
    for note in (
        signed(head, evidence.OTHER_KEY),
        signed(replace(head, origin="secfed-log/other/run"), evidence.KEY),
    ):
        with pytest.raises(VerificationError, match=r"did not sign|another log"):
            witness.cosign(offer_of(ledger.lines(), note, 0), 7)
    for data in (b"", b"[]", b"{}", show(ledger, witness).to_bytes()[:-1]):
        with pytest.raises(VerificationError, match="offer"):
            Offer.from_bytes(data)
    for data in (b"", b"[]", b'{"size":-1}', b'{"line":"x"}', b'{"size":1,"x":1}'):
        with pytest.raises(VerificationError, match="answer"):
            read_answer(data)


# Memory


def test_a_crash_between_lines_and_checkpoint(tmp_path: Path) -> None:
    ledger, witness = log_of(tmp_path, *ROUNDS), witness_at(tmp_path)
    witness.cosign(show(ledger, witness, 3), 7)
    longer = b"".join(line + b"\n" for line in ledger.lines())
    (tmp_path / "north" / LEDGER_NAME).write_bytes(longer)
    again = witness_at(tmp_path)
    assert again.size == 3
    again.cosign(show(ledger, again), 8)


@pytest.mark.parametrize("name", [LEDGER_NAME, CHECKPOINT_NAME])
def test_damaged_memory_cosigns_nothing(tmp_path: Path, name: str) -> None:
    ledger, witness = log_of(tmp_path, *ROUNDS), witness_at(tmp_path)
    witness.cosign(show(ledger, witness), 7)
    path = tmp_path / "north" / name
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(VerificationError):
        witness_at(tmp_path)


def told(number: int, head: str | None = None):
    """Round ``number`` as the log tells it, with the head of north's budget."""
    head = HEADS[number] if head is None else head
    return ROUNDS[number - 1].model_copy(update={"budget_heads": {"north": head}})


def at_a_site(folder: Path, *rounds: int, study=STUDY) -> Witness:
    reserved = [(evidence.RUN_ID, number, HEADS[number]) for number in rounds]
    inspect = inspection(
        study,
        evidence.KEY.public_bytes,
        "north",
        evidence.RUN_ID,
        lambda: reserved,
        NamedRuns(),
    )
    return witness_at(folder, inspect=inspect)


def test_a_site_cosigns_what_its_receipts_say(tmp_path: Path) -> None:
    ledger = log_of(tmp_path, told(1), told(2), told(3))
    witness = at_a_site(tmp_path, 1, 2, 3)
    witness.cosign(show(ledger, witness), 7)
    assert witness.size == 5


def test_a_witness_without_memory_still_has_its_receipts(tmp_path: Path) -> None:
    ledger = log_of(tmp_path, told(1), told(2), told(3))
    witness = at_a_site(tmp_path, 1, 2, 3)  # It never cosigned, or lost its folder.
    error = refused(witness, show(ledger, witness, 4))
    assert error.entry == 4
    assert "ends before round 3" in str(error)
    # With neither it cosigns an older log: the limit that docs/ledger.md names.
    blank = at_a_site(tmp_path)
    error = refused(blank, show(ledger, blank, 4))
    assert "no record" in str(error)
    bare = witness_at(tmp_path)
    bare.cosign(show(ledger, bare, 4), 7)


@pytest.mark.parametrize(
    ("bodies", "entry", "said"),
    [
        ([told(1, "ff" * 32)], 2, "no record of this reservation"),
        ([ROUNDS[1]], 2, "records round 2 where 1 follows"),
        ([told(1), told(1)], 3, "records round 1 where 2 follows"),
        (
            [
                told(1).model_copy(
                    update={"epsilon": dict.fromkeys(evidence.SITES, 0.1)}
                )
            ],
            2,
            "records epsilon 0.1",
        ),
        (
            [
                told(1).model_copy(
                    update={"spent": {}, "epsilon": {}, "budget_heads": {}}
                )
            ],
            2,
            "no spent event",
        ),
        (
            [
                told(1).model_copy(
                    update={
                        "participants": ("south", "west"),
                        "survivors": ("south", "west"),
                        "spent": {s: ROUNDS[0].spent[s] for s in ("south", "west")},
                        "epsilon": {s: ROUNDS[0].epsilon[s] for s in ("south", "west")},
                        "budget_heads": {},
                    }
                )
            ],
            2,
            "leaves out what north reserved",
        ),
    ],
)
def test_a_site_agrees_with_no_other_account(
    tmp_path: Path, bodies, entry: int, said: str
) -> None:
    ledger, witness = log_of(tmp_path, *bodies), at_a_site(tmp_path, 1)
    error = refused(witness, show(ledger, witness))
    assert error.entry == entry
    assert said in str(error)


def test_another_study_than_was_approved(tmp_path: Path) -> None:
    ledger = log_of(tmp_path, told(1))
    other = evidence.make_study(method="fedavg")
    witness = at_a_site(tmp_path, 1, study=other)
    assert refused(witness, show(ledger, witness)).entry == 0


# Keys


def test_keys_that_the_plan_names() -> None:
    plan = evidence.plan_entry()
    north = witness_keys(plan)["north"]
    assert north == evidence.cosigner("north").key
    named = {site: key.vkey for site, key in witness_keys(plan).items()}
    assert witness_keys(plan.model_copy(update={"witnesses": named})) == witness_keys(
        plan
    )
    for wrong in ("x", named["south"], LOG.vkey):
        changed = plan.model_copy(update={"witnesses": named | {"north": wrong}})
        assert isinstance(changed, PlanEntry)
        with pytest.raises(LedgerError) as caught:
            witness_keys(changed)
        assert caught.value.entry == 1
