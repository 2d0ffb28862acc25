"""The release gate: what a request needs, whose approvals count, what is in a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import evidence
import numpy as np
import pytest
import released
from huggingface_hub import ModelCard
from released import ADA, BOB, audit, refuted
from safetensors.numpy import save

from secfed.errors import PolicyError, RunDirectoryError, VerificationError
from secfed.gate.attack import read_attack_report
from secfed.gate.candidate import make_request, run_contributions
from secfed.gate.contributions import size_bucket
from secfed.gate.documents import Approval, Request
from secfed.gate.requirements import REQUIREMENTS, Requirement, check_requirements
from secfed.gate.sealing import approve, make_bundle
from secfed.gate.verification import examine, look_at, verify_release
from secfed.signing import CoordinatorKey
from secfed.verify import VerificationReport
from secfed.verify.checks import Checklist

TRUST = evidence.KEY.fingerprint()
PEOPLE = (ADA.fingerprint(), BOB.fingerprint())
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "attack_report.json",
    "contributions.json",
    "evidence/ledger.checkpoint",
    "evidence/ledger.jsonl",
    "evidence/manifest.json",
    "evidence/metrics.jsonl",
    "evidence/study.json",
    "release.json",
    "request.json",
    "statement.html",
    "statement.json",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released.write_run(tmp_path_factory.mktemp("gate") / "run")


@pytest.fixture(scope="module")
def original(run: Path) -> Path:
    make_request(released.ask(run, run.parent / "original", audit()))
    return run.parent / "original"


@pytest.fixture
def candidate(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "candidate"))


def failed(report: VerificationReport) -> dict[str, str]:
    return {check.name: check.reason for check in report.failures()}


def request_of(folder: Path) -> Request:
    return Request.read((folder / "request.json").read_bytes(), "request.json")


# A whole release


def test_two_people_release_what_a_request_asked_for(
    candidate: Path, tmp_path: Path
) -> None:
    before = look_at(candidate)
    assert before.kind == "candidate"
    assert (
        "a candidate that nobody released"
        in failed(verify_release(candidate))["release"]
    )
    assert failed(before) == {"approvals": "0 of 2 people approved (approvals/)"}
    released.approve_twice(candidate)
    out = tmp_path / "release"
    made = make_bundle(candidate, evidence.KEY, out, PEOPLE)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    people = {name for name in names if name.startswith("approvals/")}
    assert (names - people, len(people)) == (FILES, 2)
    assert made.files.keys() == names - {"release.json"}
    report = verify_release(out, TRUST, PEOPLE)
    assert report.passed, failed(report)
    assert (report.kind, report.pinned) == ("release", True)
    numbers = [check.number for check in report.checks]
    assert numbers == list(range(1, len(numbers) + 1))
    said = {check.name: check.reason for check in report.checks}
    assert said["approvals"].startswith("PINNED: Ada (DPO), key")
    assert not verify_release(out, released.ADA.fingerprint()).passed


def test_the_card_shows_what_each_subgroup_gets(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "By subgroup: UNKNOWN" in (original / "README.md").read_text("utf-8")
    lines = evidence.metrics_lines()
    lines[-1]["by_category"] = {"65 | over": {"accuracy": 0.25}, "under": {"f1": 0.75}}
    monkeypatch.setattr(evidence, "metrics_lines", lambda *_args: lines)
    card = (released.write_candidate(tmp_path) / "README.md").read_text("utf-8")
    assert "| 65 \\| over | accuracy 0.25 |\n| under | f1 0.75 |\n" in card


def test_the_card_is_one_that_the_hub_reads(original: Path) -> None:
    text = (original / "README.md").read_text("utf-8")
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "someone/some-encoder"
    assert (data["library_name"], data["license"]) == ("peft", "unknown")
    assert {"lora", "differential-privacy", "federated-learning"} <= set(data["tags"])
    figures = data["secfed"]
    statement = json.loads((original / "statement.json").read_bytes())
    assert figures["epsilon"] == statement["sites"]["north"]["epsilon"]
    assert figures["epsilon_across_sites"] == statement["across_sites"]["epsilon"]
    assert (figures["sites"], figures["rounds"], figures["unit"]) == (3, 2, "record")
    for part in (
        "Not protected",
        "Intended use",
        "Evaluation",
        "accuracy | 0.8",
        "clip 1.0",
    ):
        assert part in text
    assert "tuning | UNKNOWN" in text


def test_the_page_needs_nothing_and_leaves_nothing_out(original: Path) -> None:
    text = (original / "statement.html").read_text("utf-8")
    assert "default-src 'none'" in text
    for mark in ("http://", "https://", "<script", "<link", "<img", "url("):
        assert mark not in text
    statement = json.loads((original / "statement.json").read_bytes())
    for name in ("self_test", "empirical_lower_bound", "provenance"):
        assert f'name">{name}</th><td>UNKNOWN</td>' in text
    for hazard in statement["hazards"]:
        assert hazard.replace("'", "&#39;") in text


def test_texts_of_others_are_no_markup(run: Path, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\n# [a](http://b) `c`"
    card = released.CARD.model_copy(update={"intended_use": bad})
    report = audit()
    report["findings"][1]["text"] = bad
    make_request(released.ask(run, tmp_path / "c", report, card=card))
    for name in ("README.md", "statement.html"):
        text = (tmp_path / "c" / name).read_text("utf-8")
        assert "<script" not in text
    assert "\n# [a]" not in (tmp_path / "c" / "README.md").read_text("utf-8")


# What a request needs


def with_p(value: float) -> dict[str, Any]:
    report = audit()
    report["findings"][1]["values"]["p"] = value
    return report


def only_conformance() -> dict[str, Any]:
    report = audit()
    report["findings"] = report["findings"][:1]
    return report


WAIVABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "no attack report"),
    "refuted": (lambda: refuted(audit()), "REFUTED"),
    "refuted at 1 %, whatever its own level": (lambda: with_p(0.009), "REFUTED"),
    "nobody attacked": (only_conformance, "holds no attack"),
}


@pytest.mark.parametrize("name", WAIVABLE)
def test_without_a_good_attack_report_a_request_needs_a_waiver(
    name: str, run: Path, tmp_path: Path
) -> None:
    make, words = WAIVABLE[name]
    out = tmp_path / "c"
    with pytest.raises(PolicyError, match=words):
        make_request(released.ask(run, out, make()))
    assert not out.exists()
    made = make_request(
        released.ask(run, out, make(), reason="A pilot: nobody uses it.")
    )
    assert made.waived == ("attack report",)
    said = {check.name: check for check in look_at(out).checks}["attack report"]
    assert said.passed
    assert said.reason.startswith("WAIVED: ")
    for page in ("README.md", "statement.html"):
        text = (out / page).read_text("utf-8")
        assert "WAIVED: attack report" in text
        assert "A pilot: nobody uses it." in text
        assert ("REFUTED: an audit refuted this claim" in text) == (words == "REFUTED")
    data = ModelCard((out / "README.md").read_text("utf-8")).data.to_dict()["secfed"]
    assert data["waived"] == ["attack report"]
    assert data["private"] == (words != "REFUTED")


def test_a_run_that_is_not_private_needs_a_waiver(tmp_path: Path) -> None:
    run = released.write_run(tmp_path / "run", seed=7)
    report = audit(evidence.make_study(7))
    with pytest.raises(PolicyError, match="NOT PRIVATE"):
        make_request(released.ask(run, tmp_path / "c", report))
    made = make_request(
        released.ask(run, tmp_path / "c", report, reason="Invented data.")
    )
    assert made.waived == ("privacy",)
    text = (tmp_path / "c" / "README.md").read_text("utf-8")
    assert "**NOT PRIVATE" in text
    assert "differential-privacy" not in text


def test_a_reason_without_need_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="nothing to --waive"):
        make_request(released.ask(run, tmp_path / "c", audit(), reason="Why not"))


FOREIGN: dict[str, dict[str, Any]] = {
    "another study": {"study_digest": "ab" * 32},
    "noise_multiplier": {"noise_multiplier": 2.0},
    "sampling_probability": {"sampling_probability": 0.01},
    "claimed_epsilon": {"claimed_epsilon": 7.9},
    "unit": {"unit": "person"},
    "no plan": {"site": "elsewhere"},
    "more rounds": {"rounds": 30},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_report_is_refused_whatever_the_reason(
    name: str, run: Path, tmp_path: Path
) -> None:
    asked = released.ask(run, tmp_path / "c", audit(**FOREIGN[name]), reason="Please")
    with pytest.raises(VerificationError, match=name):
        make_request(asked)
    assert not (tmp_path / "c").exists()


def test_a_report_that_contradicts_itself_is_none() -> None:
    for change in ({"refuted": True}, {"format": 2}, {"more": 1}, {"kind": "release"}):
        with pytest.raises(VerificationError, match="attack report: "):
            read_attack_report(json.dumps(audit() | change).encode())
    with pytest.raises(VerificationError, match="attack report: "):
        read_attack_report(b"[]")


def test_only_a_run_that_verifies_is_released(run: Path, tmp_path: Path) -> None:
    other = replace(released.ask(run, tmp_path / "c", audit()), key=evidence.OTHER_KEY)
    with pytest.raises(RunDirectoryError, match="not the one that signed"):
        make_request(other)
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "statement.json").write_bytes(b"{}")
    with pytest.raises(VerificationError, match="does not verify"):
        make_request(released.ask(broken, tmp_path / "c", audit()))
    with pytest.raises(RunDirectoryError, match="exists"):
        make_request(released.ask(run, run, audit()))


BAD_ADAPTERS: dict[str, bytes] = {
    "not safetensors": b"\x80\x04pickle",
    "not finite": released.adapter(value=np.nan),
    "not of rank": released.adapter(rank=3),
    "unexpected metadata": save({"a": np.zeros(2, np.float32)}, metadata={"x": "y"}),
    "holds nothing": save({}, metadata={"format": "pt"}),
}


@pytest.mark.parametrize("words", BAD_ADAPTERS)
def test_adapters_that_are_not_what_they_say(words: str, tmp_path: Path) -> None:
    """The ledger records them, so that only their content speaks against them."""
    run = released.write_run(tmp_path / "run", adapter=BAD_ADAPTERS[words])
    make_request(released.ask(run, tmp_path / "c", audit()))
    report = look_at(tmp_path / "c")
    assert words in failed(report)["adapter"]
    with pytest.raises(VerificationError, match=words):
        approve(tmp_path / "c", ADA, "Ada", "DPO")


def test_settings_that_name_code_are_refused(tmp_path: Path) -> None:
    config = released.CONFIG | {"auto_mapping": {"parent_library": "os"}}
    run = released.write_run(tmp_path / "run", config=json.dumps(config).encode())
    make_request(released.ask(run, tmp_path / "c", audit()))
    assert "auto_mapping" in failed(look_at(tmp_path / "c"))["adapter"]


# Whose approvals count


def test_one_person_is_not_two(candidate: Path, tmp_path: Path) -> None:
    approve(candidate, ADA, "Ada", "DPO")
    for key, name in ((ADA, "Ada"), (ADA, "Bob"), (BOB, " ADA ")):
        with pytest.raises(PolicyError, match="Ada approved this already"):
            approve(candidate, key, name, "DPO")
    with pytest.raises(PolicyError, match="coordinator's own key"):
        approve(candidate, evidence.KEY, "Cy", "Coordinator")
    with pytest.raises(PolicyError, match="1 of 2 people"):
        make_bundle(candidate, evidence.KEY, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def put(folder: Path, approval: Approval, name: str | None = None) -> None:
    path = folder / "approvals" / (name or approval.file_name())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(approval.to_bytes())


def signed(folder: Path, key: CoordinatorKey, name: str, **changes: Any) -> Approval:
    fields = {
        "time": evidence.TIME,
        "request_digest": request_of(folder).digest(),
        "name": name,
        "role": "DPO",
    }
    return Approval.signed(key, **(fields | changes))


def test_approvals_that_do_not_count(candidate: Path) -> None:
    """Written past the command, as a coordinator could."""

    def why() -> str:
        found = failed(look_at(candidate))
        shutil.rmtree(candidate / "approvals")
        return found.get("approvals", "") + found.get("signatures of approvals", "")

    put(candidate, signed(candidate, ADA, "Ada"))
    put(candidate, signed(candidate, BOB, "ada"))
    assert "1 of 2 people" in why()
    put(candidate, signed(candidate, ADA, "Ada"))
    put(candidate, signed(candidate, evidence.KEY, "Cy"))
    assert "the coordinator's own key" in why()
    put(candidate, signed(candidate, ADA, "Ada", request_digest="ab" * 32))
    assert "approves another request" in why()
    put(candidate, signed(candidate, ADA, "Ada"), "other.json")
    assert "not the name of its key" in why()
    forged = signed(candidate, ADA, "Ada").model_copy(update={"name": "Eve"})
    put(candidate, forged)
    assert "not valid for this key" in why()


def test_pinned_people_are_the_only_ones_that_count(
    candidate: Path, tmp_path: Path
) -> None:
    released.approve_twice(candidate)
    stranger = CoordinatorKey(b"\x0c" * 32).fingerprint()
    with pytest.raises(PolicyError, match="1 of 2 pinned people"):
        make_bundle(candidate, evidence.KEY, tmp_path / "r", (PEOPLE[0], stranger))
    with pytest.raises(RunDirectoryError, match="not the key that signed"):
        make_bundle(candidate, evidence.OTHER_KEY, tmp_path / "r")
    with pytest.raises(ValueError, match="64 hexadecimal"):
        verify_release(candidate, None, ["ab"])


def test_a_changed_candidate_is_not_approved(candidate: Path) -> None:
    path = candidate / "README.md"
    path.write_text(path.read_text("utf-8").replace("1.48", "0.48"), "utf-8")
    with pytest.raises(VerificationError, match=r"README\.md: changed"):
        approve(candidate, ADA, "Ada", "DPO")
    assert not (candidate / "approvals").exists()


def test_a_request_may_ask_for_more_people_but_not_for_fewer(
    run: Path, tmp_path: Path
) -> None:
    make_request(released.ask(run, tmp_path / "c", audit(), approvals_needed=3))
    released.approve_twice(tmp_path / "c")
    assert "2 of 3 people" in failed(look_at(tmp_path / "c"))["approvals"]
    with pytest.raises(ValueError, match="approvals_needed"):
        make_request(released.ask(run, tmp_path / "d", audit(), approvals_needed=1))


# The seam: another requirement is one more small function


def test_a_requirement_that_is_added_is_asked(candidate: Path) -> None:
    def no_witness(_: object) -> str:
        raise VerificationError("0 of 2 witnesses")

    more = (*REQUIREMENTS[:-1], Requirement("witnesses", no_witness), REQUIREMENTS[-1])
    checklist = Checklist()
    found = examine(candidate, checklist)
    assert found is not None
    again = Checklist()
    check_requirements(found, again, more)
    assert [c.reason for c in again.done if c.name == "witnesses"] == [
        "0 of 2 witnesses"
    ]


# Contributions


def test_contributions_are_those_of_the_ledger(run: Path) -> None:
    record = run_contributions(run)
    assert (record["rounds_started"], record["rounds_completed"]) == (3, 2)
    south, north = record["sites"]["south"], record["sites"]["north"]
    assert (south["rounds_asked"], south["rounds_completed"]) == (2, 1)
    assert south["uptime_of_asked"] == south["uptime_of_all"] == 0.5
    assert north["uptime_of_all"] == 1.0
    # An interrupted round is nobody's fault, and is paid all the same.
    assert {own["rounds_interrupted"] for own in record["sites"].values()} == {1}
    assert south["epsilon_spent"] == north["epsilon_spent"]
    assert {own["charges"] for own in record["sites"].values()} == {3}
    assert {own["declared_size"] for own in record["sites"].values()} == {
        "1000 to 9999"
    }
    assert record["score_of_single_updates"].startswith("none")


def test_contributions_of_a_run_without_privacy(tmp_path: Path) -> None:
    run = released.write_run(tmp_path / "run", private=False)
    north = run_contributions(run)["sites"]["north"]
    assert (north["epsilon_spent"], north["declared_size"]) == (None, "UNKNOWN")


@pytest.mark.parametrize(
    ("units", "bucket"), [(1, "1 to 9"), (9, "1 to 9"), (10, "10 to 99")]
)
def test_sizes_are_told_as_powers_of_ten(units: int, bucket: str) -> None:
    assert size_bucket(units) == bucket
