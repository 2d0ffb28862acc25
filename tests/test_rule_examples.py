"""The shipped rule studies are valid, and their pages show what their results say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from secfed.policy import load_policy
from secfed.study import load_study
from secfed.study.grid import grid_cells

FOLDER = Path(__file__).parents[1] / "examples" / "lora_aggregation"
STUDIES = ("which_factor", "unequal_ranks")


@pytest.fixture(scope="module")
def grid_result() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(
            "grid_result", FOLDER / "grid_result.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.mark.parametrize("name", STUDIES)
def test_the_sites_allow_the_study_and_each_rule_has_its_rates(name: str) -> None:
    study = load_study(FOLDER / name / "study.toml")
    policy = load_policy(FOLDER / name / "site.toml")
    assert study.compare is not None
    methods = set(study.compare.methods)
    assert methods | {"head-only"} == set(policy.allowed_methods)
    assert methods <= set(study.training.learning_rate)
    assert methods == set(study.training.plain_learning_rate or {})
    assert {cell.epsilon for cell in grid_cells(study)} == {8.0, None}
    assert len(study.compare.seeds) >= 3


@pytest.mark.parametrize("name", [*STUDIES, "same_rank"])
def test_the_page_shows_the_result(name: str, grid_result: ModuleType) -> None:
    text = (FOLDER / name / "README.md").read_text()
    value = json.loads((FOLDER / name / "result.json").read_text())
    study = load_study(FOLDER / name / "study.toml")
    assert value["study_digest"] == study.digest()
    assert grid_result.with_result(text, value) == text
    assert {cell["name"] for cell in value["cells"]} == {
        cell.name for cell in grid_cells(study)
    }
    for command in value["commands"]:
        assert f"examples/lora_aggregation/{name}" in command


def test_a_table_has_every_cell_and_method(grid_result: ModuleType) -> None:
    value = {
        "task": None,
        "seconds": 90.0,
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "a processor"},
        "commands": ["secfed compare x"],
        "cells": [
            {"name": "a", "epsilon": 8.0, "alpha": 0.3},
            {"name": "b", "epsilon": None, "alpha": 0.3},
        ],
        "scores": [
            {"cell": "a", "method": "m", "accuracy": 0.5, "interval_95": [0.4, 0.6]},
            {"cell": "b", "method": "m", "accuracy": 0.7, "interval_95": None},
            {"cell": "b", "method": "n", "accuracy": 0.8, "interval_95": None},
        ],
        "differences": [
            {
                "cell": "b",
                "first": "m",
                "second": "n",
                "mean": -0.1,
                "interval_95": [-0.2, 0.0],
            }
        ],
    }
    text = grid_result.tables(value)
    assert "| epsilon 8, alpha 0.3 | 50.0 % ± 10.0 | - |" in text
    assert "| without privacy, alpha 0.3 | 70.0 % | 80.0 % |" in text
    assert "m against n | -10.0 points | [-20.0, +0.0] |" in text
