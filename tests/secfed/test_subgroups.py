"""Scores of the public hold-out's subgroups: read, counted, stated and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evidence
import numpy as np
import pytest
import torch
from encoders import make_encoder, pair_policy, pair_study, write_pairs
from evidence import write_run
from small import study_values

from secfed.data import load_sites
from secfed.data.loading import require_subgroups
from secfed.data.own import load_holdout, load_own
from secfed.errors import DataError, StudyError
from secfed.evaluation import predict, score_logits
from secfed.report.measures import BESIDE, SHARES
from secfed.report.reading import read_run
from secfed.report.tables import category_rows
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.scores import scores_of
from secfed.runtime.setup import prepare
from secfed.statement import StatementContext, build_statement
from secfed.statement.utility import SCORES, utility_section
from secfed.study import Study, load_study_dict
from secfed.verify import verify_run

WORDS = ("left", "middle", "right")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs at the sites; a test set of its own, which has a column more."""
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("subgroups")
    make_encoder(made / "model")
    write_pairs(made)
    heading, *lines = (made / "pairs.txt").read_text("utf-8").splitlines()
    tested = [f"{line} {WORDS[n % 3]}\t{WORDS[n % 3]}" for n, line in enumerate(lines)]
    for name, rows in (("test.txt", tested[:60]), ("all.txt", tested)):
        text = "\n".join([f"{heading}\tAge", *rows]) + "\n"
        (made / name).write_text(text, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    values = pair_study("bert", make_encoder(folder / "model")).canonical()
    values["data"]["holdout"] = {"source": "test.txt", "subgroup_column": "Age"}
    return load_study_dict(values, "subgroups")


def test_the_test_set_has_the_column_and_no_site_needs_it(
    study: Study, folder: Path
) -> None:
    data = load_sites(study, folder)
    assert data.holdout_subgroups == WORDS * 20
    one = study.sites[0]
    # A site's own file and the coordinator's have the same name in the study.
    assert load_own(study, folder, one).holdout_subgroups == ()
    values = study.canonical()
    values["data"]["source"] = "test.txt"
    held = load_holdout(load_study_dict(values, "coordinator"), folder)
    assert held.holdout_subgroups == WORDS * 20


def test_subgroups_of_a_share_of_the_records_follow_them(
    study: Study, folder: Path
) -> None:
    values = study.canonical()
    values["data"] |= {
        "source": "all.txt",
        "holdout": {"fraction": 0.4, "subgroup_column": "Age", "max_records": 60},
    }
    data = load_sites(load_study_dict(values, "split"), folder)
    found = zip(data.holdout.pairs, data.holdout_subgroups, strict=True)
    assert all(pair.endswith(name) for pair, name in found)


def test_a_subgroup_that_is_too_small_and_a_column_of_names_are_refused() -> None:
    assert require_subgroups(()) == ()
    assert require_subgroups(("a",) * 10) == ("a",) * 10
    with pytest.raises(DataError, match="smallest of 2 subgroups has 9") as caught:
        require_subgroups(("somebody",) * 10 + ("else",) * 9)
    assert "else" not in str(caught.value)
    with pytest.raises(DataError, match="51 subgroups, at most 50"):
        require_subgroups(tuple(str(number) for number in range(51)))


def test_where_there_are_none_they_are_refused() -> None:
    values = study_values()
    values["data"]["holdout"]["subgroup_column"] = "age"
    with pytest.raises(StudyError, match="built-in text has no such column"):
        load_study_dict(values, "builtin")


def test_each_subgroup_is_scored_by_itself(study: Study, folder: Path) -> None:
    prepared = prepare(study, folder, None, NoProgress())
    line = scores_of(prepared, prepared.start)
    logits = predict(prepared.model, prepared.start, prepared.holdout)
    for number, name in enumerate(WORDS):
        own = np.arange(number, len(logits), 3)
        expected = score_logits(logits[own], prepared.holdout_labels[own], 1).line()
        assert line["by_category"][name] == expected
    mean = np.mean([line["by_category"][name]["accuracy"] for name in WORDS])
    assert mean == pytest.approx(line["accuracy"])


def test_every_score_of_a_report_is_one_of_a_statement() -> None:
    assert set(SCORES) == {*SHARES, "matthews", "perplexity"}
    assert set(BESIDE) <= set(SCORES)


def test_what_a_statement_says_of_utility() -> None:
    assert utility_section(None) == "UNKNOWN"
    assert utility_section({"round": 3}) == "UNKNOWN"
    plain = utility_section({"accuracy": 0.5, "round": 3, "f1": None})
    assert plain == {
        "measured_on": "the public hold-out",
        "scores": {"accuracy": 0.5},
        "by_subgroup": "UNKNOWN",
    }
    parts = {"old": {"accuracy": 0.25}, "young": {"accuracy": 0.75}}
    whole: Any = utility_section({"accuracy": 0.5, "by_category": parts})
    assert whole["by_subgroup"] == parts


def test_a_statement_that_flatters_is_caught(tmp_path: Path) -> None:
    def flatter(index: int, body: dict[str, Any]) -> dict[str, Any]:
        scores = dict.fromkeys(body["utility"]["scores"], 0.99)
        return body | {"utility": body["utility"] | {"scores": scores}}

    write_run(tmp_path / "honest")
    assert verify_run(tmp_path / "honest").passed
    write_run(tmp_path / "run", statement=flatter)
    (failed,) = verify_run(tmp_path / "run").failures()
    assert "does not follow from the metrics" in str(failed)


@pytest.mark.slow
def test_a_run_tells_and_states_every_subgroup(
    study: Study, folder: Path, tmp_path: Path
) -> None:
    values = study.canonical() | {"simulation": {"seed": 5}}
    own = load_study_dict(values, "told")
    run = tmp_path / "run"
    run_study(own, folder, run, pair_policy(own), NoProgress())
    assert verify_run(run).passed, verify_run(run).failures()
    said = json.loads((run / "statement.json").read_bytes())["utility"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert said["by_subgroup"] == last["by_category"]
    assert set(said["by_subgroup"]) == set(WORDS)
    assert category_rows(read_run(run).comparison)[0] == ("arm", *WORDS)


@pytest.mark.parametrize(
    "parts", ["old", ["old"], {"old": 3}, {"old": {"accuracy": "x"}}]
)
def test_metrics_that_are_no_scores_fail_the_check_and_nothing_else(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = evidence.metrics_lines()
    lines[-1]["by_category"] = parts
    monkeypatch.setattr(evidence, "metrics_lines", lambda *_args: lines)
    monkeypatch.setattr(evidence, "build_statement", _without_utility)
    write_run(tmp_path / "run")
    assert "statement" in {
        check.name for check in verify_run(tmp_path / "run").failures()
    }


def _without_utility(
    study: Any, plan: Any, rounds: Any, context: Any, *more: Any
) -> Any:
    del context, more
    return build_statement(study, plan, rounds, StatementContext())
