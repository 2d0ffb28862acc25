"""Hours, the stop file, recipients and the last day of a study."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from governed import policy_values, study_of

from secfed.errors import PolicyError, StudyError
from secfed.hours import parse_hours
from secfed.policy import SitePolicy, check, load_policy
from secfed.study.reading import checked

MONDAY = "2027-03-01"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def policy_with(**changes: Any) -> SitePolicy:
    return checked(SitePolicy, policy_values(**changes), "site.toml")


def passes(policy: SitePolicy, now: str, **tables: Any) -> bool:
    try:
        check(policy, study_of(**tables), 100, now=at(now))
    except PolicyError:
        return False
    return True


@pytest.mark.parametrize(
    ("span", "moment", "inside"),
    [
        ("mon 08:00-18:00", f"{MONDAY}T08:00", True),
        ("mon 08:00-18:00", f"{MONDAY}T17:59", True),
        ("mon 08:00-18:00", f"{MONDAY}T18:00", False),
        ("mon 08:00-18:00", "2027-03-02T12:00", False),
        ("fri-mon 20:00-06:00", "2027-03-02T05:59", True),  # Monday's night.
        ("fri-mon 20:00-06:00", "2027-03-02T20:00", False),
        ("tue-fri 20:00-06:00", f"{MONDAY}T05:00", False),
        ("mon-sun 00:00-24:00", f"{MONDAY}T23:59", True),
    ],
)
def test_hours(span: str, moment: str, inside: bool) -> None:
    assert parse_hours(span).hold(at(moment)) is inside
    assert passes(policy_with(hours=[span]), moment) is inside


def test_hours_are_of_the_named_zone_and_none_is_never() -> None:
    policy = policy_with(hours=["mon 08:00-09:00"], time_zone="Europe/Berlin")
    assert passes(policy, f"{MONDAY}T07:30")
    assert not passes(policy, f"{MONDAY}T08:30")
    assert not passes(policy_with(hours=[]), f"{MONDAY}T07:30")


@pytest.mark.parametrize(
    "span",
    [
        "",
        "mon",
        "mon 8:00-9:00",
        "mon 09:00-09:00",
        "xyz 09:00-10:00",
        "mon 24:00-25:00",
        "mon 09:60-10:00",
        "mon-  09:00-10:00",
        "Mon 09:00-10:00",
    ],
)
def test_malformed_hours_are_refused(span: str) -> None:
    with pytest.raises(StudyError, match="hours"):
        policy_with(hours=[span])


def test_a_zone_must_exist_and_belong_to_hours() -> None:
    with pytest.raises(StudyError, match="no time zone"):
        policy_with(hours=["mon 09:00-10:00"], time_zone="Europe/Atlantis")
    with pytest.raises(StudyError, match="belongs to hours"):
        policy_with(time_zone="UTC")


def test_the_stop_file_stops_and_whoever_cannot_look_is_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    policy = policy_with(stop_file=str(folder / "STOP"))
    assert passes(policy, f"{MONDAY}T12:00")
    (folder / "STOP").symlink_to("nowhere")
    assert not passes(policy, f"{MONDAY}T12:00")
    (folder / "STOP").unlink()
    assert passes(policy, f"{MONDAY}T12:00")
    folder.rmdir()  # As a share that is not mounted.
    assert not passes(policy, f"{MONDAY}T12:00")
    folder.write_text("a file where the folder was")
    assert not passes(policy, f"{MONDAY}T12:00")


def test_a_policy_file_always_has_a_stop_file(tmp_path: Path) -> None:
    from governed import write_policy  # noqa: PLC0415

    policy = load_policy(write_policy(tmp_path))
    check(policy, study_of(), 100)
    (tmp_path / "STOP").write_text("")
    with pytest.raises(PolicyError, match="stopped"):
        check(policy, study_of(), 100)


def test_the_last_day_and_recipients() -> None:
    last = {"study": {"expires": MONDAY}}
    assert passes(policy_with(), f"{MONDAY}T23:59", **last)
    assert not passes(policy_with(), "2027-03-02T00:00", **last)
    named = {"study": {"recipients": ["University"]}}
    assert not passes(policy_with(), MONDAY, **named)
    assert passes(policy_with(allowed_recipients=["University"]), MONDAY, **named)


@pytest.mark.parametrize(
    "own",
    [{"expires": day} for day in ("2027-3-1", "20270301", "2027-02-30", "soon", 1)]
    + [{"recipients": names} for names in ([], ["a", "a"], "a")],
)
def test_a_malformed_last_day_or_recipient_is_refused(own: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"study\."):
        study_of(study=own)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"approvals": 0}, "approvals"),
        ({"approvals": 2}, "operators"),
        ({"approvals": 2, "operators": ["ab" * 32]}, "operators"),
        ({"approvals": 2, "operators": ["ab" * 32] * 2}, "operators"),
        ({"operators": ["ab"]}, "operators"),
        ({"approval_days": 0}, "approval_days"),
        ({"exceptions": ["semi-honest"]}, "exceptions"),
        ({"stop_file": ""}, "stop_file"),
    ],
)
def test_malformed_approval_rules_are_refused(
    changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(StudyError, match=key):
        policy_with(**changes)


def test_new_keys_change_no_digest_of_studies_without_them() -> None:
    own = study_of().canonical()["study"]
    assert own.keys() == {"name", "title"}
