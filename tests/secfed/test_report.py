"""The report: honest conclusions, complete tables, a page that stands alone."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from secfed.errors import RunDirectoryError
from secfed.report import Comparison, conclude, write_run_report
from secfed.report.charts import comparison_charts
from secfed.report.conclusion import paired_differences
from secfed.report.drawing import spread_apart
from secfed.report.html import render_report
from secfed.report.markdown import run_markdown
from secfed.report.plain import describe_protection
from secfed.report.reading import read_run
from secfed.report.tables import (
    COLUMNS,
    comparison_rows,
    csv_text,
    round_up,
    terminal_tables,
)

FIXTURE = Path(__file__).parent / "fixtures" / "comparison"
VOID = {"meta", "br", "hr", "img", "link", "input", "path", "use", "rect"}


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(FIXTURE, tmp_path / "run"))


@pytest.fixture(scope="module")
def page():
    return render_report(read_run(FIXTURE))


def value(**changes):
    return json.loads((FIXTURE / "comparison.json").read_text("utf-8")) | changes


def arm(method, accuracy, seed=0, kind="private", epsilon=8.0):
    return {
        "name": f"{method}-s{seed}",
        "method": method,
        "kind": kind,
        "seed": seed,
        "final": {"accuracy": accuracy, "macro_f1": accuracy},
        "epsilon_max": epsilon,
        "rounds": [],
    }


def seeds(**scores):
    arms = [
        arm(
            name.replace("_", "-"),
            score,
            seed,
            "baseline" if "head" in name else "private",
        )
        for name, listed in scores.items()
        for seed, score in enumerate(listed)
    ]
    return {"format": 1, "arms": arms, "majority": {"accuracy": 0.05, "macro_f1": 0.0}}


class Page(HTMLParser):
    """Collects text, tags, ids and everything that could reach a network."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.targets, self.stack, self.words = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        if "id" in found:
            self.ids.append(found["id"])
        for key in ("href", "xlink:href", "src", "action"):
            if key in found:
                self.targets.append(found[key])
        assert not [key for key in found if key.startswith("on")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


# ---------------------------------------------------------------- conclusion


def test_one_seed_names_the_leader_and_decides_nothing():
    text = conclude(seeds(ffa_lora=[0.75], fedavg=[0.70], head_only=[0.72]))
    assert (
        "ffa-lora (75.0 %) is ahead of head-only (72.0 %) and fedavg (70.0 %)" in text
    )
    assert "ffa-lora is ahead of the private head alone" in text
    assert "One seed cannot decide" in text
    assert "no difference" not in text
    assert "beats" not in text


def test_two_seeds_still_decide_nothing():
    text = conclude(seeds(ffa_lora=[0.75, 0.76], head_only=[0.70, 0.70]))
    assert "2 seeds cannot decide" in text


def test_three_seeds_give_the_t_interval_of_the_paired_differences():
    scores = seeds(ffa_lora=[0.71, 0.72, 0.76], head_only=[0.70, 0.70, 0.70])
    (pair,) = paired_differences(Comparison.from_json(scores))
    # Differences .01 .02 .06: mean .03, sd .0264575, t(.975, 2) = 4.302653.
    assert pair.interval == pytest.approx((-0.0357243, 0.0957243), abs=1e-6)
    assert pair.verdict == "no difference"
    text = conclude(scores)
    assert "+3.0 points [-3.6, +9.6], no difference" in text
    assert "do not beat the private head alone" in text


@pytest.mark.parametrize(
    ("adapters", "verdict", "sentence"),
    [
        ([0.80, 0.81, 0.80], "better", "ffa-lora beats the private head alone"),
        ([0.60, 0.61, 0.60], "worse", "private head alone is better than the adapters"),
        ([0.70, 0.70, 0.70], "no difference", "do not beat"),
    ],
)
def test_the_verdict_follows_the_interval(adapters, verdict, sentence):
    scores = seeds(ffa_lora=adapters, head_only=[0.70, 0.70, 0.70])
    (pair,) = paired_differences(Comparison.from_json(scores))
    assert pair.verdict == verdict
    assert sentence in conclude(scores)


def test_pairing_removes_what_a_seed_does_to_both():
    head = [0.50, 0.70, 0.90]
    scores = seeds(
        ffa_lora=[s + 0.01 + i / 1e4 for i, s in enumerate(head)], head_only=head
    )
    (pair,) = paired_differences(Comparison.from_json(scores))
    assert pair.verdict == "better"


def test_only_common_seeds_are_paired_and_the_non_private_arm_never():
    scores = seeds(ffa_lora=[0.7, 0.7, 0.7], head_only=[0.6, 0.6])
    scores["arms"].append(arm("fedavg", 0.9, kind="non-private", epsilon=None))
    pairs = paired_differences(Comparison.from_json(scores))
    assert [(p.first, p.second, p.seeds) for p in pairs] == [
        ("ffa-lora", "head-only", (0, 1))
    ]
    assert "fedavg" not in conclude(scores)


def test_what_was_not_run_or_did_not_learn_is_said():
    text = conclude(seeds(ffa_lora=[0.04], fedavg=[0.6]))
    assert "ffa-lora did not learn" in text
    assert "head alone was not run" in text
    assert "nothing to conclude" in conclude(value(arms=[]))


def test_equal_scores_are_level():
    text = conclude(seeds(ffa_lora=[0.7], head_only=[0.7], fedavg=[0.6]))
    assert (
        "ffa-lora (70.0 %) and head-only (70.0 %) are level and ahead of fedavg" in text
    )
    assert "no adapter is ahead of the private head alone" in text


# -------------------------------------------------------------------- tables


def test_csv_has_every_arm_and_reads_back():
    rows = list(csv.DictReader(io.StringIO(csv_text(Comparison.from_json(value())))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["arm"] for row in rows] == [
        "majority",
        "ffa-lora",
        "fedavg",
        "head-only",
        "non-private",
    ]
    fedavg = rows[2]
    expected = value()["arms"][1]
    assert float(fedavg["accuracy"]) == expected["final"]["accuracy"]
    assert float(fedavg["epsilon_worst_site"]) == expected["epsilon_max"]
    measured = [r["noise"]["measured"] for r in expected["rounds"] if r["noise"]]
    assert float(fedavg["noise_measured"]) == pytest.approx(
        sum(measured) / len(measured)
    )
    assert rows[4]["epsilon_worst_site"] == ""


def test_a_name_that_is_a_formula_stays_text_in_a_spreadsheet():
    scores = value()
    scores["arms"][0]["name"] = '=HYPERLINK("http://x")'
    rows = list(csv.reader(io.StringIO(csv_text(Comparison.from_json(scores)))))
    assert rows[2][0].startswith("'=")


def test_the_terminal_table_fits_80_columns_and_has_no_colour_in_a_pipe():
    buffer = io.StringIO()
    Console(file=buffer, width=80).print(terminal_tables(Comparison.from_json(value())))
    text = buffer.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    for word in (
        "majority class",
        "NOT PRIVATE",
        "69.4 %",
        "sum exact",
        "north-general",
    ):
        assert word in text


@given(st.floats(min_value=0, max_value=1e4))
def test_a_shown_epsilon_is_never_less_than_the_spent_one(epsilon):
    assert float(round_up(epsilon)) >= epsilon - 1e-9
    assert float(round_up(epsilon)) <= epsilon + 0.0101


def test_a_simulation_seed_makes_every_row_not_private(run):
    scores = value(simulation_seed=7)
    (run / "comparison.json").write_text(json.dumps(scores), "utf-8")
    text = Page(render_report(read_run(run))).text
    assert "NOT PRIVATE: this run used a public simulation seed" in text
    assert text.count("NOT PRIVATE") >= 5


# ---------------------------------------------------------------------- page


def test_the_page_is_well_formed_and_reaches_nothing(page):
    parsed = Page(page)
    assert parsed.stack == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(parsed.tags)
    assert all(target.startswith("#") for target in parsed.targets)
    assert {target[1:] for target in parsed.targets} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_same_run_gives_the_same_bytes_anywhere(run, tmp_path):
    first = write_run_report(run).read_bytes()
    (run / "manifest.json").write_text("{}", "utf-8")
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    assert write_run_report(moved).read_bytes() == first


def test_another_process_gives_the_same_bytes(page, tmp_path):
    out = tmp_path / "report.html"
    code = (
        "import sys; from secfed.report import write_run_report as w; w(*sys.argv[1:])"
    )
    subprocess.run([sys.executable, "-c", code, FIXTURE, out], check=True)
    assert out.read_text("utf-8") == page


def test_the_first_page_says_who_is_protected_and_who_is_not(page):
    text = Page(page).text
    for words in (
        "Each single record in the training data of the 4 sites",
        "epsilon at most 8.00 in each private arm",
        "delta 1e-05",
        "arm non-private is NOT PRIVATE",
        "which sites take part, drop out or fail",
        "One seed cannot decide",
        "local simulation: all sites in one process: whoever operated it could see",
        "secfed verify RUN --trust FINGERPRINT",
        "UNPINNED",
        "sum exact",
        "UNKNOWN",
    ):
        assert words in text, words


def test_the_attack_rate_comes_from_the_statements(page):
    rates = []
    for path in (FIXTURE / "arms").glob("*/statement.json"):
        sites = json.loads(path.read_text("utf-8"))["sites"].values()
        rates += [s["attack_rates"]["tpr_at_fpr_0.01"] for s in sites if s["epsilon"]]
    assert f"finds at most {100 * max(rates):.1f} % of insiders" in Page(page).text


def test_without_study_and_statements_everything_unknown_is_shown(run):
    (run / "study.json").unlink()
    shutil.rmtree(run / "arms")
    record = read_run(run)
    protection = describe_protection(record)
    assert "privacy unit is UNKNOWN" in protection.whom
    assert "delta UNKNOWN" in protection.strength
    assert "UNKNOWN" in protection.meaning
    assert "There is no statement in this directory" in Page(render_report(record)).text


def test_without_statements_the_bound_is_that_of_epsilon_and_delta(run):
    shutil.rmtree(run / "arms")
    scores = value()
    for entry in scores["arms"]:
        entry["epsilon_max"] = 1.0 if entry["epsilon_max"] else None
    (run / "comparison.json").write_text(json.dumps(scores), "utf-8")
    # e * 0.01 + 1e-5 = 2.72 %.
    assert "at most 2.72 % of insiders" in describe_protection(read_run(run)).meaning


def test_names_from_the_run_are_text_and_never_markup(run):
    evil = '<script>alert(1)</script><b x="y">&amp;'
    scores = value(title=evil)
    scores["arms"][0]["name"] = evil
    for line in scores["arms"][0]["rounds"]:
        line["epsilon"] = {evil: 1.0}
    scores["dropouts"][0]["site"] = evil
    scores["budget"] = {evil: {"spent": 1.0, "limit": 2.0}}
    (run / "comparison.json").write_text(json.dumps(scores), "utf-8")
    statement = run / "arms" / "fedavg" / "statement.json"
    statement.write_text(json.dumps({"headline": evil, evil: evil}), "utf-8")
    text = render_report(read_run(run))
    assert "<script" not in text
    assert '<b x="y">' not in text
    assert "&lt;script&gt;" in text
    assert Page(text).stack == []


def test_markdown_has_every_row_and_no_markup_of_others(run):
    scores = value()
    scores["arms"][0]["name"] = evil = "a|b <b>\\"
    (run / "comparison.json").write_text(json.dumps(scores), "utf-8")
    text = run_markdown(run)
    comparison = read_run(run).comparison
    first = text.split("\n\n")[0].splitlines()
    assert len(first) == 2 + len(comparison_rows(comparison))
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in first)
    assert evil not in text
    assert "a\\|b &lt;b&gt;\\\\" in text
    assert text.endswith(conclude(comparison) + "\n")


def test_dollar_signs_are_not_formulas(run):
    scores = value()
    scores["arms"][0]["name"] = "$x$ and $"
    (run / "comparison.json").write_text(json.dumps(scores), "utf-8")
    assert "$x$ and $" in render_report(read_run(run))


def test_every_chart_is_named_described_and_repeated_as_a_table(page):
    charts = comparison_charts(Comparison.from_json(value()), 8.0)
    assert [chart.key for chart in charts] == ["score", "noise", "epsilon", "traffic"]
    parsed = Page(page)
    for chart in charts:
        assert f'aria-labelledby="{chart.key}-title {chart.key}-desc"' in chart.svg
        assert chart.rows
        assert all(len(row) == len(chart.headings) for row in chart.rows)
        assert f"table-{chart.key}" in parsed.ids
    score, noise = charts[0], charts[1]
    for word in ("ffa-lora 69.4 %", "fedavg 68.2 %", "non-private 72.9 %"):
        assert word in score.svg
    assert {row[0] for row in noise.rows} == {"ffa-lora", "fedavg"}


def test_series_differ_in_dash_and_marker_not_in_colour_only():
    svg = comparison_charts(Comparison.from_json(value()))[0].svg
    assert len(set(re.findall(r"stroke-dasharray: ([^;\"]+)", svg))) >= 3
    assert "#0101" not in svg
    assert "var(--s1)" in svg
    assert "var(--ink)" in svg


def test_charts_without_numbers_are_left_out():
    scores = seeds(ffa_lora=[0.7])
    assert comparison_charts(Comparison.from_json(scores)) == ()


def test_several_seeds_become_one_line_per_method():
    scores = value()
    scores["arms"] += [
        entry | {"name": f"{entry['name']}-s1", "seed": 1} for entry in scores["arms"]
    ]
    chart = comparison_charts(Comparison.from_json(scores))[0]
    assert chart.headings == (
        "round",
        "ffa-lora",
        "fedavg",
        "head-only",
        "fedavg non-private",
    )


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8).map(sorted))
def test_labels_keep_their_order_and_their_distance(wanted):
    placed = spread_apart(wanted, 11.0)
    assert all(b - a >= 11.0 - 1e-6 for a, b in pairwise(placed))
    assert sum(placed) == pytest.approx(sum(wanted), abs=1e-6)


# ------------------------------------------------------------ run directories


def test_one_arm_alone_has_a_report(run):
    arm_dir = run / "arms" / "fedavg"
    lines = value()["arms"][1]["rounds"]
    lines[3]["status"] = "interrupted"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (arm_dir / "metrics.jsonl").write_text(text, "utf-8")
    study = json.loads((run / "study.json").read_text("utf-8"))
    study["training"]["method"] = "fedavg"
    (arm_dir / "study.json").write_text(json.dumps(study), "utf-8")
    record = read_run(arm_dir)
    (only,) = record.comparison.arms
    assert (only.method, only.kind, only.seed) == ("fedavg", "private", 0)
    assert only.final.accuracy == lines[-1]["accuracy"]
    assert only.epsilon_max == max(lines[-1]["epsilon"].values())
    assert len(only.trained_rounds) == 4
    assert (
        "epsilon at most 8.00"
        in Page(write_run_report(arm_dir).read_text("utf-8")).text
    )


def test_a_signed_report_is_not_overwritten_by_a_different_one(run, tmp_path):
    (run / "report.html").write_text("signed", "utf-8")
    manifest = {"files": {"report.html": "0" * 64}}
    (run / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(RunDirectoryError, match="--out"):
        write_run_report(run)
    assert (run / "report.html").read_text("utf-8") == "signed"
    assert write_run_report(run, tmp_path / "new.html").is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("comparison.json", "{", "cannot be read"),
        ("comparison.json", "[]", "not an object"),
        ("comparison.json", '{"format": 2}', "format is 2"),
        ("comparison.json", '{"format": 1, "arms": 3}', "arms is not a list"),
        ("comparison.json", '{"format": 1, "arms": [{"name": 3}]}', r"arms\[0\].name"),
        ("comparison.json", '{"format": 1, "arms": [{"run": "../.."}]}', "leads out"),
        ("study.json", "x", "study.json: cannot be read"),
    ],
)
def test_a_damaged_run_is_named(run, name, content, message):
    (run / name).write_text(content, "utf-8")
    with pytest.raises(RunDirectoryError, match=message):
        read_run(run)


def test_what_is_not_a_run_says_so(tmp_path):
    with pytest.raises(RunDirectoryError, match="no such directory"):
        read_run(tmp_path / "missing")
    with pytest.raises(RunDirectoryError, match="secfed resume"):
        read_run(tmp_path)


def test_reports_load_without_torch():
    code = (
        "import sys, secfed.report.html, secfed.cli; "
        "bad = {'torch', 'transformers', 'peft', 'opacus', 'flwr'} & set(sys.modules); "
        "sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
