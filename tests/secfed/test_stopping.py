"""The kill switch, withdrawal, and what rounds write into the operations log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import Cast
from small import planned, small_policy, small_study

from secfed.client import NoGuard, Site, SiteRound
from secfed.errors import PolicyError, SecfedError
from secfed.operations import Line, OperationsLog, read_log
from secfed.policy import SitePolicy, require_running
from secfed.privacy.budget import Budget
from secfed.runtime.arms import Arm
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared
from secfed.runtime.signed_records import signed
from secfed.runtime.watching import watched
from secfed.runtime.withdrawal import record_path, require_participating
from secfed.signing import RECORD, CoordinatorKey
from secfed.study import Study
from secfed.verify import verify_run

A, B, C, D = small_study().sites


def stoppable(folder: Path) -> SitePolicy:
    return small_policy().model_copy(update={"stop_file": str(folder / "STOP")})


def actions(lines: tuple[Line, ...], site: str | None = None) -> list[str]:
    about = (line for line in lines if site in (None, line.fields.get("site")))
    return [line.action for line in about]


# The switch


def test_the_switch_is_a_file_and_fails_closed(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    policy = stoppable(folder)
    with pytest.raises(PolicyError) as raised:  # Nobody can look.
        require_running(policy)
    assert raised.value.rules == ("stop_file",)
    folder.mkdir()
    require_running(policy)
    (folder / "STOP").symlink_to("nowhere")
    with pytest.raises(PolicyError, match="stopped"):
        require_running(policy)
    (folder / "STOP").unlink()
    require_running(policy)


def test_no_step_of_a_round_goes_on_when_the_switch_is_pulled(tmp_path: Path) -> None:
    """Nothing but the switch decides, before anything else is looked at."""
    (tmp_path / "STOP").touch()
    anything: Any = None
    site = Site(A, anything, anything, anything, stoppable(tmp_path))
    params = type("Params", (), {"round": 1})()
    one = SiteRound(site, small_study(), params, anything, NoGuard())
    steps = [
        lambda: one.advertise(b"", anything),
        lambda: one.share(b"", anything),
        lambda: one.train(anything, anything),
        lambda: one.evaluate(anything, anything, anything),
        lambda: one.confirm(b""),
        lambda: one.reveal(b""),
    ]
    for step in steps:
        with pytest.raises(PolicyError, match="stopped"):
            step()
    one._vector = object()  # type: ignore[assignment] - as after training
    with pytest.raises(PolicyError, match="stopped"):
        one.mask(b"")


class _PullsInRound(NoProgress):
    """Pulls the switch when a phase of a round begins."""

    def __init__(self, switch: Path, number: int, phase: str) -> None:
        self.switch, self.when = switch, (number, phase)
        self.number = 0
        self.begun: list[tuple[int, str]] = []

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        self.number = round

    def phase(self, text: str) -> None:
        self.begun.append((self.number, text))
        if (self.number, text) == self.when:
            self.switch.touch()


def play(
    prepared: Prepared,
    study: Study,
    run: Path,
    policy: SitePolicy,
    progress: NoProgress,
) -> None:
    private = run / "private"
    private.mkdir(parents=True, exist_ok=True)
    arm = Arm(study.training.method, study)
    with watched(run, study, "run", progress, policy=policy) as logged:
        run_arm(arm, prepared, run, private, "run", policy, logged)


def test_a_running_round_stops_at_its_next_step_and_the_run_resumes(
    prepared: Prepared, tmp_path: Path
) -> None:
    study = small_study(rounds=3, seed=5)
    run, policy = tmp_path / "run", stoppable(tmp_path)
    pulls = _PullsInRound(tmp_path / "STOP", 2, "masked input")
    with pytest.raises(PolicyError, match="the site is stopped"):
        play(prepared, study, run, policy, pulls)
    assert pulls.begun[-1] == (2, "masked input")  # Nothing of this phase was sent.
    lines = read_log(run / "private" / "operations.jsonl").lines
    assert actions(lines)[-5:] == ["stop-held"] * 5  # Four sites, and the run.
    with pytest.raises(PolicyError):  # As long as the file is there.
        play(prepared, study, run, policy, pulls)
    (tmp_path / "STOP").unlink()
    play(prepared, study, run, policy, NoProgress())
    assert verify_run(run).passed
    spent = Budget.read(run / "private" / "sites" / A / "budget.sqlite")[0]
    assert [charge.round for charge in spent.charges] == [1, 2, 3]
    # The log tells the whole story, in order.
    lines = read_log(run / "private" / "operations.jsonl").lines
    told = [a for a in actions(lines) if a not in {"budget-reserved", "stop-held"}]
    start = ["started", "configuration-loaded"]
    assert told == [
        *start,
        *("study-opened", "round-started", "round-completed", "round-started"),
        *start,
        *("study-resumed", "round-interrupted", "study-opened", "round-started"),
        *start,
        *("study-resumed", "study-opened", "round-started", "round-completed"),
        "study-finished",
    ]
    text = (run / "private" / "operations.jsonl").read_text("utf-8")
    assert "accuracy" not in text
    assert "epsilon" not in text


# Sites on other machines


@pytest.fixture
def cast(prepared: Prepared, tmp_path: Path) -> Cast:
    study = small_study(rounds=2, seed=41)
    return Cast(planned(prepared, study), study, small_policy(), tmp_path / "sites")


def listen(cast: Cast) -> dict[str, OperationsLog]:
    logs = {}
    for site, worker in cast.workers.items():
        path = cast.folder / site / "operations.jsonl"
        logs[site] = OperationsLog(path, role="site", node=site)
        worker.event = logs[site].event
    return logs


def test_sites_and_coordinator_write_their_own_logs(cast: Cast, tmp_path: Path) -> None:
    logs = listen(cast)
    stop = tmp_path / D
    stop.mkdir()
    worker = cast.workers[D]
    worker._site = replace(worker._site, policy=stoppable(stop))
    cast.deaf = {(2, "shares"): {C}}
    exchange = cast.exchange

    def pull(phase: str, orders: Any, seconds: float) -> Any:
        if phase == "confirm":
            (stop / "STOP").touch()
        return exchange(phase, orders, seconds)

    cast.exchange = pull  # type: ignore[method-assign]
    with pytest.raises(PolicyError):  # Two of four are too few for round 2.
        cast.serve(tmp_path / "run")
    own = read_log(logs[D].path).lines
    assert actions(own)[0] == "budget-reserved"
    assert set(actions(own)[1:]) == {"stop-held"}
    assert actions(read_log(logs[A].path).lines)[:2] == [
        "budget-reserved",
        "round-answered",
    ]
    lines = read_log(tmp_path / "run" / "private" / "operations.jsonl").lines
    assert "round-completed" in actions(lines)
    assert "site-declined" in actions(lines, D)
    assert "deadline-missed" in actions(lines, C)
    assert actions(lines)[-1] == "study-refused"
    assert {line.fields["role"] for line in lines} == {"coordinator"}


def test_a_message_that_is_refused_is_told_by_its_class_only(cast: Cast) -> None:
    logs = listen(cast)
    cast.serve(cast.folder / "run")
    _, phase, order = next(o for o in cast.orders if o[0] == A)
    with pytest.raises(SecfedError):
        cast.workers[B].answer(phase, order)
    refused = read_log(logs[B].path).lines[-1]
    assert (refused.action, refused.fields["error"]) == (
        "message-refused",
        "VerificationError",
    )
    assert actions(read_log(logs[A].path).lines)[-1] == "study-finished"


def test_a_site_that_withdrew_answers_nothing_more(cast: Cast, tmp_path: Path) -> None:
    logs = listen(cast)
    path = record_path(cast.folder / D, cast.study.digest())
    path.parent.mkdir(parents=True)
    path.write_text("anything that stands here counts", "utf-8")
    cast.serve(tmp_path / "run")
    assert cast.rounds_charged(A) == [1, 2]
    assert cast.rounds_charged(D) == []
    (line, *_) = read_log(logs[D].path).lines
    assert (line.action, line.fields["rules"]) == ("order-declined", ["withdrawn"])
    require_participating(cast.folder / D, "0" * 64)  # Another study goes on.


def test_a_record_of_another_form_is_never_signed() -> None:
    key = CoordinatorKey(b"\x07" * 32)
    fields = {
        "kind": "incident",
        "by": "coordinator",
        "at": "2027-03-31T08:00:00+00:00",
        "noticed_at": "2027-03-31T08:00:00+00:00",
        "study": None,
        "incident": "key-lost",
    }
    good = signed(key.public_bytes, lambda m: key.sign(RECORD, m), fields)
    assert b"key-lost" in good
    for name, value in [("incident", "Ada was there"), ("by", "Ada L."), ("note", "x")]:
        changed = fields | {name: value}
        with pytest.raises(SecfedError):
            signed(key.public_bytes, lambda m: key.sign(RECORD, m), changed)
