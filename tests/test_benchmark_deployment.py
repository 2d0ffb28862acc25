"""The benchmark over processes adds up what it measured, and says which parts.

The processes themselves are not started here; `python -m benchmarks.deployment` does.
"""

from __future__ import annotations

import ast
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from benchmarks import deployment, deployment_secfed
from benchmarks.deployment_flwr import APP, STAGES
from benchmarks.deployment_many import small_study
from benchmarks.deployment_path import Cost, Reading, summed
from benchmarks.deployment_secfed import BEFORE, COORDINATOR, PATH
from benchmarks.flwr_app.secagg_app.vectors import vector
from benchmarks.output import to_markdown
from secfed.runtime.envelope import ORDERS, Sealed
from secfed.study import load_study_dict

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    """A reading later by one second of wall time and two of CPU at each look."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> Reading:
        self.looks += 1
        return Reading(float(self.looks), 2.0 * self.looks)


class Post:
    def __init__(self, silent: str = "") -> None:
        self.silent = silent

    def exchange(self, phase, orders, seconds):
        for site, order in orders.items():
            if phase != self.silent:
                yield site, order


def timed(monkeypatch, rounds, silent=""):
    monkeypatch.setattr(deployment_secfed, "Reading", Clock())
    post = deployment_secfed._TimedPost(Post(silent))
    orders = {"north": Sealed(b"", b"", b"")}
    for phase in (*ORDERS * rounds, "adapter"):
        assert list(post.exchange(phase, orders, 1.0)) == list(orders.items())
    return post


def test_the_parts_of_a_round_lie_between_its_exchanges(monkeypatch):
    rounds = timed(monkeypatch, 3).rounds()
    assert len(rounds) == 3
    for parts in rounds:
        # Two looks at the clock in each exchange; a part ends where the next begins.
        assert {parts[p] for p in ("shares", "training", "unmask")} == {Cost(2.0, 4.0)}
        assert parts["witness"] == Cost(1.0, 2.0)
        assert parts[COORDINATOR] == Cost(2.0, 4.0)
        assert parts["adapter"] == Cost(1.0, 2.0)
        assert summed(parts, PATH) == Cost(10.0, 20.0)
        assert set(BEFORE) | set(PATH) | {"training"} == parts.keys()


def test_a_round_without_a_site_is_not_measured(monkeypatch):
    with pytest.raises(RuntimeError, match="0 of 1 sites answered confirm"):
        list(timed(monkeypatch, 1, silent="confirm").rounds())


def test_the_ratio_and_the_goal_are_of_the_medians():
    ours = [dict.fromkeys((*BEFORE, "training", *PATH), Cost(0.5, 1.0))] * 3
    theirs = [dict.fromkeys(STAGES, Cost(10.0, 4.0))] * 2
    run = deployment._Run(
        lambda: None, lambda _: None, ours=ours, theirs=theirs, parameters=100_000
    )
    paths, parts = deployment._sections(run)
    ratios = [r["wall s"] for r in paths.rows if r["system"] == "flwr / secfed"]
    path, whole = 0.5 * len(PATH), 0.5 * (len(PATH) + len(BEFORE))
    assert ratios == [pytest.approx(20 / path), pytest.approx(40 / whole)]
    assert [goal.measured for goal in run.goals] == [path, pytest.approx(40 / path)]
    assert all(goal.met for goal in run.goals)
    assert len(parts.rows) == len(ours[0]) + len(STAGES)


def test_the_studies_are_valid_and_as_large_as_they_say():
    whole = load_study_dict(tomllib.loads(deployment.STUDY.read_text("utf-8")), "study")
    assert len(whole.sites) == deployment.SITES
    hidden, classes = 384, 22  # Of the model, and of the text's chapters.
    factors = 2 * whole.adapter.layers * 2 * hidden * whole.adapter.r
    assert abs(factors + classes * (hidden + 1) - 100_000) < 1000
    many = load_study_dict(tomllib.loads(small_study(10)), "many")
    assert len(many.sites) == 10


def test_flwrs_app_uses_flwrs_own_workflow_and_mod():
    server = ast.parse((APP / "secagg_app" / "server.py").read_text())
    names = {
        a.name
        for n in ast.walk(server)
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    assert {"SecAggPlusWorkflow", "DefaultWorkflow", "FedAvg"} <= names
    assert "secaggplus_mod" in (APP / "secagg_app" / "client.py").read_text()
    assert np.array_equal(vector(1, 5), vector(1, 5))
    assert not np.array_equal(vector(1, 5), vector(2, 5))
    assert np.abs(vector(1, 100)).max() <= 1  # Flower's default clipping range is 8.


def test_the_page_is_what_its_json_says():
    path = ROOT / "docs" / "deployment-speed.json"
    if not path.exists():
        pytest.skip("the page has not been measured yet")
    measured = json.loads(path.read_text())
    page = (ROOT / "docs" / "deployment-speed.md").read_text()
    assert f"<!-- {measured['mark']} -->\n\n{to_markdown(measured)}" in page
