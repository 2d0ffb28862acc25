"""No record changes another one's gradient, and training leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from at_a_site import Array, Records, hooked, some, train
from small import make_plan, silent
from torch import nn

from secfed.errors import TrainingError
from secfed.privacy.noise import simulation_stream
from secfed.runtime.setup import Prepared
from secfed.study.sections import TrainingSection
from secfed.training import (
    ClassificationLoss,
    OpacusGradients,
    check_independence,
)
from secfed.types import Adapter


def centred(_module: nn.Module, inputs: Any) -> Any:
    """Subtracts the batch mean: every record sees every other."""
    states, mask = inputs
    return states - states.mean(dim=0, keepdim=True), mask


def slightly_mixed(_module: nn.Module, inputs: Any) -> Any:
    states, mask = inputs
    return states + 1e-4 * states.roll(1, dims=0), mask


def test_records_are_independent_in_the_real_model(
    prepared: Prepared, busy: Adapter, everybody: Records, names: tuple[str, ...]
) -> None:
    prepared.model.write(busy.tensors)
    chosen = prepared.model.set_trainable(names)
    with OpacusGradients(prepared.model, chosen) as gradients:
        check_independence(gradients, ClassificationLoss(), everybody)


@pytest.mark.parametrize("mix", [centred, slightly_mixed])
def test_a_model_that_mixes_records_is_refused(
    mix: Callable[..., Any],
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    stream = simulation_stream(5, "mix")
    with (
        hooked(prepared.model, mix),
        pytest.raises(TrainingError, match="another record's gradient"),
    ):
        train(
            prepared,
            busy,
            names,
            some(everybody, range(20)),
            make_plan(20, 20),
            plain_sgd,
            stream,
        )
    # It stopped before the first step: the stream has not been read.
    assert stream.bytes(8) == simulation_stream(5, "mix").bytes(8)


def test_batch_normalisation_is_refused(
    prepared: Prepared, busy: Adapter, everybody: Records, names: tuple[str, ...]
) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = prepared.model

        def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(states, mask)
            return logits / logits.std(dim=0, keepdim=True)

    prepared.model.write(busy.tensors)
    chosen = prepared.model.set_trainable(names)
    with (
        OpacusGradients(Normalised(), chosen) as gradients,
        pytest.raises(TrainingError, match="self-test"),
    ):
        check_independence(gradients, ClassificationLoss(), everybody)


def test_nothing_stays_on_the_parameters_after_training(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    # Per-record gradients are private; a later reader of the model finds none.
    train(
        prepared,
        busy,
        names,
        some(everybody, range(20)),
        make_plan(20, 20),
        plain_sgd,
        silent("left"),
    )
    assert_nothing_left(prepared.model)


def assert_nothing_left(model: nn.Module) -> None:
    for parameter in model.parameters():
        assert parameter.grad is None
        for name in ("grad_sample", "_current_grad_sample", "_forward_counter"):
            assert not hasattr(parameter, name)
    for module in model.modules():
        for name in ("activations", "max_batch_len", "autograd_grad_sample_hooks"):
            assert not hasattr(module, name)
        assert not module._backward_hooks
        assert not module.training


class HalfwayError(Exception):
    pass


@pytest.mark.parametrize("passes", [0, 2])  # The self-test makes the first two.
def test_an_exception_inside_backward_leaves_nothing_behind(
    passes: int,
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    def once() -> Array:
        held = some(everybody, range(20))
        plan = make_plan(20, 20)
        return train(prepared, busy, names, held, plan, plain_sgd, silent("half"))

    healthy = once()
    # Half-way: the head's gradients are there, the lower factors' are not yet.
    lowest = prepared.model.upper[0].attention.self.query.lora_B.default
    seen = 0

    def stop(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > passes:
            raise HalfwayError

    handle = lowest.register_full_backward_hook(stop)
    try:
        with pytest.raises(HalfwayError):
            once()
    finally:
        handle.remove()
    assert seen == passes + 1
    assert_nothing_left(prepared.model)
    assert np.array_equal(once(), healthy)
