"""The one object that owns sampling, clipping, noise and the event.

What the accountant charges is read from the object that draws the sample and
the noise, so the two cannot disagree. A plan is always private: there is no
plan without noise, and a non-private run has no plan.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from secfed.errors import PlanError
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent, Neighbouring
from secfed.privacy.clipping import Clipping, ClipRule
from secfed.privacy.events import merge
from secfed.privacy.noise import RandomStream

__all__ = ["PlanWarning", "PrivacyPlan", "Unit", "calibrate"]

Unit = Literal["record", "person", "site"]


class PlanWarning(UserWarning):
    """A plan that is valid but weaker than it should be."""


@dataclass(frozen=True)
class PrivacyPlan:
    """DP-SGD at one site: ``rounds`` times ``steps_per_round`` noisy sums.

    A step includes each unit independently with ``sampling_probability``, bounds
    each included unit's contribution by ``clipping``, adds Gaussian noise of
    ``noise_multiplier * clip_norm`` to the sum and divides by the public
    ``expected_batch``, never by the size of the sample.

    Where the unit is the site, a round is one such sum: the whole update of the
    site is the only contribution, drawn always, and nothing inside the round is
    noised. Adding or removing the site changes the sum by C. Replacing one person
    replaces the update, which moves it by up to 2 C, whoever the person is: see
    ``epsilon_of_a_person``.

    Guarantees:
        ``sampling_probability == expected_batch / nominal_units`` (1 where the unit
        is the site), ``delta < 1 / nominal_units``, and the noise is not zero.

    Attributes:
        unit: What one privacy unit is.
        max_records_per_unit: The cap per person; 1 where the unit is a record.
        neighbouring: What differs between neighbouring data sets.
        clip_norm: C, the L2 bound on one unit's contribution to a sum.
        noise_multiplier: Sigma; the noise has the standard deviation sigma * C.
        sampling_probability: q, the Poisson rate.
        expected_batch: b, in units.
        steps_per_round: Noisy sums per round.
        rounds: Rounds that this plan pays for.
        delta: The delta at which epsilon is stated.
        nominal_units: The declared public number of units, not the true one; of
            the records in it where the unit is the site.
        clip_rule: How contributions are bounded; see ``secfed.privacy.clipping``.
        clip_gamma: Belongs to the rule ``normalised``; else None.

    Raises:
        PlanError: A value has the wrong type, is out of range, or contradicts
            another.
    """

    unit: Unit
    max_records_per_unit: int
    neighbouring: Neighbouring
    clip_norm: float
    noise_multiplier: float
    sampling_probability: float
    expected_batch: int
    steps_per_round: int
    rounds: int
    delta: float
    nominal_units: int
    clip_rule: ClipRule = "flat"
    clip_gamma: float | None = None

    def __post_init__(self) -> None:
        _check_choice("unit", self.unit, get_args(Unit))
        _check_choice("neighbouring", self.neighbouring, get_args(Neighbouring))
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        for name in _REALS:
            _check_positive(name, getattr(self, name))
        if self.unit != "person" and self.max_records_per_unit != 1:
            raise PlanError("max_records_per_unit is 1 where the unit is no person")
        _check_sizes(self.expected_batch, self.nominal_units, self.delta)
        if self.unit == "site":
            self._check_whole_site()
        elif self.sampling_probability != self.expected_batch / self.nominal_units:
            raise PlanError(
                f"sampling_probability {self.sampling_probability!r} is not "
                f"expected_batch / nominal_units, "
                f"{self.expected_batch}/{self.nominal_units}"
            )
        # These refuse what has no bound and what has no accounting.
        _ = self.clipping
        self.round_event()

    def _check_whole_site(self) -> None:
        """One update per round, never sampled; its two neighbours are fixed."""
        single = (self.sampling_probability, self.expected_batch, self.steps_per_round)
        if single != (1.0, 1, 1):
            raise PlanError(
                "where the unit is the site, a round is one sum of one update: "
                "sampling_probability, expected_batch and steps_per_round are 1"
            )
        if self.neighbouring != "add-remove":
            raise PlanError(
                "where the unit is the site, neighbouring is add-remove; a replaced "
                "person is what epsilon_of_a_person reports"
            )

    @property
    def clipping(self) -> Clipping:
        """The rule that bounds a unit's contribution, with its sensitivity."""
        return Clipping(self.clip_rule, self.clip_norm, self.clip_gamma)

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise on every coordinate of a sum."""
        return self.noise_multiplier * self.clipping.sensitivity

    def sample_units(self, stream: RandomStream, num_units: int) -> NDArray[np.int64]:
        """One step's Poisson sample: sorted unit numbers, possibly none.

        ``num_units`` is the true, private number of units of the site.
        """
        # 1 - u is one of 2**53 multiples of 2**-53 in (0, 1], so that the real
        # inclusion probability is q rounded down and never above q.
        included = 1.0 - stream.uniform(num_units) <= self.sampling_probability
        return np.flatnonzero(included).astype(np.int64)

    def noise(self, stream: RandomStream, size: int) -> NDArray[np.float64]:
        """Fresh Gaussian noise for one step's sum."""
        return self.noise_std * stream.normal(size)

    def round_event(self) -> DpEvent:
        """What one round costs, whether it completes or is interrupted."""
        return accounting.sampled_gaussian(
            self.sampling_probability, self.noise_multiplier, self.steps_per_round
        )

    def epsilon(self, method: Literal["pld", "rdp"] = "pld") -> float:
        """Epsilon of all rounds at ``delta`` under ``neighbouring``."""
        events = [self.round_event()] * self.rounds
        return accounting.epsilon(events, self.delta, self.neighbouring, method)

    def event_of_a_person(self) -> DpEvent:
        """What a round costs a person, where the site is the unit.

        Both updates lie in the ball of radius C, so they are up to 2 C apart: the
        Gaussian mechanism of half the noise multiplier.

        Raises:
            PlanError: The unit is smaller; then ``round_event`` speaks of it directly.
        """
        if self.unit != "site":
            raise PlanError(f"the unit is the {self.unit}: its epsilon is epsilon()")
        return accounting.replaced_event(self.round_event())

    def epsilon_of_a_person(self, method: Literal["pld", "rdp"] = "pld") -> float:
        """Epsilon for any change of one person's records, where the site is the unit.

        Raises:
            PlanError: The unit is smaller; then ``epsilon`` speaks of it directly.
        """
        events = [self.event_of_a_person()] * self.rounds
        return accounting.epsilon(events, self.delta, method=method)

    def to_json(self) -> dict[str, object]:
        """The fields by name; ``from_json`` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> PrivacyPlan:
        """The plan that ``to_json`` wrote.

        Raises:
            PlanError: A key is unknown or missing, or a value is not allowed.
        """
        if not isinstance(value, Mapping):
            raise PlanError(f"a plan is an object of named values, not {value!r:.80}")
        names = {field.name for field in fields(cls)}
        if wrong := sorted(map(str, names ^ value.keys())):
            raise PlanError(f"keys of a plan unknown or missing: {', '.join(wrong)}")
        # JSON knows one kind of number; JCS writes 1.0 as 1.
        reals = {
            name: float(value[name])
            for name in (*_REALS, "clip_gamma")
            if type(value[name]) is int
        }
        return cls(**{**value, **reals})


_COUNTS = (
    "max_records_per_unit",
    "expected_batch",
    "steps_per_round",
    "rounds",
    "nominal_units",
)
_REALS = ("clip_norm", "noise_multiplier", "sampling_probability", "delta")


def calibrate(
    *,
    epsilon: float,
    delta: float,
    nominal_units: int,
    expected_batch: int,
    steps_per_round: int,
    rounds: int,
    clip_norm: float,
    unit: Unit,
    max_records_per_unit: int = 1,
    neighbouring: Neighbouring = "add-remove",
    clip_rule: ClipRule = "flat",
    clip_gamma: float | None = None,
    beside: Sequence[DpEvent] = (),
) -> PrivacyPlan:
    """The plan with the least noise whose total does not exceed ``epsilon``.

    Guarantees:
        ``0.99 * epsilon <= plan.epsilon() <= epsilon``; with events beside it, all
        together are within these limits.

    Args:
        epsilon: The target for all rounds together.
        delta: Below ``1 / nominal_units``; a warning above a tenth of it.
        nominal_units: The declared public number of units of the site.
        expected_batch: Units in a step on average; 1 where the unit is the site.
        steps_per_round: Noisy sums per round; 1 where the unit is the site.
        rounds: Rounds of the study.
        clip_norm: Bound on one unit's contribution.
        unit: The privacy unit.
        max_records_per_unit: The cap of records per person.
        neighbouring: The relation for which the target holds.
        clip_rule: How a unit's contribution is bounded; costs the same epsilon.
        clip_gamma: Of the rule ``normalised``.
        beside: What else the same units are charged for in the study.

    Raises:
        PlanError: Nothing valid exists for these values.

    Example:
        >>> plan = calibrate(
        ...     epsilon=8.0, delta=1e-5, nominal_units=1000, expected_batch=64,
        ...     steps_per_round=10, rounds=8, clip_norm=1.0, unit="record",
        ... )
        >>> plan.noise_multiplier
        0.7335
    """
    for name, real in (("epsilon", epsilon), ("delta", delta)):
        _check_positive(name, real, float | int)
    counts = {
        "nominal_units": nominal_units,
        "expected_batch": expected_batch,
        "steps_per_round": steps_per_round,
        "rounds": rounds,
    }
    for name, count in counts.items():
        _check_count(name, count)
    _check_sizes(expected_batch, nominal_units, delta)
    _check_choice("neighbouring", neighbouring, get_args(Neighbouring))
    if delta > 0.1 / nominal_units:
        warnings.warn(
            f"delta {delta:g} is above 1/(10 n) for {nominal_units} units: whole "
            "records may leak with a probability that is not small",
            PlanWarning,
            stacklevel=2,
        )
    sampling_probability = 1.0 if unit == "site" else expected_batch / nominal_units
    noise_multiplier = accounting.smallest_noise_multiplier(
        float(epsilon),
        float(delta),
        sampling_probability,
        steps_per_round * rounds,
        neighbouring,
        merge(beside),
    )
    return PrivacyPlan(
        unit=unit,
        max_records_per_unit=max_records_per_unit,
        neighbouring=neighbouring,
        clip_norm=float(clip_norm),
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        expected_batch=expected_batch,
        steps_per_round=steps_per_round,
        rounds=rounds,
        delta=float(delta),
        nominal_units=nominal_units,
        clip_rule=clip_rule,
        clip_gamma=clip_gamma,
    )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PlanError(f"{name} is one of {', '.join(allowed)}, not {value!r}")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{name} is an integer >= 1, not {value!r}")


def _check_positive(name: str, value: object, kind: Any = float) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"{name} is a float, not {value!r}")
    if not 0 < value < math.inf:
        raise PlanError(f"{name} is positive and finite, not {value!r}")


def _check_sizes(expected_batch: int, nominal_units: int, delta: float) -> None:
    if expected_batch > nominal_units:
        raise PlanError(
            f"expected_batch {expected_batch} is above the {nominal_units} units of "
            "the site; use a smaller batch"
        )
    if delta * nominal_units >= 1:
        raise PlanError(
            f"delta {delta:g} is not below 1/{nominal_units}: publishing one whole "
            "record would satisfy it; use a smaller delta"
        )
