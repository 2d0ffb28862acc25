"""The benchmark of the coordinator's step runs, checks its results and writes them.

Nothing here asserts a speed: this machine may be busy.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import aggregation_means, aggregation_products, aggregation_widths
from benchmarks.aggregation_plans import FULL, QUICK, Study
from benchmarks.aggregation_run import Run, distance, site_factors, stacked
from benchmarks.output import to_markdown
from secfed.codec import Codec

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["means", "products", "sizes", "narrow", "rounding"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run: what it printed, and the directory it wrote to."""
    out = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.aggregation", "--quick"]
    for name in ("json", "markdown"):
        command += [f"--{name}", str(out / name)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return done, out


@pytest.fixture(scope="module")
def found(quick):
    return json.loads((quick[1] / "json").read_text())


def section(found, key):
    (one,) = [section for section in found["sections"] if section["key"] == key]
    return one


def numbers(cell):
    if isinstance(cell, dict):
        assert cell["q1"] <= cell["median"] <= cell["q3"]
        return [cell["median"]]
    return [] if isinstance(cell, str) else [cell]


def a_run():
    return Run(lambda: None, lambda _what: None, plan=QUICK)


@pytest.mark.slow
def test_every_section_has_rows_with_positive_numbers(found):
    assert [section["key"] for section in found["sections"]] == PARTS
    for one in found["sections"]:
        assert one["rows"], one["key"]
        for row in one["rows"]:
            for name, cell in row.items():
                for number in numbers(cell):
                    assert math.isfinite(number), (one["key"], name)
                    if name != "columns above ranks":
                        assert number > 0, (one["key"], name)


@pytest.mark.slow
def test_every_study_has_goals_for_time_and_bytes(found):
    names = [goal["name"] for goal in found["goals"]]
    for rule in ("fedavg", "ffa-lora"):
        assert f"{rule}: server step ({QUICK.means})" in names
    for study, _ in QUICK.products:
        for way in ("sketches, one sum", "narrow sketches, one sum, approximate"):
            assert f"{way}: bytes against dense ({study})" in names
            assert f"{way}: dense SVD's time over theirs ({study})" in names


@pytest.mark.slow
def test_a_goal_that_is_not_met_says_so(quick, found):
    # The sum of ranks fills the matrix here: sketches are twice as large as it.
    study = QUICK.products[1][0]
    name = f"sketches, one sum: bytes against dense ({study})"
    (goal,) = [goal for goal in found["goals"] if goal["name"] == name]
    assert goal["measured"] == 200
    assert not goal["met"]
    assert "NOT MET" in quick[0].stdout


@pytest.mark.slow
def test_results_were_checked_and_the_tables_written(quick, found):
    means = 2 * QUICK.repetitions
    products = 4 * sum(modules for _, modules in QUICK.products)
    narrow = 2 * (1 + len(QUICK.narrow_widths) + len(QUICK.more_widths))
    assert found["results_checked"] == means + products + narrow
    assert f"{found['results_checked']} results were compared" in quick[0].stdout
    assert (quick[1] / "markdown").read_text() == to_markdown(found)


@pytest.mark.slow
def test_sketches_are_as_near_as_the_dense_sum_and_two_sums_less_so(found):
    rows = section(found, "products")["rows"]
    for study, _ in QUICK.products:
        errors = {r["way"]: r["error"] for r in rows if r["sites"] == study.sites}
        dense = errors["dense, whole SVD"]
        assert errors["sketches, one sum"] == pytest.approx(dense, abs=1e-4)
        assert dense < errors["sketches, two sums"] < 4 * dense


@pytest.mark.slow
def test_rounding_costs_sketches_less_with_columns_to_spare(found):
    rows = section(found, "rounding")["rows"]
    few = QUICK.rounding[0].study.sites
    for bits in (24, 16):
        without, with_ = (
            row["median error"]
            for columns in (0, 8)
            for row in rows
            if (row["sites"], row["bits"]) == (few, bits)
            if row["columns above ranks"] == columns
        )
        assert with_ < without


def test_the_page_about_aggregation_is_what_its_json_says():
    measured = json.loads((ROOT / "docs/aggregation.json").read_text())
    page = (ROOT / "docs/aggregation.md").read_text()
    assert measured["quick"] is False
    assert f"<!-- {measured['mark']} -->\n\n{to_markdown(measured)}" in page


def test_bytes_are_those_of_the_published_table():
    # FedSVD (NeurIPS 2025), RoBERTa-large, rank 8: 786,432 numbers for the factors;
    # FedEx-LoRA 52,169,730 with factors and a head of 1,051,650: 48 dense modules.
    (sizes,) = aggregation_widths.sizes(
        Run(lambda: None, lambda _what: None, plan=FULL)
    )
    (row,) = [r for r in sizes.rows if (r["size"], r["sites"]) == (1024, 10)]
    assert row["factors"] == pytest.approx(4 * 786_432 / 1e6)
    dense = 52_169_730 - 786_432 - 1_051_650
    assert row["dense"] == pytest.approx(4 * dense / 1e6)
    assert row["sketches"] == pytest.approx(4 * 48 * 1024 * (88 + 96) / 1e6)
    assert "up to 14 sites" in sizes.note
    assert "up to 62." in sizes.note


def test_the_mean_of_products_is_that_of_the_sites():
    sites = site_factors(Study(3, 20), 0)
    mean = sum(one.b @ one.a for one in sites) / 3
    assert distance(stacked(sites), mean) < 1e-14
    assert distance(0.5 * mean, mean) == pytest.approx(0.5)


def test_a_wrong_mean_stops_the_benchmark(monkeypatch):
    honest = Codec.decode_mean

    def wrong(*args):
        mean = honest(*args)
        next(iter(mean.values()))[0, 0] += 1e-3
        return mean

    monkeypatch.setattr(Codec, "decode_mean", wrong)
    with pytest.raises(RuntimeError, match="fedavg: off by"):
        list(aggregation_means.means(a_run()))


@pytest.mark.parametrize("factor", [1.01, math.nan])
def test_a_wrong_product_stops_the_benchmark(monkeypatch, factor):
    honest = aggregation_products.from_sketches

    def wrong(*args, **kwargs):
        found = honest(*args, **kwargs)
        np.multiply(found.factors.b, factor, out=found.factors.b)
        return found

    monkeypatch.setattr(aggregation_products, "from_sketches", wrong)
    with pytest.raises(RuntimeError, match="sketches, one sum: off by"):
        list(aggregation_products.products(a_run()))
