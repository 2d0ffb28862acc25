"""What study, adapters, statement and metrics claim, against the ledger.

Each function returns the sentence that a passed check prints, and raises where
the claim does not follow from the ledger.
"""

from __future__ import annotations

import math
import re
from typing import Any

from secfed.canonical import parse_json
from secfed.codec import WIDE_RING_BITS
from secfed.earlier_runs import read_tuning_run, tuning_ledger
from secfed.entries import EvaluationEntry, PlanEntry, RoundEntry
from secfed.errors import LedgerError, VerificationError
from secfed.manifest import Manifest
from secfed.privacy import accounting
from secfed.statement import StatementContext, build_statement, round_event_json
from secfed.statement.evaluated import evaluation_event_json, evaluations_of
from secfed.study import Study
from secfed.teacher_ledger import TEACHER_LEDGER, read_teacher_run
from secfed.verify.files import Bundle
from secfed.verify.story import Story

__all__ = [
    "check_adapters",
    "check_epsilon",
    "check_metrics",
    "check_plan",
    "check_statement",
    "check_teacher",
    "check_tuning",
    "difference",
    "read_metrics",
]

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_ROUNDED = 1e-3
"""A figure in a sentence has four digits; the last one may differ."""

_RELATIVE_TOLERANCE = 1e-4
"""Room for another processor's floating point; a claim is not off by so little."""

_RECOMPUTED: dict[str, tuple[str, ...]] = {
    "guarantee": ("unit", "neighbouring", "delta", "epsilon_limit"),
    "across_sites": ("epsilon", "delta"),
    "execution": ("simulation_seed", "verdict"),
}
"""What follows from the ledger and the study; prose may change with versions."""

_TAUGHT = (
    "weight",
    "temperature",
    "sha256",
    "trained_on",
    "adaptive",
    "ledger_sha256",
    "runs",
    "sites",
)
_RECOMPUTED_EVALUATION = ("fraction", "nominal_units", "does_not_evaluate", "rounds")


def check_plan(story: Story, study: Study) -> str:
    """The plan is the study's, and every started round spent what it says."""
    _check_parameters(story.plan, study)
    plan = story.plan
    events = {
        site: round_event_json(values)
        for site, values in plan.sites.items()
        if values is not None
    }
    for index, body in story.rounds.items():
        due = set(body.participants) if plan.private else set()
        if body.spent.keys() != due:
            missing = ", ".join(sorted(due ^ body.spent.keys()))
            raise LedgerError(index, f"no spent event, or one too many: {missing}")
        for site, event in body.spent.items():
            if event != events[site]:
                raise LedgerError(index, f"{site}: not the event of its plan")
    _check_evaluations(story, study)
    if not plan.private:
        return "no privacy plan: nothing was promised and nothing spent"
    return f"{len(story.rounds)} started rounds, each spent as planned by each site"


def _check_evaluations(story: Story, study: Study) -> None:
    """Every evaluation spent what the study says, and is of the adapter that stood."""
    plans = evaluations_of(study.canonical(), story.plan)
    for index, body in story.evaluations.items():
        if body.spent.keys() != set(body.participants):
            raise LedgerError(index, "an evaluation that some site did not spend")
        for site, event in body.spent.items():
            if event != evaluation_event_json(plans[site]):
                raise LedgerError(index, f"{site}: not the event of the evaluation")
        if isinstance(body, EvaluationEntry):
            before = [r for i, r in story.rounds.items() if i < index]
            summed = [r.adapter_sha256 for r in before if isinstance(r, RoundEntry)]
            start = story.plan.initial_adapter_sha256
            if body.adapter_sha256 != (summed[-1] if summed else start):
                raise LedgerError(index, "an evaluation of another adapter")


def _check_parameters(plan: PlanEntry, study: Study) -> None:
    shared: dict[str, object] = {
        "max_colluders": study.secagg.colluders,
        "mode": study.secagg.mode,
        "suite": study.secagg.suite_number,
        "ring_bits": study.secagg.ring_bits or plan.ring_bits
        if plan.private
        else WIDE_RING_BITS,
        "threshold": study.secagg.threshold or plan.threshold,
    }
    for name, value in shared.items():
        if getattr(plan, name) != value:
            raise LedgerError(1, f"{name} is not the study's")
    promised: dict[str, object] = {
        "unit": study.privacy.unit,
        "max_records_per_unit": study.privacy.max_records_per_unit,
        "neighbouring": study.privacy.neighbouring,
        "clip_norm": study.privacy.clip_norm,
        "clip_rule": study.privacy.clip_rule,
        "clip_gamma": study.privacy.clip_gamma,
        "delta": study.privacy.delta,
        "rounds": study.training.rounds,
        "steps_per_round": 1
        if study.privacy.unit == "site"  # The round's update is the one sum.
        else study.training.steps_per_round,
    }
    for site, values in plan.sites.items():
        for name, value in promised.items():
            if values is not None and values.get(name) != value:
                raise LedgerError(1, f"{site}: {name} is not the study's")


def check_teacher(bundle: Bundle, story: Story, study: Study) -> str:
    """A private teacher cost what its own ledger says, which the study pins."""
    section, said = study.teacher, story.plan.teacher
    if section is None or section.run is None:
        if said is not None:
            raise LedgerError(1, "it charges a teacher that the study does not name")
        if section is None:
            return "none"
        return (
            "public, by the study's declaration"
            if study.mentor_adapter is None
            else "a mentor that stayed at the sites; its base is public by declaration"
        )
    found = read_teacher_run(bundle.read(TEACHER_LEDGER), study).costs
    if said != found:
        raise LedgerError(1, "the teacher's costs are not those of its own ledger")
    return f"what it spent at {len(found.spent)} sites is that of its own ledger"


def check_tuning(bundle: Bundle, story: Story, study: Study) -> str:
    """The runs by which the settings were chosen cost what their own ledgers say."""
    section = study.tuning
    if section is None:
        return "UNKNOWN: the study does not say how its settings were chosen"
    if section.data != "private":
        what = "no" if section.data == "none" else "public"
        return f"{what} data was looked at, by the study's declaration"
    signers = []
    for index, said in enumerate(story.tuning):
        found = read_tuning_run(bundle.read(tuning_ledger(index)), study, index)
        if said != found.costs:
            raise LedgerError(index + 2, "not what the tuning run's own ledger says")
        signers.append(found.signed)
    return (
        f"what {len(signers)} runs spent is that of their own ledgers, "
        f"{'; '.join(dict.fromkeys(signers))}"
    )


def check_adapters(story: Story, manifest: Manifest) -> str:
    """The adapters of rounds and release are the files that the ledger means."""
    entries = (story.plan, *story.completed(), story.release)
    expected: dict[str, str] = {}
    for entry in entries:
        expected |= entry.files() if entry is not None else {}
    for name, value in expected.items():
        if manifest.files.get(name) != value:
            raise VerificationError(f"{name}: not the file that the ledger records")
    for name in manifest.files:
        if name.startswith(("adapter/", "adapters/")) and name not in expected:
            raise VerificationError(f"{name}: the ledger records no such adapter")
    return f"{len(story.completed()) + 2} adapters are those of the ledger"


def check_epsilon(story: Story, study: Study) -> str:
    """Epsilon, computed again from the spent events, is as recorded and allowed."""
    if not story.plan.private:
        return "not private: no epsilon is claimed"
    delta, limit = study.privacy.delta, study.privacy.epsilon
    worst, person = 0.0, 0.0
    for site in story.plan.sites:
        events: list[Any] = []
        for index, body in story.charged().items():
            if site not in body.spent:
                continue
            events.append(accounting.event_from_json(body.spent[site]))
            total = accounting.epsilon(events, delta)
            if not _close(total, body.epsilon[site]):
                raise LedgerError(
                    index,
                    f"{site}: records epsilon {body.epsilon[site]:.6g}, the events "
                    f"give {total:.6g}",
                )
            if total > limit:
                raise LedgerError(
                    index, f"{site}: epsilon {total:.6g} exceeds the study's {limit:g}"
                )
            worst = max(worst, total)
        if study.privacy.unit == "site":
            events = [accounting.replaced_event(event) for event in events]
            person = max(person, accounting.epsilon(events, delta))
    said = f"recomputed: at most {worst:.4g} at delta {delta:g}, allowed {limit:g}"
    if study.privacy.unit == "site":
        said += f", for a site as a whole; for a person at most {person:.4g}"
    return said


def check_statement(bundle: Bundle, story: Story, study: Study) -> str:
    """The statement's numbers follow from the ledger."""
    statement = bundle.json("statement.json")
    last = read_metrics(bundle, "metrics.jsonl")[-1:]
    again = build_statement(
        study.canonical(),
        story.plan,
        list(story.rounds.values()),
        StatementContext(scored=last[0] if last else None),
        list(story.evaluations.values()),
        story.tuning,
    )
    if not isinstance(statement, dict) or statement.keys() != again.keys():
        raise VerificationError("statement.json: not the sections of a statement")
    pairs: list[tuple[str, Any, Any]] = [
        (name, statement[name], again[name]) for name in ("private", "study", "sites")
    ]
    if "evaluation" in again:
        pairs += [
            (
                f"evaluation.{key}",
                statement["evaluation"][key],
                again["evaluation"][key],
            )
            for key in _RECOMPUTED_EVALUATION
        ]
        mechanisms = [one["evaluation"]["mechanism"] for one in (statement, again)]
        pairs += [
            (f"evaluation.mechanism.{key}", *(one[key] for one in mechanisms))
            for key in ("noise_multiplier", "metrics", "loss_cap")
        ]
    for section, keys in _RECOMPUTED.items():
        pairs += [
            (f"{section}.{key}", statement[section][key], again[section][key])
            for key in keys
        ]
    if "teacher" in again:
        one, other = statement["teacher"], again["teacher"]
        pairs += [(f"teacher.{key}", one.get(key), other.get(key)) for key in _TAUGHT]
    said, own = (one["composition"] for one in (statement, again))
    pairs += [
        ("composition.tuning", _facts(said["tuning"]), _facts(own["tuning"])),
        ("composition.elsewhere", said.get("elsewhere"), own.get("elsewhere")),
    ]
    pairs.append(("utility", statement["utility"], again["utility"]))
    for name, said, computed in pairs:
        where = difference(said, computed)
        if where is not None:
            raise VerificationError(
                f"statement.json: {name}{where} does not follow from the "
                + ("metrics" if name == "utility" else "ledger")
            )
    if not _same_words(statement, again):
        raise VerificationError("statement.json: the headline contradicts the ledger")
    return f"its numbers follow from the ledger: {again['headline']}"


def _same_words(statement: Any, again: Any) -> bool:
    """Whether people read what was computed: the same figures, in the same sentence.

    These words are of the statement's format; others need another format.
    """
    said, own = str(statement["headline"]), str(again["headline"])
    figures = [list(map(float, _NUMBER.findall(text))) for text in (said, own)]
    same = len(figures[0]) == len(figures[1]) and all(
        math.isclose(one, other, rel_tol=_ROUNDED)
        for one, other in zip(*figures, strict=True)
    )
    chosen = [one["composition"]["tuning"] for one in (statement, again)]
    notes = [one["note"] if isinstance(one, dict) else one for one in chosen]
    words = [_NUMBER.sub("0", text) for text in (said, own)]
    return same and words[0] == words[1] and notes[0] == notes[1]


def _facts(tuning: Any) -> Any:
    """What a statement says of tuning, without its prose."""
    if not isinstance(tuning, dict):
        return tuning
    return {key: value for key, value in tuning.items() if key != "note"}


def read_metrics(bundle: Bundle, name: str) -> list[dict[str, Any]]:
    """The lines of a metrics file.

    Raises:
        VerificationError: A line is not a JSON object.
    """
    lines = []
    for number, line in enumerate(bundle.read(name).splitlines(), start=1):
        try:
            value = parse_json(line)
        except ValueError as error:
            raise VerificationError(f"{name}: line {number}: {error}") from error
        if not isinstance(value, dict):
            raise VerificationError(f"{name}: line {number} is not an object")
        lines.append(value)
    return lines


def check_metrics(bundle: Bundle, story: Story) -> str:
    """The metrics tell of the same rounds, survivors, dropouts and epsilon."""
    metrics = read_metrics(bundle, "metrics.jsonl")
    lines = {line["round"]: line for line in metrics}
    if len(lines) != len(metrics):
        raise VerificationError("metrics.jsonl: a round occurs twice")
    numbers = {body.round for body in story.rounds.values()}
    if lines.keys() - {0} != numbers:
        odd = sorted(lines.keys() - {0} ^ numbers, key=str)
        raise VerificationError(f"metrics.jsonl: rounds {odd} differ from the ledger")
    for body in story.rounds.values():
        line = lines[body.round]
        same = difference(line.get("epsilon") or {}, dict(body.epsilon)) is None
        if isinstance(body, RoundEntry):
            same &= line["status"] == "completed"
            same &= sorted(line["survivors"]) == sorted(body.survivors)
            same &= line["dropouts"] == body.dropouts
        else:
            same &= line["status"] == "interrupted"
        if not same:
            raise VerificationError(
                f"metrics.jsonl: round {body.round} is not as the ledger records it"
            )
    return f"{len(numbers)} rounds agree with the ledger"


def _close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=_RELATIVE_TOLERANCE, abs_tol=1e-9)


def difference(left: Any, right: Any) -> str | None:
    """Where two JSON values differ, as a path; None where they agree."""
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return f".{min(left.keys() ^ right.keys())}"
        pairs = [(f".{key}", left[key], right[key]) for key in sorted(right)]
    elif isinstance(left, list) and isinstance(right, list | tuple):
        if len(left) != len(right):
            return "[]"
        pairs = [
            (f"[{i}]", *both) for i, both in enumerate(zip(left, right, strict=True))
        ]
    elif {type(left), type(right)} in ({float}, {int, float}):  # JCS: 1.0 is 1.
        return None if _close(float(left), float(right)) else ""
    else:
        return None if type(left) is type(right) and left == right else ""
    for where, one, other in pairs:
        deeper = difference(one, other)
        if deeper is not None:
            return where + deeper
    return None
