"""The range and width of a round: public, wide enough, and fine enough."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_plan, study_values

from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.arms import Arm
from secfed.runtime.encoding import codec_for, ring_bits_for, step_size
from secfed.runtime.site_training import learning_rate_of, settings_of
from secfed.study import Study, load_study_dict
from secfed.types import Adapter

SHAPES = {"m.lora_A": (2, 64), "m.lora_B": (64, 2), "head.weight": (5, 64)}
ADAPTER = Adapter({n: np.ones(s, np.float32) for n, s in SHAPES.items()}, 2.0)
METHODS = ("fedavg", "ffa-lora", "ffb-lora", "rolora", "head-only")


def make_study(
    sites: int = 4,
    training: dict[str, Any] | None = None,
    secagg: dict[str, Any] | None = None,
) -> Study:
    values = study_values()
    names = [f"site-{i}" for i in range(sites)]
    values["data"]["partition"] = {"kind": "dirichlet", "alpha": 1.0, "sites": names}
    values["privacy"]["nominal_units"] = dict.fromkeys(names, 2000)
    values["training"].update(training or {})
    values["secagg"].update(secagg or {})
    return load_study_dict(values, "x")


def plans_of(study: Study, sigma: float = 0.7) -> dict[str, PrivacyPlan]:
    training = study.training
    return {
        name: make_plan(
            2000,
            256,
            noise_multiplier=sigma,
            steps_per_round=training.steps_per_round,
            rounds=training.rounds,
        )
        for name in study.sites
    }


def codec_of(study: Study, number: int = 1, *, private: bool = True):
    return codec_for(study, plans_of(study), ADAPTER, number, private=private)


def width(study: Study, *, private: bool = True) -> int:
    return ring_bits_for(study, plans_of(study), ADAPTER, private=private)


# Step sizes


@pytest.mark.parametrize("method", METHODS)
def test_step_sizes_are_those_of_training(method):
    study = make_study(training={"method": method})
    arm = Arm(method, study)
    for name in SHAPES:
        if name.startswith("head."):
            assert step_size(study, name) == settings_of(arm).head_learning_rate
        elif method != "head-only":
            assert step_size(study, name) == learning_rate_of(arm)


def test_each_tensor_has_its_step_size_as_scale():
    study = make_study(training={"method": "fedavg"})
    codec = codec_of(study)
    rates = dict(zip((n for n, _ in codec.names_shapes), codec.scales, strict=True))
    assert rates == {"m.lora_A": 1.0, "m.lora_B": 1.0, "head.weight": 60.0}


# The range


def one_update(rng, steps: int, momentum: float, size: int, rotated: bool):
    """SGD with step size 1 by hand; every unit pushes the same number, or all alike.

    C = 1, sigma = 0.7, b = 256 of 2000 units.
    """
    push = np.zeros(size)
    push[3] = 1.0
    if rotated:
        push = np.full(size, 1 / math.sqrt(size))
    weights, velocity = np.zeros(size), np.zeros(size)
    for _ in range(steps):
        batch = rng.binomial(2000, 256 / 2000)
        gradient = (batch * push + 0.7 * rng.normal(size=size)) / 256
        velocity = momentum * velocity + gradient
        weights += velocity
    return weights


@pytest.mark.parametrize("rotation", [None, "hadamard"])
@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (4, 0.0), (6, 0.9)])
def test_the_worst_update_of_sgd_is_inside_the_range(steps, momentum, rotation):
    secagg = {} if rotation is None else {"rotation": rotation}
    study = make_study(
        training={"steps_per_round": steps, "momentum": momentum}, secagg=secagg
    )
    codec = codec_of(study)
    rng = np.random.default_rng(8)
    largest = 0.0
    for seed in range(100):
        weights = one_update(rng, steps, momentum, codec.num_values, bool(rotation))
        flat = (weights * np.repeat(codec.scales, (128, 320))).astype(np.float32)
        update = {"m.lora_B": flat[:128].reshape(64, 2), "head.weight": flat[128:]}
        update["head.weight"] = update["head.weight"].reshape(5, 64)
        assert codec.encode(update, Bytes(seed)).saturated == 0
        largest = max(largest, float(np.abs(weights).max()))
    # Not far too wide either: the worst case is within a factor of two.
    if not rotation:
        assert largest > 0.5 * codec.value_range


class Bytes:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def bytes(self, size: int, /) -> bytes:
        return self._rng.bytes(size)


def test_more_noise_or_more_steps_make_a_wider_range():
    study = make_study()

    def value_range(sigma: float, steps: int) -> float:
        plans = {
            name: make_plan(2000, 256, noise_multiplier=sigma, steps_per_round=steps)
            for name in study.sites
        }
        return codec_for(study, plans, ADAPTER, 1, private=True).value_range

    assert value_range(0.7, 1) < value_range(7.0, 1) < value_range(7.0, 4)
    # One site with more noise than the others decides.
    plans = plans_of(study) | {"site-2": make_plan(2000, 256, noise_multiplier=9.0)}
    codec = codec_for(study, plans, ADAPTER, 1, private=True)
    assert codec.value_range == value_range(9.0, 1)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 12),
    magnitudes=st.lists(st.floats(-6, 6), min_size=12, max_size=12),
    signs=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_no_update_of_adam_is_outside_the_range(steps, magnitudes, signs):
    study = make_study(training={"optimizer": "adam", "steps_per_round": steps})
    codec = codec_of(study)
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    for magnitude, sign in zip(magnitudes[:steps], signs, strict=False):
        weight.grad = torch.tensor([10.0**magnitude * (1 if sign else -1)]).double()
        optimizer.step()
    assert abs(weight.item()) <= codec.value_range
    # A constant gradient moves a weight by 1 in every step.
    assert steps < codec.value_range < 3 * steps


def test_a_range_that_the_study_names_holds_for_every_tensor():
    codec = codec_of(make_study(secagg={"clip_range": 0.25}))
    assert (codec.value_range, codec.scales) == (0.25, ())


# The width


def test_the_example_takes_two_bytes_per_number():
    # 4 sites, 256 units per batch, 4 steps, noise 0.67 to 0.78.
    study = make_study(training={"steps_per_round": 4})
    codec = codec_of(study)
    assert codec.ring_bits == width(study) == 16
    assert codec.encode(
        {n: np.zeros(s, np.float32) for n, s in codec.names_shapes}, Bytes(0)
    ).vector.nbytes == 2 * (128 + 320)


@settings(max_examples=100, deadline=None)
@given(
    sites=st.integers(3, 120),
    steps=st.integers(1, 40),
    sigma=st.floats(0.3, 20.0),
    rotation=st.sampled_from([None, "hadamard"]),
    method=st.sampled_from(METHODS),
)
def test_sixteen_bits_are_chosen_only_where_noise_hides_the_rounding(
    sites, steps, sigma, rotation, method
):
    secagg = {} if rotation is None else {"rotation": rotation}
    training = {"steps_per_round": steps, "method": method}
    study = make_study(sites, training, secagg)
    plans = plans_of(study, sigma)
    bits = ring_bits_for(study, plans, ADAPTER, private=True)
    std = math.sqrt(steps) * sigma / 256
    for number in (1, 2):
        codec = codec_for(study, plans, ADAPTER, number, private=True)
        assert codec.ring_bits == bits
        if bits == 16:
            # Rounding adds at most step**2 / 4 to the variance: one per cent.
            assert codec.step**2 / 4 <= 0.01 * std**2 * (1 + 1e-9)
        elif not rotation:
            assert codec.value_range / (32767 // sites) > std / 5 * (1 - 1e-9)


def test_a_rotation_lets_more_sites_use_sixteen_bits():
    # The more numbers there are, the thinner a rotation spreads the signal.
    big = ADAPTER.replaced({"head.weight": np.ones((50, 400), np.float32)})
    for rotation, bits in (({}, 32), ({"rotation": "hadamard"}, 16)):
        study = make_study(50, {"steps_per_round": 4}, rotation)
        assert ring_bits_for(study, plans_of(study), big, private=True) == bits


def test_the_width_of_a_named_range_follows_the_smallest_step():
    # std = 0.7 / 256; the adapters' rate is 3, so rounding may take std * 3 / 5.
    limit = 0.7 / 256 * 3 / 5 * (32767 // 4)
    assert width(make_study(secagg={"clip_range": 0.99 * limit})) == 16
    assert width(make_study(secagg={"clip_range": 1.01 * limit})) == 32
    # Alone, the head has a rate of 100.
    head = {"method": "head-only"}
    assert width(make_study(4, head, {"clip_range": 30 * limit})) == 16


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_width_that_the_study_names_is_taken(bits):
    study = make_study(100, {"steps_per_round": 4}, {"ring_bits": bits})
    assert codec_of(study).ring_bits == width(study) == bits


def test_without_privacy_the_range_is_wide_and_has_no_rotation():
    study = make_study(secagg={"ring_bits": 16, "rotation": "hadamard"})
    codec = codec_of(study, private=False)
    assert (codec.ring_bits, codec.value_range, codec.scales) == (32, 8.0, ())
    assert codec.rotation_seed is None
    assert width(study, private=False) == 32


# The rotation


def test_a_rotation_is_fresh_in_every_round_and_study():
    study = make_study(secagg={"rotation": "hadamard"})
    other = make_study(training={"rounds": 9}, secagg={"rotation": "hadamard"})
    seeds = {
        codec_of(s, number).rotation_seed for s in (study, other) for number in (1, 2)
    }
    assert len(seeds) == 4
    assert None not in seeds
    assert codec_of(study).rotation_seed == codec_of(study).rotation_seed
    assert codec_of(make_study()).rotation_seed is None
