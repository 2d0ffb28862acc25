"""The benchmark of local training runs, compares like with like, and checks it.

Nothing here asserts a speed: this machine may be busy.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.output import to_markdown
from benchmarks.sections import Section
from benchmarks.training_causal import causal, random_tokens
from benchmarks.training_checks import check
from benchmarks.training_gpu import on_device
from benchmarks.training_plans import QUICK, Case, Shape, Size
from benchmarks.training_run import Run
from benchmarks.training_systems import (
    Batches,
    Opacus,
    Plain,
    SecfedPlain,
    SecfedPrivate,
    Work,
    require_same,
)
from secfed.privacy.plan import PrivacyPlan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TINY = Case(
    "causal",
    "fedavg",
    1,
    Size(records=24, batch=6, steps=2, repetitions=2, max_length=12),
    Shape(hidden=16, layers=2, heads=2, vocabulary=40),
)


def build(case=TINY, *, exact=False, **changes):
    return replace(causal(case, random_tokens, exact=exact), **changes)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run: what it printed, and the directory it wrote to."""
    out = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.training", "--quick"]
    for name in ("json", "markdown"):
        command += [f"--{name}", str(out / name)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    return done, out


@pytest.fixture(scope="module")
def found(quick):
    return json.loads((quick[1] / "json").read_text())


def numbers(cell):
    if isinstance(cell, dict):
        assert cell["q1"] <= cell["median"] <= cell["q3"]
        return [cell["median"]]
    return [] if isinstance(cell, str) else [cell]


def test_every_section_has_rows_with_positive_numbers(found):
    sections = {section["key"]: section for section in found["sections"]}
    assert sections.keys() >= {"time", "ratios", "work", "gradients", "memory"}
    for key, section in sections.items():
        assert section["rows"], key
        for row in section["rows"]:
            for name, cell in row.items():
                for number in numbers(cell):
                    assert math.isfinite(number), (key, name)
                    assert number > 0, (key, name)


def test_every_case_has_goals_for_time_and_memory(found):
    names = [goal["name"] for goal in found["goals"]]
    for case in QUICK.time:
        assert f"time, secfed / plain ({case})" in names
        assert f"time, secfed / secfed without privacy ({case})" in names
    for case in QUICK.memory:
        assert f"memory, secfed / plain ({case})" in names


def test_all_rounds_were_checked_and_said_so(quick, found):
    # 5 systems in 2 turns and the gradients of each case, and 2 processes.
    assert found["rounds_checked"] >= len(QUICK.time) * 11 + 2
    assert f"{found['rounds_checked']} rounds were checked" in quick[0].stdout
    assert quick[0].stderr.count("gradients: ") == len(QUICK.time)


def test_the_tables_are_written(quick, found):
    assert (quick[1] / "markdown").read_text() == to_markdown(found)


def test_the_page_about_performance_is_what_its_json_says():
    measured = json.loads((ROOT / "docs/performance-training.json").read_text())
    page = (ROOT / "docs/performance.md").read_text()
    assert measured["quick"] is False
    assert f"<!-- {measured['mark']} -->\n\n{to_markdown(measured)}" in page


def test_all_ways_to_train_do_the_same_work_on_the_same_tokens():
    subject = build()
    batches = Batches(TINY.size, seed=3)
    records = subject.encode()
    works = {
        "plain": Plain(subject)(batches),
        "Opacus": Opacus(subject)(batches),
        "private": SecfedPrivate(subject, records)(batches),
        "ours": SecfedPlain(subject, records)(batches),
    }
    require_same(works)
    rows = batches.rows()
    assert len(rows) == TINY.size.steps == works["private"].steps
    assert works["plain"].examples == sum(map(len, rows)) > 0
    lengths = [len(example["input_ids"]) for example in subject.examples]
    assert works["Opacus"].tokens == sum(lengths[i] for step in rows for i in step)


def test_batches_are_drawn_by_the_seed_and_without_replacement():
    rows = Batches(TINY.size, seed=3).rows()
    assert rows == Batches(TINY.size, seed=3).rows()
    assert rows != Batches(TINY.size, seed=4).rows()
    assert all(len(set(step)) == len(step) for step in rows)


@pytest.mark.parametrize("field", ["steps", "examples", "tokens"])
def test_other_work_stops_the_benchmark(field):
    works = {"one": Work(2, 10, 100, 120), "two": Work(2, 10, 100, 200)}
    require_same(works)  # padding may differ
    setattr(works["two"], field, getattr(works["two"], field) + 1)
    with pytest.raises(RuntimeError, match="not the same work"):
        require_same(works)


def test_gradients_agree_and_are_clipped_and_noised():
    found = check(build, TINY, 6)
    assert max(found.opacus, found.secfed, found.clipped) < 1e-4
    assert found.shortened < 0.5
    assert found.noise == pytest.approx(1, abs=0.2)


def test_another_loss_stops_the_benchmark():
    def scaled(*batch):
        return 1.01 * build().loss(*batch)

    with pytest.raises(RuntimeError, match="not the same gradients"):
        check(partial(build, loss=scaled), TINY, 6)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_other_noise_stops_the_benchmark(monkeypatch, factor):
    honest = PrivacyPlan.noise
    monkeypatch.setattr(PrivacyPlan, "noise", lambda *args: factor * honest(*args))
    with pytest.raises(RuntimeError, match="not the planned noise"):
        check(build, TINY, 6)


def test_clipping_that_does_nothing_stops_the_benchmark(monkeypatch):
    # Neither side clips: then they agree, and only the length tells.
    monkeypatch.setattr("benchmarks.training_checks._TIGHT", 1e6)
    with pytest.raises(RuntimeError, match="nothing was clipped"):
        check(build, TINY, 6)


def test_the_comparison_for_a_gpu_runs_on_any_device():
    run = Run(lambda: None, lambda _what: None, plan=QUICK)
    section = on_device(run, TINY, "cpu")
    assert isinstance(section, Section)
    assert [row["system"] for row in section.rows] == [
        "plain",
        "Opacus",
        "secfed",
        "secfed, no privacy",
    ]
    assert all(row["tokens per second"]["median"] > 0 for row in section.rows)
    assert run.rounds_checked == 4 * TINY.size.repetitions
    assert "at most 12" in section.note
