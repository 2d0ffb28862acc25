"""The expected noise energy of one method, as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from secfed.amplification import (
    PARTS,
    REFERENCE,
    RULES,
    Energy,
    NoiseRule,
    Setting,
    expected_each_round,
    expected_in_all,
)

if TYPE_CHECKING:
    from secfed.cli.noise_outlook import NoiseOutlook

__all__ = ["MethodNoise", "method_noise"]


@dataclass(frozen=True)
class MethodNoise:
    """What to expect of one method.

    Attributes:
        rule: The method.
        step_size: None where the noise does not depend on it.
        rounds: Every round, around what it received; the first alone where no more
            is known.
        modules: What all known rounds leave, for every module.
        amplification: All known rounds over those of ffa-lora with the same noise
            per number.
        over_ffa: The same with ffa-lora at its own step size; None where it has none.
    """

    rule: NoiseRule
    step_size: float | None
    rounds: tuple[Energy, ...]
    modules: tuple[Energy, ...]
    amplification: float
    over_ffa: float | None

    @property
    def whole(self) -> Energy:
        """All modules together."""
        return sum(self.modules, Energy())

    def to_json(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """As JSON; with ``names``, every module's energy too."""
        found: dict[str, Any] = {
            "step_size": self.step_size,
            "per_round": [_parts(one) for one in self.rounds],
            "all_rounds": _parts(self.whole) if self.rule.accumulates else None,
            "amplification": self.amplification,
            "over_ffa_lora": self.over_ffa,
            "note": self.rule.note,
        }
        if names is not None:
            modules = zip(names, self.modules, strict=True)
            found["modules"] = {name: _parts(energy) for name, energy in modules}
        return found


def method_noise(outlook: NoiseOutlook, rule: NoiseRule) -> MethodNoise:
    """The expectation of one method.

    Raises:
        StudyError: The study has no step size for it.
    """
    setting, ffa = outlook.setting(rule), RULES[REFERENCE]
    if not rule.accumulates:
        setting = replace(setting, rounds=1)
    modules = expected_in_all(rule, setting)
    total = sum(modules, Energy()).total
    own = None
    if outlook.whole_site or outlook.step_size(ffa) is not None:
        own = total / _total(ffa, replace(outlook.setting(ffa), rounds=setting.rounds))
    return MethodNoise(
        rule=rule,
        step_size=None if outlook.whole_site else setting.learning_rate,
        rounds=expected_each_round(rule, setting),
        modules=modules,
        amplification=total / _total(ffa, setting),
        over_ffa=own,
    )


def _total(rule: NoiseRule, setting: Setting) -> float:
    return sum(expected_in_all(rule, setting), Energy()).total


def _parts(energy: Energy) -> dict[str, float]:
    return {part: getattr(energy, part) for part in PARTS}
