"""What a study trains moves, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from at_a_site import RATE, Records, distance, hooked, one_at_a_time, some, train
from small import flat, make_plan, silent
from torch import nn

from secfed.errors import TrainingError
from secfed.privacy.noise import simulation_stream
from secfed.runtime.setup import Prepared
from secfed.study.sections import TrainingSection
from secfed.training import (
    ClassificationLoss,
    train_privately,
    train_without_privacy,
)
from secfed.types import LORA_A, Adapter


def frozen_and_trained(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    frozen = tuple(name for name in names if name.endswith(LORA_A))
    return frozen, tuple(name for name in names if name not in frozen)


@pytest.mark.parametrize("private", [True, False])
def test_frozen_tensors_stay_bit_for_bit(
    private: bool,
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    frozen, trained = frozen_and_trained(names)
    assert frozen
    base = {
        name: value.clone()
        for name, value in prepared.model.network.state_dict().items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    records = some(everybody, range(30))
    plan = make_plan(30, 15, steps_per_round=2)
    stream = simulation_stream(5, "frozen")
    if private:
        update = train_privately(
            prepared.model, busy, trained, records, plan, plain_sgd, 1.0, stream
        )
    else:
        update = train_without_privacy(
            prepared.model, busy, trained, records, plain_sgd, 30, stream
        )
    assert tuple(update.change) == trained
    assert all(np.abs(value).max() > 0 for value in update.change.values())
    after = prepared.model.read()
    for name in frozen:
        assert np.array_equal(after[name], busy.tensors[name])
    state = prepared.model.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())


def test_a_frozen_tensor_that_moves_is_found(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    frozen, trained = frozen_and_trained(names)

    forwards = 0

    def nudge(_module: nn.Module, _inputs: object) -> None:
        nonlocal forwards
        forwards += 1
        if forwards <= 2:  # the two passes of the independence test
            return
        with torch.no_grad():
            prepared.model.named()[frozen[0]].add_(1e-3)

    with hooked(prepared.model, nudge), pytest.raises(TrainingError, match="frozen"):
        train(
            prepared,
            busy,
            trained,
            some(everybody, range(20)),
            make_plan(20, 20),
            plain_sgd,
            silent("nudge"),
        )


@pytest.mark.parametrize("what", ["adapter", "base"])
def test_a_frozen_weight_that_moves_is_found_after_the_first_step(
    what: str,
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    frozen, trained = frozen_and_trained(names)
    layer = prepared.model.upper[0].output.dense.weight
    weight = prepared.model.named()[frozen[0]] if what == "adapter" else layer

    def nudge(_module: nn.Module, _inputs: object) -> None:
        with torch.no_grad():
            weight[0, 0].add_(0.0)  # A write is enough, whatever it writes.

    done: list[int] = []
    plan = make_plan(20, 20, steps_per_round=3)
    with hooked(prepared.model, nudge), pytest.raises(TrainingError, match="frozen"):
        train_privately(
            prepared.model,
            busy,
            trained,
            some(everybody, range(20)),
            plan,
            plain_sgd,
            RATE,
            silent("first"),
            progress=lambda step, _steps: done.append(step),
        )
    assert not done


def test_class_weights_are_in_the_private_loss(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    held = some(everybody, range(12))
    weights = np.linspace(0.25, 4.0, len(prepared.label_names))
    plan = make_plan(12, 12, clip_norm=1e6)
    update = train_privately(
        prepared.model,
        busy,
        names,
        held,
        plan,
        plain_sgd,
        RATE,
        silent("weights"),
        loss=ClassificationLoss(tuple(weights)),
    )
    gradients = one_at_a_time(prepared.model, busy, names, held, range(12))
    expected = -RATE / 12 * (weights[held.labels] @ gradients)
    assert distance(flat(update.change), expected) < 1e-4
    assert distance(-RATE / 12 * gradients.sum(axis=0), expected) > 0.1


def test_a_trained_tensor_that_stays_is_found(
    prepared: Prepared,
    busy: Adapter,
    everybody: Records,
    names: tuple[str, ...],
    plain_sgd: TrainingSection,
) -> None:
    with pytest.raises(TrainingError, match="did not move"):
        train(
            prepared,
            busy,
            names,
            some(everybody, range(20)),
            make_plan(20, 20),
            plain_sgd,
            silent("rate"),
            rate=0.0,
        )
