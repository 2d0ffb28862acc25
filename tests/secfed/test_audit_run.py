"""Whole audits: where they may write, what they say, data canaries, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from causal import causal_policy, causal_study, make_model, write_texts
from faulty import toml_of
from parties import set_up
from small import EXAMPLE, small_policy, small_study, study_values
from typer.testing import CliRunner

from secfed.audit.data_canaries import DataSettings, check_data, make_canaries
from secfed.audit.dirac import DiracSettings, claim_of
from secfed.audit.findings import CAUTION, AuditReport, Findings
from secfed.audit.rehearsal import Rehearsal, copy_of
from secfed.audit.run import AuditRequest, require_own_folder, run_audit
from secfed.cli import app
from secfed.errors import RunDirectoryError
from secfed.privacy.budget import Budget
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared, prepare

pytestmark = pytest.mark.slow

RUN = CliRunner()


def test_a_deployed_site_audits_what_its_operators_approved_and_pays_itself(
    tmp_path: Path,
) -> None:
    values = study_values(1) | {"simulation": {"seed": 29}}
    (tmp_path / "study.toml").write_text(toml_of(values), "utf-8")
    text = (EXAMPLE / "site.toml").read_text("utf-8")
    text = text.replace("min_units = 50", "min_units = 10")
    (tmp_path / "site.toml").write_text(f'budget_dir = "budgets"\n{text}', "utf-8")
    parties = set_up(
        tmp_path / "parties", tmp_path / "study.toml", tmp_path / "site.toml"
    )
    site, other = parties.study.sites[:2]
    home = parties.folder / site
    command = ["audit", str(home / "roster.json"), "--parts", "A,B"]
    command += ["--site-policy", str(home / "node.toml"), "--canaries", "20"]
    done = RUN.invoke(app, [*command, "--out", str(tmp_path / "audit"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["subject"]["site"] == site
    (account,) = Budget.read(home / "budgets" / site / "budget.sqlite")
    assert [charge.run_id[:6] for charge in account.charges] == ["audit-"]
    wrong = RUN.invoke(app, [*command, "--site", other])
    assert wrong.exit_code == 2
    for file in (home / "approvals").iterdir():
        file.unlink()
    refused = RUN.invoke(app, [*command, "--out", str(tmp_path / "unsigned")])
    assert refused.exit_code == 4
    assert "approved by 0 of 1 operators" in refused.output


@pytest.mark.parametrize(
    "mark", ["private/run.json", "ledger.jsonl", "manifest.json", "statement.json"]
)
def test_an_audit_never_writes_into_a_run(mark: str, tmp_path: Path) -> None:
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).write_text("{}")
    for folder in (tmp_path, tmp_path / "arms" / "audit"):
        with pytest.raises(RunDirectoryError, match="would be released"):
            require_own_folder(folder)


def test_an_audit_needs_a_new_folder(tmp_path: Path) -> None:
    require_own_folder(tmp_path)
    require_own_folder(tmp_path / "new")
    (tmp_path / "something").write_text("")
    with pytest.raises(RunDirectoryError, match="not a new folder"):
        require_own_folder(tmp_path)


def test_data_canaries_and_shadow_runs_of_a_classifier(
    prepared: Prepared, tmp_path: Path
) -> None:
    study = small_study(rounds=1, seed=5)
    rehearsal = Rehearsal(
        copy_of(study), prepared, small_policy(), tmp_path, study.sites[0]
    )
    findings = Findings()
    settings = DataSettings(canaries=24, shadows=2)
    check_data(rehearsal, findings, settings, claim_of(rehearsal))
    relative, lira = findings.done
    assert "mislabelled" in relative.name
    assert "LiRA with 2 shadow runs" in lira.name
    for found in (relative, lira):
        assert found.verdict == "ok"
        assert found.values["auc_low"] <= found.values["auc"]
        assert [p["asked_fpr"] for p in found.values["points"]] == [0.1, 0.01, 0.001]
    # Shadow runs train on public records: only the copy itself was charged.
    assert [c.round for c in rehearsal.budget(rehearsal.site).history()] == [1]
    canaries = make_canaries(rehearsal, 24)
    stand_ins = canaries.stand_ins.labels
    assert len(canaries.records.labels) == 24
    assert len(stand_ins) == len(prepared.holdout) - 24


def test_new_tokens_are_canaries_of_language_models(tmp_path: Path) -> None:
    digest = make_model(tmp_path / "model", "gpt2")
    write_texts(tmp_path)
    study = causal_study("gpt2", digest, simulation__seed=5, training__rounds=1)
    policy = causal_policy(study)
    prepared = prepare(study, tmp_path, policy, NoProgress())
    rehearsal = Rehearsal(
        copy_of(study), prepared, policy, tmp_path / "audit", study.sites[0]
    )
    records = make_canaries(rehearsal, 12).records
    tokens, held = records.features.tokens, prepared.holdout.tokens  # type: ignore[attr-defined]
    last = tokens[records.features.offsets[1:] - 1]
    counts = np.bincount(held.numpy(), minlength=200)
    assert counts[last.numpy()].max() <= np.sort(counts)[len(last)]
    findings = Findings()
    settings = DataSettings(canaries=12, shadows=0)
    check_data(rehearsal, findings, settings, claim_of(rehearsal))
    (found,) = findings.done
    assert "new token" in found.name
    assert found.verdict == "ok"


# The command


def request_of(folder: Path, *parts: str) -> AuditRequest:
    return AuditRequest(
        study=small_study(rounds=1, seed=5),
        base_dir=EXAMPLE,
        policy=small_policy(),
        folder=folder,
        parts=parts,
        dirac=DiracSettings(canaries=200, repetitions=2),
    )


def test_a_whole_audit_writes_a_report_that_is_no_release(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model and the encoded texts are shared with other tests.
    monkeypatch.setattr("secfed.audit.run._prepare", lambda *_: prepared)
    report = run_audit(request_of(tmp_path / "a", "A", "B"), NoProgress())
    assert not report.refuted
    written = json.loads((tmp_path / "a" / "audit.json").read_bytes())
    assert written == json.loads(json.dumps(report.to_json()))
    assert written["kind"] == "audit; not a release"
    assert written["caution"] == CAUTION
    assert [f["number"] for f in written["findings"]] == list(range(1, 16))
    assert written["subject"]["charged_rounds"] == 1
    names = {path.name for path in (tmp_path / "a").rglob("*")}
    assert not {"adapter", "statement.json", "ledger.jsonl"} & names
    # One fault, and the same audit is refuted.
    whole = PrivacyPlan.noise
    monkeypatch.setattr(
        PrivacyPlan, "noise", lambda self, *more: 0.25 * whole(self, *more)
    )
    assert run_audit(request_of(tmp_path / "b", "A"), NoProgress()).refuted


def report(verdict_passes: bool) -> AuditReport:
    findings = Findings()
    findings.add("A", "a question", "an answer", passed=verdict_passes)
    findings.add("B", "another", "a reason", passed=None)
    subject = {
        "study": "s",
        "method": "ffa-lora",
        "site": "north",
        "rounds": 1,
        "claimed_epsilon": 8.0,
        "delta": 1e-5,
        "unit": "record",
        "charged_rounds": 0,
    }
    return AuditReport(subject, tuple(findings.done))


@pytest.mark.parametrize(("passes", "code"), [(True, 0), (False, 3)])
def test_the_command_tells_its_verdict_by_exit_code(
    passes: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secfed.audit.run.run_audit", lambda *_: report(passes))
    command = ["audit", str(EXAMPLE / "study.toml"), "--out", str(tmp_path / "o")]
    result = RUN.invoke(app, command)
    assert result.exit_code == code, result.output
    assert "  1. " in result.output
    assert "not run" in result.output
    assert CAUTION in result.output
    as_json = RUN.invoke(app, [*command, "--json"])
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout)["refuted"] is not passes


@pytest.mark.parametrize(
    "more", [["--parts", "A,D"], ["--own"], ["--level", "2"], ["--parts", "A,A"]]
)
def test_wrong_options_are_usage_errors(more: list[str]) -> None:
    result = RUN.invoke(app, ["audit", str(EXAMPLE / "study.toml"), *more])
    assert result.exit_code == 2


def test_an_unknown_site_is_named(tmp_path: Path) -> None:
    request = replace(request_of(tmp_path / "x", "A"), site="nowhere")
    with pytest.raises(Exception, match="unknown site 'nowhere'"):
        run_audit(request, NoProgress())
