"""Noise in the weights: the r x r formulas against dense ones and Monte Carlo.

Monte Carlo tests have a fixed seed. Their tolerance is at least five standard
deviations of the estimate (computed from the draws and asserted), so that with
another seed a false alarm has probability below 1e-6.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfed.amplification import (
    NoiseLevels,
    closed_form,
    closed_form_mean_of_products,
    measure,
    product_norm_squared,
    sgd_noise_std,
    sum_of_products_norm_squared,
)
from secfed.types import Adapter

D, K, R, SITES, SCALING = 11, 8, 3, 4, 2.0
BOTH = ("m.lora_A", "m.lora_B")


def adapter(rng, a_std=0.5, b_std=0.5) -> Adapter:
    return Adapter(
        {
            "m.lora_A": (a_std * rng.normal(size=(R, K))).astype(np.float32),
            "m.lora_B": (b_std * rng.normal(size=(D, R))).astype(np.float32),
            "head.bias": np.zeros(3, np.float32),
        },
        SCALING,
    )


def updates(rng, names, std):
    shapes = {"m.lora_A": (R, K), "m.lora_B": (D, R), "head.bias": (3,)}
    return [
        {n: (std * rng.normal(size=shapes[n])).astype(np.float32) for n in names}
        for _ in range(SITES)
    ]


def dense(tensors) -> np.ndarray:
    return (
        SCALING * tensors["m.lora_B"].astype(float) @ tensors["m.lora_A"].astype(float)
    )


def wide_mean(before, site_updates, weights):
    """The aggregate in float64, by the definition."""
    result = {}
    for name in BOTH:
        result[name] = before.tensors[name].astype(float)
        for update, weight in zip(site_updates, weights, strict=True):
            if name in update:
                result[name] = result[name] + weight * update[name].astype(float)
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), terms=st.integers(1, 5), tiny=st.booleans())
def test_product_norms_equal_the_dense_ones(seed, terms, tiny):
    rng = np.random.default_rng(seed)
    scale = 1e-12 if tiny else 1.0
    lefts = [scale * rng.normal(size=(9, 2)) for _ in range(terms)]
    rights = [rng.normal(size=(2, 7)) for _ in range(terms)]
    assert product_norm_squared(lefts[0], rights[0]) == pytest.approx(
        np.sum((lefts[0] @ rights[0]) ** 2), rel=1e-9
    )
    whole = sum(x @ y for x, y in zip(lefts, rights, strict=True))
    assert sum_of_products_norm_squared(lefts, rights) == pytest.approx(
        np.sum(whole**2), rel=1e-9
    )


@pytest.mark.parametrize("trained", [BOTH, BOTH[:1], BOTH[1:], ()])
@pytest.mark.parametrize("weights", [None, (0.1, 0.2, 0.3, 0.4)])
def test_measure_equals_the_dense_definition(trained, weights):
    rng = np.random.default_rng(3)
    before = adapter(rng)
    names = (*trained, "head.bias")
    clean = updates(rng, names, 0.2)
    extra = updates(rng, names, 0.3)
    noisy = [{n: u[n] + x[n] for n in names} for u, x in zip(clean, extra, strict=True)]
    report = measure(before, noisy, clean, names, weights=weights)
    w = weights or (0.25,) * SITES
    with_noise, without = wide_mean(before, noisy, w), wide_mean(before, clean, w)
    x_a = with_noise["m.lora_A"] - without["m.lora_A"]
    x_b = with_noise["m.lora_B"] - without["m.lora_B"]
    products = sum(
        weight * dense({n: before.tensors[n] + u.get(n, 0.0) for n in BOTH})
        for u, weight in zip(noisy, w, strict=True)
    )

    def energy(matrix):
        return float(np.sum(matrix**2))

    a, b = without["m.lora_A"], without["m.lora_B"]
    expected = {
        "measured": energy(dense(with_noise) - dense(without)),
        "linear_b": energy(SCALING * x_b @ a),
        "linear_a": energy(SCALING * b @ x_a),
        "quadratic": energy(SCALING * x_b @ x_a),
        "signal": energy(dense(without) - dense(before.tensors)),
        "gap": energy(dense(with_noise) - products),
        "products": energy(products),
    }
    for field, value in expected.items():
        assert getattr(report, field) == pytest.approx(value, rel=1e-5, abs=1e-11), (
            field
        )
    parts = expected["linear_b"] + expected["linear_a"] + expected["quadratic"]
    share = expected["quadratic"] / parts if parts else 0.0
    assert report.quadratic_share == pytest.approx(share, rel=1e-5, abs=1e-12)
    assert report.closed_form is None
    if trained != BOTH:
        assert report.quadratic == report.gap == report.aggregation_gap == 0.0


def test_no_noise_measures_zero():
    rng = np.random.default_rng(4)
    before = adapter(rng)
    clean = updates(rng, BOTH, 0.2)
    levels = NoiseLevels.uniform([0.0] * SITES, [0.0] * SITES)
    report = measure(before, clean, clean, BOTH, levels=levels)
    assert report.measured == report.quadratic_share == report.closed_form == 0.0
    assert report.amplification is None
    assert report.signal > 0
    assert report.aggregation_gap > 0


def test_modules_add_up():
    rng = np.random.default_rng(5)
    one, two = adapter(rng), adapter(rng)
    tensors = {n: one.tensors[n] for n in BOTH} | {
        n.replace("m.", "n."): two.tensors[n] for n in BOTH
    }
    both = Adapter(tensors, SCALING)
    first, second = updates(rng, BOTH, 0.2), updates(rng, BOTH, 0.3)
    zero = [{n: np.zeros_like(v) for n, v in u.items()} for u in first]

    def joined(x, y):
        return [
            p | {n.replace("m.", "n."): v for n, v in q.items()}
            for p, q in zip(x, y, strict=True)
        ]

    levels = NoiseLevels.uniform([0.2] * SITES, [0.2] * SITES)
    names = tuple(tensors)
    whole = measure(
        both, joined(first, second), joined(zero, zero), names, levels=levels
    )
    alone = [
        measure(x, u, zero, BOTH, levels=levels)
        for x, u in ((one, first), (two, second))
    ]
    assert [name for name, _ in whole.modules] == ["m", "n"]
    for field in ("measured", "quadratic", "signal", "gap", "closed_form", "ffa"):
        assert getattr(whole, field) == pytest.approx(
            sum(getattr(report, field) for report in alone)
        )
    assert whole.aggregation_gap == pytest.approx(whole.gap / whole.products)
    assert whole.modules[1][1].measured == pytest.approx(alone[1].measured)
    json.dumps(whole.to_json(), allow_nan=False)


def draw_energies(rng, a, b, *, std_a, std_b, weights, draws=20_000):
    """Energies of product-of-means and mean-of-products noise, by definition.

    ``a`` and ``b`` hold one factor per site.
    """
    x_a = rng.normal(size=(draws, SITES, R, K)) * np.reshape(std_a, (1, SITES, 1, 1))
    x_b = rng.normal(size=(draws, SITES, D, R)) * np.reshape(std_b, (1, SITES, 1, 1))
    w = np.reshape(weights, (1, SITES, 1, 1))
    mean_a, mean_b = np.sum(w[0] * a, axis=0), np.sum(w[0] * b, axis=0)
    noisy_a, noisy_b = (
        mean_a + np.sum(w * x_a, axis=1),
        mean_b + np.sum(w * x_b, axis=1),
    )
    of_means = SCALING * (noisy_b @ noisy_a - mean_b @ mean_a)
    of_products = np.sum(w * SCALING * ((b + x_b) @ (a + x_a) - b @ a), axis=1)
    return np.sum(of_means**2, axis=(1, 2)), np.sum(of_products**2, axis=(1, 2))


def check_mean(samples, expected, relative):
    deviation = samples.std() / np.sqrt(len(samples))
    assert 5 * deviation < relative * expected, "too few draws for this tolerance"
    assert samples.mean() == pytest.approx(expected, rel=relative)


@pytest.mark.parametrize("trained", [BOTH, BOTH[:1], BOTH[1:]])
@pytest.mark.parametrize("equal", [True, False])
def test_closed_forms_by_monte_carlo(trained, equal):
    rng = np.random.default_rng(11)
    before = adapter(rng)
    weights = (0.25,) * SITES if equal else (0.1, 0.2, 0.3, 0.4)
    std_a = (0.4,) * SITES if equal else (0.1, 0.8, 0.3, 0.5)
    std_b = (0.3,) * SITES if equal else (0.9, 0.2, 0.4, 0.1)
    levels = NoiseLevels(std_a, std_b, weights)
    a = np.stack([before.tensors["m.lora_A"].astype(float)] * SITES)
    b = np.stack([before.tensors["m.lora_B"].astype(float)] * SITES)
    of_means, of_products = draw_energies(
        rng,
        a,
        b,
        std_a=std_a if "m.lora_A" in trained else (0.0,) * SITES,
        std_b=std_b if "m.lora_B" in trained else (0.0,) * SITES,
        weights=weights,
    )
    check_mean(of_means, closed_form(before, trained, levels), 0.02)
    exact = closed_form_mean_of_products([before] * SITES, trained, levels)
    check_mean(of_products, exact, 0.02)
    if trained != BOTH:
        # One factor is shared: both ways to average are the same numbers.
        assert np.allclose(of_means, of_products)
        assert exact == pytest.approx(closed_form(before, trained, levels))


def test_mean_of_products_of_different_sites_by_monte_carlo():
    rng = np.random.default_rng(12)
    sites = [adapter(rng) for _ in range(SITES)]
    levels = NoiseLevels(
        (0.1, 0.8, 0.3, 0.5), (0.9, 0.2, 0.4, 0.1), (0.1, 0.2, 0.3, 0.4)
    )
    _, of_products = draw_energies(
        rng,
        np.stack([s.tensors["m.lora_A"] for s in sites]),
        np.stack([s.tensors["m.lora_B"] for s in sites]),
        std_a=levels.std_a,
        std_b=levels.std_b,
        weights=levels.weights,
    )
    check_mean(of_products, closed_form_mean_of_products(sites, BOTH, levels), 0.02)


def test_measured_energies_average_to_the_closed_form():
    rng = np.random.default_rng(13)
    before = adapter(rng)
    clean = updates(rng, BOTH, 0.2)
    levels = NoiseLevels.uniform((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1))
    reports = []
    for _ in range(1500):
        noisy = [
            {
                "m.lora_A": (u["m.lora_A"] + sa * rng.normal(size=(R, K))).astype(
                    np.float32
                ),
                "m.lora_B": (u["m.lora_B"] + sb * rng.normal(size=(D, R))).astype(
                    np.float32
                ),
            }
            for u, sa, sb in zip(clean, levels.std_a, levels.std_b, strict=True)
        ]
        reports.append(measure(before, noisy, clean, BOTH, levels=levels))
    expected = reports[0].closed_form
    check_mean(np.array([r.measured for r in reports]), expected, 0.07)
    # The cross terms vanish on average: the three parts add up to the whole.
    parts = np.array([r.linear_b + r.linear_a + r.quadratic for r in reports])
    check_mean(parts, expected, 0.07)
    assert all(r.closed_form == expected for r in reports)


def test_the_quadratic_term_is_k_times_larger_for_the_mean_of_products():
    zero = Adapter(
        {
            "m.lora_A": np.zeros((R, K), np.float32),
            "m.lora_B": np.zeros((D, R), np.float32),
        },
        SCALING,
    )
    levels = NoiseLevels.uniform([0.3] * SITES, [0.3] * SITES)
    means = closed_form(zero, BOTH, levels)
    assert means > 0
    assert closed_form_mean_of_products([zero] * SITES, BOTH, levels) == pytest.approx(
        SITES * means
    )


def test_fedavg_over_ffa_at_zero_b():
    # One client, B = 0, PEFT's A with |A|^2 = r/3: 1 + 3 k s^2, which is 2 when
    # s is the standard deviation of A's own entries.
    d, k, r = 20, 48, 4
    a = np.full((r, k), 1 / np.sqrt(3 * k), np.float32)
    start = Adapter({"m.lora_A": a, "m.lora_B": np.zeros((d, r), np.float32)}, 1.0)
    s = 1 / np.sqrt(3 * k)
    levels = NoiseLevels.uniform([s], [s])
    ratio = closed_form(start, BOTH, levels) / closed_form(start, BOTH[1:], levels)
    assert ratio == pytest.approx(2.0, rel=1e-6)


def test_amplification_refers_to_ffa_with_the_initial_factor():
    rng = np.random.default_rng(15)
    start, now = adapter(rng), adapter(rng, a_std=3.0)
    levels = NoiseLevels.uniform([0.2] * SITES, [0.3] * SITES)
    noisy = updates(rng, BOTH, 0.3)
    clean = [{n: np.zeros_like(v) for n, v in u.items()} for u in noisy]
    report = measure(now, noisy, clean, BOTH, levels=levels, initial=start)
    ffa = closed_form(start, BOTH[1:], levels)
    assert report.amplification == pytest.approx(report.measured / ffa)
    head = [{"head.bias": np.ones(3, np.float32)}] * SITES
    silent = measure(now, head, head, ("head.bias",), levels=levels, initial=start)
    assert silent.amplification == silent.closed_form == 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_noise_std_by_running_sgd(momentum):
    # 200,000 coordinates: relative deviation of the std 0.16 %, 1 % allowed.
    steps, rate, sigma, clip, batch = 7, 0.5, 1.3, 0.8, 16.0
    rng = np.random.default_rng(14)
    weights = np.zeros(200_000)
    buffer = np.zeros_like(weights)
    for _ in range(steps):
        gradient = rng.normal(size=weights.size) * sigma * clip / batch
        buffer = momentum * buffer + gradient
        weights -= rate * buffer
    expected = sgd_noise_std(steps, rate, sigma, clip, batch, momentum=momentum)
    assert weights.std() == pytest.approx(expected, rel=0.01)
    if momentum == 0.0:
        assert expected == pytest.approx(np.sqrt(7) * 0.5 * 1.3 * 0.8 / 16)


@pytest.mark.parametrize(
    "arguments",
    [
        {"noisy": []},
        {"clean": [{}]},
        {"trained": ("m.lora_A",)},
        {"weights": (0.5, 0.5)},
        {"weights": (0.5, 0.5, 0.5, 0.5)},
        {"levels": NoiseLevels.uniform([0.1], [0.1])},
        {
            "levels": NoiseLevels.uniform([0.1] * SITES, [0.1] * SITES),
            "weights": (0.25,) * SITES,
        },
        {"noisy": [dict.fromkeys(BOTH, np.zeros((1, 1), np.float32))] * SITES},
        {"noisy": [dict.fromkeys(BOTH, np.full((1, 1), np.nan))] * SITES},
    ],
)
def test_measure_refuses_what_does_not_fit(arguments):
    rng = np.random.default_rng(0)
    given_updates = updates(rng, BOTH, 0.1)
    defaults = {
        "before": adapter(rng),
        "noisy": given_updates,
        "clean": given_updates,
        "trained": BOTH,
    }
    with pytest.raises(ValueError):
        measure(**(defaults | arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ((0.1,), (0.1, 0.1), (0.5, 0.5)),
        ((-0.1,), (0.1,), (1.0,)),
        ((0.1,), (0.1,), (0.9,)),
        ((), (), ()),
    ],
)
def test_noise_levels_refuse_what_is_no_mean(arguments):
    with pytest.raises(ValueError):
        NoiseLevels(*arguments)


@pytest.mark.parametrize(
    "change", [{"steps": -1}, {"expected_batch": 0.0}, {"momentum": 1.0}]
)
def test_sgd_noise_std_refuses_impossible_values(change):
    good = {
        "steps": 1,
        "learning_rate": 1.0,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "expected_batch": 1.0,
    }
    with pytest.raises(ValueError):
        sgd_noise_std(**(good | change))
