"""What a release has to meet: a list of small functions, each of which says why.

A requirement returns the sentence that is printed where it is met, and raises
``VerificationError`` with the reason where it is not. To add one, add it to
``REQUIREMENTS``: the request, ``release show``, the gate and ``secfed verify`` all go
through that list.

A *waivable* requirement that is not met stops a release unless the request names it,
with a reason that at least two people sign. It is then printed as WAIVED, in front of
the model card too. What is waivable is a judgement about risk; what is not is whether
the files are what they say they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import jinja2
import numpy as np
from safetensors import SafetensorError, safe_open

import secfed
from secfed.errors import VerificationError
from secfed.gate.attack import AttackReport, read_attack_report, require_of_run
from secfed.gate.card import render_card, stated_facts
from secfed.gate.checking import Candidate
from secfed.gate.contributions import contributions
from secfed.gate.documents import people
from secfed.gate.facts import Facts
from secfed.gate.layout import (
    ADAPTER,
    APPROVALS,
    ATTACK_REPORT,
    CARD,
    CONFIG,
    CONTRIBUTIONS,
    PAGE,
    STATEMENT,
)
from secfed.gate.page import render_page
from secfed.signing import format_fingerprint
from secfed.statement.form import check_form
from secfed.verify.checks import Checklist
from secfed.verify.claims import difference, read_metrics

__all__ = ["REQUIREMENTS", "Requirement", "check_requirements", "facts_of", "unmet"]


@dataclass(frozen=True)
class Requirement:
    """One thing that a release has to be.

    Attributes:
        name: As it is printed and waived.
        check: Returns why it is met; raises where it is not.
        waivable: Whether people may release all the same.
    """

    name: str
    check: Callable[[Candidate], str]
    waivable: bool = False


def check_requirements(
    candidate: Candidate,
    checklist: Checklist,
    requirements: Sequence[Requirement] | None = None,
) -> None:
    """Ask every requirement, numbered with the other checks; all by default."""
    for requirement in REQUIREMENTS if requirements is None else requirements:
        checklist.ask(requirement.name, partial(_asked, requirement, candidate))


def unmet(candidate: Candidate) -> dict[str, str]:
    """The waivable requirements that are not met, with the reasons."""
    found = {}
    for requirement in REQUIREMENTS:
        if requirement.waivable:
            try:
                requirement.check(candidate)
            except VerificationError as error:
                found[requirement.name] = str(error)
    return found


def facts_of(candidate: Candidate) -> Facts:
    """What card and page are drawn from."""
    names = candidate.request.files
    report = (
        read_attack_report(candidate.read(ATTACK_REPORT))
        if ATTACK_REPORT in names
        else None
    )
    return Facts(
        study=candidate.study.canonical(),
        statement=candidate.json(STATEMENT),
        config=candidate.json(CONFIG),
        scores=read_metrics(candidate.evidence, "metrics.jsonl")[-1],
        contributions=contributions(candidate.study.canonical(), candidate.record),
        report=report,
        card=candidate.request.card,
        waived=candidate.request.waived,
        reason=candidate.request.reason,
    )


def _asked(requirement: Requirement, candidate: Candidate) -> str:
    waived = requirement.name in candidate.request.waived
    try:
        said = requirement.check(candidate)
    except VerificationError as error:
        if not (requirement.waivable and waived):
            raise
        return f"WAIVED: {error}. Reason: {candidate.request.reason}"
    if waived:
        raise VerificationError("waived, although it is met")
    return said


# Waivable: a judgement about risk


def _private(candidate: Candidate) -> str:
    statement = candidate.json(STATEMENT)
    if statement["private"] is not True:
        raise VerificationError(str(statement["headline"]))
    return str(statement["headline"])


def _attacked(candidate: Candidate) -> str:
    if ATTACK_REPORT not in candidate.request.files:
        raise VerificationError("there is no attack report (secfed audit)")
    report = read_attack_report(candidate.read(ATTACK_REPORT))
    if refuted := report.refutations():
        listed = "; ".join(found.name for found in refuted)
        raise VerificationError(f"the audit REFUTED the privacy claim: {listed}")
    if not report.attacks():
        raise VerificationError("the audit holds no attack (parts B and C of an audit)")
    return _not_refuted(report)


def _not_refuted(report: AttackReport) -> str:
    bound = report.lower_bound()
    shown = "" if bound is None else f"; epsilon >= {bound:.3g} by the strongest"
    about = report.subject
    return (
        f"{len(report.attacks())} attacks at {about.site} over {about.rounds} rounds "
        f"did not refute epsilon {about.claimed_epsilon:.4g}{shown}"
    )


# Not waivable: whether the files are what they say


def _report_of_run(candidate: Candidate) -> str:
    if ATTACK_REPORT not in candidate.request.files:
        return "there is none"
    report = read_attack_report(candidate.read(ATTACK_REPORT))
    require_of_run(report, candidate.study, candidate.record.plan)
    return "of this study and plan; its claim follows from the ledger"


def _adapter(candidate: Candidate) -> str:
    """Strict: only numbers, all finite, of the shapes that the settings ask for."""
    config = candidate.json(CONFIG)
    if config.get("auto_mapping") is not None:
        raise VerificationError(f"{CONFIG}: auto_mapping names code to import")
    candidate.read(CONFIG)
    try:
        with safe_open(candidate.root / ADAPTER, framework="numpy") as held:
            if (held.metadata() or {}) != {"format": "pt"}:
                raise VerificationError(f"{ADAPTER}: unexpected metadata")
            names = list(held.keys())
            for name in names:
                _check_tensor(name, held.get_tensor(name), config)
    except (SafetensorError, OSError) as error:
        raise VerificationError(f"{ADAPTER}: not safetensors: {error}") from error
    if not names:
        raise VerificationError(f"{ADAPTER}: it holds nothing")
    return f"{len(names)} tensors of finite numbers for PEFT's {config['peft_type']}"


def _check_tensor(name: str, value: Any, config: dict[str, Any]) -> None:
    if value.dtype.kind != "f" or not np.isfinite(value).all():
        raise VerificationError(f"{ADAPTER}: {name}: not finite numbers")
    side = {".lora_A.weight": 0, ".lora_B.weight": 1}
    for ending, axis in side.items():
        if name.endswith(ending) and value.shape[axis] != config.get("r"):
            raise VerificationError(f"{ADAPTER}: {name}: not of rank {config.get('r')}")


def _no_code(candidate: Candidate) -> str:
    """Everything but the adapter is text, so that nothing here is ever unpickled."""
    for name in candidate.request.files:
        if name != ADAPTER:
            try:
                candidate.read(name).decode("utf-8")
            except UnicodeDecodeError as error:
                raise VerificationError(f"{name}: not a text") from error
    return "the adapter is safetensors, everything else is text; no pickle"


def _statement_form(candidate: Candidate) -> str:
    check_form(candidate.json(STATEMENT))
    return "every section is there; what is not known says UNKNOWN"


def _contributions(candidate: Candidate) -> str:
    again = contributions(candidate.study.canonical(), candidate.record)
    where = difference(candidate.json(CONTRIBUTIONS), again)
    if where is not None:
        raise VerificationError(f"{CONTRIBUTIONS}: {where[1:]} is not as in the ledger")
    return f"{len(again['sites'])} sites' records follow from the ledger"


def _card(candidate: Candidate) -> str:
    facts, text = facts_of(candidate), candidate.read(CARD).decode("utf-8")
    if stated_facts(text) != json.loads(json.dumps(facts.stated())):
        raise VerificationError(f"{CARD}: its figures are not those of the statement")
    return _drawn_again(candidate, CARD, text, render_card)


def _page(candidate: Candidate) -> str:
    text = candidate.read(PAGE).decode("utf-8")
    return _drawn_again(candidate, PAGE, text, render_page)


def _drawn_again(
    candidate: Candidate, name: str, text: str, draw: Callable[[Facts], str]
) -> str:
    wrote = candidate.request.secfed_version
    if wrote != secfed.__version__:
        return f"made by secfed {wrote}; not drawn again by {secfed.__version__}"
    try:
        again = draw(facts_of(candidate))
    except jinja2.UndefinedError as error:
        raise VerificationError(f"{name}: cannot be drawn again: {error}") from error
    if text != again:
        raise VerificationError(f"{name}: not what follows from the other files")
    return "follows from the other files, byte for byte"


def _two_people(candidate: Candidate) -> str:
    request, known = candidate.request, candidate.approvers
    for name, approval in candidate.approvals.items():
        if approval.request_digest != request.digest():
            raise VerificationError(f"{name}: approves another request")
        if approval.public_key == request.coordinator_key:
            raise VerificationError(f"{name}: the coordinator's own key")
    counted = [
        one
        for one in people(candidate.approvals)
        if not known or one.fingerprint() in known
    ]
    if len(counted) < request.approvals_needed:
        whose = "pinned people" if known else "people"
        raise VerificationError(
            f"{len(counted)} of {request.approvals_needed} {whose} approved "
            f"({APPROVALS}/)"
        )
    listed = "; ".join(
        f"{one.name} ({one.role}), key {format_fingerprint(one.fingerprint())}"
        for one in counted
    )
    return f"{'PINNED' if known else 'UNPINNED'}: {listed}"


REQUIREMENTS: Final[Sequence[Requirement]] = (
    Requirement("statement form", _statement_form),
    Requirement("privacy", _private, waivable=True),
    Requirement("attack report is of this run", _report_of_run),
    Requirement("attack report", _attacked, waivable=True),
    Requirement("adapter", _adapter),
    Requirement("no code", _no_code),
    Requirement("contributions", _contributions),
    Requirement("model card", _card),
    Requirement("statement page", _page),
    Requirement("approvals", _two_people),
)
"""In the order in which they are printed."""
