"""What a run measured of the privacy noise, beside what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from secfed.cli.noise_tables import number, right
from secfed.cli.output import plain_table, print_json, show
from secfed.errors import RunDirectoryError

if TYPE_CHECKING:
    from rich.table import Table

    from secfed.cli.noise_outlook import NoiseOutlook
    from secfed.report.reading import RunRecord
    from secfed.report.results import Arm

__all__ = ["ArmNoise", "RoundRow", "arm_noises", "of_run"]


def of_run(
    run: Path,
    outlook: NoiseOutlook | None,
    methods: Sequence[str] | None,
    *,
    as_json: bool,
) -> None:
    """Print what a run measured beside what was expected."""
    from secfed.report.reading import read_run  # noqa: PLC0415

    arms = arm_noises(read_run(run), outlook, methods)
    if as_json:
        print_json({"run": str(run), "arms": [arm.to_json() for arm in arms]})
        return
    for arm in arms:
        show(_arm_table(arm, with_study=outlook is not None))
    show(Text(_what_stands_beside(outlook)))
    for method in dict.fromkeys(arm.method for arm in arms):
        if sentence := _what_is_missing(method):
            show(Text(f"{method}: {sentence}."))


def _what_is_missing(method: str) -> str:
    """Why a rule has no closed form, or what its closed form leaves out."""
    from secfed.amplification import NO_CLOSED_FORM, RULES  # noqa: PLC0415

    if method in NO_CLOSED_FORM:
        return f"no closed form; {NO_CLOSED_FORM[method]}"
    rule = RULES.get(method)
    if rule is None:
        return ""
    if rule.accumulates:
        return rule.note
    return (
        "the closed form is that of the mean product, the measured energy that of "
        "what is left of it at rank r"
    )


def _arm_table(arm: ArmNoise, *, with_study: bool) -> Table:
    headings = ["round", "sites", "measured", "closed form", "measured / closed form"]
    if with_study:
        headings += ["study alone", "measured / study alone"]
    rows = []
    for one in arm.rounds:
        share = one.quadratic_share
        rows.append(
            [
                str(one.round),
                str(one.survivors),
                *_compared(vars(one), with_study=with_study),
                "-" if share is None else f"{100 * share:.1f} %",
            ]
        )
    sums = {name: arm.sum(name) for name in ("measured", "closed_form", "expected")}
    rows.append(["all", "", *_compared(sums, with_study=with_study), ""])
    title = f"{arm.name}: noise energy in the weights"
    return plain_table(title, right([*headings, "quadratic"]), rows)


def _compared(numbers: Mapping[str, float | None], *, with_study: bool) -> list[str]:
    measured = numbers["measured"]
    cells = [number(measured)]
    for name in ("closed_form", "expected") if with_study else ("closed_form",):
        other = numbers[name]
        ratio = measured / other if measured is not None and other else None
        cells += [number(other), "-" if ratio is None else f"{ratio:.3f}"]
    return cells


def _what_stands_beside(outlook: NoiseOutlook | None) -> str:
    text = (
        "Closed form: expected around the factors that the run had, '-' where the "
        "rule or its optimizer has none. Quadratic: '-' where the noise is not a sum "
        "of parts. "
    )
    if outlook is not None:
        text += (
            "Study alone: expected from public numbers, with the survivors of each "
            f"round and |B|^2 = {outlook.norm_b2:g} without noise, so that what was "
            "learned is not in it. "
        )
    return text + "A single round scatters around its expectation."


@dataclass(frozen=True)
class RoundRow:
    """One round of a run.

    Attributes:
        round: Its number.
        survivors: Sites in the mean.
        measured: Noise energy, measured by the simulator.
        closed_form: Expected around the factors that the run had.
        expected: Expected from the study alone.
        quadratic_share: Of the measured parts.
    """

    round: int
    survivors: int
    measured: float | None
    closed_form: float | None
    expected: float | None
    quadratic_share: float | None


@dataclass(frozen=True)
class ArmNoise:
    """The rounds of one arm whose noise was measured."""

    name: str
    method: str
    rounds: tuple[RoundRow, ...]

    def sum(self, column: str) -> float | None:
        """A column over all rounds; None where a round does not have it."""
        values = [getattr(row, column) for row in self.rounds]
        return None if None in values else float(sum(values))

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the sums over rounds."""
        sums = {c: self.sum(c) for c in ("measured", "closed_form", "expected")}
        rounds = [vars(row) for row in self.rounds]
        return {"name": self.name, "method": self.method, "rounds": rounds, **sums}


def arm_noises(
    record: RunRecord, outlook: NoiseOutlook | None, methods: Sequence[str] | None
) -> tuple[ArmNoise, ...]:
    """The measured rounds of every arm, beside what was expected.

    Args:
        record: The run.
        outlook: Of its study, for the expectation from the study alone.
        methods: Take these arms only.

    Raises:
        RunDirectoryError: No noise was measured in it, or it is another study's.
    """
    arms = [arm for arm in record.comparison.arms if arm.noise_rounds]
    if methods is not None:
        arms = [arm for arm in arms if arm.method in methods]
    if not arms:
        raise RunDirectoryError(
            f"{record.directory}: holds no measured noise{_of(methods)}; only private "
            "rounds of a simulation that trained adapters have some"
        )
    if outlook is not None:
        _check_study(record, outlook, [arm.method for arm in arms])
    return tuple(_arm_noise(arm, outlook) for arm in arms)


def _of(methods: Sequence[str] | None) -> str:
    return "" if methods is None else f" of {', '.join(methods)}"


def _check_study(
    record: RunRecord, outlook: NoiseOutlook, methods: Iterable[str]
) -> None:
    study, found = outlook.study, record.comparison.study_digest
    digests = {study.digest(), *(study.with_method(m).digest() for m in methods)}
    if found not in digests:
        raise RunDirectoryError(
            f"{record.directory}: made from another study ({found[:12]}) than "
            f"{study.name} ({study.digest()[:12]}); give the study file as it "
            "was then, or --run alone"
        )


def _arm_noise(arm: Arm, outlook: NoiseOutlook | None) -> ArmNoise:
    alive: Mapping[int, tuple[str, ...]] = {r.round: r.survivors for r in arm.rounds}
    expected = _expected(arm.method, alive, outlook)
    rows = tuple(
        RoundRow(
            round=place,
            survivors=len(alive[place]),
            measured=noise.measured,
            closed_form=noise.closed_form,
            expected=expected.get(place),
            quadratic_share=noise.quadratic_share,
        )
        for place, noise in arm.noise_rounds
    )
    return ArmNoise(arm.name, arm.method, rows)


def _expected(
    method: str, alive: Mapping[int, tuple[str, ...]], outlook: NoiseOutlook | None
) -> dict[int, float]:
    """Round number to the energy expected from the study and who was there."""
    from secfed.amplification import RULES, expected_each_round  # noqa: PLC0415

    rule = RULES.get(method)
    if outlook is None or rule is None:
        return {}
    setting = outlook.setting(rule)
    survivors = [
        [site in alive.get(place, ()) for site in outlook.sigmas]
        for place in range(1, setting.rounds + 1)
    ]
    energies = expected_each_round(rule, setting, survivors)
    return {place: one.total for place, one in enumerate(energies, start=1)}
