"""A private run of two rounds for every rule, from the study to the released files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import EXAMPLE, small_policy, study_values

from secfed.adapters import load_adapter
from secfed.policy import SitePolicy
from secfed.release import plain_lora
from secfed.runtime.arms import Arm
from secfed.runtime.encoding import codec_for, ring_bits_for
from secfed.runtime.local import run_arm
from secfed.runtime.progress import NoProgress
from secfed.runtime.setup import Prepared, prepare
from secfed.strategies import strategy_of, trained_names
from secfed.study import Study, load_study_dict
from secfed.types import LORA_A, LORA_B, MERGED
from secfed.verify import verify_run

pytestmark = pytest.mark.slow

ADAM = {"server_optimizer": "fedadam", "server_learning_rate": 0.01}
MOMENTUM = {
    "server_optimizer": "fedavgm",
    "server_learning_rate": 1.0,
    "server_momentum": 0.5,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fedsvd", {}),
    ("ffa-fresh", {}),
    ("fed-sb", {}),
    ("fedrot-lora", {}),
    ("la-lora", {}),
    ("fedavg", ADAM),
    ("rolora", MOMENTUM),
]
IDS = ["-".join([name, *keys.values()][:2] if keys else [name]) for name, keys in CASES]
WIDE = ("fedrot-lora", "la-lora")


def study_of(method: str, training: dict[str, Any]) -> Study:
    values = study_values(rounds=2)
    values["training"].update(method=method, steps_per_round=2, **training)
    values["training"]["learning_rate"][method] = 1.0
    values["secagg"]["suite"] = "x25519"
    values["simulation"] = {"seed": 23}
    return load_study_dict(values, "small")


def policy_of(study: Study) -> SitePolicy:
    allowed = (study.training.method,)
    return small_policy().model_copy(update={"allowed_methods": allowed})


@pytest.fixture(scope="module")
def shared(packages: None) -> Prepared:
    study = study_of("fedavg", {})
    return prepare(study, EXAMPLE, policy_of(study), NoProgress())


def play(shared: Prepared, study: Study, run: Path) -> dict[str, Any]:
    (run / "private").mkdir(parents=True)
    arm = Arm(name=study.training.method, study=study)
    private = run / "private"
    policy = policy_of(study)
    return run_arm(arm, shared, run, private, "run", policy, NoProgress())


def released(folder: Path) -> dict[str, np.ndarray]:
    """The change of every weight as plain PEFT computes it from the two files."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, a in tensors.items():
        if name.endswith(LORA_A + ".weight"):
            module = name.removesuffix(LORA_A + ".weight")
            b = tensors[module + LORA_B + ".weight"]
            assert a.shape[0] == b.shape[1] == config["r"]
            scaling = config["lora_alpha"] / config["r"]
            product = scaling * b.astype(float) @ a.astype(float)
            found[module.removeprefix("base_model.model.")] = product
    return found


@pytest.mark.parametrize(("method", "training"), CASES, ids=IDS)
def test_a_private_run_to_its_release(
    shared: Prepared, tmp_path: Path, method: str, training: dict[str, Any]
) -> None:
    study = study_of(method, training)
    summary = play(shared, study, tmp_path)
    strategy = strategy_of(study)
    base = shared.model.base_weights()
    start = strategy.init(shared.start, study.adapter.seed, base)
    report = verify_run(tmp_path)
    assert report.passed, report.failures()
    assert [line["sums_equal"] for line in summary["rounds"][1:]] == [True, True]
    names = trained_names(strategy, start.adapter, 1)
    size = sum(start.adapter.tensors[name].size for name in names)
    assert summary["trainable"] == size
    assert 0 < summary["epsilon_max"] <= study.privacy.epsilon

    # The wire: 16 bits where the noise hides the rounding, and the range that follows.
    bits = ring_bits_for(study, shared.plans, start.adapter, private=True)
    assert bits == (32 if method in WIDE else 16)
    codec = codec_for(study, shared.plans, start.adapter, 1, private=True)
    assert codec.names_shapes == tuple(strategy.shapes(start.adapter, 1).items())
    if strategy.linear:
        assert all(line["saturated"] == 0 for line in summary["rounds"][1:])

    # What is released is the last adapter, as factors of plain PEFT.
    last = load_adapter(tmp_path / "adapters" / "round-002.safetensors", start.adapter)
    plain, files = plain_lora(last), released(tmp_path / "adapter")
    assert set(files) == set(last.modules())
    for module in last.modules():
        wanted = last.delta(module)
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(files[module], wanted, atol=1e-5 * norm(wanted))
        np.testing.assert_allclose(
            plain.delta(module), wanted, atol=1e-5 * norm(wanted)
        )
    if method == "ffa-fresh":
        assert any(name.endswith(MERGED) for name in last.tensors)
        assert len(plain.tensors[plain.modules()[0] + LORA_A]) == 2 * study.adapter.r


def norm(value: np.ndarray) -> float:
    return float(np.linalg.norm(value))


def test_moments_are_on_disk(shared: Prepared, tmp_path: Path) -> None:
    play(shared, study_of("fedavg", ADAM), tmp_path / "adam")
    stored = list((tmp_path / "adam").rglob("*002*.safetensors"))
    keys = {key for path in stored for key in load_file(path)}
    assert {"head.weight.first-moment", "head.weight.second-moment"} <= keys


def test_local_steps_count_through_the_rounds(shared: Prepared, tmp_path: Path) -> None:
    # With one step a round, la-lora moves B in round 1 and A in round 2.
    values = study_of("la-lora", {}).canonical()
    values["training"]["steps_per_round"] = 1
    plans = {n: replace(plan, steps_per_round=1) for n, plan in shared.plans.items()}
    one_step = replace(shared, plans=plans)
    play(one_step, load_study_dict(values, "small"), tmp_path / "run")
    before = shared.start
    for number, resting in ((1, LORA_A), (2, LORA_B)):
        path = tmp_path / "run" / "adapters" / f"round-{number:03d}.safetensors"
        after = load_adapter(path, before)
        for name, value in before.tensors.items():
            # The change of a resting factor is zero, give or take a step of the ring.
            moved = np.abs(after.tensors[name] - value).max()
            assert (moved < 1e-6) == name.endswith(resting), (number, name)
        before = after
