"""A round's update as one unit: bounded, noised once, and nothing else left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small import flat, make_plan, silent

from secfed.errors import TrainingError
from secfed.privacy.noise import RandomStream, simulation_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.setup import Prepared
from secfed.study import Study
from secfed.training import LocalUpdate, PrivateRecords, train_whole_site
from secfed.types import Adapter

CLIP = 0.2


def site_plan(**changes: Any) -> PrivacyPlan:
    whole = {"unit": "site", "sampling_probability": 1.0, "expected_batch": 1}
    return make_plan(100, 1, clip_norm=CLIP, **whole | changes)


def train(
    prepared: Prepared,
    study: Study,
    adapter: Adapter,
    records: PrivateRecords,
    stream: RandomStream,
    rate: float = 0.5,
    plan: PrivacyPlan | None = None,
) -> LocalUpdate:
    settings = study.training.model_copy(
        update={"steps_per_round": 3, "expected_batch": 30, "head_learning_rate": rate}
    )
    return train_whole_site(
        prepared.model,
        adapter,
        tuple(adapter.tensors),
        records,
        plan or site_plan(),
        settings,
        rate,
        stream,
        keep_noiseless=True,
    )


@pytest.mark.parametrize("rate", [1e-6, 0.5, 1e4, 1e30])
def test_the_update_is_at_most_the_clip_norm_whatever_training_does(
    rate: float,
    prepared: Prepared,
    study: Study,
    busy: Adapter,
    everybody: PrivateRecords,
) -> None:
    update = train(prepared, study, busy, everybody, silent("site"), rate)
    norm = np.linalg.norm(flat(update.change))
    assert norm <= CLIP
    if rate == 0.5:
        assert norm == pytest.approx(CLIP, rel=1e-5)
    # The trained weights are private: they are gone.
    after = prepared.model.read()
    assert all(np.array_equal(after[n], v) for n, v in busy.tensors.items())
    assert all(p.grad is None for p in prepared.model.parameters())


def test_a_person_moves_it_by_more_than_one_clip_norm_and_at_most_two(
    prepared: Prepared, study: Study, busy: Adapter, everybody: PrivateRecords
) -> None:
    """Why a person is charged 2 C: the update follows whoever shouts loudest.

    How far depends on the last bits of a processor's sums, so several rates are tried.
    """

    def shouting(sign: float, rate: float) -> np.ndarray:
        features = everybody.features
        states = features.states.clone()
        states[: features.offsets[1]] *= sign * 1e4
        records = replace(everybody, features=replace(features, states=states))
        return flat(train(prepared, study, busy, records, silent("two"), rate).change)

    apart = [
        np.linalg.norm(shouting(1.0, rate) - shouting(-1.0, rate))
        for rate in (2.0, 5.0, 10.0, 20.0, 50.0)
    ]
    assert CLIP < max(apart) <= 2 * CLIP


def test_the_noise_is_the_plans_once(
    prepared: Prepared, study: Study, busy: Adapter, everybody: PrivateRecords
) -> None:
    plan = site_plan(noise_multiplier=1.7)
    stream = simulation_stream(5, "site-noise")
    update = train(prepared, study, busy, everybody, stream, plan=plan)
    assert update.noiseless is not None
    assert update.steps == 1
    noise = flat(update.change) - flat(update.noiseless)
    # Six standard errors of a sample deviation: a false alarm in 5e8 runs.
    tolerance = 6 / np.sqrt(2 * noise.size)
    assert abs(noise.std() / (1.7 * CLIP) - 1) < tolerance < 0.05
    assert "private" in repr(update)


def test_a_plan_for_another_unit_is_refused(
    prepared: Prepared, study: Study, busy: Adapter, everybody: PrivateRecords
) -> None:
    with pytest.raises(TrainingError, match="the plan's unit is the record"):
        train(prepared, study, busy, everybody, silent("unit"), plan=make_plan(100, 10))
