"""What the model card and the statement's page are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secfed.canonical import digest
from secfed.entries import JsonObject
from secfed.gate.attack import AttackReport
from secfed.gate.documents import CardFacts
from secfed.report.measures import score_part
from secfed.statement import UNKNOWN, promised
from secfed.statement.tuning import TUNED_ON

__all__ = ["Facts"]


@dataclass(frozen=True)
class Facts:
    """All that a release says of itself, from files that are checked elsewhere.

    Attributes:
        study: ``Study.canonical()``.
        statement: ``statement.json``.
        config: ``adapter_config.json``.
        scores: The last line of the run's metrics.
        contributions: ``contributions.json``.
        report: Of the audit, if there is one.
        card: What the requester added.
        waived: Requirements that are not met.
        reason: Why they were waived.
    """

    study: Mapping[str, Any]
    statement: Mapping[str, Any]
    config: Mapping[str, Any]
    scores: Mapping[str, Any]
    contributions: JsonObject
    report: AttackReport | None
    card: CardFacts
    waived: tuple[str, ...]
    reason: str | None

    @property
    def refuted(self) -> bool:
        """Whether an audit refuted what the statement says."""
        return self.report is not None and bool(self.report.refutations())

    def headline(self) -> str:
        """The answer in one sentence; a refuted claim is not repeated as one."""
        said = str(self.statement["headline"])
        if self.refuted:
            return f"REFUTED: an audit refuted this claim: {said}"
        return said

    def epsilon(self) -> float | None:
        """Of the worst site, with the runs that the study names; None: no promise."""
        if self.statement["guarantee"]["delta"] is None:
            return None
        held = [own["epsilon"] for own in promised(self.statement).values()]
        return max((e for e in held if e is not None), default=None)

    def tuning(self) -> str:
        """How the settings were chosen, in a sentence."""
        said = self.statement["composition"]["tuning"]
        if said == UNKNOWN:
            return UNKNOWN
        what = f"{said.get('settings', 'all settings')}: {TUNED_ON[said['data']]}"
        if "sites" not in said:
            return what
        worst = max((own["epsilon"] for own in said["sites"].values()), default=0.0)
        return f"{what} ({len(said['ledgers'])} runs, epsilon at most {worst:.4g})"

    def stated(self) -> JsonObject:
        """The card's figures for machines, each from the statement or the ledger."""
        statement, guarantee = self.statement, self.statement["guarantee"]
        bound = None if self.report is None else self.report.lower_bound()
        return {
            "private": bool(statement["private"]) and not self.refuted,
            "unit": guarantee["unit"],
            "neighbouring": guarantee["neighbouring"],
            "epsilon": self.epsilon(),
            "epsilon_across_sites": statement["across_sites"]["epsilon"],
            "delta": guarantee["delta"],
            "accountant": statement["accountant"]["library"],
            "method": statement["study"]["method"],
            "sites": len(statement["sites"]),
            "rounds": self.contributions["rounds_completed"],
            "attack_report": self.verdict(),
            "epsilon_lower_bound": UNKNOWN if bound is None else bound,
            "waived": list(self.waived),
            "study_digest": statement["study"]["digest"],
            "statement_digest": digest(statement),
            "ledger_head": self.contributions["ledger_head"],
        }

    def verdict(self) -> str:
        """What the audit said, in two words."""
        if self.report is None:
            return "none"
        if self.refuted:
            return "REFUTED"
        return "not refuted" if self.report.attacks() else "no attack"

    def score_rows(self) -> list[tuple[str, str]]:
        """The scores on the public hold-out, as name and text."""
        return [
            (name.replace("_", " "), f"{value:.4g}")
            for name, value in score_part(self.scores).items()
            if isinstance(value, int | float)
        ]

    def subgroup_rows(self) -> list[tuple[str, str]]:
        """The scores of each public subgroup, as its name and one text."""
        utility = self.statement.get("utility")
        parts = utility["by_subgroup"] if isinstance(utility, Mapping) else {}
        if not isinstance(parts, Mapping):
            return []
        return [(name, _flat(scores)) for name, scores in sorted(parts.items())]

    def held_back_rows(self) -> list[tuple[str, str]]:
        """The last scores on records that sites hold back, with their intervals."""
        rounds = self.statement.get("evaluation", {}).get("rounds", ())
        scores = rounds[-1]["scores"] if rounds else {}
        return [(name, _flat(value)) for name, value in sorted(scores.items())]


def _flat(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    parts = [
        f"{key} {item:.4g}" if isinstance(item, float) else f"{key} {item}"
        for key, item in value.items()
    ]
    return ", ".join(parts)
