"""The site's policy: floors that no file lowers, and refusals that list all rules."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from secfed.errors import PolicyError, StudyError
from secfed.policy import SitePolicy, check, load_policy
from secfed.study import load_study, load_study_dict

EXAMPLE = Path(__file__).parents[2] / "examples" / "icd10_hospitals"


@pytest.fixture(scope="module")
def study():
    return load_study(EXAMPLE / "study.toml")


@pytest.fixture
def site_file(tmp_path):
    """Write the example's policy with one line changed or added."""

    def write(**changes: str) -> Path:
        lines = (EXAMPLE / "site.toml").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.split(" = ")[0] not in changes]
        kept += [f"{key} = {value}" for key, value in changes.items() if value]
        path = tmp_path / "site.toml"
        path.write_text("\n".join(kept), encoding="utf-8")
        return path

    return write


def changed(study, **tables):
    values = study.canonical()
    for table, entries in tables.items():
        values[table] = {**values[table], **entries}
    return load_study_dict(values, "x")


def test_example_policy_allows_the_example_study(study):
    policy = load_policy(EXAMPLE / "site.toml")
    for method in ("ffa-lora", "fedavg", "head-only"):
        check(policy, study.with_method(method), 1000)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_units", "9"),
        ("min_units", "0"),
        ("min_sites", "2"),
        ("require_mode", '"semi-honest"'),
        ("require_mode", '"none"'),
        ("max_epsilon", "0"),
        ("max_epsilon", "inf"),
        ("max_epsilon", "nan"),
        ("delta", "1.0"),
        ("allowed_methods", "[]"),
        ("allowed_methods", '["fedavgg"]'),
        ("allowed_methods", '["flora"]'),
        ("allowed_model_sha256", '["abc"]'),
        ("population", '"../budget"'),
        ("format", "2"),
    ],
)
def test_floors_and_values_hold(site_file, key, value):
    with pytest.raises(StudyError) as caught:
        load_policy(site_file(**{key: value}))
    assert caught.value.key.startswith(key)


@pytest.mark.parametrize(
    "key", ["max_epsilon", "delta", "allowed_methods", "population", "format"]
)
def test_nothing_is_allowed_by_leaving_it_out(site_file, key):
    with pytest.raises(StudyError, match="required") as caught:
        load_policy(site_file(**{key: ""}))
    assert caught.value.key == key


def test_unknown_key_names_the_nearest(site_file):
    with pytest.raises(StudyError, match="did you mean 'max_epsilon'"):
        load_policy(site_file(max_epsilom="3.0"))


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(StudyError, match="cannot be read"):
        load_policy(tmp_path / "site.toml")
    (tmp_path / "site.toml").write_bytes(b"a = 1\nb = '\xe9'")
    with pytest.raises(StudyError, match="line 2 is not UTF-8"):
        load_policy(tmp_path / "site.toml")


@pytest.mark.parametrize(
    ("tables", "num_units", "rule"),
    [
        ({"privacy": {"epsilon": 30.1}}, 1000, "max_epsilon"),
        ({"privacy": {"delta": 2e-5}}, 1000, "privacy.delta"),
        ({}, 49, "min_units"),
        ({"secagg": {"mode": "semi-honest"}}, 1000, "malicious"),
        ({"model": {"sha256": "0" * 64}}, 1000, "allowed_model_sha256"),
    ],
)
def test_each_rule_refuses_alone(study, tables, num_units, rule):
    policy = load_policy(EXAMPLE / "site.toml")
    with pytest.raises(PolicyError, match=rule) as caught:
        check(policy, changed(study, **tables), num_units)
    assert str(caught.value).count("\n  - ") == 1
    assert caught.value.exit_code == 4


def test_limits_themselves_are_allowed(study):
    policy = load_policy(EXAMPLE / "site.toml")
    check(policy, changed(study, privacy={"epsilon": 30.0, "delta": 1e-5}), 50)


def test_min_sites_and_methods(study, site_file):
    with pytest.raises(PolicyError, match="min_sites"):
        check(load_policy(site_file(min_sites="5")), study, 1000)
    policy = load_policy(site_file(allowed_methods='["fedavg"]'))
    with pytest.raises(PolicyError, match="'ffa-lora' is not in allowed_methods"):
        check(policy, study, 1000)
    check(policy, study.with_method("fedavg"), 1000)


def test_all_refusals_are_listed_and_the_size_is_not_told(study):
    policy = load_policy(EXAMPLE / "site.toml")
    asked = changed(
        study,
        privacy={"epsilon": 99.0, "delta": 0.1},
        model={"sha256": "0" * 64},
        secagg={"mode": "semi-honest"},
    )
    with pytest.raises(PolicyError) as caught:
        check(policy, asked, 37)
    assert str(caught.value).count("\n  - ") == 5
    assert "37" not in str(caught.value)


def test_floors_hold_for_a_policy_that_skipped_validation(study):
    values = tomllib.loads((EXAMPLE / "site.toml").read_text(encoding="utf-8"))
    values |= {
        "min_units": 0,
        "min_sites": 0,
        "allowed_methods": tuple(values["allowed_methods"]),
        "allowed_model_sha256": tuple(values["allowed_model_sha256"]),
    }
    lax = SitePolicy.model_construct(**values)
    with pytest.raises(PolicyError, match="fewer than 10"):
        check(lax, study, 9)
    crowded = study.model_copy(
        update={"secagg": study.secagg.model_copy(update={"colluders": 3})}
    )
    with pytest.raises(PolicyError, match="fewer than 5"):
        check(lax, crowded, 1000)


def test_real_records_need_a_budget_that_outlives_the_run(study, site_file):
    values = study.canonical()
    values["data"] = {
        **values["data"],
        "source": "records.csv",
        "text_column": "text",
        "label_column": "label",
        "labels": ["a", "b"],
        "partition": {"kind": "dirichlet", "alpha": 1.0, "sites": list(study.sites)},
    }
    values["privacy"]["nominal_units"] = dict.fromkeys(study.sites, 1000)
    real = load_study_dict(values, "x")
    with pytest.raises(PolicyError, match="budget_dir"):
        check(load_policy(site_file()), real, 1000)
    durable = load_policy(site_file(budget_dir='"budgets"'))
    check(durable, real, 1000)


def test_budget_dir_stands_beside_the_policy_file(site_file):
    path = site_file(budget_dir='"budgets"')
    assert load_policy(path).budget_dir == str(path.resolve().parent / "budgets")
