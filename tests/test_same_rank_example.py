"""The shipped same-rank studies are valid, and the sweep reads them and chooses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from secfed.policy import load_policy
from secfed.report.measures import PERPLEXITY
from secfed.study import load_study
from secfed.study.grid import grid_cells

FOLDER = Path(__file__).parents[1] / "examples" / "lora_aggregation" / "same_rank"
STUDIES = ("study.toml", "study_full.toml", "study_languages.toml")


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sweep", FOLDER.parent / "sweep.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Its dataclasses look for it there.
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_the_published_setting(name: str) -> None:
    study, policy = load_study(FOLDER / name), load_policy(FOLDER / "site.toml")
    assert study.is_causal_lm
    assert len(study.sites) == 12
    small = name == "study.toml"
    assert study.training.rounds == (4 if small else 20)
    assert study.training.steps_per_round == 25
    assert study.adapter.lora_alpha == 2 * study.adapter.r == 16
    assert study.model.sha256 in policy.allowed_model_sha256
    assert study.compare is not None
    assert set(study.compare.methods) <= set(policy.allowed_methods)
    assert {"inf"} <= set(study.compare.epsilons or ())
    assert set(study.training.plain_learning_rate or {}) == set(study.compare.methods)
    alphas = {cell.alpha for cell in grid_cells(study)}
    assert alphas == ({0, 1, 10} if small else {0, 0.1, 0.3, 1, 3, 10})


def test_a_rate_is_given_to_every_method_with_privacy_and_without(
    sweep: ModuleType,
) -> None:
    study = load_study(FOLDER / "study_full.toml")
    own = sweep.at_rate(study, 3e-4, 1e-2, [7])
    assert own.training.learning_rate == dict.fromkeys(study.compare.methods, 3e-4)
    plain = dict.fromkeys(study.compare.methods, 1e-2)
    assert own.training.plain_learning_rate == plain
    assert own.compare.seeds == (7,)
    some = sweep.at_rate(study, 3e-4, 1e-2, [7], ["fedsa-lora"])
    assert some.compare.methods == ("fedsa-lora",)


def test_the_best_rate_has_the_smallest_perplexity_of_its_kind(
    sweep: ModuleType,
) -> None:
    found = []
    for rate, plain, private in ((1e-3, 20.0, 30.0), (1e-2, 18.0, 40.0)):
        cells = [{"name": "a", "epsilon": None}, {"name": "b", "epsilon": 8.0}]
        cells.append({"name": "c", "epsilon": None})
        scores = [
            {"cell": "a", "method": "fedavg", "perplexity": plain},
            {"cell": "c", "method": "fedavg", "perplexity": plain * 4},
            {"cell": "b", "method": "fedavg", "perplexity": private},
        ]
        found += sweep.results(
            {"cells": cells, "scores": scores}, rate, rate, PERPLEXITY
        )
    first, second = sweep.best(found, PERPLEXITY)
    assert (first.private, first.rate) == (False, 1e-2)
    assert first.score == pytest.approx(36.0)  # the geometric mean
    assert (second.private, second.rate, second.score) == (
        True,
        1e-3,
        pytest.approx(30.0),
    )
