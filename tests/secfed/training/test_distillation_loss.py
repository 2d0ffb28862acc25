"""A teacher's part of the loss: its law, its limits, and one record at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CASES, CLASSES, LENGTHS, Case, errors, flat, trained
from torch import nn

from secfed.audit.invented import invented, taken
from secfed.errors import TrainingError
from secfed.models import Features
from secfed.training import (
    ClassificationLoss,
    DistillationLoss,
    DistilledRecords,
    FunctionalGradients,
    OpacusGradients,
    check_independence,
    pooled_records,
    soft_targets,
)

Batch = tuple[torch.Tensor, ...]
BERT = next(case for case in CASES if case.name == "lora-bert")
DORA = next(case for case in CASES if case.name == "dora-bert")
LOSS = DistillationLoss(weight=0.6, temperature=3.0, class_weights=(0.5, 1.0, 3.0))


class Logits(nn.Module):
    """The network as a loss calls it: logits of ids and their mask."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        wide = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        logits: torch.Tensor = self.network(input_ids=ids, attention_mask=wide).logits
        return logits


def said(count: int, classes: int = CLASSES, seed: int = 8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, classes, generator=draw)


def batch_of(case: Case) -> Batch:
    return (*case.batch, said(len(LENGTHS)))


def batch_coupled(
    network: Any, ids: Any, mask: Any, labels: Any, teacher: torch.Tensor
) -> torch.Tensor:
    """The control: the teacher's words are centred over the batch."""
    return LOSS(network, ids, mask, labels, teacher - teacher.mean(dim=0))


def agreement_weighted(
    network: Any, ids: Any, mask: Any, labels: Any, teacher: torch.Tensor
) -> torch.Tensor:
    """The control: FedKD's adaptive weight, but over the losses of the batch."""
    own = LOSS(network, ids, mask, labels, teacher)
    return own / own.detach().mean()


# The law


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_divergence_times_the_square_of_the_temperature(
    temperature: float,
) -> None:
    logits, teacher = said(5, seed=1).double(), said(5, seed=2).double()
    p = torch.softmax(teacher / temperature, dim=1)
    q = torch.softmax(logits / temperature, dim=1)
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(soft_targets(logits, teacher, temperature), expected)
    assert expected.min() > 0
    assert not soft_targets(teacher, teacher, temperature).abs().max() > 1e-12


def test_its_gradient_is_hintons() -> None:
    logits, teacher = said(5, seed=1).double().requires_grad_(), said(5).double()
    soft_targets(logits, teacher, 2.5).sum().backward()
    expected = 2.5 * (
        torch.softmax(logits.detach() / 2.5, 1) - torch.softmax(teacher / 2.5, 1)
    )
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected)


def test_hot_it_is_the_difference_of_centred_logits() -> None:
    # Hinton, Vinyals and Dean, 2015, section 2.1: (z - v) / N, for zero means.
    logits, teacher = said(4, seed=3).requires_grad_(), said(4, seed=4)
    soft_targets(logits, teacher, 100.0).sum().backward()
    z, v = logits.detach(), teacher
    centred = (z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, centred / CLASSES, rtol=0, atol=0.05)


def test_the_teacher_has_no_gradient() -> None:
    teacher = said(3).requires_grad_()
    soft_targets(said(3, seed=1).requires_grad_(), teacher, 2.0).sum().backward()
    assert teacher.grad is None


# The limits of the weight


def test_weight_zero_is_plain_to_the_bit_and_weight_one_the_teachers_alone() -> None:
    states, labels, teacher = said(6, seed=5), torch.arange(6) % 3, said(6)
    args = (states, states, labels, teacher)
    weights = LOSS.class_weights

    def network(logits: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
        return logits

    model: Any = network
    plain = ClassificationLoss(weights)(model, states, states, labels)
    soft = soft_targets(states, teacher, 3.0)
    assert torch.equal(DistillationLoss(0.0, 3.0, weights)(model, *args), plain)
    assert torch.equal(DistillationLoss(1.0, 3.0, weights)(model, *args), soft)
    torch.testing.assert_close(LOSS(model, *args), 0.4 * plain + 0.6 * soft)
    # No value of the teacher's can spoil a part that is not asked for.
    broken = torch.full_like(teacher, float("nan"))
    found = DistillationLoss(0.0, 3.0, weights)(model, states, states, labels, broken)
    assert torch.equal(found, plain)


# One record at a time


@pytest.mark.parametrize(
    ("case", "way"), [(BERT, OpacusGradients), (DORA, FunctionalGradients)]
)
def test_gradients_are_those_of_single_records(case: Case, way: Any) -> None:
    model = Logits(case.model)
    chosen = trained(model)
    with way(model, chosen) as gradients:
        found = flat(gradients(LOSS, batch_of(case)))
    rows = []
    for row, length in enumerate(LENGTHS):
        ids, mask, labels, teacher = (p[row : row + 1] for p in batch_of(case))
        loss = LOSS(model, ids[:, :length], mask[:, :length], labels, teacher)
        parts = torch.autograd.grad(loss.sum(), list(chosen.values()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    assert errors(found, torch.stack(rows)).max() < 1e-5


def first_changed() -> Batch:
    """Another first record, of which the teacher says something else."""
    ids, mask, labels, teacher = (part.clone() for part in batch_of(BERT))
    ids[0], mask[0, 4:], labels[0], teacher[0] = ids[1], 0, labels[1], -9 * teacher[0]
    return ids, mask, labels, teacher


def others(loss: Any, batch: Batch) -> torch.Tensor:
    model = Logits(BERT.model)
    with OpacusGradients(model, trained(model)) as gradients:
        return flat(gradients(loss, batch))[1:]


def test_one_record_and_its_teaching_move_no_other_gradient_by_a_bit() -> None:
    before = others(LOSS, batch_of(BERT))
    assert torch.equal(before, others(LOSS, first_changed()))
    assert before.norm(dim=1).min() > 0


@pytest.mark.parametrize("control", [batch_coupled, agreement_weighted])
def test_a_loss_that_couples_the_batch_moves_every_other_gradient(
    control: Any,
) -> None:
    before = others(control, batch_of(BERT))
    moved = (others(control, first_changed()) - before).norm(dim=1)
    assert (moved / before.norm(dim=1)).min() > 0.05


@pytest.mark.parametrize(
    ("loss", "independent"),
    [(LOSS, True), (batch_coupled, False), (agreement_weighted, False)],
)
def test_the_self_test_sees_the_difference(loss: Any, independent: bool) -> None:
    model = Logits(BERT.model)
    held: Any = SimpleNamespace(
        labels=np.zeros(4),
        batch=lambda rows: tuple(p[torch.as_tensor(rows)] for p in batch_of(BERT)),
    )

    # The self-test negates what is floating; these ids are not.
    with OpacusGradients(model, trained(model)) as gradients:
        if independent:
            check_independence(gradients, loss, held)
        else:
            with pytest.raises(TrainingError, match="another record's gradient"):
                check_independence(gradients, loss, held)


# Records that carry the teacher's word


def records(count: int, first: float) -> DistilledRecords:
    offsets = np.arange(count + 1, dtype=np.int64)
    return DistilledRecords(
        features=Features(torch.full((count, 2), first), offsets),
        labels=np.arange(count),
        units=np.arange(count),
        num_units=count,
        teacher=first + np.arange(2 * count, dtype=np.float32).reshape(count, 2),
    )


def test_a_batch_carries_the_word_on_its_own_rows_and_says_nothing_in_repr() -> None:
    held = records(4, 10.0)
    *_, labels, teacher = held.batch(np.array([2, 0]))
    assert labels.tolist() == [2, 0]
    assert teacher.tolist() == [[14.0, 15.0], [10.0, 11.0]]
    assert repr(held) == "DistilledRecords(<private>)"


def test_pooled_records_keep_every_records_own_word() -> None:
    pooled = pooled_records([records(2, 10.0), records(3, 50.0)])
    assert isinstance(pooled, DistilledRecords)
    states, *_, teacher = pooled.batch(np.arange(5))
    assert states[:, 0, 0].tolist() == [10.0, 10.0, 50.0, 50.0, 50.0]
    assert teacher[:, 0].tolist() == [10.0, 12.0, 50.0, 52.0, 54.0]


def test_records_that_an_audit_takes_or_invents_have_words_of_their_own() -> None:
    held = records(5, 10.0)
    some = taken(held, [3, 1])
    assert isinstance(some, DistilledRecords)
    assert some.labels.tolist() == [3, 1]
    assert some.teacher.tolist() == held.teacher[[3, 1]].tolist()
    made = invented(held, 7, 2)
    assert isinstance(made, DistilledRecords)
    assert made.teacher.shape == (7, 2)
    assert made.batch(np.array([6]))[-1].shape == (1, 2)
