"""Whole runs with a mentor: what is sent, what stays, and what a crash changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deployed import Cast
from mentored import make_folder, mentored, mentored_values, policy_for, prepared_for
from safetensors.numpy import load_file
from small import make_sites

from secfed.adapters import MENTOR, parted
from secfed.audit.run import AuditRequest, run_audit
from secfed.canonical import parse_json
from secfed.client import Contribution
from secfed.data import load_sites
from secfed.errors import PolicyError, StudyError
from secfed.policy import check
from secfed.runtime.arms import Arm
from secfed.runtime.kept import KeptTensors
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared, prepare_data
from secfed.runtime.site_training import contribute
from secfed.strategies import strategy_of
from secfed.strategies.base import ServerState
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_folder(tmp_path_factory.mktemp("mutual"))


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    return prepared_for(mentored(folder), folder)


class Stop(NoProgress):
    """Presses Ctrl-C as a round begins, before any site is asked."""

    def __init__(self, at_round: int) -> None:
        self._at = at_round

    def round(self, arm: str, number: int, total: int) -> None:
        if number == self._at:
            raise KeyboardInterrupt


def run(study: Study, folder: Path, out: Path, stop: int = 0) -> Path:
    run_study(study, folder, out, policy_for(study), Stop(stop))
    return out


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return run(mentored(folder), folder, out)


def last_adapter(out: Path) -> dict[str, Any]:
    return load_file(out / "adapters" / "round-002.safetensors")


def kept(out: Path, site: str, number: int) -> dict[str, Any]:
    place = out / "private" / "sites" / site / "kept" / "ffa-lora"
    return load_file(place / f"round-{number:03d}.safetensors")


def same(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


# What is sent


def played(
    prepared: Prepared, study: Study, folder: Path, number: int = 1
) -> Contribution:
    """One round at one site."""
    strategy = strategy_of(study)
    policy = policy_for(study)
    site = make_sites(prepared, study, policy)["north"]
    before = strategy.init(prepared.start, 0)
    state = ServerState(before.adapter, number - 1, before.memory)
    arm = Arm(study.training.method, study)
    return contribute(arm, prepared, strategy, site, state, number, KeptTensors(folder))


@pytest.mark.parametrize("method", ["ffa-lora", "fedsa-lora", "la-lora"])
def test_a_site_sends_what_the_rule_sends_and_nothing_of_its_mentor(
    prepared: Prepared, folder: Path, tmp_path: Path, method: str
) -> None:
    study = mentored(folder, method)
    found = played(prepared, study, tmp_path)
    strategy = strategy_of(study)
    shapes = strategy.shapes(prepared.start, 1)
    assert {n: v.shape for n, v in found.payload.items()} == dict(shapes)
    told = [*found.payload, *found.update.change, *(found.update.noiseless or {})]
    assert not any(MENTOR in name for name in told)
    own, mentors = parted(KeptTensors(tmp_path).before(2))
    assert prepared.mentor is not None
    assert mentors.keys() == prepared.mentor.start.keys()
    assert not any(
        np.array_equal(mentors[n], prepared.mentor.start[n]) for n in mentors
    )
    assert bool(own) == strategy.personal
    # The next round starts from what stayed: another mentor, another update.
    after = played(prepared, study, tmp_path, 2)
    other = KeptTensors(tmp_path / "other")
    other.write(1, {**own, **{name: -value for name, value in mentors.items()}})
    turned = played(prepared, study, tmp_path / "other", 2)
    assert not same(after.payload, turned.payload)


@pytest.mark.slow
def test_only_the_student_travels_and_the_statement_says_so(
    whole: Path, folder: Path, tmp_path: Path
) -> None:
    values = mentored_values(folder)
    values.pop("distillation")
    plain = run(load_study_dict(values, "plain"), folder, tmp_path / "plain")
    one, two = last_adapter(whole), last_adapter(plain)
    assert [(n, v.shape) for n, v in one.items()] == [
        (n, v.shape) for n, v in two.items()
    ]
    assert not same(one, two)
    assert sent(whole) == sent(plain)
    # Nothing outside the sites' private folders names a mentor's tensor.
    public = [p for p in whole.rglob("*") if p.is_file() and "sites" not in p.parts]
    assert len(public) > 8
    assert not [p for p in public if MENTOR.encode() in p.read_bytes()]
    north, east = kept(whole, "north", 2), kept(whole, "east", 2)
    assert all(name.endswith(MENTOR) for name in north)
    assert not any(np.array_equal(north[name], east[name]) for name in north)
    said = parse_json((whole / "statement.json").read_bytes())
    assert "stayed there" in said["teacher"]["kind"]
    assert "stayed there" in (whole / "report.html").read_text("utf-8")
    before = parse_json((plain / "statement.json").read_bytes())
    assert said["sites"] == before["sites"]
    report = verify_run(whole)
    assert report.passed, report
    assert any("mentor that stayed" in str(check) for check in report.checks)


def sent(out: Path) -> list[int]:
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["bytes_up"] for line in lines]


# What stays


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_to_the_same_bits(
    whole: Path, folder: Path, tmp_path: Path
) -> None:
    study = mentored(folder)
    with pytest.raises(KeyboardInterrupt):
        run(study, folder, tmp_path / "cut", stop=2)
    first = kept(tmp_path / "cut", "north", 1)
    run(study, folder, tmp_path / "cut")
    assert same(last_adapter(tmp_path / "cut"), last_adapter(whole))
    for site in study.sites:
        assert same(kept(tmp_path / "cut", site, 2), kept(whole, site, 2))
    assert not same(first, kept(whole, "north", 2))


@pytest.mark.slow
def test_sites_of_a_deployment_that_start_anew_have_their_mentors_still(
    whole: Path, prepared: Prepared, folder: Path, tmp_path: Path
) -> None:
    study = mentored(folder)
    cast = Cast(prepared, study, policy_for(study), tmp_path / "sites")
    cast.restarts = {(2, "adapter"): set(study.sites)}
    cast.serve(tmp_path / "run")
    assert same(last_adapter(tmp_path / "run"), last_adapter(whole))
    files = list((tmp_path / "sites" / "north").rglob("round-002.safetensors"))
    assert any(same(load_file(path), kept(whole, "north", 2)) for path in files)


# What is refused


def test_a_site_has_to_allow_the_mentors_base(folder: Path) -> None:
    study = mentored(folder)
    policy = policy_for(study).model_copy(update={"allowed_teacher_sha256": ()})
    with pytest.raises(PolicyError, match="is not in allowed_teacher_sha256"):
        check(policy, study, 30)


def test_a_coordinator_opens_no_mentor(prepared: Prepared, folder: Path) -> None:
    data = replace(load_sites(mentored(folder), folder), sites={})
    none = prepare_data(mentored(folder), folder, data, None, NoProgress())
    assert none.mentor is None
    assert prepared.mentor is not None


def test_an_audit_of_a_pair_is_refused_and_says_what_to_do(
    folder: Path, tmp_path: Path
) -> None:
    study = mentored(folder)
    request = AuditRequest(study, folder, policy_for(study), tmp_path / "audit")
    with pytest.raises(StudyError, match="the same study without mutual"):
        run_audit(request, NoProgress())
