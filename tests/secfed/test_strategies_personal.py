"""Rules that leave tensors at the sites: fedsa-lora, its ablation, and local."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secfed.errors import RunDirectoryError, StudyError
from secfed.runtime.kept import KeptTensors
from secfed.strategies import check_ranks, get_strategy, sent_names, trained_names
from secfed.strategies.base import SiteView
from secfed.types import LORA_A, LORA_B, Adapter

MODULE = "layer.0.query"
OUT, IN, R = 7, 6, 3


def initial() -> Adapter:
    rng = np.random.default_rng(0)
    return Adapter(
        {
            MODULE + LORA_A: rng.normal(size=(R, IN)).astype(np.float32),
            MODULE + LORA_B: np.zeros((OUT, R), np.float32),
            "head.weight": rng.normal(size=(5, IN)).astype(np.float32),
        },
        scaling=2.0,
    )


def change_of(adapter: Adapter, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=value.shape).astype(np.float32)
        for name, value in adapter.tensors.items()
    }


@pytest.mark.parametrize(
    ("name", "shared", "own"),
    [("fedsa-lora", LORA_A, LORA_B), ("fedsa-lora-b", LORA_B, LORA_A)],
)
def test_one_factor_is_averaged_and_the_other_stays(name, shared, own):
    strategy = get_strategy(name)
    state = strategy.init(initial(), 0)
    assert set(trained_names(strategy, state.adapter, 1)) == set(initial().tensors)
    assert own not in "".join(sent_names(strategy, state.adapter, 1))
    kept: dict[int, dict[str, np.ndarray]] = {0: {}, 1: {}}
    for number in (1, 2):
        payloads, shares = [], []
        for site, own_before in list(kept.items()):
            view = SiteView(kept=own_before, round=number)
            start = strategy.start(state.adapter, view)
            change = change_of(start, 10 * number + site)
            payloads.append(strategy.payload(state.adapter, start, change))
            kept[site] = dict(strategy.kept(start, change, view))
            shares.append(start.tensors[MODULE + shared] + change[MODULE + shared])
            assert kept[site].keys() == {MODULE + own}
            expected = start.tensors[MODULE + own] + change[MODULE + own]
            np.testing.assert_allclose(kept[site][MODULE + own], expected, rtol=1e-6)
        assert all(MODULE + own not in payload for payload in payloads)
        mean = {n: np.mean([p[n] for p in payloads], axis=0) for n in payloads[0]}
        state = strategy.apply(state, mean, number)
        got = state.adapter.tensors[MODULE + shared]
        np.testing.assert_allclose(got, np.mean(shares, axis=0), rtol=1e-5)
        # What stays never reaches the coordinator: its copy is the public start.
        own_at_server = state.adapter.tensors[MODULE + own]
        assert own_at_server.tobytes() == initial().tensors[MODULE + own].tobytes()
    assert not np.allclose(kept[0][MODULE + own], kept[1][MODULE + own])


def test_a_site_that_trains_alone_sends_nothing_and_goes_on_from_its_own():
    strategy = get_strategy("local")
    received = strategy.init(initial(), 0).adapter
    assert strategy.shapes(received, 1) == {}
    change = change_of(received, 1)
    assert strategy.payload(received, received, change) == {}
    kept = strategy.kept(received, change, SiteView())
    second = strategy.start(received, SiteView(kept=kept, round=2))
    for name, value in change.items():
        expected = received.tensors[name] + value
        np.testing.assert_allclose(second.tensors[name], expected, rtol=1e-6)


def test_kept_tensors_are_those_of_the_last_round_before(tmp_path: Path):
    kept = KeptTensors(tmp_path / "kept")
    assert kept.before(5) == {}
    kept.write(1, {})
    assert not (tmp_path / "kept").exists()
    for number in (1, 3):
        kept.write(number, {"m.lora_B": np.full((2, 2), number, np.float32)})
    assert kept.before(1) == {}
    assert kept.before(3)["m.lora_B"][0, 0] == 1
    assert kept.before(4)["m.lora_B"][0, 0] == 3
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    (tmp_path / "kept" / "round-003.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunDirectoryError, match="round-003"):
        kept.before(4)


def test_unequal_ranks_are_refused_for_rules_that_add_factors():
    check_ranks(get_strategy("fedavg"), None)
    with pytest.raises(StudyError, match="same rank at all sites") as caught:
        check_ranks(get_strategy("fedavg"), {"a": 4})
    assert caught.value.key == "adapter.ranks"
