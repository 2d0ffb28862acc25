"""Local training beside keys and shares: the same rounds, and nothing used twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployed import KEY, RUN_ID, AtOnce, Cast
from small import planned, small_policy, small_study

from secfed.canonical import file_sha256
from secfed.entries import InterruptedEntry, RoundEntry
from secfed.errors import RoundAbortedError
from secfed.ledger import split_lines, verify_entries
from secfed.runtime.arms import Arm
from secfed.runtime.background import Background, Job
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared
from secfed.study import Study

SEED, ROUNDS = 31, 2
A, B, C, D = small_study().sites


class Held(Background):
    """Begins no job before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def start(self, work: Callable[[], Any]) -> Job[Any]:
        def waiting() -> Any:
            assert self.free.wait(60)
            return work()

        return super().start(waiting)


def study() -> Study:
    return small_study(rounds=ROUNDS, seed=SEED)


def cast_with(prepared: Prepared, folder: Path, background: Background) -> Cast:
    own = planned(prepared, study())
    return Cast(own, study(), small_policy(), folder, background=background)


def entries(run: Path) -> list[Any]:
    lines = split_lines((run / "ledger.jsonl").read_bytes())
    return [entry.parsed() for entry in verify_entries(lines, KEY.public_bytes)]


def plans_of(entry: Any) -> Any:
    """What a ledger's second entry says of the mechanism, without the sites' keys."""
    body = entry.to_body()
    skipped = {"identities", "deployed"}  # They say where the sites are.
    return {key: value for key, value in body.items() if key not in skipped}


def local_run(prepared: Prepared, run: Path) -> list[Any]:
    """The same study in one process, under the coordinator key of the tests."""
    private = run / "private"
    private.mkdir(parents=True)
    (private / "coordinator.key").write_text("07" * 32)
    (private / "coordinator.key").chmod(0o600)
    arm = Arm("ffa-lora", study())
    own = planned(prepared, study())
    run_arm(arm, own, run, private, RUN_ID, small_policy(), NoProgress())
    return entries(run)


def test_keys_and_shares_travel_while_a_site_trains_and_the_digests_are_the_same(
    prepared: Prepared, tmp_path: Path
) -> None:
    held = Held()
    cast = cast_with(prepared, tmp_path / "sites", held)
    honest, seen = cast.exchange, []

    def watched(phase: str, orders: Any, seconds: float) -> Any:
        seen.append((phase, held.busy))
        if phase == "training":
            held.free.set()
        yield from honest(phase, orders, seconds)
        if phase == "training":
            held.free.clear()

    cast.exchange = watched  # type: ignore[method-assign]
    served = tmp_path / "served"
    cast.serve(served)
    # No site had trained when it was asked for its shares, nor when all had sent them.
    assert ("shares", True) in seen
    assert ("training", True) in seen
    assert ("masked-input", False) in seen
    ours, theirs = entries(served), local_run(prepared, tmp_path / "local")
    assert plans_of(ours[1]) == plans_of(theirs[1])
    for one, other in zip(ours[2:-1], theirs[2:-1], strict=True):
        assert isinstance(one, RoundEntry)
        assert one.aggregate_sha256 == other.aggregate_sha256
        assert one.spent == other.spent
    for number in range(ROUNDS + 1):
        name = f"adapters/round-{number:03d}.safetensors"
        assert file_sha256(served / name) == file_sha256(tmp_path / "local" / name)


@pytest.mark.parametrize("phase", ["shares", "training"])
def test_a_site_that_leaves_while_it_trains_is_charged_and_a_dropout(
    prepared: Prepared, tmp_path: Path, phase: str
) -> None:
    cast = cast_with(prepared, tmp_path / "sites", AtOnce())
    cast.restarts = {(1, phase): {B}}
    run = tmp_path / "run"
    cast.serve(run)
    first, second = entries(run)[2:4]
    assert first.dropouts == {B: "advertise" if phase == "shares" else "shares"}
    assert B in first.spent
    assert B in second.survivors
    assert cast.rounds_charged(B) == [1, 2]


def test_half_the_sites_fail_in_training_and_no_update_is_masked(
    prepared: Prepared, tmp_path: Path
) -> None:
    class Failing(AtOnce):
        def start(self, work: Callable[[], Any]) -> Job[Any]:
            del work

            def fail() -> Any:
                raise RoundAbortedError("training", (), "the disk is full")

            return super().start(fail)

    cast = cast_with(prepared, tmp_path / "sites", AtOnce())
    for site in (C, D):
        cast.workers[site]._background = Failing()
    run = tmp_path / "run"
    with pytest.raises(RoundAbortedError, match="the adapter of the round before"):
        cast.serve(run)
    assert isinstance(entries(run)[-1], InterruptedEntry)
    assert not [o for _, phase, o in cast.orders if phase == "masked-input"]
    assert all(cast.rounds_charged(s) == [1] for s in cast.study.sites)


# One job at a time


def test_a_job_waits_for_the_one_before_and_a_dropped_one_never_begins() -> None:
    background, gate, done = Background(), threading.Event(), []

    def first() -> str:
        assert gate.wait(30)
        done.append("first")
        return "one"

    def noted(name: str) -> Callable[[], str]:
        def work() -> str:
            done.append(name)
            return name

        return work

    one = background.start(first)
    two, three = background.start(noted("second")), background.start(noted("third"))
    two.drop()
    assert background.busy
    assert done == []
    gate.set()
    assert three.result() == "third"
    assert done == ["first", "third"]
    assert not background.busy
    assert one.result() == "one"
    with pytest.raises(RuntimeError, match="nobody keeps"):
        one.result()
    with pytest.raises(RuntimeError, match="nobody keeps"):
        two.result()


def test_what_a_job_raises_is_raised_where_its_result_is_asked_for() -> None:
    def fail() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Background().start(fail).result()
