"""One story at the command line: approved, spent, and the next study refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from governed import (
    ANNA,
    SITES,
    answer,
    call,
    study_of,
    write_key,
    write_policy,
    write_records,
    write_study,
)

from secfed.canonical import canonical_json
from secfed.governance.outlay import budget_file, events_of
from secfed.policy import load_policy
from secfed.privacy.asked import plan_for
from secfed.privacy.budget import Budget
from secfed.study import Study

REFUSED = "does not hold it"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    write_records(tmp_path)
    write_key(tmp_path / "anna.key", 1)
    # One study of epsilon 3 fits; two compose to about 3.8.
    write_policy(tmp_path, max_epsilon=3.5, approvals=1, operators=[ANNA.fingerprint()])
    return tmp_path


def spend(folder: Path, study: Study, run: str, fingerprint: str) -> None:
    """Reserve what a run reserves, at every site."""
    policy = load_policy(folder / "site.toml")
    for name in SITES:
        path = budget_file(policy, name, None)
        path.parent.mkdir(parents=True, exist_ok=True)
        budget = Budget(path, name).open(
            policy.population,
            "person",
            policy.max_epsilon,
            policy.delta,
            fingerprint=fingerprint,
        )
        for number, event in enumerate(events_of(study, plan_for(study, 50)), 1):
            budget.reserve(study.digest(), run, number, event)


def test_the_next_study_is_refused_also_after_a_row_was_added(site: Path) -> None:
    file, key = site / "site.toml", site / "anna.key"
    first = write_study(site)
    # 1. Refused because nobody approved, and nothing else stands against it.
    told = answer("policy", "check", first, "--site", file)
    assert [r["key"] for r in told["rules"] if not r["passed"]] == ["approvals"]
    # 2. Read and approved: by typing other digits nothing is signed.
    arguments = ("approve", first, "--site", file, "--key", key)
    short = told["manifest_digest"][:8]
    assert call(*arguments, typed="12345678\n").exit_code == 1
    assert not (site / "approvals").exists()
    shown = call(*arguments, typed=f"{short}\n")
    assert shown.exit_code == 0, shown.output
    for words in ("What leaves this site", "does not leave", "0.00 -> 3.00 of 3.5"):
        assert words in shown.stdout
    assert "alarm at north: 80 %" in shown.stdout
    assert answer("policy", "check", first, "--site", file)["passed"]
    # 3. It runs.
    spend(site, study_of(), "run-1", "first file")
    # 4. The next study would pass by itself, and does not fit what is left.
    second = write_study(site, "second.toml", study={"name": "second"})
    for rows in range(2):
        told = answer("policy", "check", second, "--site", file)
        reasons = [r["reason"] for r in told["rules"] if not r["passed"]]
        assert sum(REFUSED in reason for reason in reasons) == len(SITES), rows
        refused = call("approve", second, "--site", file, "--key", key, "--yes")
        assert refused.exit_code == 4
        assert REFUSED in refused.stdout
        # 5. A row more is another file, and the same people.
        with (site / "records.csv").open("a") as records:
            records.write("one more,a,new,north\n")
    assert len(list((site / "approvals").iterdir())) == 1
    planned = call("plan", second, "--site-policy", file)
    assert planned.exit_code == 4
    assert REFUSED in planned.stdout
    # 6. What was spent, for those who must know.
    lines = call("budget", "export", site / "budgets").stdout.splitlines()
    assert len(lines) == 1 + len(SITES)
    row = answer("budget", "export", site / "budgets")["runs"][0]
    assert row["alarm"] == 80
    assert row["rounds"] == 2
    assert 2.9 < row["epsilon_composed"] == row["epsilon_alone"] <= 3.0


def test_withdrawn_stopped_and_started(site: Path) -> None:
    file, key, study = site / "site.toml", site / "anna.key", write_study(site)
    assert answer("approve", study, "--site", file, "--key", key)["signed"] is False
    assert not (site / "approvals").exists()
    done = answer("approve", study, "--site", file, "--key", key, "--yes")
    assert done["signed"]
    assert done["approved"]

    def open_rules() -> list[str]:
        rules = answer("policy", "check", study, "--site", file)["rules"]
        return [rule["key"] for rule in rules if not rule["passed"]]

    assert open_rules() == []
    assert call("policy", "stop", "--site", file, "--reason", "x").exit_code == 0
    assert open_rules() == ["stop_file"]
    assert call("policy", "start", "--site", file).exit_code == 0
    ended = call("approve", study, "--site", file, "--key", key, "--withdraw")
    assert "nothing is unlearned" in ended.stdout
    assert open_rules() == ["approvals"]


def test_a_key_that_is_not_listed_signs_nothing(site: Path) -> None:
    study = write_study(site)
    arguments = ("approve", study, "--site", site / "site.toml", "--yes")
    assert call(*arguments).exit_code == 2
    other = write_key(site / "other.key", 9)
    assert call(*arguments, "--key", other).exit_code == 4
    assert not (site / "approvals").exists()


def test_a_cell_that_a_spreadsheet_would_execute_is_quoted() -> None:
    from secfed.governance.spending import _cell  # noqa: PLC0415

    assert _cell("=1+1") == "'=1+1"
    assert canonical_json(_cell(-1.0)) == b"-1.0"
