"""The study of the amplification benchmark under one rule, and what it measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.sections import Findings
from secfed.adapters import load_adapter
from secfed.amplification import RULES, Energy, expected_each_round
from secfed.cli.noise_outlook import noise_outlook
from secfed.policy import SitePolicy, load_policy
from secfed.runtime.arms import Arm
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import prepare
from secfed.strategies import strategy_of
from secfed.study import Study, load_study, load_study_dict

__all__ = ["FIRST", "METHODS", "Bench", "Result", "RoundNoise"]

METHODS: Final = (
    "ffa-lora",
    "ffb-lora",
    "fedsvd",
    "ffa-fresh",
    "fed-sb",
    "rolora",
    "fedavg",
    "flexlora",
    "fedex-lora",
)

FIRST: Final = 10
"""The first round that the goals are about: no factor is at its start any more."""

_STUDY: Final = Path(__file__).with_name("amplification.toml")
_POLICY: Final = _STUDY.parents[1] / "examples" / "compare_rules" / "site.toml"


@dataclass(frozen=True)
class RoundNoise:
    """One round: energies as in the metrics line, and the one expected in advance.

    Attributes:
        number: Of the round.
        measured: By paired replay.
        closed_form: Expected around the factors that the run had.
        expected: From the study alone; None where no form holds in this round.
        signal: Energy of the round's change without noise.
        quadratic_share: Of the measured energy; None where it has no parts.
        gap: Relative; None where there is none.
        moved: Norm of the change of the weights before the round.
    """

    number: int
    measured: float
    closed_form: float
    expected: float | None
    signal: float
    quadratic_share: float | None
    gap: float | None
    moved: float


@dataclass(frozen=True)
class Result:
    """A rule's rounds."""

    method: str
    rounds: tuple[RoundNoise, ...]

    @property
    def two_factors(self) -> bool:
        """Whether the noise of A meets that of B, in one round or over rounds."""
        return RULES[self.method].two_factors

    def late(self) -> tuple[RoundNoise, ...]:
        """The rounds from ``FIRST`` on; the last one where a run is too short."""
        return tuple(r for r in self.rounds if r.number >= FIRST) or self.rounds[-1:]


class Bench:
    """The prepared study; every rule starts from the same state, with its own budget.

    Args:
        folder: For the runs; empty.
        findings: Is told the progress.
        rounds: Other than the study's, for a quick look.
    """

    def __init__(self, folder: Path, findings: Findings, rounds: int | None) -> None:
        self._folder, self._findings = folder, findings
        self.study = _with_rounds(load_study(_STUDY), rounds)
        findings.announce("reading the text, calibrating the noise, encoding")
        allowed = {
            "allowed_methods": METHODS,
            "max_epsilon": 2 * self.study.privacy.epsilon,
        }
        self._policy: SitePolicy = load_policy(_POLICY).model_copy(update=allowed)
        self._prepared = prepare(self.study, _STUDY.parent, self._policy, NoProgress())
        self._outlook = noise_outlook(self.study, _STUDY.parent)

    def run(self, method: str) -> Result:
        """Run the study under one rule.

        Raises:
            RuntimeError: A masked sum was not the plain one, or a round has no noise.
        """
        self._findings.announce(f"{method}, {self.study.training.rounds} rounds")
        folder = self._folder / method
        private = folder / "private"
        private.mkdir(parents=True)
        study = self.study.with_method(method)
        arm = Arm(method, study)
        progress = _Ticks(self._findings)
        summary = run_arm(
            arm, self._prepared, folder, private, "bench", self._policy, progress
        )
        expected = self._expected(method)
        lines = summary["rounds"][1:]
        return Result(
            method,
            tuple(
                self._round(study, folder, line, expected[line["round"] - 1])
                for line in lines
            ),
        )

    def _expected(self, method: str) -> list[float | None]:
        rule, rounds = RULES[method], self.study.training.rounds
        known: list[Energy] = list(
            expected_each_round(rule, self._outlook.setting(rule))
        )
        found: list[float | None] = [one.total for one in known]
        return found + [None] * (rounds - len(found))

    def _round(
        self, study: Study, folder: Path, line: dict[str, Any], expected: float | None
    ) -> RoundNoise:
        noise = line["noise"]
        if not line["sums_equal"] or noise is None or noise["closed_form"] is None:
            raise RuntimeError(
                f"{study.training.method}, round {line['round']}: no sum, or no noise"
            )
        return RoundNoise(
            number=line["round"],
            measured=noise["measured"],
            closed_form=noise["closed_form"],
            expected=expected,
            signal=noise["signal"],
            quadratic_share=noise["quadratic_share"],
            gap=noise["aggregation_gap"],
            moved=self._moved(study, folder, line["round"] - 1),
        )

    def _moved(self, study: Study, folder: Path, round_number: int) -> float:
        """``|dW|`` over all modules after a round."""
        base = self._prepared.model.base_weights()
        start = strategy_of(study).init(self._prepared.start, 0, base).adapter
        path = folder / "adapters" / f"round-{round_number:03d}.safetensors"
        adapter = load_adapter(path, start) if round_number else start
        norms = [float((adapter.delta(m) ** 2).sum()) for m in adapter.modules()]
        return math.sqrt(math.fsum(norms))


class _Ticks(NoProgress):
    """Counts sites that have trained."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def site(self, _site: str, _done: int, _total: int) -> None:
        self._findings.tick()


def _with_rounds(study: Study, rounds: int | None) -> Study:
    if rounds is None:
        return study
    values = study.canonical()
    values["training"]["rounds"] = rounds
    return load_study_dict(values, study.name)
