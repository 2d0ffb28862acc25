"""A site's own rank with narrow factors; what it chooses for speed changes no plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import EXAMPLE, small_study

from secfed.adapters import narrowed
from secfed.canonical import canonical_json, digest
from secfed.errors import ModelError, TrainingError
from secfed.privacy.asked import plan_for
from secfed.profiles.estimate import estimate, timings_at
from secfed.profiles.measure import grid_for, measure_site
from secfed.runtime.setup import Prepared
from secfed.runtime.site_file import SiteFile, with_micro_batch
from secfed.strategies.products import cut_to_rank
from secfed.training import narrow, train_privately, widened
from secfed.training.steps import LocalUpdate
from secfed.types import LORA_A, LORA_B, Adapter

RANK = 2


class Silent:
    """Draws everybody and adds nothing, so that two ways can be compared."""

    def uniform(self, size: int) -> np.ndarray:
        return np.ones(size)

    def normal(self, size: int) -> np.ndarray:
        return np.zeros(size)


def plan_of(prepared: Prepared, site: str):
    plan = prepared.plans[site]
    return replace(plan, clip_norm=0.5, steps_per_round=3)


def train(prepared: Prepared, start: Adapter) -> LocalUpdate:
    site = next(iter(prepared.records))
    settings = small_study(1, "fedavg").training
    return train_privately(
        prepared.model,
        start,
        tuple(start.tensors),
        prepared.records[site],
        plan_of(prepared, site),
        settings,
        0.5,
        Silent(),
        loss=prepared.loss,
        keep_noiseless=True,
    )


def test_narrow_factors_give_the_update_of_wide_ones_that_are_zero_beyond(
    prepared: Prepared, busy: Adapter
) -> None:
    start = cut_to_rank(busy, RANK)
    wide = train(prepared, start)
    with narrowed(prepared.model, RANK):
        small = train(prepared, narrow(start, RANK))
    for name, value in small.change.items():
        if name.endswith((LORA_A, LORA_B)):
            assert RANK in value.shape
    for found, wanted in (
        (widened(small.change, start), wide.change),
        (widened(small.noiseless, start), wide.noiseless),
    ):
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            scale = np.abs(value).max()
            assert scale > 0
            assert np.abs(found[name] - value).max() <= 1e-4 * scale, name
    # The wide factors are back.
    prepared.model.write(start.tensors)
    assert prepared.model.read().keys() == start.tensors.keys()


def test_what_would_be_lost_is_refused(prepared: Prepared, busy: Adapter) -> None:
    with pytest.raises(TrainingError, match="beyond"):
        narrow(busy, RANK)
    for rank in (0, 5):
        with (
            pytest.raises(ModelError, match=f"rank {rank}"),
            narrowed(prepared.model, rank),
        ):
            pass
    assert prepared.model.read().keys() == busy.tensors.keys()


# What a site chooses for speed


def choices() -> list[SiteFile]:
    common = {"format": 1, "site": "north-general", "coordinator": "0" * 64}
    own = [{}, {"micro_batch_tokens": 16}, {"micro_batch_tokens": 4096, "threads": 2}]
    return [SiteFile(**common, **one) for one in own]


def test_no_choice_of_speed_alters_a_plan_its_cost_or_the_study(
    prepared: Prepared,
) -> None:
    study = small_study()
    approved, site = study.digest(), next(iter(prepared.records))
    plans = set()
    for own in choices():
        torch.set_num_threads(own.threads or 1)
        tuned = with_micro_batch(prepared, own.micro_batch_tokens)
        plan = tuned.plans[site]
        again = plan_for(study, plan.nominal_units)
        assert digest(again.to_json()) == digest(plan.to_json())
        plans.add((digest(plan.to_json()), repr(plan.round_event())))
    torch.set_num_threads(1)
    assert len(plans) == 1
    assert study.digest() == approved
    text = canonical_json(study.canonical())
    assert not any(word in text for word in (b"micro", b"threads", b"minutes"))


def test_no_choice_of_speed_alters_the_sum(prepared: Prepared, busy: Adapter) -> None:
    found = []
    for own in choices():
        tuned = with_micro_batch(prepared, own.micro_batch_tokens)
        assert next(iter(tuned.records.values())).micro_batch_tokens == (
            own.micro_batch_tokens or 512
        )
        found.append(train(tuned, busy).change)
    for other in found[1:]:
        for name, value in found[0].items():
            assert np.allclose(other[name], value, atol=1e-4 * np.abs(value).max())


# Measured


@pytest.mark.slow
def test_a_site_is_measured_without_its_records(
    packages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import secfed.data.loading  # noqa: PLC0415

    def refuse(*_: object) -> None:
        raise AssertionError("records were read")

    monkeypatch.setattr(secfed.data.loading, "load_sites", refuse)
    monkeypatch.setattr(secfed.data.loading, "site_data", refuse)
    study = small_study(1, "fedavg")
    grid = grid_for(study, lengths=(8,), ranks=(4, 1), micro_batches=(16, 64))
    found = measure_site(study, EXAMPLE, study.sites[0], replace(grid, steps=1))
    assert len(found.timings) == 4
    assert len(timings_at(found, "none", 8, 1)) == 2
    own = estimate(study, found)
    assert own.seconds is not None
    assert 0 < own.seconds < 600
    assert own.timing.peak_bytes > 10**8  # At least PyTorch and the model.
