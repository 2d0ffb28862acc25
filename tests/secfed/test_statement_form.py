"""The form of a statement: every section there, UNKNOWN said, nothing else let in."""

from __future__ import annotations

import copy
from typing import Any

import evidence
import pytest

from secfed.errors import VerificationError
from secfed.statement import UNKNOWN, StatementContext, build_statement
from secfed.statement.form import check_form, packaged_schema, statement_schema


def statement(private: bool = True, unit: Any = "record", **context: Any) -> dict:
    study = evidence.make_study(unit=unit)
    plan, rounds = (
        evidence.plan_entry(private, unit),
        evidence.round_entries(private, unit),
    )
    return build_statement(study.canonical(), plan, rounds, StatementContext(**context))


@pytest.mark.parametrize(
    ("private", "unit"), [(True, "record"), (False, "record"), (True, "site")]
)
def test_statements_have_the_form(private: bool, unit: str) -> None:
    check_form(statement(private, unit))


def test_the_packaged_schema_is_that_of_the_types() -> None:
    assert packaged_schema() == statement_schema()


def test_what_nobody_knows_is_said() -> None:
    said = statement()
    for name in ("self_test", "empirical_lower_bound", "provenance"):
        assert said[name] == UNKNOWN
    assert said["composition"]["tuning"] == UNKNOWN
    assert set(said["composition"]["earlier_studies"].values()) == {UNKNOWN}
    known = statement(self_test={"independence": "passed"})
    check_form(known)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every key of every object; texts and numbers in lists are left out."""
    if isinstance(value, list):
        return [p for i, one in enumerate(value) for p in places(one, (*path, i))]
    if not isinstance(value, dict):
        return []
    deeper = [p for key, one in value.items() for p in places(one, (*path, key))]
    return [*((*path, key) for key in value), *deeper]


OPEN = ({"sites", "north"}, {"sites", "south"}, {"sites", "west"})
"""Whether all sites are there, the ledger says and not the form."""


def test_no_field_may_be_missing() -> None:
    said = statement()
    tried = 0
    for path in places(said):
        if set(path) in OPEN or "earlier_studies" in path[1:] or path[-1] == "assumed":
            continue
        changed = copy.deepcopy(said)
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with pytest.raises(VerificationError, match=r"statement\.json: "):
            check_form(changed)
        tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("guarantee", "delta", "1e-5"),
        ("guarantee", "unit", "row"),
        ("guarantee", "more", "text"),
        ("execution", "verdict", "perfectly private"),
        ("across_sites", "epsilon", -1.0),
        ("study", "digest", "00"),
        ("composition", "tuning", None),
    ],
)
def test_values_of_another_type_are_refused(section: str, key: str, value: Any) -> None:
    said = statement()
    said[section][key] = value
    with pytest.raises(VerificationError, match=rf"{section}\.{key}"):
        check_form(said)


def test_an_empty_value_is_not_unknown() -> None:
    for value in (None, "", "unknown", "n/a"):
        with pytest.raises(VerificationError, match="self_test"):
            check_form(statement() | {"self_test": value})
