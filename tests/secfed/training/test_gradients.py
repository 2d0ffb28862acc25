"""Per-record gradients of every adapter are those of one example at a time."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from tiny import (
    CASES,
    Case,
    answer_loss,
    bert,
    class_loss,
    errors,
    flat,
    flat_mask_loss,
    one_at_a_time,
    trained,
    wrapped,
)
from tiny import gpt2 as make_gpt2
from torch import nn

from secfed.errors import TrainingError
from secfed.training import FunctionalGradients, OpacusGradients, preflight

by_rules = [case for case in CASES if not case.refused]
without_rules = [case for case in CASES if case.refused]


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def assert_exact(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert errors(found, expected).max() < 1e-4
    # Controls that must fail: a neighbour's gradient, and one per cent too much.
    assert errors(found.roll(1, dims=0), expected).min() > 0.1
    assert errors(1.01 * found, expected).min() > 9e-3


@named(by_rules)
def test_opacus_is_exact(case: Case) -> None:
    model = case.model
    preflight(model)
    expected = one_at_a_time(case, model)
    with OpacusGradients(model, trained(model)) as gradients:
        found = flat(gradients(case.loss, case.batch))
    assert_exact(found, expected)


@named(CASES)
def test_functional_gradients_are_exact(case: Case) -> None:
    model = case.model
    preflight(model, by_rules=False)
    expected = one_at_a_time(case, model)
    with FunctionalGradients(model, trained(model)) as gradients:
        found = flat(gradients(case.loss, case.batch))
    assert_exact(found, expected)


@named(CASES)
def test_every_trained_tensor_has_a_gradient(case: Case) -> None:
    # Without this the comparisons above could hold because all is zero.
    model = case.model
    expected = one_at_a_time(case, model)
    start = 0
    for name, parameter in trained(model).items():
        part = expected[:, start : start + parameter.numel()]
        assert part.abs().max() > 1e-8, name
        start += parameter.numel()


@named(without_rules)
def test_an_adapter_without_a_rule_is_refused_by_name(case: Case) -> None:
    model = case.model

    def train() -> None:
        preflight(model)
        with OpacusGradients(model, trained(model)) as gradients:
            gradients(case.loss, case.batch)

    with pytest.raises(TrainingError) as caught:
        train()
    assert case.refused in str(caught.value)


def test_code_that_cannot_be_vectorised_is_refused() -> None:
    # Transformers asks a flat mask of a BERT whether it hides anything at all.
    case = replace(CASES[0], loss=flat_mask_loss)
    model = case.model
    with (
        FunctionalGradients(model, trained(model)) as gradients,
        pytest.raises(TrainingError, match="cannot be vectorised"),
    ):
        gradients(case.loss, case.batch)


def test_dora_under_opacus_would_be_wrong_even_with_its_magnitude_frozen() -> None:
    """Why the rows are counted: DoRA calls its factors with an identity matrix."""
    case = next(case for case in CASES if case.name == "dora-bert")
    model = case.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "magnitude" not in name)
    preflight(model)
    with (
        OpacusGradients(model, trained(model)) as gradients,
        pytest.raises(TrainingError, match=r"lora_A\.default .* called with 16 rows"),
    ):
        gradients(case.loss, case.batch)


def test_a_parameter_outside_the_loss_is_named() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.used(states)

    model = TwoHeads()
    with (
        OpacusGradients(model, trained(model)) as gradients,
        pytest.raises(TrainingError, match=r"idle\.weight: Opacus gave no gradient"),
    ):
        gradients(lambda network, states: network(states).sum(1), (torch.ones(3, 4),))


def test_gradients_are_asked_for_inside_with_only() -> None:
    model = nn.Linear(4, 2)
    gradients = OpacusGradients(model, trained(model))
    with pytest.raises(TrainingError, match="outside"):
        gradients(lambda network, states: network(states).sum(1), (torch.ones(3, 4),))
    with pytest.raises(TrainingError, match="not parameters of the model"):
        FunctionalGradients(model, {"other": nn.Parameter(torch.ones(1))})


def test_a_layer_that_two_blocks_share_is_exact() -> None:
    model = make_gpt2()
    model.config.use_cache = False
    model.transformer.h[1] = model.transformer.h[0]
    case = next(case for case in CASES if case.name == "lora-gpt2")
    shared = wrapped(model, case.config())
    expected = one_at_a_time(case, shared)
    with OpacusGradients(shared, trained(shared)) as gradients:
        found = flat(gradients(answer_loss, case.batch))
    assert_exact(found, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_only_reentrant_checkpointing_keeps_the_gradients(reentrant: bool) -> None:
    case = next(case for case in CASES if case.name == "lora-gpt2")
    model = case.model
    expected = one_at_a_time(case, model)
    base = model.get_base_model()
    base.config.use_cache = False
    base.activation_checkpointing_enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    with OpacusGradients(model, trained(model)) as gradients:
        if reentrant:
            preflight(model)
            assert_exact(flat(gradients(case.loss, case.batch)), expected)
            return
        # Preflight refuses it by name; without preflight it is found here.
        with pytest.raises(TrainingError, match="gave no gradient per record"):
            gradients(case.loss, case.batch)


# Quantised bases: the adapters stay ordinary linear layers in float32.

needs_quantisation = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed",
)


def quantised(kind: str, threshold: float = 0.0) -> nn.Module:
    import bitsandbytes  # noqa: PLC0415

    def swap(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name in {"query", "key", "value"}:
                setattr(
                    module,
                    name,
                    _quantised_linear(bitsandbytes, kind, child, threshold),
                )
            else:
                swap(child)

    torch.manual_seed(4)
    model = bert(hidden=64)
    swap(model)
    model.is_loaded_in_4bit = kind == "nf4"
    model.is_loaded_in_8bit = kind == "int8"
    return model


def _quantised_linear(
    library: Any, kind: str, plain: nn.Linear, threshold: float
) -> nn.Module:
    layers, sizes = library.nn, (plain.in_features, plain.out_features)
    if kind == "nf4":
        made = layers.Linear4bit(*sizes, quant_type="nf4", compute_dtype=torch.float32)
        made.weight = layers.Params4bit(
            plain.weight.data, requires_grad=False, quant_type="nf4"
        )
    else:
        made = layers.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=threshold)
        made.weight = layers.Int8Params(
            plain.weight.data, requires_grad=False, has_fp16_weights=False
        )
    made.bias = plain.bias
    return made.to("cpu")


@needs_quantisation
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_lora_on_a_quantised_base_is_exact(kind: str) -> None:
    config = CASES[0].config()
    model = wrapped(quantised(kind), config)
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    assert layer.base_layer.weight.dtype in {torch.uint8, torch.int8}
    case = replace(CASES[0], loss=class_loss)
    preflight(model)
    expected = one_at_a_time(case, model)
    with OpacusGradients(model, trained(model)) as gradients:
        found = flat(gradients(class_loss, case.batch))
    assert_exact(found, expected)


@needs_quantisation
def test_outlier_columns_are_refused() -> None:
    model = wrapped(
        quantised("int8", threshold=6.0),
        peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]),
    )
    with pytest.raises(TrainingError, match=r"query\.base_layer .*outlier columns"):
        preflight(model)
