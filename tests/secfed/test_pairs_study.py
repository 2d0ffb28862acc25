"""Pairs of texts, tab-separated files, and the scores of classifiers."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders import (
    LENGTH,
    METHODS,
    make_encoder,
    pair_policy,
    pair_study,
    pair_values,
    write_pairs,
)
from sklearn.metrics import f1_score, matthews_corrcoef
from small import randomised, study_values

from secfed.adapters import attach_adapter, initial_adapter
from secfed.data import fingerprint, load_sites
from secfed.data.tsv import read_tsv
from secfed.errors import DataError, StudyError
from secfed.evaluation import calibration_error, constant_scores, predict, score
from secfed.evaluation.classes import best_constant
from secfed.models import encode_prefix, load_base_model
from secfed.report.html import render_report
from secfed.report.reading import read_run
from secfed.report.tables import comparison_rows
from secfed.runtime.compare import run_comparison
from secfed.runtime.progress import NoProgress
from secfed.study import Study, load_study_dict
from secfed.study.data_sections import DataSection
from secfed.verify import verify_run

DIGEST = "0" * 64


# Tab-separated lines


def test_quotes_are_text_and_empty_lines_are_nothing() -> None:
    text = 'a\tb\n"x\ty" z\r\n\n\t1\n'
    assert read_tsv(Path("f"), text) == {"a": ['"x', ""], "b": ['y" z', "1"]}
    assert read_tsv(Path("f"), "1\t2\n", ("p", "q")) == {"p": ["1"], "q": ["2"]}


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        ("a\tb\n1\n", None, "row 1 has 1 fields, there are 2 columns"),
        ("a\ta\n1\t2\n", None, "names 'a' twice"),
        ("a\tb\n", None, "no records"),
        ("", None, "no records"),
        ("", ("a",), "no records"),
        ("1\t2\n1\n", ("a", "b"), "row 2 has 1 fields"),
    ],
)
def test_a_broken_table_is_refused(
    text: str, names: tuple[str, ...] | None, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_tsv(Path("f"), text, names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__columns": ["a"], "data__format": None}, "data.source"),
        ({"data__source": "x.csv", "data__format": None, "data__columns": ["a"]},
         "belongs to files with format = 'tsv'"),
        ({"data__columns": ["a", "A"]}, "listed twice"),
        ({"data__source": "hub:a/b"}, "data.format: belongs to files only"),
        ({"data__text_column": None}, "data.text_column: required"),
        ({"data__holdout": {}}, "data.holdout.fraction: give either"),
        ({"data__holdout": {"fraction": 0.1, "source": "x"}}, "holdout.fraction"),
        ({"data__holdout": {"source": "x.doc"}, "data__format": None,
          "data__source": "x.tsv"}, "data.holdout.source: name a file"),
        ({"task__positive": "2"}, "task.positive: no label '2'"),
        ({"task__positive": None}, "task.positive: required with score = 'f1'"),
        ({"task__score": "roc"}, "task.score"),
        ({"adapter": {"kind": "prompt", "virtual_tokens": 4, "target_modules": []},
          "training__method": "fedavg"}, "virtual tokens before the text"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(StudyError) as caught:
        pair_study("bert", DIGEST, **changes)
    assert words in str(caught.value)


def test_accuracy_is_the_default_and_naming_it_changes_no_digest() -> None:
    values = study_values()
    plain = load_study_dict(values, "plain")
    task = {"kind": "classification", "score": "accuracy"}
    assert load_study_dict({**values, "task": task}, "same").digest() == plain.digest()
    other = load_study_dict({**values, "task": {**task, "score": "matthews"}}, "other")
    assert other.score == "matthews"
    assert plain.score == "accuracy"


# The records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pairs")
    write_pairs(made)
    return made


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    torch.set_num_threads(1)
    return pair_study("bert", make_encoder(folder / "model"))


def test_both_texts_arrive_and_count(study: Study, folder: Path) -> None:
    data = load_sites(study, folder)
    lines = (folder / "pairs.txt").read_text("utf-8").splitlines()
    for name, site in data.sites.items():
        columns = zip(
            data.rows[name],
            site.records.texts,
            site.records.pairs,
            site.records.labels,
            strict=True,
        )
        for row, text, pair, label in columns:
            assert lines[row] == f"{label}\t{text}\t{pair}"
    assert data.holdout.pairs
    site = data.sites["north"]
    moved = site.records.pairs[1:] + site.records.pairs[:1]
    other = replace(site, records=replace(site.records, pairs=moved))
    assert fingerprint(other) != fingerprint(site)


def test_a_file_without_a_header_is_read_by_given_names(
    study: Study, folder: Path
) -> None:
    body = (folder / "pairs.txt").read_text("utf-8").split("\n", 1)[1]
    (folder / "bare.tsv.gz").write_bytes(gzip.compress(body.encode()))
    values = study.canonical()
    del values["data"]["format"]
    values["data"] |= {
        "source": "bare.tsv.gz",
        "columns": ["Quality", "#1 String", "#2 String"],
    }
    found = load_sites(load_study_dict(values, "bare"), folder)
    assert found.rows == load_sites(study, folder).rows


def test_equal_pairs_are_held_out_together_and_equal_halves_are_not(
    folder: Path,
) -> None:
    from secfed.data.files import load_external  # noqa: PLC0415

    (folder / "few.tsv").write_text("1\ta b\tc\n0\tA  b\tc\n1\ta b\td\n")
    values = pair_values("bert", DIGEST)["data"] | {
        "source": "few.tsv",
        "columns": ["Quality", "#1 String", "#2 String"],
    }
    table = load_external(DataSection.model_validate(values), folder)
    assert table.groups[0] == table.groups[1] != table.groups[2]
    assert len(set(table.record_keys())) == 3


def test_a_test_set_of_its_own_takes_its_texts_out_of_training(
    study: Study, folder: Path
) -> None:
    lines = (folder / "pairs.txt").read_text("utf-8").splitlines()
    tested = [lines[0], *lines[5:15], "1\tbar\tbar", "0\tbel\tbar"]
    (folder / "test.txt").write_text("\n".join(tested), encoding="utf-8")
    values = study.canonical()
    values["data"]["holdout"] = {"source": "test.txt"}
    data = load_sites(load_study_dict(values, "tested"), folder)
    assert data.holdout.texts[-2:] == ("bar", "bel")
    assert data.holdout_rows == tuple(range(1, 13))
    trained = {row for rows in data.rows.values() for row in rows}
    assert trained == set(range(1, 241)) - set(range(5, 15))
    values["data"]["holdout"] = {"source": "pairs.txt"}
    with pytest.raises(DataError, match="holds every training record"):
        load_sites(load_study_dict(values, "all"), folder)


# The model


def test_a_pair_is_read_as_the_stock_model_reads_it(study: Study, folder: Path) -> None:
    base = load_base_model(study.model, folder, 2)
    model = attach_adapter(base, study.adapter)
    adapter = randomised(initial_adapter(model, study.adapter), 0.3)
    texts = ["bar bel bop dar", "kel", "mop bar"]
    pairs = ["bar", "kel kop lar lel", "fop fop fop"]
    found = predict(model, adapter, encode_prefix(base, texts, 1, pairs=pairs))
    inputs = base.tokenizer(texts, pairs, padding=True, return_tensors="pt")
    assert set(inputs["token_type_ids"].unique().tolist()) == {0, 1}
    with torch.inference_mode():
        tokens = model.network(**inputs).logits
    weights = inputs["attention_mask"][:, :, None]
    mean = (tokens * weights).sum(1) / weights.sum(1)
    np.testing.assert_allclose(found, mean.numpy(), atol=1e-5)
    # The second text and its segment count.
    alone = predict(model, adapter, encode_prefix(base, texts, 1))
    assert np.abs(alone - found).max() > 1e-3
    swapped = predict(model, adapter, encode_prefix(base, pairs, 1, pairs=texts))
    assert np.abs(swapped - found).max() > 1e-3


def test_of_a_long_pair_the_longer_text_is_cut(study: Study, folder: Path) -> None:
    base = load_base_model(study.model, folder, 2)
    long = " ".join(["bar"] * 60)
    (length,) = encode_prefix(base, [long], 0, pairs=["kel kop"]).lengths
    assert length == LENGTH
    cut = encode_prefix(base, [long], 0, pairs=["kel kop"])
    kept = encode_prefix(base, [" ".join(["bar"] * 11)], 0, pairs=["kel kop"])
    assert torch.equal(cut.states, kept.states)


# Scores


def test_scores_agree_with_the_library_and_with_counting() -> None:
    rng = np.random.default_rng(4)
    labels, answers = rng.integers(3, size=90), rng.integers(-1, 3, size=90)
    found = score(labels, answers, 3, positive=2)
    assert found.accuracy == np.mean(labels == answers)
    both = int(((labels == 2) & (answers == 2)).sum())
    assert found.f1 == pytest.approx(
        2 * both / ((labels == 2).sum() + (answers == 2).sum())
    )
    assert found.matthews == pytest.approx(matthews_corrcoef(labels, answers))
    own = f1_score(labels, answers, labels=[0, 1, 2], average="macro")
    assert found.macro_f1 == pytest.approx(own)
    assert found.ece is None
    assert "ece" not in found.line()


def test_a_correlation_of_two_classes_is_pearson_s() -> None:
    labels = np.array([1, 1, 1, 0, 0, 1, 0, 1])
    answers = np.array([1, 0, 1, 0, 1, 1, 0, 1])
    expected = np.corrcoef(labels, answers)[0, 1]
    assert score(labels, answers, 2).matthews == pytest.approx(expected)


def test_the_best_constant_answer_depends_on_the_score() -> None:
    labels = np.array([0] * 70 + [1] * 30)
    constants = constant_scores(labels, 2, positive=1)
    assert best_constant(constants, "accuracy") == 0
    assert best_constant(constants, "f1") == 1
    assert constants[1].f1 == pytest.approx(0.6 / 1.3)
    # All correlations are 0: the one that is right most often.
    assert best_constant(constants, "matthews") == 0


def test_calibration_is_the_gap_between_saying_and_being_right() -> None:
    shares = np.array([[0.8, 0.2]] * 10 + [[0.3, 0.7]] * 10)
    labels = np.array([0] * 8 + [1] * 2 + [1] * 7 + [0] * 3)
    assert calibration_error(shares, labels) == pytest.approx(0, abs=1e-12)
    # Nine of ten instead of eight; and seven of ten still.
    labels[8] = 0
    assert calibration_error(shares, labels) == pytest.approx(0.1 / 2)
    # Gaps of one interval cancel, as the definition says; of two they do not.
    certain = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert calibration_error(certain, np.array([0, 1])) == pytest.approx(0.5)
    half = np.array([[0.51, 0.49], [0.99, 0.01]])
    assert calibration_error(half, np.array([0, 1])) == pytest.approx(1.48 / 2)
    assert calibration_error(half, np.array([0, 1]), bins=1) == pytest.approx(0.25)


# A whole run


@pytest.mark.slow
def test_a_private_run_is_decided_by_the_named_score(
    study: Study, folder: Path, tmp_path: Path
) -> None:
    values = study.canonical()
    values["compare"] = {
        "methods": list(METHODS),
        "baselines": ["head-only", "non-private"],
    }
    values["simulation"] = {"seed": 5}
    own = load_study_dict(values, "compared")
    run = tmp_path / "run"
    policy = pair_policy(own)
    run_comparison(own, folder, run, METHODS, (0,), policy, NoProgress())
    assert verify_run(run).passed, verify_run(run).failures()
    value = json.loads((run / "comparison.json").read_bytes())
    assert value["task"] == own.canonical()["task"]
    labels = load_sites(own, folder).holdout.labels
    always = 2 * labels.mean() / (1 + labels.mean())
    assert value["majority"]["f1"] == pytest.approx(max(always, 0))
    for arm in value["arms"]:
        assert {"accuracy", "macro_f1", "f1", "matthews", "ece"} <= set(arm["final"])
        assert 0 <= arm["final"]["ece"] <= 1
    record = read_run(run)
    rows = comparison_rows(record.comparison)
    assert rows[0].name == "constant answer"
    assert [row.score for row in rows[1:]] == [a["final"]["f1"] for a in value["arms"]]
    assert "F1" in value["conclusion"]
    page = render_report(record)
    assert page.index("F1</th>") < page.index("calibration error</th>")
    assert read_run(run / "arms" / "fedavg").comparison.measure.key == "f1"
