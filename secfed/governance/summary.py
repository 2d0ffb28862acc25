"""What an operator reads before signing: one page in plain words, and the same as JSON.

Nothing here is counted from records: sizes follow from the study, epsilons from its
plan and the site's budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from secfed.governance.outlay import Outlay
from secfed.governance.records import printable
from secfed.governance.study_manifest import StudyManifest
from secfed.policy import SEMI_HONEST, Verdict
from secfed.study import Study

__all__ = ["Summary", "warnings_of"]

_UNKNOWN: Final = "UNKNOWN"
_NEVER: Final = (
    "records, texts, labels, and how many there are",
    "gradients, losses and any score that is not named above",
    "the update before noise and mask",
    "what other studies spent of the budget, and these approvals",
)
_WEAK_EPSILON: Final = 10.0
"""Above it, one person's records may change the odds of any outcome 22,000 times."""

_TINY: Final = 1e-9
_SAFE_DELTA: Final = 10.0
"""Delta above 1 / (10 n) is warned about (PITFALLS 14)."""


@dataclass(frozen=True)
class Summary:
    """Everything that is shown before an approval.

    Attributes:
        manifest: What would be signed.
        policy_of: The population whose policy was asked.
        numbers: That one site sends in a round; None is unknown.
        upload_bytes: They weigh, under masks; None is unknown.
        outlays: What the study adds to each site's budget that is held here.
        verdicts: What the policy's rules say.
        since: When the version was approved that ``changes`` compares with.
        changes: Key by key, in plain words.
        warnings: What is allowed and should be thought about.
        exceptions: To floors of the policy, which would be signed.
        expires_at: When the approval would end.
    """

    manifest: StudyManifest
    policy_of: str
    numbers: int | None
    upload_bytes: int | None
    outlays: Mapping[str, Outlay]
    verdicts: tuple[Verdict, ...]
    since: datetime | None
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    exceptions: tuple[str, ...]
    expires_at: datetime

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why the study cannot be approved; empty where it can."""
        rules = tuple(verdict.refusal for verdict in self.verdicts if verdict.refusal)
        full = {site: o.refusal() for site, o in self.outlays.items() if not o.fits}
        return rules + tuple(f"{site}: {text}" for site, text in full.items())

    def to_json(self) -> dict[str, Any]:
        """The same facts as in ``text``."""
        study = self.manifest.study
        return {
            "study": study.name,
            "study_digest": study.digest(),
            "manifest_digest": self.manifest.digest(),
            "population": self.policy_of,
            "rounds": study.training.rounds,
            "upload_numbers_per_round": self.numbers,
            "upload_bytes_per_round": self.upload_bytes,
            "metrics": list(study.evaluation.metrics) if study.evaluation else [],
            "recipients": list(_recipients(study)),
            "budgets": {site: o.to_json() for site, o in self.outlays.items()},
            "since": None if self.since is None else self.since.isoformat(),
            "changes": list(self.changes),
            "warnings": list(self.warnings),
            "exceptions": list(self.exceptions),
            "refusals": list(self.refusals),
            "rules": [verdict.to_json() for verdict in self.verdicts],
            "expires_at": self.expires_at.isoformat(),
        }

    def text(self) -> str:
        """The page; what is signed holds these very words."""
        study = self.manifest.study
        parts = [
            f"{printable(study.study.title)} ({study.name})",
            f"digest {self.manifest.digest()}",
            _listed("What leaves this site", self._leaves()),
            _listed("What does not leave", _NEVER),
            _listed("Who gets the adapter", _recipients(study)),
            _listed(f"Privacy, on {self.policy_of!r}", self._privacy()),
            _listed(self._compared(), self.changes),
            _listed("Exceptions that you sign", self._excepted()),
            _listed("Warnings", self.warnings),
            _listed("REFUSED", self.refusals),
            f"The approval ends on {self.expires_at:%Y-%m-%d}.",
        ]
        return "\n\n".join(part for part in parts if part)

    def _leaves(self) -> tuple[str, ...]:
        study = self.manifest.study
        rounds = study.training.rounds
        size = _UNKNOWN if self.upload_bytes is None else f"{self.upload_bytes:,} bytes"
        numbers = _UNKNOWN if self.numbers is None else f"{self.numbers:,}"
        told = (
            (
                f"in each of {rounds} rounds, one update of {numbers} numbers with "
                f"noise, under a mask: {size}. The coordinator reads the sum over all "
                "sites only"
            ),
            (
                "in each round: public keys, sealed shares, signatures, the hash that "
                "the budget has, and one word if the site declines"
            ),
        )
        asked = study.evaluation
        if asked is None:
            return (*told, "no score of held-back records")
        after = ", ".join(map(str, asked.due(rounds)))
        names = ", ".join(asked.metrics)
        return (
            *told,
            (
                f"after round {after}, of records held back: {names}; as sums with "
                "noise under a mask"
            ),
        )

    def _privacy(self) -> tuple[str, ...]:
        lines = [_outlay_line(site, o) for site, o in self.outlays.items()]
        attack = max((o.attack for o in self.outlays.values()), default=0.0)
        return (
            *lines,
            (
                "what all together allow: whoever takes 1 of 100 others for a member "
                f"recognises at most {100 * attack:.1f} of 100 members"
            ),
        )

    def _compared(self) -> str:
        if self.since is None:
            return ""
        return f"Changed since the version approved on {self.since:%Y-%m-%d}"

    def _excepted(self) -> tuple[str, ...]:
        if SEMI_HONEST not in self.exceptions:
            return ()
        return (
            (
                "the coordinator is trusted to follow the protocol; one that lies can "
                "isolate this site's update, which then has its own noise only"
            ),
        )


def warnings_of(
    study: Study,
    outlays: Mapping[str, Outlay],
    nominal_units: Mapping[str, int],
    compared: bool,  # noqa: FBT001 - whether an earlier version was approved
    named: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """What a policy allows and an operator should think about.

    Args:
        study: The study.
        outlays: Of the sites that are held here.
        nominal_units: Declared sizes of these sites.
        compared: Whether an earlier version was approved here.
        named: The earlier runs that the study names and, in words, who signed each.
    """
    privacy = study.privacy
    least = min(nominal_units.values(), default=1)
    said = {
        "a simulation seed is public: the run is NOT PRIVATE": (
            study.simulation.seed is not None
        ),
        f"epsilon {privacy.epsilon:g} is above 10, a weak promise": (
            privacy.epsilon > _WEAK_EPSILON
        ),
        f"delta {privacy.delta:g} is above 1 / (10 x {least:,} units)": (
            privacy.unit != "site" and privacy.delta > 1 / (_SAFE_DELTA * least)
        ),
        "single records are protected; a person with several is less so": (
            privacy.unit == "record"
        ),
        "epsilon is for the site as a whole; a person is charged for more": (
            privacy.unit == "site"
        ),
        "the study does not say on what data its settings were chosen": (
            study.tuning is None
        ),
        "the study names no last day (study.expires)": study.study.expires is None,
        "no version of this study was approved here before": not compared,
    }
    alarms = tuple(
        f"alarm at {site}: {outlay.alarm} % of the cap is reached"
        for site, outlay in outlays.items()
        if outlay.alarm
    )
    runs = tuple(
        f"its settings were chosen by {run}, {signed}; if another site's name was "
        "yours then, that is not counted"
        for run, signed in (named or {}).items()
    )
    return alarms + tuple(text for text, holds in said.items() if holds) + runs


def _outlay_line(site: str, outlay: Outlay) -> str:
    named = ""
    if outlay.named:
        named = f" and {_up(outlay.named)} for the earlier runs that it names"
    return (
        f"{site}: epsilon {_up(outlay.own)} for this study{named}, per {outlay.unit}; "
        f"with all before it {_up(outlay.before)} -> {_up(outlay.after)} of "
        f"{outlay.limit:g} ({outlay.percent:.0f} %), delta {outlay.delta:g}"
    )


def _recipients(study: Study) -> tuple[str, ...]:
    return (
        f"the sites {', '.join(study.sites)}, after every round",
        "the coordinator, after every round",
        *(study.study.recipients or ()),
    )


def _listed(title: str, lines: tuple[str, ...]) -> str:
    if not lines or not title:
        return ""
    return f"{title}:" + "".join(f"\n  - {printable(line)}" for line in lines)


def _up(value: float) -> str:
    """Two decimals, never less than the value."""
    return f"{math.ceil(100 * value - _TINY) / 100:.2f}"
