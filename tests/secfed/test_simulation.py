"""Sites of Flower's simulation engine: the local runtime's rounds, and what it refuses.

Without Ray the processes' side is called directly, with the real signed messages. One
short run starts Ray, where it is installed.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import RUN_ID
from rays import needs_ray, wait_for_ended
from small import EXAMPLE, small_policy, small_study
from typer.testing import CliRunner

from secfed.canonical import file_sha256
from secfed.cli.app import app
from secfed.data import StudyData
from secfed.errors import SecfedError, StudyError, VerificationError
from secfed.policy import SitePolicy
from secfed.runtime import simulated
from secfed.runtime.arms import Arm
from secfed.runtime.background import WhenAsked
from secfed.runtime.directory import create_run
from secfed.runtime.envelope import Post, Sealed
from secfed.runtime.flower.client_app import Answering
from secfed.runtime.flower.simulation import Opening, require_ray
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.resume import resume_run
from secfed.runtime.setup import Prepared
from secfed.runtime.simulated import run_simulation
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run

SEED = 23
A, B, C, D = small_study().sites
pytestmark = pytest.mark.usefixtures("packages")


class Here:
    """Two processes of the simulation, as objects of this one."""

    def __init__(self) -> None:
        self.stop_at: tuple[int, str] | None = None
        self.started: list[tuple[str, ...]] = []
        self.orders: list[tuple[str, str]] = []

    def simulate(
        self,
        sites: Sequence[str],
        processes: int,
        opening: Opening,
        run: Callable[[Post], None],
    ) -> None:
        assert processes == 2
        opening = pickle.loads(pickle.dumps(opening))  # noqa: S301 - our own
        self._of: dict[str, Answering] = {}
        for start in range(processes):
            own = tuple(sites[start::processes])
            self.started.append(own)
            self._of |= dict.fromkeys(own, opening(own))
        run(self)

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        for site, order in orders.items():
            number = json.loads(order.header)["round"]
            if self.stop_at == (number, phase):
                raise KeyboardInterrupt
            self.orders.append((site, phase))
            yield site, self._of[site](phase, order)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, prepared: Prepared, data: StudyData) -> Here:
    """No Ray, and the model and the texts that all tests share."""
    found = Here()

    def prepare(
        _study: Study, _base: Path, own: StudyData, *_others: object
    ) -> Prepared:
        held = {site: prepared.records[site] for site in own.sites}
        return replace(prepared, records=held)

    monkeypatch.setattr(simulated, "simulate", found.simulate)
    monkeypatch.setattr(simulated, "require_ray", lambda: None)
    monkeypatch.setattr(simulated, "load_sites", lambda *_given: data)
    monkeypatch.setattr(simulated, "keep_partition", lambda *_given: None)
    monkeypatch.setattr(simulated, "prepare_data", prepare)
    return found


def run_here(prepared: Prepared, study: Study, run: Path) -> None:
    """The local runtime."""
    arm = Arm(study.training.method, study)
    private = run / "private"
    private.mkdir(parents=True)
    run_arm(arm, prepared, run, private, RUN_ID, small_policy(), NoProgress())


def simulate(study: Study, run: Path, policy: SitePolicy | None = None) -> Any:
    rules = small_policy() if policy is None else policy
    return run_simulation(study, EXAMPLE, run, rules, NoProgress(), 2)


def digests(run: Path) -> dict[str, str]:
    return {p.name: file_sha256(p) for p in sorted((run / "adapters").iterdir())}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_simulation_gives_the_adapters_of_the_local_runtime(
    prepared: Prepared, here: Here, tmp_path: Path
) -> None:
    study = small_study(rounds=3, seed=SEED, dropouts=[(1, B, "shares")])
    run_here(prepared, study, tmp_path / "local")
    simulate(study, tmp_path / "simulated")
    assert here.started == [(A, C), (B, D)]
    assert len(digests(tmp_path / "local")) == 4
    assert digests(tmp_path / "simulated") == digests(tmp_path / "local")
    ours, theirs = metrics(tmp_path / "simulated"), metrics(tmp_path / "local")
    for one, other in zip(ours, theirs, strict=True):
        for name in ("survivors", "dropouts", "silent", "epsilon"):
            assert one[name] == other[name]
    assert ours[1]["dropouts"] == {B: "shares"}
    assert (B, "training") not in here.orders[:28]  # Of the first round.
    # The statement says what it is; what the sites keep is in their own folders.
    statement = (tmp_path / "simulated" / "statement.json").read_text()
    assert "NOT PRIVATE" in statement
    assert verify_run(tmp_path / "simulated").passed
    private = tmp_path / "simulated" / "private"
    budgets = sorted(p.parent.name for p in private.rglob("budget.sqlite"))
    assert budgets == sorted(study.sites)


def test_an_interrupted_simulation_goes_on_with_the_next_round(
    here: Here, tmp_path: Path
) -> None:
    run, study = tmp_path / "run", small_study(rounds=3, seed=SEED)
    here.stop_at = (1, "masked-input")
    with pytest.raises(KeyboardInterrupt):
        simulate(study, run)
    here.stop_at = None
    assert json.loads((run / "private" / "run.json").read_text())["kind"] == (
        simulated.KIND
    )
    simulate(study, run)
    assert [line["status"] for line in metrics(run)] == [
        "completed",
        "interrupted",
        "completed",
        "completed",
    ]
    assert verify_run(run).passed


def test_resume_knows_that_a_run_was_simulated(
    monkeypatch: pytest.MonkeyPatch, here: Here, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.setattr(
        simulated, "run_simulation", lambda *args: asked.append(args[2]) or {}
    )
    study = small_study(seed=SEED)
    create_run(tmp_path / "run", study, EXAMPLE, small_policy(), kind=simulated.KIND)
    resume_run(tmp_path / "run", NoProgress())
    assert asked == [tmp_path / "run"]


def test_a_process_refuses_orders_for_sites_of_another() -> None:
    sealed = Sealed(b'{"site":"elsewhere"}', b"", b"")
    for header in (sealed.header, b'{"site":1}', b"[]", b"no header"):
        with pytest.raises(VerificationError):
            simulated._addressee(Sealed(header, b"", b""), {})


def test_what_a_deployment_lacks_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    study = small_study()
    personal = study.model_copy(
        update={"training": study.training.model_copy(update={"method": "fedsa-lora"})}
    )
    with pytest.raises(StudyError, match="leave --engine simulation out"):
        simulate(personal, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scores_of_held_back_records_are_refused(tmp_path: Path) -> None:
    values = small_study().canonical()
    values["evaluation"] = {
        "fraction": 0.2,
        "metrics": ["accuracy"],
        "noise_multiplier": 5.0,
    }
    study = load_study_dict(values, "evaluated")
    with pytest.raises(StudyError, match="does not score held-back records"):
        simulate(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_ray_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SecfedError, match=r"pip install 'secfed\[simulation\]'"):
        require_ray()
    with pytest.raises(SecfedError, match="Ray"):
        simulate(small_study(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_belong_to_the_simulation() -> None:
    study = str(EXAMPLE / "study.toml")
    result = CliRunner().invoke(app, ["run", study, "--processes", "2"])
    assert result.exit_code == 2
    assert "belongs to --engine simulation" in result.output


def test_work_that_waits_until_it_is_asked_for_runs_once() -> None:
    ran: list[int] = []
    background = WhenAsked()
    jobs = [background.start(lambda n=n: ran.append(n) or n) for n in range(3)]
    assert ran == []
    assert not background.busy
    assert jobs[1].result() == 1
    jobs[0].drop()
    with pytest.raises(RuntimeError):
        jobs[0].result()
    assert ran == [1]


@needs_ray
def test_rays_processes_play_the_local_runtime_s_round(
    prepared: Prepared, tmp_path: Path
) -> None:
    study = small_study(rounds=3, seed=SEED)
    run_here(prepared, study, tmp_path / "local")
    simulate(study, tmp_path / "simulated")
    assert digests(tmp_path / "simulated") == digests(tmp_path / "local")
    assert len(metrics(tmp_path / "simulated")[1]["survivors"]) == 4
    assert not sys.modules["ray"].is_initialized()
    wait_for_ended()
