"""Optimizers at the coordinator against slow float64 versions, and the study's keys."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from numpy.typing import NDArray
from played import MODULES, initial
from small import small_study, study_values

from secfed.errors import RoundAbortedError, StudyError
from secfed.runtime.compare import plan_arms
from secfed.strategies import (
    STRATEGIES,
    ServerState,
    Strategy,
    get_strategy,
    strategy_of,
    trained_names,
)
from secfed.strategies.server_optimizer import (
    FedAdam,
    FedAvgM,
    WithServerOptimizer,
    adds_means,
)
from secfed.study import Study, load_study_dict
from secfed.types import LORA_A, LORA_B

Array = NDArray[np.float64]
ABLE = {
    "fedavg",
    "fedsa-lora",
    "fedsa-lora-b",
    "ffa-lora",
    "ffb-lora",
    "rolora",
    "fed-sb",
    "la-lora",
    "head-only",
}


def study_with(method: str = "fedavg", **training: object) -> Study:
    values = study_values()
    values["training"].update(method=method, **training)
    values["training"]["learning_rate"] = dict.fromkeys(
        STRATEGIES.keys() - {"flora"}, 1.0
    )
    return load_study_dict(values, "my.toml")


def means(strategy: Strategy, rounds: int, scale: float = 1.0):
    rng = np.random.default_rng(6)
    shapes = [strategy.shapes(initial(), number) for number in range(1, rounds + 1)]
    return [
        {n: scale * rng.normal(size=s).astype(np.float32) for n, s in own.items()}
        for own in shapes
    ]


def play(strategy: Strategy, sent) -> list[ServerState]:
    states = [strategy.init(initial(), 0)]
    for number, mean in enumerate(sent, start=1):
        states.append(strategy.apply(states[-1], mean, number))
    return states


def slow_momentum(x: Array, changes: list[Array], rate: float, beta: float) -> Array:
    """The k-th mean counts 1 + beta + ... in all steps from the k-th on."""
    total = np.zeros_like(x)
    for age, change in enumerate(reversed(changes), start=1):
        total += change * sum(beta**i for i in range(age))
    return x + rate * total


def slow_adam(
    x: Array, changes: list[Array], rate: float, b1: float, b2: float, tau: float
) -> Array:
    """Each moment as the weighted sum that the recursion stands for."""
    for t in range(1, len(changes) + 1):
        ages = [(t - 1 - i, changes[i]) for i in range(t)]
        first = sum((1 - b1) * b1**age * change for age, change in ages)
        second = b2**t * tau**2 + sum((1 - b2) * b2**age * c**2 for age, c in ages)
        x = x + rate * first / (np.sqrt(second) + tau)
    return x


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_both_are_the_papers_recursions(rounds):
    rule = get_strategy("fedavg")
    sent = means(rule, rounds, scale=0.01)
    momentum = play(WithServerOptimizer(rule, FedAvgM(0.7, 0.8)), sent)[-1]
    adam = play(WithServerOptimizer(rule, FedAdam(0.1, (0.6, 0.9), 0.02)), sent)[-1]
    for name, value in initial().tensors.items():
        x, changes = value.astype(float), [mean[name].astype(float) for mean in sent]
        found = momentum.adapter.tensors[name]
        np.testing.assert_allclose(
            found, slow_momentum(x, changes, 0.7, 0.8), atol=1e-6
        )
        found = adam.adapter.tensors[name]
        wanted = slow_adam(x, changes, 0.1, 0.6, 0.9, 0.02)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert found.dtype == np.float32
        # No step of Adam is longer than eta (1 - b1) / sqrt(1 - b2) on its own.
        first = np.abs(play(adam_of(rule), sent[:1])[-1].adapter.tensors[name] - x)
        assert first.max() <= 0.1 * 0.4 / np.sqrt(0.1) + 1e-6


def adam_of(rule: Strategy) -> Strategy:
    return WithServerOptimizer(rule, FedAdam(0.1, (0.6, 0.9), 0.02))


@pytest.mark.parametrize("name", ["fedavg", "ffa-lora", "rolora"])
def test_without_momentum_and_with_rate_one_it_is_the_rule(name):
    rule = get_strategy(name)
    sent = means(rule, 3)
    plain, wrapped = (
        play(rule, sent),
        play(WithServerOptimizer(rule, FedAvgM(1.0, 0.0)), sent),
    )
    for one, two in zip(plain, wrapped, strict=True):
        assert one.round == two.round
        for tensor, value in one.adapter.tensors.items():
            assert np.array_equal(value, two.adapter.tensors[tensor])


def test_moments_are_kept_by_tensor_and_rest_while_it_is_not_sent():
    strategy = WithServerOptimizer(get_strategy("rolora"), FedAvgM(1.0, 0.5))
    sent = means(strategy, 3)
    states = play(strategy, sent)
    a, b = MODULES[0] + LORA_A, MODULES[0] + LORA_B
    assert not states[0].memory
    assert b + ".momentum" in states[1].memory
    assert a + ".momentum" not in states[1].memory
    assert np.array_equal(states[2].memory[b + ".momentum"], sent[0][b])
    expected = 0.5 * sent[0][b] + sent[2][b]
    np.testing.assert_allclose(states[3].memory[b + ".momentum"], expected, rtol=1e-6)
    for state in states:
        assert all(v.dtype == np.float32 for v in state.memory.values())


def test_the_wrapper_is_the_rule_in_everything_else():
    rule = get_strategy("fedsa-lora")
    wrapped = WithServerOptimizer(rule, FedAdam(0.1))
    for declared in Strategy.__annotations__:
        if declared != "title":
            assert getattr(wrapped, declared) == getattr(rule, declared)
    assert wrapped.title.startswith(rule.title)
    assert "fedadam" in wrapped.title
    # A method that a rule may change must be passed on; ``check`` is not one.
    inherited = {
        name
        for name, _ in inspect.getmembers(Strategy, inspect.isfunction)
        if not name.startswith("_") and name not in vars(WithServerOptimizer)
    }
    assert inherited == {"check"}
    state = wrapped.init(initial(), 0)
    assert trained_names(wrapped, state.adapter, 1) == trained_names(rule, initial(), 1)
    assert wrapped.keeps(MODULES[0] + LORA_B)
    assert wrapped.shapes(state.adapter, 1) == rule.shapes(state.adapter, 1)


def test_what_is_not_this_round_or_not_finite_is_refused():
    strategy = adam_of(get_strategy("fedavg"))
    [first, second] = means(strategy, 2)
    [_, state, _] = play(strategy, [first, second])
    with pytest.raises(ValueError, match="round 1 after round 1"):
        strategy.apply(state, second, 1)
    with pytest.raises(ValueError, match="sends"):
        strategy.apply(state, {}, 2)
    bad = second | {"head.weight": np.full((5, 8), np.nan, np.float32)}
    with pytest.raises(RoundAbortedError, match=r"head\.weight"):
        strategy.apply(state, bad, 2)
    # A square that float32 does not hold must not become a moment.
    huge = second | {"head.weight": np.full((5, 8), 1e30, np.float32)}
    with pytest.raises(RoundAbortedError, match=r"head\.weight\.second-moment"):
        strategy.apply(state, huge, 2)
    assert np.isfinite(state.memory["head.weight.second-moment"]).all()


def test_only_rules_that_add_means_can_have_one():
    assert {name for name, rule in STRATEGIES.items() if adds_means(rule)} == ABLE
    for name in STRATEGIES.keys() - ABLE:
        with pytest.raises(ValueError, match="does not add"):
            WithServerOptimizer(get_strategy(name), FedAvgM(1.0))
    for name in sorted(ABLE):
        rule = get_strategy(name)
        assert WithServerOptimizer(rule, FedAvgM(1.0)).linear


# From a study


def test_a_study_names_its_optimizer():
    plain = study_with()
    assert strategy_of(plain) is get_strategy("fedavg")
    momentum = study_with(server_optimizer="fedavgm", server_learning_rate=0.5)
    assert strategy_of(momentum) == WithServerOptimizer(
        get_strategy("fedavg"), FedAvgM(0.5, 0.9)
    )
    adam = study_with(
        server_optimizer="fedadam",
        server_learning_rate=0.1,
        server_betas=[0.5, 0.6],
        server_tau=0.01,
    )
    wanted = FedAdam(0.1, (0.5, 0.6), 0.01)
    assert strategy_of(adam) == WithServerOptimizer(get_strategy("fedavg"), wanted)
    assert load_study_dict(adam.canonical(), "again") == adam
    for zero in ({"server_momentum": 0.0}, {}):
        found = strategy_of(
            study_with(server_optimizer="fedavgm", server_learning_rate=1.0, **zero)
        )
        assert isinstance(found, WithServerOptimizer)
        assert found.optimizer == FedAvgM(1.0, zero.get("server_momentum", 0.9))


def test_none_is_what_a_study_means_that_says_nothing():
    assert study_with(server_optimizer="none").digest() == study_with().digest()
    assert "server" not in str(small_study().canonical())
    other = study_with(server_optimizer="fedavgm", server_learning_rate=1.0)
    assert other.digest() != study_with().digest()


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"server_optimizer": "fedadm"}, "server_optimizer", "did you mean 'fedadam'"),
        ({"server_optimizer": "fedadam"}, "server_learning_rate", "required"),
        ({"server_learning_rate": 1.0}, "server_learning_rate", "belongs to"),
        (
            {
                "server_optimizer": "none",
                "server_tau": 0.1,
            },
            "server_tau",
            "belongs to server_optimizer = 'fedadam'",
        ),
        (
            {
                "server_optimizer": "fedavgm",
                "server_learning_rate": 1.0,
                "server_betas": [0.9, 0.9],
            },
            "server_betas",
            "belongs to server_optimizer = 'fedadam'",
        ),
        (
            {
                "server_optimizer": "fedadam",
                "server_learning_rate": 1.0,
                "server_betas": [0.9, 1.0],
            },
            "server_betas[2]",
            "less than 1",
        ),
        ({"server_rate": 1.0}, "server_rate", "did you mean 'server_"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, key, message):
    with pytest.raises(StudyError) as caught:
        study_with(**keys)
    assert caught.value.key == f"training.{key}"
    assert message in str(caught.value)


def test_a_rule_that_does_not_fit_the_study_is_refused_before_training():
    momentum = {"server_optimizer": "fedavgm", "server_learning_rate": 1.0}
    with pytest.raises(StudyError, match="fedsvd does not add the mean") as caught:
        strategy_of(study_with("fedsvd", **momentum))
    assert caught.value.key == "training.server_optimizer"
    assert ", ".join(n for n in STRATEGIES if n in ABLE) in str(caught.value)
    with pytest.raises(StudyError, match="fedsvd does not add the mean"):
        plan_arms(study_with(**momentum), ["fedavg", "fedsvd"], [0])
    whole = study_with("la-lora")
    privacy = whole.privacy.model_copy(update={"unit": "site"})
    with pytest.raises(StudyError, match="no step is noisy") as caught:
        strategy_of(whole.model_copy(update={"privacy": privacy}))
    assert caught.value.key == "privacy.unit"
    fine = whole.model_copy(
        update={
            "privacy": privacy,
            "training": replace_method(whole, "fedavg"),
        }
    )
    assert strategy_of(fine) is get_strategy("fedavg")


def replace_method(study: Study, method: str):
    return study.training.model_copy(update={"method": method})
