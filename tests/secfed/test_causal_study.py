"""Next-token training as a study: its file, its records, and whole private runs."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal import (
    LANGUAGES,
    LENGTH,
    RATES,
    SITES,
    causal_policy,
    causal_study,
    causal_values,
    make_model,
    write_texts,
)
from small import study_values

from secfed.data import load_sites
from secfed.errors import DataError, StudyError
from secfed.report.conclusion import conclude, pair_scores
from secfed.report.html import render_report
from secfed.report.measures import ACCURACY, PERPLEXITY
from secfed.report.reading import read_run
from secfed.report.results import Comparison
from secfed.runtime.compare import run_comparison
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import prepare
from secfed.strategies import STRATEGIES
from secfed.study import Study, load_study_dict
from secfed.training import TokenRecords
from secfed.types import LORA_A, LORA_B, Adapter
from secfed.verify import verify_run

DIGEST = "0" * 64


# The file


def test_a_study_of_texts_is_read_and_reads_back() -> None:
    study = causal_study("gpt2", DIGEST)
    assert study.is_causal_lm
    again = load_study_dict(study.canonical(), "again")
    assert again.digest() == study.digest()


def test_classification_is_the_default_and_writing_it_changes_no_digest() -> None:
    values = study_values()
    plain = load_study_dict(values, "plain")
    written = load_study_dict({**values, "task": {"kind": "classification"}}, "same")
    assert written.digest() == plain.digest()
    assert "task" not in plain.canonical()
    assert not plain.is_causal_lm


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("task__kind", "causal_lm", "did you mean 'causal-lm'?"),
        ("task__kind", 3, "task"),
        ("task__kinds", "causal-lm", "did you mean 'kind'?"),
        ("training__head_learning_rate", 1.0, "no classification head"),
        ("training__class_weights", {"tidal": 2.0}, "no classification head"),
        ("adapter__head_init", "names", "no classification head"),
        ("training__method", "head-only", "no classification head"),
        ("compare__baselines", ["head-only"], r'write ["non-private"] or []'),
        ("compare__methods", ["fedavg"], "compare.baselines"),  # by its default
        ("data__labels", None, "data.labels: required with label_column"),
        ("data__label_column", None, "data.label_column: required with labels"),
        ("data__text_column", None, "data.text_column"),
        ("model__max_length", 1, "model.max_length"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        causal_study("gpt2", DIGEST, **{key: value})
    assert words in str(caught.value)


def test_sites_by_category_need_categories_and_natural_sites_do_not() -> None:
    nothing = {"data__labels": None, "data__label_column": None}
    with pytest.raises(StudyError, match="divides by it"):
        causal_study("gpt2", DIGEST, **nothing)
    natural = {"kind": "natural", "sites": list(SITES)}
    study = causal_study(
        "gpt2", DIGEST, **nothing, data__partition=natural, data__site_column="hospital"
    )
    assert study.data.labels is None


@pytest.mark.parametrize(
    "key", ["training.head_learning_rate", "data.labels", "data.label_column"]
)
def test_a_classifier_still_needs_its_keys(key: str) -> None:
    values = causal_values("gpt2", DIGEST)
    del values["task"]
    values["training"]["head_learning_rate"] = 1.0
    table, _, name = key.partition(".")
    del values[table][name]
    with pytest.raises(StudyError) as caught:
        load_study_dict(values, "study")
    assert caught.value.key == key


# The records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("causal")
    write_texts(made)
    return made


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def study(request: pytest.FixtureRequest, folder: Path) -> Study:
    torch.set_num_threads(1)
    name = f"model-{request.param}"
    digest = make_model(folder / name, request.param)
    # Full precision: perplexities are compared with those of plain training.
    return causal_study(request.param, digest, model__path=name, model__dtype="float32")


def test_blocks_keep_what_their_document_has(study: Study, folder: Path) -> None:
    whole = load_sites(study, folder)
    held = [record for site in whole.sites.values() for record in site.records.tokens]
    assert max(map(len, held)) == LENGTH
    assert min(map(len, held)) >= 2
    # Where the record is the unit, every block is one, and its document is not.
    for site in whole.sites.values():
        assert (
            site.num_units == len(site.records.tokens) > len(set(whole.rows[site.site]))
        )
    # No document is on both sides of the split.
    trained = {row for rows in whole.rows.values() for row in rows}
    assert not trained & set(whole.holdout_rows)
    assert set(whole.holdout.labels.tolist()) == {0, 1}


def test_a_person_has_at_most_so_many_blocks(study: Study, folder: Path) -> None:
    values = study.canonical()
    values["data"]["unit_column"] = "doc"
    values["privacy"] |= {"unit": "person", "max_records_per_unit": 2}
    values["privacy"]["nominal_units"] = dict.fromkeys(SITES, 20)
    capped = load_sites(load_study_dict(values, "capped"), folder)
    for site in capped.sites.values():
        counts = np.bincount(site.units)
        assert counts.max() == 2
        rows = np.array(capped.rows[site.site])
        for unit in range(site.num_units):
            assert len(set(rows[site.units == unit])) == 1  # one document each


def test_a_gzip_file_holds_the_same_records(study: Study, folder: Path) -> None:
    packed = folder / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress((folder / "texts.jsonl").read_bytes()))
    values = study.canonical()
    values["data"]["source"] = packed.name
    found = load_sites(load_study_dict(values, "packed"), folder)
    assert found.rows == load_sites(study, folder).rows
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole gzip file"):
        load_sites(load_study_dict(values, "packed"), folder)


# Whole runs


@pytest.fixture(scope="module")
def run(study: Study, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = study.canonical()
    values["compare"] = {"methods": ["ffa-lora", "fedavg"], "baselines": []}
    own = load_study_dict(values, "compared")
    out = tmp_path_factory.mktemp("run") / "run"
    # The texts are a file, so what runs spend is kept outside of them.
    budgets = {"budget_dir": str(out.parent / "budgets")}
    policy = causal_policy(own).model_copy(update=budgets)
    run_comparison(own, folder, out, ("ffa-lora", "fedavg"), (0,), policy, NoProgress())
    return out


@pytest.mark.slow
def test_a_private_comparison_carries_perplexity_to_the_report(
    run: Path, study: Study, folder: Path
) -> None:
    assert verify_run(run).passed, verify_run(run).failures()
    comparison = json.loads((run / "comparison.json").read_bytes())
    untrained = comparison["untrained"]["perplexity"]
    assert "majority" not in comparison
    for arm in comparison["arms"]:
        assert arm["epsilon_max"] <= study.privacy.epsilon
        first, *rest = arm["rounds"]
        # B is zero before training, whatever the rule.
        assert first["perplexity"] == pytest.approx(untrained)
        assert [line["status"] for line in rest] == ["completed"] * 2
        assert all(line["sums_equal"] for line in rest)
        assert arm["final"]["perplexity"] != untrained
        assert set(arm["final"]["by_category"]) == set(LANGUAGES)
        assert 0 <= arm["final"]["token_accuracy"] <= 1
    head, *lines = csv.reader((run / "comparison.csv").read_text().splitlines())
    assert head[4:6] == ["perplexity", "token_accuracy"]
    assert lines[0][:2] == ["base", "base"]
    assert float(lines[0][4]) == pytest.approx(untrained)
    page = render_report(read_run(run))
    for text in ("Perplexity</th>", "less is better", "by category", "tidal"):
        assert text in page
    assert "head alone" not in comparison["conclusion"]
    assert "perplexity" in comparison["conclusion"]
    arm = read_run(run / "arms" / "ffa-lora").comparison
    assert arm.untrained.perplexity == pytest.approx(untrained)


@pytest.mark.slow
def test_the_statement_says_what_a_record_is(run: Path) -> None:
    path = run / "arms" / "ffa-lora" / "statement.json"
    guarantee = json.loads(path.read_bytes())["guarantee"]
    assert f"a block of at most {LENGTH} tokens" in guarantee["whose"]
    assert "several blocks is protected less" in guarantee["whose"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedsa-lora", "local"])
def test_rules_with_models_of_their_own_are_scored_by_the_mean(
    study: Study, folder: Path, tmp_path: Path, method: str
) -> None:
    values = study.canonical()
    values["simulation"] = {"seed": 5}
    values["compare"] = {"methods": [method], "baselines": ["non-private"]}
    own = load_study_dict(values, "personal")
    policy = causal_policy(own)
    found = run_comparison(
        own, folder, tmp_path / "run", (method,), (0,), policy, NoProgress()
    )
    arm, plain = found["arms"]
    assert arm["final"]["perplexity"] > 1
    # Without noise and masks the same texts are learned.
    assert plain["kind"] == "non-private"
    assert plain["final"]["perplexity"] < found["untrained"]["perplexity"]


def test_sites_train_on_blocks(study: Study, folder: Path) -> None:
    values = study.canonical() | {"simulation": {"seed": 5}}
    own = load_study_dict(values, "rehearsal")
    prepared = prepare(own, folder, causal_policy(own), NoProgress())
    records = prepared.records["north"]
    assert isinstance(records, TokenRecords)
    rows = np.array([0, 1])
    states, mask, targets = records.batch(rows)
    assert states.shape[:2] == mask.shape == targets.shape
    assert bool(((targets >= 0) == mask).all())
    assert prepared.label_names == LANGUAGES


# Rules without a head


def _adapter() -> Adapter:
    rng = np.random.default_rng(0)
    tensors = {}
    for module, (d, k) in {"a": (6, 5), "b": (7, 4)}.items():
        tensors[module + LORA_A] = rng.normal(size=(2, k)).astype(np.float32)
        tensors[module + LORA_B] = np.zeros((d, 2), np.float32)
    return Adapter(tensors=tensors, scaling=2.0)


@pytest.mark.parametrize(
    "name",
    [n for n, rule in STRATEGIES.items() if n != "head-only" and not rule.refusal],
)
def test_every_rule_works_without_a_head(name: str) -> None:
    rng = np.random.default_rng(1)
    rule, adapter = STRATEGIES[name].for_sites([2, 2, 2]), _adapter()
    base = {"a": rng.normal(size=(6, 5)), "b": rng.normal(size=(7, 4))}
    weights = {n: v.astype(np.float32) for n, v in base.items()}
    state = rule.init(adapter, 0, weights)
    from secfed.strategies import SiteView  # noqa: PLC0415

    payloads = []
    for _ in range(3):
        start = rule.start(state.adapter, SiteView(rank=rule.rank_at(SiteView())))
        trains = [n for n in start.tensors if rule.trains(n, 1)]
        assert trains
        change = {
            n: rng.normal(size=start.tensors[n].shape).astype(np.float32)
            for n in trains
        }
        payloads.append(rule.payload(state.adapter, start, change))
    shapes = rule.shapes(state.adapter, 1)
    assert {n: v.shape for n, v in payloads[0].items()} == dict(shapes)
    mean = {
        n: np.mean([p[n] for p in payloads], axis=0).astype(np.float32) for n in shapes
    }
    after = rule.apply(state, mean, 1).adapter
    assert all(np.isfinite(value).all() for value in after.tensors.values())


# Less is better


def comparison(scores: dict[str, list[float]], untrained: float = 30.0) -> Comparison:
    arms: list[dict[str, Any]] = [
        {
            "name": f"{method}-s{seed}",
            "method": method,
            "kind": "private",
            "seed": seed,
            "run": None,
            "rounds": [],
            "final": {"perplexity": value, "token_accuracy": 0.2},
            "epsilon": {"x": 8.0},
        }
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
    value = {"format": 1, "arms": arms, "untrained": {"perplexity": untrained}}
    return Comparison.from_json(value)


def test_the_smaller_perplexity_is_ahead() -> None:
    text = conclude(comparison({"fedavg": [20.0], "ffa-lora": [25.0]}))
    assert "fedavg (20.00) is ahead of ffa-lora (25.00) in perplexity" in text
    assert "less is better" in text
    assert "below the base model's perplexity (30.00)" in text
    assert "One seed cannot decide" in text


def test_above_the_base_is_not_learned() -> None:
    text = conclude(comparison({"fedavg": [20.0], "ffa-lora": [31.0]}))
    assert "ffa-lora did not learn: the base model alone has perplexity 30.00" in text


def test_verdicts_are_about_ratios_and_their_sign_is_that_of_perplexity() -> None:
    scores = {"fedavg": [20.0, 21.0, 19.5], "ffa-lora": [25.0, 26.4, 24.3]}
    text = conclude(comparison(scores))
    assert (
        "fedavg against ffa-lora: -20.1 % in perplexity [-20.9, -19.2], better" in text
    )
    merits = {
        method: {seed: PERPLEXITY.merit(v) for seed, v in enumerate(values)}
        for method, values in scores.items()
    }
    (pair,) = pair_scores(dict(reversed(merits.items())), PERPLEXITY)
    assert (pair.first, pair.verdict) == ("ffa-lora", "worse")
    assert "+25.1 % in perplexity [+2" in pair.text


def test_accuracies_are_shown_as_before() -> None:
    assert ACCURACY.shown(0.7134) == "71.3 %"
    assert ACCURACY.difference(-0.0123) == "-1.2"
    assert ACCURACY.bounds((-0.01, 0.02)) == "[-1.0, +2.0]"
    assert ACCURACY.around(0.5, (0.4, 0.6)) == "50.0 % ± 10.0"
    assert PERPLEXITY.around(20.0, (18.0, 22.0)) == "20.00 [18.00, 22.00]"
    assert PERPLEXITY.shown(54_321.4) == "54,321"


def test_all_rates_are_of_known_rules() -> None:
    assert set(RATES) <= set(STRATEGIES)
