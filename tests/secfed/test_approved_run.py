"""A real run that asks its operators, and the next one on the same people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from encoders import make_encoder, pair_policy, pair_study, write_pairs
from governed import ANNA

from secfed.audit.dirac import DiracSettings
from secfed.audit.run import AuditRequest, run_audit
from secfed.errors import BudgetExceededError, PolicyError
from secfed.governance import StudyManifest
from secfed.governance.approvals import approve, read_approvals, withdraw
from secfed.policy import SitePolicy
from secfed.privacy.budget import Account, Budget
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.study import Study

pytestmark = pytest.mark.slow


def asking(study: Study, folder: Path) -> SitePolicy:
    places = {"approvals_dir": folder / "approvals", "budget_dir": folder / "budgets"}
    changes = {
        "approvals": 1,
        "operators": (ANNA.fingerprint(),),
        "max_epsilon": 10.0,
        "population": "people",
    }
    update = changes | {key: str(path) for key, path in places.items()}
    return pair_policy(study).model_copy(update=update)


def sign(study: Study, folder: Path) -> None:
    now = datetime.now(UTC)
    approve(
        folder / "approvals",
        ANNA,
        StudyManifest(study),
        site="",
        population="people",
        exceptions=(),
        shown="",
        approved_at=now,
        expires_at=now + timedelta(days=1),
        nonce=bytes(16),
    )


def account(folder: Path, site: str = "north") -> Account:
    return Budget.read(folder / "budgets" / site / "budget.sqlite")[0]


def test_an_approved_run_and_the_next_study_on_the_same_people(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    digest = make_encoder(tmp_path / "model")
    study = pair_study("bert", digest, training__rounds=1)
    policy = asking(study, tmp_path)

    def run(asked: Study, name: str) -> None:
        run_study(asked, tmp_path, tmp_path / name, policy, NoProgress())

    # 1. Nobody approved: refused before there is a run directory or a budget.
    with pytest.raises(PolicyError, match="approved by 0 of 1"):
        run(study, "first")
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "budgets").exists()
    # 2. Approved, it runs.
    sign(study, tmp_path)
    run(study, "first")
    assert (tmp_path / "first" / "statement.json").is_file()
    assert len(account(tmp_path).charges) == 1
    # 3. The next study is allowed by itself (8 of 10) and not composed; nor after a
    #    row was added, which is a new version of the same population.
    second = pair_study(
        "bert", digest, training__rounds=1, study={"name": "second", "title": "again"}
    )
    sign(second, tmp_path)
    for name in ("second", "third"):
        with pytest.raises(BudgetExceededError, match="do not fit the budget"):
            run(second, name)
        with (tmp_path / "pairs.txt").open("a") as file:
            file.write("1\tbar bel\tbar dop\n")
    assert len(account(tmp_path).charges) == 1
    # The rows went to some site, whose file has another fingerprint now.
    held = [account(tmp_path, site).population.versions for site in study.sites]
    assert max(map(len, held)) > 1
    # 4. What was withdrawn is refused, with the reason.
    signed = read_approvals(tmp_path / "approvals")[0]
    now = datetime.now(UTC)
    withdraw(tmp_path / "approvals", ANNA, signed, reason="", withdrawn_at=now)
    with pytest.raises(PolicyError, match="was withdrawn"):
        run(study, "fourth")


def test_an_audit_asks_the_operators_of_the_study(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    study = pair_study("bert", make_encoder(tmp_path / "model"), training__rounds=1)
    request = AuditRequest(
        study=study,
        base_dir=tmp_path,
        policy=asking(study, tmp_path),
        folder=tmp_path / "audit",
        parts=("B",),
        dirac=DiracSettings(canaries=40, repetitions=0),
    )
    with pytest.raises(PolicyError, match="approved by 0 of 1"):
        run_audit(request, NoProgress())
    assert not (tmp_path / "budgets").exists()
    sign(study, tmp_path)
    report = run_audit(request, NoProgress())
    assert report.subject["study_digest"] == study.digest()
    assert str(tmp_path) not in (tmp_path / "audit" / "audit.json").read_text("utf-8")
    assert len(account(tmp_path).charges) == 1
