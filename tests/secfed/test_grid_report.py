"""A grid's report: honest conclusions, complete tables, rules, links and charts."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evidence
import pytest
from grids import METHODS, grid_study, write_grid
from rich.console import Console
from small import make_plan

from secfed.canonical import canonical_json, parse_json
from secfed.errors import RunDirectoryError
from secfed.privacy.accounting import epsilon
from secfed.privacy.composed import CellPlans, composed_epsilon
from secfed.report import write_run_report
from secfed.report.drawing import SERIES, look
from secfed.report.grid_charts import grid_charts
from secfed.report.grid_conclusion import conclude_grid
from secfed.report.grid_html import cost_of_all, render_grid, write_grid_report
from secfed.report.grid_reading import read_grid
from secfed.report.grid_rules import fairness_rules
from secfed.report.grid_tables import (
    GRID_COLUMNS,
    difference_table,
    grid_csv,
    grid_latex,
    grid_terminal,
    score_table,
)
from secfed.report.markdown import run_markdown
from secfed.study import load_study_dict
from secfed.verify.grid import grid_epsilon

SEEDS = (0, 1, 2)


def by_epsilon(cell, method, seed):
    """ffa-lora is better at epsilon 8 only; everything moves with the seed."""
    gain = 0.1 if method == "ffa-lora" and cell.epsilon == 8.0 else 0.0
    jitter = 0.001 * ((seed + len(method) + cell.rank) % 3)
    return 0.6 + 0.05 * seed + gain + jitter


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "run"
    study = grid_study(
        epsilons=[8.0, "inf"],
        ranks=[2, 4],
        seeds=list(SEEDS),
        baselines=["head-only", "non-private"],
    )
    write_grid(path, study, by_epsilon, seeds=SEEDS)
    return path


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "one"
    write_grid(
        path,
        grid_study(epsilons=[8.0], ranks=[2, 4]),
        by_epsilon,
        failed={"eps8-r4": "its process was ended by SIGKILL"},
    )
    return path


def edit(path, change):
    value = parse_json(path.read_bytes())
    change(value)
    path.write_bytes(canonical_json(value) + b"\n")


# ---------------------------------------------------------------- conclusion


def test_verdicts_are_per_cell_and_name_the_cells(run):
    text = conclude_grid(read_grid(run))
    assert "Over 3 seeds" in text
    private, without = text.split("Without privacy: ")
    assert (
        "fedavg against ffa-lora: worse in 2 of 2 cells (eps8-r2 and eps8-r4)"
    ) in private.split("With privacy: ")[1]
    assert "ffa-lora against head-only: better in 2 of 2 cells" in private
    assert "fedavg against ffa-lora: no difference in 2 of 2 cells" in without
    assert "12 intervals are not corrected" in text


MANY = ("fedavg", "ffa-lora", "ffb-lora", "rolora", "fedsvd")


@pytest.mark.parametrize("seeds", [(0,), SEEDS])
def test_of_many_pairs_those_with_a_fixed_yardstick_are_told(tmp_path, seeds):
    study = grid_study(
        methods=list(MANY), baselines=["head-only"], epsilons=[8.0], seeds=list(seeds)
    )
    write_grid(tmp_path / "grid", study, by_epsilon, seeds=seeds)
    text = conclude_grid(read_grid(tmp_path / "grid"))
    assert text.count(" against ") == len(MANY)
    assert all(f"{method} against head-only: " in text for method in MANY)
    # ffa-lora is better than the four other rules; one seed does not say so.
    decided = ", 4 of them with a difference in some cell" if len(seeds) > 1 else ""
    assert f"The other 10 pairs are in the table of differences{decided}." in text


def test_without_the_head_the_first_method_is_the_yardstick(tmp_path):
    study = grid_study(methods=list(MANY), baselines=[], epsilons=[8.0])
    write_grid(tmp_path / "grid", study, by_epsilon)
    text = conclude_grid(read_grid(tmp_path / "grid"))
    assert [part.split()[-1] for part in text.split(" against ")[:-1]] == ["fedavg"] * 4


def test_no_difference_is_a_result(tmp_path):
    study = grid_study(epsilons=[8.0], seeds=list(SEEDS))
    write_grid(tmp_path / "grid", study, seeds=SEEDS)
    text = conclude_grid(read_grid(tmp_path / "grid"))
    assert "no difference between any two methods in any cell (3 intervals)" in text
    assert "better" not in text


def test_one_seed_decides_nothing_and_missing_cells_are_named(one_seed):
    text = conclude_grid(read_grid(one_seed))
    assert "1 of 2 cells have no result: eps8-r4." in text
    assert (
        "fedavg against ffa-lora: ahead in 0, behind in 1 of 1 cells (-9.9 points)"
        in text
    )
    assert "One seed cannot decide" in text
    assert "no difference" not in text


# ------------------------------------------------------------------ cost of all


def test_all_cells_on_the_same_records_cost_the_composition_of_all_events():
    plan, other = make_plan(100, 10), make_plan(400, 10)
    arm = {"north": plan, "south": other}
    cells = [CellPlans("", (arm, arm)), CellPlans("", (arm,))]
    single = epsilon([plan.round_event()], 1e-5)
    together = composed_epsilon(cells, 1e-5)
    assert together == pytest.approx(epsilon([plan.round_event()] * 3, 1e-5))
    assert single < together < 3 * single  # composed, and not added up
    assert composed_epsilon([], 1e-5) == 0.0
    assert composed_epsilon([CellPlans("", ())], 1e-5) == 0.0


def test_copies_of_other_runs_ledgers_are_no_arms(copied):
    study = load_study_dict(parse_json((copied / "study.json").read_bytes()), "grid")
    names = {str(p.relative_to(copied)): p for p in copied.rglob("*") if p.is_file()}
    key = evidence.KEY.public_bytes

    def total(listed):
        return grid_epsilon(study, lambda n: names[n].read_bytes(), listed, key)

    arm = next(name for name in names if name.endswith("/ledger.jsonl"))
    copy_of = f"{Path(arm).parent}/teacher/ledger.jsonl"
    before = total(list(names))
    names[copy_of] = names[arm]
    assert total(list(names)) == before > 0


def test_where_a_record_moves_between_sites_the_bound_covers_every_path():
    large = make_plan(100, 10, noise_multiplier=1.0)
    noisy = make_plan(100, 20, noise_multiplier=2.0)
    arm = {"north": large, "south": noisy}
    fixed = composed_epsilon([CellPlans("a", (arm, arm))], 1e-5)
    moving = composed_epsilon([CellPlans("a", (arm,)), CellPlans("b", (arm,))], 1e-5)
    path = epsilon([large.round_event(), noisy.round_event()], 1e-5)
    assert moving >= max(fixed, path)


def test_the_cost_is_printed_as_a_rehearsal_or_as_a_charge(copied):
    text = cost_of_all(read_grid(copied))
    assert "rehearsal budget" in text
    assert "6 private arms" not in text  # three methods, three seeds, two cells
    assert "18 private arms in 4 cells" in text
    assert re.search(r"at most epsilon \d+\.\d\d at delta 1e-05", text)
    edit(copied / "grid.json", lambda v: v.update(budget="shared"))
    assert "charged to the sites' own budgets" in cost_of_all(read_grid(copied))
    edit(copied / "grid.json", lambda v: v.update(composed_epsilon=None))
    assert "epsilon UNKNOWN" in cost_of_all(read_grid(copied))


# ----------------------------------------------------------------------- rules


def test_the_rules_are_kept_and_printed(run):
    rules = {rule.name: rule for rule in fairness_rules(read_grid(run))}
    assert all(rule.kept for rule in rules.values())
    assert "epsilon 8, inf at delta 1e-05" in rules["the same privacy in a cell"].text
    rates = rules["a learning rate of its own for every method"].text
    assert rates.startswith("fedavg 0.001, ffa-lora 0.001, head-only 0.01;")
    assert "training without privacy" in rules["baselines"].text


@pytest.mark.parametrize(
    ("table", "key", "name"),
    [
        ("privacy", "epsilon", "the same privacy in a cell"),
        ("training", "steps_per_round", "the same steps and sampling"),
        ("adapter", "r", "the same start for a seed"),
        ("data", "seed", "the same records and model"),
    ],
)
def test_a_comparison_that_is_not_fair_is_refused(copied, table, key, name):
    path = copied / "cells" / "eps8-r2" / "arms" / "fedavg-s1" / "study.json"
    edit(path, lambda study: study[table].update({key: 77}))
    with pytest.raises(RunDirectoryError, match=f"{name}: not in eps8-r2"):
        write_grid_report(copied)


def test_a_method_with_other_seeds_is_refused(copied):
    path = copied / "cells" / "eps8-r2" / "comparison.json"
    edit(path, lambda value: value["arms"].pop(0))
    (copied / "cells" / "eps8-r2" / "manifest.json").unlink()
    with pytest.raises(RunDirectoryError, match="fedavg in eps8-r2 has others"):
        write_grid_report(copied)


def test_missing_baselines_are_said_and_not_refused(copied):
    def drop(value):
        value["arms"] = [arm for arm in value["arms"] if arm["method"] in METHODS]
        value["arms"] = [arm for arm in value["arms"] if arm["kind"] == "private"]

    for cell in ("eps8-r2", "eps8-r4"):
        edit(copied / "cells" / cell / "comparison.json", drop)
    edit(copied / "grid.json", lambda v: v.update(cells=v["cells"][:2]))
    (copied / "manifest.json").unlink()
    write_grid_report(copied)
    rule = fairness_rules(read_grid(copied))[-1]
    assert not rule.kept
    assert rule.text == "missing: the head alone, training without privacy"
    assert "missing: the head alone" in (copied / "report.html").read_text("utf-8")


# ---------------------------------------------------------------------- tables


def test_the_score_table_has_every_cell_and_method(run):
    table = score_table(read_grid(run))
    assert table.headings[:4] == ("cell", "fedavg", "ffa-lora", "head-only")
    assert [row[0] for row in table.rows] == [
        "epsilon 8, r 2",
        "epsilon 8, r 4",
        "epsilon inf, r 2",
        "epsilon inf, r 4",
    ]
    # Scores .602 .65 .701: mean .651, half-width 4.302653 * sd / sqrt(3) = .123.
    assert table.rows[0][1] == "65.1 % ± 12.3"
    assert table.rows[0][-1] == "65.1 %"
    assert table.rows[2][-1] == "-"


def test_every_difference_has_its_interval(run):
    rows = difference_table(read_grid(run)).rows
    assert len(rows) == 12
    verdicts = {(row[0], row[1]): row[4] for row in rows}
    assert verdicts["epsilon 8, r 2", "fedavg - ffa-lora"] == "worse"
    assert verdicts["epsilon inf, r 2", "fedavg - ffa-lora"] == "no difference"


def test_csv_and_json_hold_every_arm_and_score(run):
    rows = list(csv.DictReader(io.StringIO(grid_csv(read_grid(run)))))
    assert tuple(rows[0]) == GRID_COLUMNS
    arms = 2 * (4 * 3 + 1) + 2 * (3 * 3 + 1)  # with the majority class of every cell
    assert len(rows) == arms
    assert (run / "grid.csv").read_text("utf-8") == grid_csv(read_grid(run))
    value = json.loads((run / "grid.json").read_text("utf-8"))
    assert len(value["scores"]) == 4 * 3
    assert len(value["differences"]) == 12
    assert value["conclusion"] == conclude_grid(read_grid(run))
    assert [rule["kept"] for rule in value["rules"]] == [True] * 7


def test_latex_escapes_what_latex_would_run(copied):
    edit(copied / "grid.json", lambda v: v.update(title=r"50 % of \input{x} & $y_1^2$"))
    text = grid_latex(read_grid(copied))
    assert r"50 \% of \textbackslash{}input\{x\} \& \$y\_1\textasciicircum{}2\$" in text
    assert r"65.1 \% $\pm$ 12.3" in text
    columns = re.search(r"begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in lines} == {len(columns[1]) - 1}


def test_the_terminal_shows_scores_and_rules(run):
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(grid_terminal(read_grid(run)))
    text = buffer.getvalue()
    for words in ("epsilon inf, r 4", "no difference", "Rules of this comparison"):
        assert words in text
    assert "\x1b" not in text


# ------------------------------------------------------------------------ page


def test_the_page_links_every_cell_and_loads_nothing(run):
    page = (run / "report.html").read_text("utf-8")
    links = re.findall(r'href="([^"#]+)"', page)
    assert sorted(links) == sorted(
        f"cells/{c}/report.html"
        for c in ("eps8-r2", "eps8-r4", "epsinf-r2", "epsinf-r4")
    )
    assert all((run / link).is_file() for link in links)
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "NOT PRIVATE: the cells with epsilon inf (epsinf-r2, epsinf-r4)" in page


def test_names_and_reasons_are_text_and_never_markup(one_seed, tmp_path):
    run = Path(shutil.copytree(one_seed, tmp_path / "run"))
    evil = "<script>alert(1)</script>"
    edit(
        run / "grid.json",
        lambda v: (v.update(title=evil), v["cells"][1].update(reason=evil)),
    )
    page = render_grid(read_grid(run))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3


def test_a_failed_cell_is_shown_with_its_reason(one_seed):
    page = (one_seed / "report.html").read_text("utf-8")
    assert "ended by SIGKILL" in page
    assert 'href="cells/eps8-r4' not in page


def test_the_same_grid_gives_the_same_bytes_without_torch(run, tmp_path):
    out = tmp_path / "page.html"
    code = (
        "import sys; from secfed.report import write_run_report as w; w(*sys.argv[1:]);"
        "assert not {'torch', 'flwr', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, run, out], check=True)
    assert out.read_bytes() == (run / "report.html").read_bytes()
    assert write_run_report(run) == run / "report.html"


def test_a_signed_page_is_not_replaced_by_another(copied):
    edit(copied / "grid.json", lambda v: v.update(title="Another"))
    with pytest.raises(RunDirectoryError, match="draws the report differently"):
        write_run_report(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(format=2), "format is 2"),
        (lambda v: v.update(seeds="0"), "seeds is not a list"),
        (lambda v: v["cells"][0].update(rank="2"), "rank is not a number"),
        (lambda v: v["cells"][0].pop("rank"), "rank is not a whole number"),
        (lambda v: v["cells"][0].update(run="../.."), "leads out"),
    ],
)
def test_a_grid_file_that_is_not_one_is_refused(copied, change, words):
    edit(copied / "grid.json", change)
    with pytest.raises(RunDirectoryError, match=words):
        read_grid(copied)


def test_a_directory_that_is_no_grid_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="not a grid"):
        read_grid(tmp_path)


# ---------------------------------------------------------------------- charts


def test_charts_stand_where_an_axis_has_two_values(run, one_seed):
    charts = {chart.key: chart for chart in grid_charts(read_grid(run))}
    # The made-up rounds have no noise and the study no alpha.
    assert list(charts) == ["score-epsilon", "score-bytes"]
    score = charts["score-epsilon"]
    assert "2 panels" in score.description
    assert "t-intervals" in score.description
    assert len(score.rows) == 12
    for words in (">8<", ">inf<", "rank 2", "rank 4", "ffa-lora"):
        assert words in score.svg
    assert [chart.key for chart in grid_charts(read_grid(one_seed))] == ["score-bytes"]


def test_noise_is_drawn_per_round_and_against_the_rank(copied):
    def noisy(value):
        for arm in value["arms"]:
            for line in arm["rounds"][1:]:
                line["noise"] = {"measured": 2.0 * line["round"]}

    for cell in (copied / "cells").iterdir():
        edit(cell / "comparison.json", noisy)
    charts = {chart.key: chart for chart in grid_charts(read_grid(copied))}
    assert "noise-rank" in charts
    assert "noise-round" in charts
    assert ("epsilon 8, r 2", "fedavg", "1", "2") in charts["noise-round"].rows
    assert ("epsilon 8, r 2", "fedavg", "4") in charts["noise-rank"].rows
    assert "mathdefault" not in charts["noise-rank"].svg


def test_more_series_than_colours_still_differ():
    looks = [look(index) for index in range(2 * len(SERIES))]
    assert len({(entry.colour, entry.marker) for entry in looks}) == len(looks)
    assert looks[: len(SERIES)] == list(SERIES)


def test_markdown_has_a_line_for_every_cell_and_pair(run):
    text, grid = run_markdown(run), read_grid(run)
    lines = text.splitlines()
    for cell in grid.cells:
        assert any(line.startswith(f"| {cell.title} |") for line in lines)
    for row in difference_table(grid).rows:
        assert f"| {' | '.join(row)} |" in lines
    assert text.endswith(conclude_grid(grid) + "\n")
