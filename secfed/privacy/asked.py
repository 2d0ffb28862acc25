"""The plan that a study asks of one site."""

from __future__ import annotations

from secfed.errors import PlanError
from secfed.privacy.held_back import evaluation_events
from secfed.privacy.plan import PrivacyPlan, calibrate
from secfed.study import Study

__all__ = ["plan_for"]


def plan_for(study: Study, nominal_units: int) -> PrivacyPlan:
    """Calibrate the study's (epsilon, delta) over all rounds for one site.

    Evaluations on held-back records are paid from the same epsilon.

    Where the unit is the site, a round is one sum of one update. The study's steps
    and batch then say only how that update is trained.

    Args:
        study: The study.
        nominal_units: The site's public number of units; of records where the unit
            is the site.

    Raises:
        PlanError: The site is too small for the expected batch or for delta.
    """
    whole = study.privacy.unit == "site"
    batch = study.training.expected_batch
    if whole and batch > nominal_units:
        raise PlanError(
            f"expected_batch {batch} is above the {nominal_units} records of the "
            "site; use a smaller batch"
        )
    return calibrate(
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        nominal_units=nominal_units,
        expected_batch=1 if whole else batch,
        steps_per_round=1 if whole else study.training.steps_per_round,
        rounds=study.training.rounds,
        clip_norm=study.privacy.clip_norm,
        unit=study.privacy.unit,
        max_records_per_unit=study.privacy.max_records_per_unit,
        neighbouring=study.privacy.neighbouring,
        clip_rule=study.privacy.clip_rule,
        clip_gamma=study.privacy.clip_gamma,
        beside=evaluation_events(study, nominal_units),
    )
