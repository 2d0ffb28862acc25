"""The benchmark of noise energies judges what it measured, and says what is missing."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.amplification_runs import FIRST, METHODS, Result, RoundNoise
from benchmarks.amplification_tables import judge, tables
from benchmarks.output import to_markdown
from benchmarks.sections import Findings
from secfed.amplification import RULES
from secfed.study import load_study

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "amplification.md"


def a_round(number, ratio=1.0, **changes):
    values = {
        "number": number,
        "measured": 2.0 * ratio,
        "closed_form": 2.0,
        "expected": 4.0,
        "signal": 0.5,
        "quadratic_share": 0.25,
        "gap": 0.0,
        "moved": 3.0,
    }
    return RoundNoise(**(values | changes))


def a_result(method, late, **changes):
    early = [a_round(number, 9.0, **changes) for number in range(1, FIRST)]
    rounds = [a_round(number, late, **changes) for number in (FIRST, FIRST + 1)]
    return Result(method, (*early, *rounds))


def judged(*results):
    findings = Findings(lambda: None, lambda _what: None)
    judge(results, findings)
    return findings.goals


@pytest.mark.parametrize(
    ("method", "ratio", "met"),
    [
        ("ffa-lora", 1.09, True),
        ("ffa-lora", 0.91, True),
        ("ffa-lora", 1.11, False),
        ("ffa-lora", 0.89, False),
        ("fedavg", 1.49, True),
        ("fedavg", 0.67, True),
        ("fedavg", 1.51, False),
        ("fedavg", 0.66, False),
    ],
)
def test_goals_are_about_the_late_rounds_and_both_sides(method, ratio, met):
    (goal,) = judged(a_result(method, ratio))
    assert goal.met == met


def test_tables_add_up_the_late_rounds_and_never_invent_a_zero():
    missing = a_result("flexlora", 1.2, expected=None, quadratic_share=None)
    late, rounds = tables([a_result("fedavg", 1.1), missing])
    first, second = late.rows
    assert first["measured"] == pytest.approx(2 * 2.2)
    assert first["measured / closed form"] == pytest.approx(1.1)
    assert first["measured / study alone"] == pytest.approx(0.55)
    assert first["noise / signal"] == pytest.approx(4.4)
    assert first["quadratic %"] == pytest.approx(25)
    assert second["quadratic %"] == second["measured / study alone"] == "-"
    assert second["gap %"] == 0
    assert rounds.rows[0]["round 1"] == pytest.approx(9)
    assert len(rounds.rows[0]) == 1 + FIRST + 1


def test_a_short_run_is_judged_by_its_last_round():
    result = Result("ffa-lora", (a_round(1, 5.0), a_round(2, 1.0)))
    assert [one.number for one in result.late()] == [2]


def test_the_study_is_what_the_goals_ask_for():
    study = load_study(ROOT / "benchmarks" / "amplification.toml")
    assert study.training.rounds >= FIRST + 1
    assert len(study.sites) >= 4
    assert study.training.steps_per_round >= 4
    assert set(METHODS) <= study.training.learning_rate.keys() & RULES.keys()
    kinds = {RULES[method].two_factors for method in METHODS}
    assert kinds == {True, False}


def test_the_page_holds_the_figures_of_its_json():
    found = json.loads((PAGE.with_suffix(".json")).read_text("utf-8"))
    assert not found["quick"]
    assert to_markdown(found) in PAGE.read_text("utf-8")
    assert len(found["goals"]) == len(METHODS)
    late, rounds = found["sections"]
    for row, each in zip(late["rows"], rounds["rows"], strict=True):
        ratio = row["measured"] / row["closed form"]
        assert row["measured / closed form"] == pytest.approx(ratio)
        inside = [v for n, v in each.items() if n[6:].isdecimal() and int(n[6:]) > 9]
        assert min(inside) <= ratio <= max(inside) or math.isclose(ratio, inside[0])
    for axis in ("rank", "alpha", "sigma", "sites", "steps"):
        name = f"amplification-{axis}.svg"
        assert (PAGE.parent / name).read_text("utf-8").startswith("<svg")
        assert PAGE.read_text("utf-8").count(f"docs/{name}") == 1
