"""The benchmark of the secure sum runs, checks its sums and writes what it says.

Nothing here asserts a speed: this machine may be busy.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import Case, is_playable
from benchmarks.inputs import dropped
from benchmarks.measure import Timing, exponent
from benchmarks.output import figures, to_markdown, write_markdown
from benchmarks.plans import QUICK
from benchmarks.secagg_session import play
from protocols.ring import RingVector

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    "machine",
    "masking",
    "clients",
    "server",
    "ratios",
    "suites",
    "memory",
    "growth",
    "large",
    "recovery",
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run: what it printed, and the directory it wrote to."""
    out = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.secagg", "--quick"]
    for name in ("json", "chart", "markdown"):
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
    return [cell] if isinstance(cell, (int, float)) else []


def test_every_section_has_rows_with_positive_numbers(found):
    sections = {section["key"]: section for section in found["sections"]}
    assert sections.keys() >= SECTIONS
    for key, section in sections.items():
        assert section["rows"], key
        for row in section["rows"]:
            for name, cell in row.items():
                for number in numbers(cell):
                    assert math.isfinite(number), (key, name)
                    if name not in {"dropouts percent", "exponent", "per dropout ms"}:
                        assert number > 0, (key, name)


def test_all_sums_were_checked(quick, found):
    # A session that gives a wrong sum raises, and the exit code is not zero.
    assert found["sums_checked"] > 15
    assert f"{found['sums_checked']} sums were checked" in quick[0].stdout


def test_both_systems_are_compared_on_the_same_sizes(found):
    (clients,) = [s for s in found["sections"] if s["key"] == "clients"]
    sizes = {
        system: {
            (row["clients"], row["parameters"])
            for row in clients["rows"]
            if row["system"] == system
        }
        for system in ("flwr", "secfed")
    }
    assert sizes["flwr"] == sizes["secfed"] != set()


def test_what_is_left_out_is_what_this_version_does_not_know(found):
    for case in (*QUICK.masking, *(case for case, _ in QUICK.large)):
        unknown = f"not in this version of the protocol: {case}"
        assert (unknown in found["left_out"]) != is_playable(case)


def test_the_chart_and_the_tables_are_written(quick, found):
    _, out = quick
    assert "<svg" in (out / "chart").read_text()
    assert (out / "markdown").read_text() == to_markdown(found)


def test_progress_is_shown(quick):
    assert quick[0].stderr.count("secfed,") > 5


def test_markdown_is_put_between_the_marks_of_a_document(found, tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("a\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nb\n")
    write_markdown(found, document)
    write_markdown(found, document)
    text = document.read_text()
    assert text.startswith("a\n<!-- benchmark -->\n\nMachine: ")
    assert text.endswith("all were right.\n\n<!-- /benchmark -->\nb\n")
    assert "old" not in text


def test_the_page_about_performance_is_what_its_json_says():
    measured = json.loads((ROOT / "docs/performance.json").read_text())
    assert to_markdown(measured) in (ROOT / "docs/performance.md").read_text()
    assert measured["quick"] is False


def test_a_wrong_sum_stops_the_benchmark():
    def counted(client, like):
        # A source that does not repeat itself: the check sees another vector.
        vector = RingVector(like.body + like.body.dtype.type(client), like.lane)
        seen.append(vector)
        return vector

    seen: list[RingVector] = []

    def spoil():
        # Called after each step of a client: change the last vector in place.
        if seen:
            seen[-1].body[0] += 1

    with pytest.raises(RuntimeError, match="wrong sum"):
        play(Case(4, 10), tick=spoil, vectors=counted)


def test_dropouts_are_as_many_as_asked_and_leave_enough():
    names = [str(i) for i in range(100)]
    assert [len(dropped(names, percent)) for percent in (0, 5, 30)] == [0, 5, 30]
    assert dropped(names[:10], 5) == frozenset()


def test_exponents_and_quartiles_are_right():
    assert exponent([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    assert exponent([2, 4, 8], [4, 16, 64]) == pytest.approx(2)
    timing = Timing.of([4, 1, 2, 3, 5]).to_json()
    assert timing == {"median": 3, "q1": 2, "q3": 4, "repetitions": 5}
    assert Timing.of([6, 8]).over(Timing.of([2, 4])).values == (3, 2)


def test_figures_are_three_and_have_no_exponent():
    shown = [figures(value) for value in (0.04567, 1.0, 12.345, 99.99, 12345.6)]
    assert shown == ["0.0457", "1.00", "12.3", "100", "12,346"]
