"""What an audit found: numbered results, each with its numbers and its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["CAUTION", "AuditReport", "Finding", "Findings", "Part", "Verdict"]

Part = Literal["A", "B", "C"]
Verdict = Literal["ok", "REFUTED", "not run"]

CAUTION: Final = (
    "Not refuted is not private: an audit finds errors that are large enough for it, "
    "and proves nothing about those that are not."
)


@dataclass(frozen=True)
class Finding:
    """One result.

    Attributes:
        number: From 1, over all parts.
        part: A conformance, B Dirac canaries, C data canaries.
        name: What was asked.
        verdict: ``REFUTED`` where the claim does not hold; ``not run`` says why.
        text: The result in words.
        values: Its numbers, for machines.
    """

    number: int
    part: Part
    name: str
    verdict: Verdict
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {
            "number": self.number,
            "part": self.part,
            "name": self.name,
            "verdict": self.verdict,
            "text": self.text,
            "values": dict(self.values),
        }


@dataclass
class Findings:
    """Collects results in their order."""

    done: list[Finding] = field(default_factory=list)

    def add(
        self, part: Part, name: str, text: str, *, passed: bool | None, **values: Any
    ) -> None:
        """Record a result; ``passed`` None says that it was not run."""
        verdict: Verdict = "not run" if passed is None else "ok"
        if passed is False:
            verdict = "REFUTED"
        number = len(self.done) + 1
        self.done.append(Finding(number, part, name, verdict, text, values))


@dataclass(frozen=True)
class AuditReport:
    """All results of an audit and what it was about.

    Attributes:
        subject: Study, site, rounds and claim, by name.
        findings: In their order.
    """

    subject: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def refuted(self) -> bool:
        """Whether any result refutes the claim."""
        return any(found.verdict == "REFUTED" for found in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "format": 1,
            "kind": "audit; not a release",
            "subject": dict(self.subject),
            "refuted": self.refuted,
            "findings": [found.to_json() for found in self.findings],
            "caution": CAUTION,
        }
