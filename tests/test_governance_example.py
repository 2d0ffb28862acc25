"""The governance story's parts fit each other; `make demo-governance` tells it."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import click
import deeds
import half_noise
import numpy as np
import pytest
import steps
import story
import typer.main

from secfed.cli import app
from secfed.policy import SitePolicy, load_policy, verdicts
from secfed.privacy import accounting
from secfed.privacy.asked import plan_for
from secfed.privacy.noise import simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.study import Study, load_study

FOLDER = Path(__file__).parents[1] / "examples" / "governance"
UNITS = 400
FINGERPRINTS = {"anna": "1" * 64, "ben": "2" * 64}


def study_of(name: str) -> Study:
    return load_study(FOLDER / name)


def policy() -> SitePolicy:
    return load_policy(FOLDER / "site.toml")


def commands() -> Iterator[steps.Command]:
    for part in steps.PARTS:
        for step in part.steps:
            if isinstance(step, steps.Command):
                yield step


def refused(name: str) -> set[str]:
    """The rules against a study, but for the approvals that are read elsewhere."""
    found = verdicts(policy(), study_of(name), UNITS, without=("approval",))
    return {verdict.key for verdict in found if verdict.refusal}


# ------------------------------------------------------------------------ files


def test_the_policy_refuses_the_study_that_asks_too_much_and_no_other() -> None:
    assert policy().approvals == 2
    assert refused("study.toml") == refused("next.toml") == set()
    assert refused("too-much.toml") == {"max_epsilon", "allowed_methods"}


def test_the_studies_differ_in_what_their_first_lines_say() -> None:
    first = study_of("study.toml").canonical()
    for name, tables in (("next.toml", set()), ("too-much.toml", {"training"})):
        other = study_of(name).canonical()
        differing = {key for key in first if first[key] != other[key]}
        assert differing == {"study", "privacy"} | tables


def test_a_run_and_both_audits_fit_and_the_next_study_does_not() -> None:
    """What the story's refusals rest on, by the accountant."""
    first, following = study_of("study.toml"), study_of("next.toml")
    limit, delta = policy().max_epsilon, policy().delta
    spent = [plan_for(first, UNITS).round_event()] * first.training.rounds
    more = [plan_for(following, UNITS).round_event()] * following.training.rounds
    assert accounting.epsilon(spent * 3, delta) <= limit
    assert accounting.epsilon(more, delta) <= limit
    assert accounting.epsilon(spent + more, delta) > limit


# ------------------------------------------------------------------------ steps


def command_of(words: list[str]) -> click.Command:
    """The command that words behind ``secfed`` name."""
    found: click.Command = typer.main.get_command(app)
    context = click.Context(found)
    for word in words:
        if not isinstance(found, click.Group):
            return found
        # `secfed budget DIR` is `secfed budget show DIR`.
        named = found.get_command(context, word) or found.get_command(context, "show")
        assert named is not None, words
        found = named
    return found


def test_every_command_exists_with_its_options() -> None:
    lines = [shlex.split(command.line) for command in commands()]
    assert len(lines) > 25
    for program, *words in lines:
        assert program in {steps.SECFED, steps.FAULTY}
        options = {name for p in command_of(words).params for name in p.opts}
        assert {w for w in words if w.startswith("--")} <= options, words


def test_what_a_step_uses_was_printed_by_an_earlier_one() -> None:
    known: set[str] = set()
    for command in commands():
        for text in (command.line, command.typed):
            assert {n for _, n, _, _ in Formatter().parse(text) if n} <= known, text
        assert all(re.compile(p).groups == 1 for p in command.learns.values())
        known |= set(command.learns)
    assert known >= {"anna", "ben", "short", "coordinator", "ada", "bob"}


def test_the_story_tells_what_it_promises() -> None:
    ends = [(shlex.split(c.line)[:2], c.code) for c in commands()]
    assert ([steps.SECFED, "audit"], 0) in ends
    assert ([steps.FAULTY, "audit"], 3) in ends
    assert ([steps.SECFED, "resume"], 3) in ends
    assert [code for words, code in ends if words[1] == "verify"] == [0, 0, 3, 0]
    assert [code for words, code in ends if words[1] == "run"] == [4, 0]


# ------------------------------------------------------------------------ deeds


def test_records_a_row_more_and_the_operators(tmp_path: Path) -> None:
    for name in ("study.toml", "site.toml"):
        shutil.copy(FOLDER / name, tmp_path)
    said = [deeds.write_records(tmp_path, {}), deeds.add_row(tmp_path, {})]
    with (tmp_path / deeds.RECORDS).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    data = study_of("study.toml").data
    assert len(rows) == len({row["patient"] for row in rows}) == 2001
    assert {row["chapter"] for row in rows} == set(data.labels or ())
    assert {row["hospital"] for row in rows} == set(data.partition.sites)
    before, after = re.findall(r"SHA-256 (\w+)", said[1])
    assert before in said[0]
    assert before != after
    deeds.list_operators(tmp_path, FINGERPRINTS)
    assert set(load_policy(tmp_path / "site.toml").operators) == set(
        FINGERPRINTS.values()
    )


def test_a_flipped_byte_and_a_cut_ledger(tmp_path: Path) -> None:
    path = tmp_path / deeds.ADAPTER
    path.parent.mkdir()
    path.write_bytes(b"\x00\x10")
    assert "0x10 is 0x11 now" in deeds.flip_byte(tmp_path, {})
    assert path.read_bytes() == b"\x00\x11"
    deeds.flip_byte(tmp_path, {})
    assert path.read_bytes() == b"\x00\x10"
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "ledger.jsonl").write_bytes(b"1\n2\n3\n4\n5\n6\n")
    deeds.cut_ledger(tmp_path, {})
    assert (tmp_path / "rolled-back" / "ledger.jsonl").read_bytes() == b"1\n2\n3\n4\n"


def test_the_fault_halves_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivacyPlan, "noise", PrivacyPlan.noise)  # Put back later.
    plan = plan_for(study_of("study.toml"), UNITS)
    whole = plan.noise(simulation_stream(1, "a"), 50)
    half_noise.weaken(half_noise.FACTOR)
    half = plan.noise(simulation_stream(1, "a"), 50)
    np.testing.assert_array_equal(half, whole / 2)
    assert np.abs(whole).min() > 0


# --------------------------------------------------------------------- the teller


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": 3}, "ended with 0; 3 is expected"),
        ({"finds": ("never said",)}, "did not say 'never said'"),
        ({"learns": {"x": "(nowhere)"}}, "did not print"),
    ],
)
def test_a_step_that_does_not_behave_ends_the_story(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    healthy = steps.Command("secfed version", "The version.", learns={"v": r"(\d+)\."})
    if "code" in change:
        assert story.play(healthy, tmp_path, {}) == {"v": "0"}
    wrong = steps.Command(**{"line": "secfed version", "look": ""} | change)  # type: ignore[arg-type]
    with pytest.raises(story.StoryError, match=said):
        story.play(wrong, tmp_path, {})
