"""Answering prompts as a study: its file, its records, and a whole private run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from causal import SITES, causal_policy
from prompted import (
    ANSWERS,
    LENGTH,
    make_model,
    prompted_study,
    prompted_values,
    write_pairs,
)

from secfed.data import load_sites
from secfed.errors import DataError, ModelError, StudyError
from secfed.report.conclusion import conclude
from secfed.report.html import render_report
from secfed.report.reading import read_run
from secfed.report.results import Comparison
from secfed.report.tables import beside_rows, comparison_rows
from secfed.runtime.compare import run_comparison
from secfed.runtime.progress import NoProgress
from secfed.study import Study, load_study_dict
from secfed.study.reading import ContradictionError
from secfed.study.task import parse_prompt
from secfed.tokens import load_tokenizer
from secfed.verify import verify_run

DIGEST = "0" * 64


# The file


def test_a_prompted_study_reads_back() -> None:
    study = prompted_study("gpt2", DIGEST)
    assert study.is_causal_lm
    assert study.is_prompted
    assert study.score == "accuracy"
    assert load_study_dict(study.canonical(), "again").digest() == study.digest()
    explicit = prompted_study("gpt2", DIGEST, task__score="accuracy")
    assert explicit.digest() == study.digest()
    other = prompted_study("gpt2", DIGEST, task__score="macro-f1")
    assert other.digest() != study.digest()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("task__prompt", None, "task.prompt: required"),
        ("task__prompt", "no place", "name a column"),
        ("task__prompt", "{first} {", "task.prompt"),
        ("task__prompt", "{}", "name of a column and nothing else"),
        ("task__prompt", "{first!r}", "name of a column and nothing else"),
        ("task__prompt", "{first:>9}", "name of a column and nothing else"),
        ("task__prompt", "{first} in {language}", "'language' is what is asked for"),
        ("task__answers", None, "task.answers: required"),
        ("task__answers", {"tidal": " sea"}, "answers.alpine: this label has no"),
        ("task__answers", ANSWERS | {"alpin": "x"}, "did you mean 'alpine'?"),
        ("task__answers", ANSWERS | {"tidal": "  "}, "an answer has no text"),
        ("task__answers", ANSWERS | {"tidal": "Rock "}, "reads like the answer of"),
        ("task__score", "f1", "task.positive: required with score = 'f1'"),
        ("task__score", "rouge", "task.score"),
        ("task__positive", "tidel", "did you mean 'tidal'?"),
        ("task__temperature", 0.7, "task.generation_seed"),
        ("task__generation_seed", 3, "task.generation_seed"),
        ("task__kind", "causal-lm", "belongs to kind = 'prompted-lm' only"),
        ("data__text_column", "first", "those that task.prompt names"),
        ("data__text_pair_column", "first", "belongs to classification"),
        ("data__labels", None, "data.labels"),
        ("training__class_weights", {"tidal": 2.0}, "no classification head"),
        ("training__method", "head-only", "no classification head"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        prompted_study("gpt2", DIGEST, **{key: value})
    assert words in str(caught.value)


def test_scores_are_refused_where_there_are_no_classes() -> None:
    values = prompted_values("gpt2", DIGEST)
    values["task"] = {"kind": "causal-lm", "score": "f1", "positive": "tidal"}
    values["data"]["text_column"] = "first"
    with pytest.raises(StudyError, match="perplexity decides"):
        load_study_dict(values, "study")


def test_a_prompt_copies_values_and_looks_into_none() -> None:
    prompt = parse_prompt("{{a}} {x y} - {x y}{z.__class__}")
    assert prompt.columns == ("x y", "x y", "z.__class__")
    values = {"x y": "{z}", "z.__class__": "!"}
    assert prompt.filled(values) == "{a} {z} - {z}!"
    with pytest.raises(ContradictionError, match=r"write \{\{ for a brace"):
        parse_prompt("{")


# The records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prompted")
    write_pairs(made)
    return made


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    torch.set_num_threads(1)
    digest = make_model(folder / "model", "llama")
    return prompted_study(
        "llama", digest, task__positive="tidal", model__dtype="float32"
    )


def test_records_are_prompts_with_their_label_s_answer(
    study: Study, folder: Path
) -> None:
    data = load_sites(study, folder)
    tokenizer = load_tokenizer(folder / "model")
    lines = (folder / "pairs.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    seen = 0
    for name, site in data.sites.items():
        records = site.records
        for number, row in enumerate(data.rows[name]):
            asked = records.prompt_tokens[number]
            ids, source = records.tokens[number], rows[row - 1]
            assert len(ids) <= LENGTH
            assert tokenizer.decode(list(ids[asked:-1])) == ANSWERS[source["language"]]
            wanted = f"{source['first']} & {source['second']} {{x}} =>"
            assert records.texts[number] == wanted
            assert tokenizer.decode(list(ids[:asked])) == wanted
            seen += 1
        assert site.num_units == len(records.tokens)  # a record is asked once
    assert seen + len(data.holdout.tokens) > 100


def test_a_long_prompt_is_cut_and_its_answer_is_not(study: Study, folder: Path) -> None:
    values = study.canonical()
    values["model"]["max_length"] = 9
    data = load_sites(load_study_dict(values, "short"), folder)
    tokenizer = load_tokenizer(folder / "model")
    cut = set()
    for site in data.sites.values():
        records = site.records
        columns = zip(
            records.tokens, records.prompt_tokens, records.labels, strict=True
        )
        for ids, asked, label in columns:
            answer = tokenizer.decode(list(ids[asked:-1]))
            assert answer == list(ANSWERS.values())[label]
            assert tokenizer.decode(list(ids[:asked])).endswith("=>")
            cut.add(asked)
    # The same room for everybody: the cut says nothing about the answer.
    assert cut == {6}


def test_without_room_for_a_prompt_the_model_is_refused(
    study: Study, folder: Path
) -> None:
    values = study.canonical()
    values["model"]["max_length"] = 4
    values["task"]["answers"] = {"tidal": " tidal sea tidal", "alpine": " rock"}
    with pytest.raises(ModelError, match="no room for a prompt"):
        load_sites(load_study_dict(values, "short"), folder)


def test_a_place_names_a_column_of_the_file(study: Study, folder: Path) -> None:
    values = study.canonical()
    values["task"]["prompt"] = "{frist} =>"
    with pytest.raises(DataError, match=r"\(task\.prompt\); did you mean 'first'"):
        load_sites(load_study_dict(values, "other"), folder)


# A whole run


@pytest.fixture(scope="module")
def run(study: Study, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = study.canonical()
    values["compare"] = {
        "methods": ["ffa-lora", "fedavg"],
        "baselines": ["non-private"],
    }
    values["simulation"] = {"seed": 5}
    own = load_study_dict(values, "compared")
    out = tmp_path_factory.mktemp("run") / "run"
    policy = causal_policy(own)
    methods = ("ffa-lora", "fedavg")
    run_comparison(own, folder, out, methods, (0,), policy, NoProgress())
    return out


@pytest.mark.slow
def test_a_private_run_carries_labels_and_words_to_the_report(
    run: Path, study: Study
) -> None:
    assert verify_run(run).passed, verify_run(run).failures()
    value = json.loads((run / "comparison.json").read_bytes())
    assert value["task"] == {"kind": "prompted-lm", "positive": "tidal"}
    assert set(value["constants"]) == {"tidal sea", "rock"}
    best = max(line["accuracy"] for line in value["constants"].values())
    assert value["majority"]["accuracy"] == best
    for arm in value["arms"]:
        first, *rest = arm["rounds"]
        assert {key: first[key] for key in value["untrained"]} == value["untrained"]
        assert [line["status"] for line in rest] == ["completed"] * 2
        assert all(line["sums_equal"] for line in rest)
        assert arm["final"]["perplexity"] != first["perplexity"]
        assert 0 <= arm["final"]["unparsed"] <= 1
        if arm["kind"] == "private":
            assert arm["epsilon_max"] <= study.privacy.epsilon
    plain = value["arms"][-1]
    assert plain["kind"] == "non-private"
    assert plain["final"]["perplexity"] < value["untrained"]["perplexity"]


@pytest.mark.slow
def test_labels_lead_and_constant_answers_stand_beside(run: Path) -> None:
    record = read_run(run)
    names = [row.name for row in comparison_rows(record.comparison)]
    assert names[0] == "base model"
    assert set(names[1:3]) == {"always rock", "always tidal sea"}
    headings, *rows = beside_rows(record.comparison)
    assert "ROUGE-Lsum" in headings
    assert "perplexity" in headings
    assert len(rows) == len(names)
    page = render_report(record)
    for text in ("Accuracy</th>", "F1</th>", "ROUGE-1</th>", "always rock"):
        assert text in page
    assert page.index("Accuracy</th>") < page.index("ROUGE-1</th>")
    assert "head alone" not in conclude(record.comparison)
    head, *lines = csv.reader((run / "comparison.csv").read_text().splitlines())
    assert head[4:6] == ["accuracy", "f1"]
    assert [line[0] for line in lines[:3]] == ["base", *names[1:3]]
    assert float(lines[1][4]) >= float(lines[2][4])
    single = read_run(run / "arms" / "fedavg").comparison
    assert single.is_prompted
    assert single.measure.key == "accuracy"


@pytest.mark.slow
def test_nothing_released_counts_a_site_s_classes(run: Path) -> None:
    """Counts of classes are at the site: in its private folder, and nowhere else."""
    found = sorted((run / "private" / "sites").glob("*/classes.json"))
    assert [path.parent.name for path in found] == sorted(SITES)
    for path in found:
        assert path.stat().st_mode & 0o077 == 0
        assert set(json.loads(path.read_bytes())["records"]) == set(ANSWERS)
    named = json.loads((run / "manifest.json").read_bytes())["files"]
    assert not [name for name in named if "classes" in name]


# The report without a run


def comparison(scores: dict[str, float], task: dict[str, str]) -> Comparison:
    arms = [
        {"name": m, "method": m, "final": {"accuracy": 0.6, "f1": s, "matthews": s}}
        | {"epsilon": {"x": 8.0}, "rounds": [], "run": None}
        for m, s in scores.items()
    ]
    majority = {"accuracy": 0.67, "f1": 0.8, "matthews": 0.0}
    value = {"format": 1, "arms": arms, "majority": majority, "task": task}
    return Comparison.from_json(value)


def test_the_named_score_decides() -> None:
    task = {"kind": "classification", "score": "f1", "positive": "1"}
    text = conclude(comparison({"fedavg": 0.85, "ffa-lora": 0.79}, task))
    assert "ffa-lora did not learn: the best constant answer has F1 80.0 %" in text
    assert "fedavg (85.0 %) is ahead of ffa-lora (79.0 %) in F1" in text
    assert "head alone was not run" in text


def test_correlations_are_shown_times_hundred_and_compared_to_zero() -> None:
    task = {"kind": "classification", "score": "matthews"}
    found = comparison({"fedavg": 0.412, "ffa-lora": 0.3}, task)
    text = conclude(found)
    assert "fedavg (41.2) is ahead of ffa-lora (30.0) in Matthews correlation" in text
    assert "above the best constant answer (Matthews correlation 0.0)" in text
    assert [row.cells["score"] for row in comparison_rows(found)] == [
        "0.0",
        "41.2",
        "30.0",
    ]
    assert found.measure.title == "Matthews correlation"
    assert np.isclose(found.measure.merit(-0.2), -0.2)
