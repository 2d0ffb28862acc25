"""Whole grids: interrupted, continued, refused, failing, and never signed wrongly."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grids import grid_study
from small import EXAMPLE, small_policy, study_values
from typer.testing import CliRunner

from secfed.cli import app
from secfed.errors import CellsFailedError, PolicyError, RunDirectoryError, StudyError
from secfed.manifest import read_manifest
from secfed.privacy.budget import Budget
from secfed.report.grid_reading import read_grid
from secfed.runtime.cells import Limits, NoEvents
from secfed.runtime.compare import plan_arms
from secfed.runtime.grid import run_grid
from secfed.runtime.partition import keep_partition
from secfed.study import Study, load_study_dict
from secfed.study.grid import grid_cells
from secfed.verify import verify_run

METHODS = ("fedavg",)
SITES = tuple(study_values()["data"]["partition"]["sites"])


def real_study(**compare: object) -> Study:
    """The small study with a Dirichlet partition, one round and a grid."""
    values = study_values(rounds=1)
    values["data"]["partition"] = {
        "kind": "dirichlet",
        "sites": list(SITES),
        "alpha": 1.0,
    }
    base = {"methods": list(METHODS), "baselines": ["head-only"]}
    values["compare"] = {**base, **compare}
    return load_study_dict(values, "grid")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def play(study: Study, run: Path, **changes: object) -> dict[str, object]:
    policy = small_policy().model_copy(update=changes)
    return run_grid(
        study, EXAMPLE, run, METHODS, (0,), policy, NoEvents(), Limits(1, 10**10)
    )


# ------------------------------------------------------------ refused before a cell


def test_without_privacy_needs_public_records(tmp_path: Path) -> None:
    study = grid_study(epsilons=[8.0, "inf"], baselines=["head-only"])
    with pytest.raises(PolicyError, match=r'compare\.epsilons: "inf"'):
        play(study, tmp_path / "run")
    simulated = study.canonical() | {"simulation": {"seed": 1}}
    with pytest.raises(PolicyError, match="allowed_model_sha256"):  # not "inf" any more
        play(load_study_dict(simulated, "x"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cell_that_a_policy_refuses_stops_the_grid_before_it_starts(
    tmp_path: Path,
) -> None:
    with pytest.raises(PolicyError, match="40 is above max_epsilon"):
        play(real_study(epsilons=[8.0, 40.0]), tmp_path / "run")
    with pytest.raises(PolicyError, match="allowed_methods"):
        play(real_study(epsilons=[8.0]), tmp_path / "run", allowed_methods=("rolora",))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_lasting_budget_pays_for_all_cells_or_for_none(
    packages: None, tmp_path: Path
) -> None:
    folder = str(tmp_path / "budgets")
    with pytest.raises(
        PolicyError, match="the whole grid would cost epsilon"
    ) as caught:
        play(
            real_study(epsilons=[7.0, 8.0]),
            tmp_path / "run",
            max_epsilon=8.5,
            budget_dir=folder,
        )
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_a_cell_that_contradicts_itself_is_named() -> None:
    study = grid_study(ranks=[2])
    broken = study.model_copy(
        update={"adapter": study.adapter.model_copy(update={"layers": -1})}
    )
    with pytest.raises(StudyError, match="cell r2"):
        grid_cells(broken)


# ------------------------------------------------------------------ arms and rows


def test_a_cell_without_privacy_has_no_private_arm_and_no_arm_twice() -> None:
    private, without = grid_cells(real_study(epsilons=[8.0, "inf"]))
    arms = plan_arms(private.study, ("fedavg", "ffa-lora"), (0, 1))
    assert [arm.kind for arm in arms] == ["private", "private", "baseline"] * 2
    arms = plan_arms(without.study, ("fedavg", "ffa-lora"), (0,))
    assert {arm.kind for arm in arms} == {"non-private"}
    assert [arm.name for arm in arms] == ["fedavg", "ffa-lora", "head-only"]
    both = real_study(epsilons=["inf"], baselines=["head-only", "non-private"])
    (cell,) = grid_cells(both)
    # The baseline is fedavg without noise, which stands there as a method already.
    arms = plan_arms(cell.study, ("fedavg",), (0,))
    assert [arm.name for arm in arms] == ["fedavg", "head-only"]
    arms = plan_arms(cell.study, ("ffa-lora",), (0,))
    assert [arm.name for arm in arms] == ["ffa-lora", "head-only", "non-private"]


def test_the_rows_of_every_site_are_kept_in_private(
    packages: None, tmp_path: Path
) -> None:
    study = real_study()
    path = keep_partition(study, EXAMPLE, tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    value = json.loads(path.read_text("utf-8"))
    rows = [row for site in SITES for row in value["sites"][site]]
    assert len(rows) == len(set(rows)) == 320
    assert not set(rows) & set(value["holdout"])
    assert value["partition"]["alpha"] == 1.0
    before = path.read_bytes()
    keep_partition(real_study(), EXAMPLE, tmp_path)
    assert path.read_bytes() == before


# --------------------------------------------------------------------- real grids

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_grid import play, real_study
play(real_study(epsilons=[8.0, "inf"]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def finished(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that was interrupted in its second cell and continued."""
    run = tmp_path_factory.mktemp("grids") / "run"
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, here, run],
        env={**os.environ, "PYTHONPATH": str(here.parents[1])},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 900
        while not (run / "cells" / "epsinf" / "arms").exists():
            assert process.poll() is None, "the grid ended before it was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(180)
    assert not (run / "manifest.json").exists()
    before = content(run / "cells" / "eps8")
    assert f"{run}/cells/eps8/manifest.json" in before
    report = verify_run(run)
    assert "manifest.json is missing" in report.failures()[0].reason
    result = CliRunner().invoke(app, ["resume", str(run), "--jobs", "2"])
    assert result.exit_code == 0, result.output
    assert "note: 1 of 2 cells are finished" in result.stderr
    assert "epsinf: finished" in result.stderr
    assert "at most epsilon" in result.stdout
    # The finished cell was not touched, let alone repeated.
    assert content(run / "cells" / "eps8") == before
    return run


@pytest.mark.slow
def test_an_interrupted_grid_continues_and_verifies(finished: Path) -> None:
    report = verify_run(finished)
    assert report.failures() == ()
    assert (report.kind, len(report.arms)) == ("grid", 2)
    named = read_manifest((finished / "manifest.json").read_bytes()).files
    assert {"grid.json", "grid.csv", "grid.tex", "report.html"} <= set(named)
    assert not [name for name in named if "/private/" in name]
    grid = read_grid(finished)
    private, without = grid.finished
    assert [arm.kind for arm in private.compared] == ["private", "baseline"]
    assert [arm.kind for arm in without.compared] == ["non-private"] * 2
    for cell in grid.cells:
        folder = finished / cell.run / "private"
        assert (folder / "partition.json").is_file()
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_every_cell_has_a_budget_of_its_own(finished: Path) -> None:
    grid = read_grid(finished)
    assert grid.composed_epsilon is not None
    spent = []
    for site in SITES:
        path = finished / "cells" / "eps8" / "private" / "sites" / site
        (account,) = Budget.read(path / "budget.sqlite")
        spent.append(account.spent_epsilon)
    # Without privacy nothing is charged, so the grid costs what its one cell cost.
    assert grid.composed_epsilon == pytest.approx(max(spent), rel=1e-6)
    accounts = (
        finished / "cells" / "epsinf" / "private" / "sites" / site for site in SITES
    )
    for path in accounts:
        charges = Budget.read(path / "budget.sqlite")
        assert all(account.spent_epsilon == 0 for account in charges)


@pytest.mark.slow
def test_a_finished_grid_is_read_back_and_not_repeated(
    finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = content(run / "cells")
    play(real_study(epsilons=[8.0, "inf"]), run)
    assert content(run / "cells") == before
    assert verify_run(run).passed
    with pytest.raises(RunDirectoryError, match="another study"):
        play(real_study(epsilons=[8.0]), run)


@pytest.mark.slow
def test_a_changed_cell_is_not_signed_again(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    path = run / "cells" / "eps8" / "comparison.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"seed":0', '"seed":1', 1), "utf-8")
    with pytest.raises(CellsFailedError, match="eps8: it does not verify") as caught:
        play(real_study(epsilons=[8.0, "inf"]), run)
    assert caught.value.exit_code == 1
    assert not (run / "manifest.json").exists()
    assert "comparison.json" in (run / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_grid(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    with (run / "private" / "lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunDirectoryError, match="another process works"):
            play(real_study(epsilons=[8.0, "inf"]), run)
    assert verify_run(run).passed


@pytest.mark.slow
def test_the_command_line_verifies_and_reports_a_grid(
    finished: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["verify", str(finished)])
    assert result.exit_code == 0
    assert "cell eps8, arm fedavg" in result.stdout
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(finished), "--out", str(out)])
    assert result.exit_code == 0
    assert out.read_bytes() == (finished / "report.html").read_bytes()


class Spoils(NoEvents):
    """Spoils a cell's study right after its process started."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def started(self, name: str, waiting: int) -> None:
        (self.run / "cells" / name / "study.json").write_text("{}", "utf-8")


@pytest.mark.slow
def test_a_cell_that_fails_leaves_the_others_and_no_manifest(
    finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "cells" / "epsinf")
    study = real_study(epsilons=[8.0, "inf"])
    with pytest.raises(CellsFailedError, match="1 of 2 cells failed") as caught:
        run_grid(
            study, EXAMPLE, run, METHODS, (0,), small_policy(), Spoils(run), Limits(1)
        )
    assert list(caught.value.reasons) == ["epsinf"]
    assert "this key is required" in caught.value.reasons["epsinf"]
    assert "secfed resume" in str(caught.value)
    assert verify_run(run / "cells" / "eps8").passed
    grid = read_grid(run)
    assert [cell.name for cell in grid.finished] == ["eps8"]
    assert grid.composed_epsilon is None
    assert "this key is required" in (run / "report.html").read_text("utf-8")
    assert not (run / "manifest.json").exists()


def test_limits_belong_to_a_grid(tmp_path: Path) -> None:
    study = EXAMPLE / "study.toml"
    for option, value in (("--jobs", "2"), ("--memory", "4")):
        result = CliRunner().invoke(
            app, ["compare", str(study), option, value, "--out", str(tmp_path / "run")]
        )
        assert result.exit_code == 2
        assert "belongs to a grid" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
