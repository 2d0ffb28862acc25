"""The shipped task studies are valid, agree with their policies, and find their data."""

from __future__ import annotations

from pathlib import Path

import pytest

from secfed.data import load_sites
from secfed.model_files import WEIGHTS
from secfed.policy import load_policy
from secfed.report.measures import measure_of
from secfed.study import Study, load_study

EXAMPLES = Path(__file__).parents[1] / "examples"
SCORES = {"mrpc_as_text": "accuracy", "cola": "matthews", "sst2": "accuracy"}
FILES = ("study.toml", "study_full.toml")


def load(name: str, file: str) -> Study:
    return load_study(EXAMPLES / name / file)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", SCORES)
def test_every_study_fits_its_policy_and_has_its_baselines(
    name: str, file: str
) -> None:
    study, policy = load(name, file), load_policy(EXAMPLES / name / "site.toml")
    assert study.score == SCORES[name]
    assert study.model.sha256 in policy.allowed_model_sha256
    assert study.privacy.delta <= policy.delta
    assert study.compare is not None
    assert set(study.compare.methods) <= set(policy.allowed_methods)
    assert "non-private" in study.compare.baselines
    assert ("head-only" in study.compare.baselines) != study.is_prompted
    assert len(study.compare.seeds) == (3 if file == "study_full.toml" else 1)


@pytest.mark.parametrize("name", SCORES)
def test_the_full_study_changes_sizes_only(name: str) -> None:
    small, full = (load(name, file).canonical() for file in FILES)
    assert small["task"] == full["task"] if "task" in small else "task" not in full
    assert small["model"]["sha256"] == full["model"]["sha256"]
    for key in ("source", "labels", "label_column", "partition"):
        assert small["data"][key] == full["data"][key]


def test_mrpc_says_its_label_and_counts_equivalence() -> None:
    study = load("mrpc_as_text", "study.toml")
    assert study.task is not None
    assert study.task.answers == {"1": " equivalent", "0": " not equivalent"}
    assert study.task.template is not None
    assert study.task.template.columns == ("#1 String", "#2 String")
    measure = measure_of(study.canonical()["task"])
    assert measure.headings == ("accuracy", "F1")
    full = load("mrpc_as_text", "study_full.toml")
    assert (full.adapter.r, full.adapter.lora_alpha) == (32, 32.0)
    assert (full.training.rounds, len(full.sites)) == (6, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORES)
def test_sites_get_what_the_study_declares(name: str) -> None:
    study, folder = load(name, "study.toml"), (EXAMPLES / name).resolve()
    if not (folder / study.data.source).is_file():
        pytest.skip(f"the texts are not there: {study.data.source}")
    path = study.model.path
    if path is not None and not (folder / path / WEIGHTS).is_file():
        pytest.skip(f"the model was not imported: {path}")
    data = load_sites(study, folder)
    assert {site: own.num_units for site, own in data.sites.items()} == dict(
        study.privacy.nominal_units or {}
    )
    assert len(data.holdout.texts) >= 100
