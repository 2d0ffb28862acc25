"""The formal model of docs/formal: what its page says is what the checker finds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "docs" / "formal" / "secure_sum.pml"
PAGE = ROOT / "docs" / "formal" / "README.md"

GOALS = {"secrecy", "agreement", "minimum", "whole", "opens"}
SIZES = {"adversary": ((3, 2, 0), (4, 3, 0), (4, 3, 1)), "fair": ((3, 2, 0), (4, 3, 0))}

needs_spin = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")),
    reason="needs the Spin model checker and gcc (Debian: apt-get install spin gcc)",
)


def flags(size, server, *macros):
    values = [f"-D{name}={value}" for name, value in zip("NTC", size, strict=True)]
    fair = ["-DFAIR_SERVER"] if server == "fair" else []
    return values + fair + [f"-D{macro}" for macro in macros]


def translate(folder, options):
    """Let Spin write the C program that searches the states."""
    return subprocess.run(
        ["spin", "-a", *options, str(MODEL)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def broken_goals(folder, options):
    """The goals that some reachable state breaks; every state is visited."""
    translated = translate(folder, options)
    assert translated.returncode == 0, translated.stdout + translated.stderr
    build = ["gcc", "-O0", "-w", "-DSAFETY", "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=folder, check=True)
    search = ["./pan", "-E", "-c0", "-m100000"]
    output = subprocess.run(
        search, cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"Full statespace search", output), output
    for sign in ("Search not completed", "max search depth", "out of memory"):
        assert sign not in output
    found = set(re.findall(r"assertion violated (\w+)", output))
    assert bool(found) == ("errors: 0" not in output), output
    return found


def mutations():
    """The rows of the page's table: macro, rules, size, server, broken goals."""
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| (\d), (\d), (\d) \| (\w+) \| ([^|]+) \|",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [
        (macro, rules, (int(n), int(t), int(c)), server, goals.strip())
        for macro, rules, n, t, c, server, goals in rows
    ]


def rules_in(text):
    return set(re.findall(r"SA-\d{3}", text))


# The words


def test_rules_named_in_the_model_exist():
    sources = (ROOT / "protocols").rglob("*.py")
    known = set().union(*(rules_in(path.read_text("utf-8")) for path in sources))
    for document in (MODEL, PAGE):
        named = rules_in(document.read_text(encoding="utf-8"))
        assert len(named) > 10
        assert named <= known, document


def test_the_page_lists_every_mutation_of_the_model():
    text = MODEL.read_text(encoding="utf-8")
    switches = set(re.findall(r"^#ifn?def (\w{2,})", text, re.MULTILINE))
    modes = {"FAIR_SERVER", "LIES_IN_PHASE_3_ONLY", "ONLY_MINIMUM", "NOTHING_OPENS"}
    assert switches - modes == {row[0] for row in mutations()} - {"WEAK_THRESHOLD"}
    assert len(mutations()) >= 13
    for _, rules, _, server, goals in mutations():
        assert rules_in(rules)
        assert server in SIZES
        assert goals == "none" or set(goals.split(", ")) <= GOALS


# The checker


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "size"), [(server, size) for server in SIZES for size in SIZES[server]]
)
def test_no_reachable_state_breaks_a_goal(server, size, tmp_path):
    assert broken_goals(tmp_path, flags(size, server)) == set()


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 2, 0), (4, 3, 1)])
def test_sums_do_get_opened(size, tmp_path):
    options = flags(size, "adversary", "NOTHING_OPENS")
    assert broken_goals(tmp_path, options) == {"nothing"}


@needs_spin
@pytest.mark.slow
@pytest.mark.parametrize(
    ("macro", "size", "server", "goals"),
    [(macro, *rest) for macro, _, *rest in mutations()],
)
def test_the_checker_finds_what_a_missing_rule_allows(
    macro, size, server, goals, tmp_path
):
    expected = set() if goals == "none" else set(goals.split(", "))
    assert broken_goals(tmp_path, flags(size, server, macro)) == expected


@needs_spin
def test_an_unsafe_threshold_is_refused(tmp_path):
    refused = translate(tmp_path, flags((4, 2, 1), "adversary"))
    assert refused.returncode != 0
    assert "2 t > n + |C| does not hold" in refused.stdout + refused.stderr
