"""Each loss belongs to one record; a batch mean is what the tests must catch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CASES, Case, answer_loss, class_loss, flat, trained
from torch import nn

from secfed.errors import TrainingError
from secfed.training import OpacusGradients, check_independence
from secfed.training.losses import (
    IGNORED,
    ClassificationLoss,
    causal_lm,
    classification,
)

Batch = tuple[torch.Tensor, ...]
CAUSAL = next(case for case in CASES if case.name == "lora-gpt2")
CLASSES = next(case for case in CASES if case.name == "lora-bert")
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


def weighted_loss(
    network: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    return class_loss(network, ids, mask, labels) * WEIGHTS[labels]


def token_mean(
    network: Any, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The control: Transformers' own loss, a mean over the tokens of the batch."""
    loss = network(input_ids=ids, attention_mask=mask, labels=targets).loss
    return loss[None]


def weighted_mean(
    network: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The control: torch divides by the sum of the weights of the batch."""
    wide = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    logits = network(input_ids=ids, attention_mask=wide).logits
    return nn.functional.cross_entropy(logits, labels, weight=WEIGHTS)[None]


def first_shortened(case: Case) -> Batch:
    """The first record becomes another text, of two tokens, with another answer."""
    ids, mask, wanted = (part.clone() for part in case.batch)
    ids[0] = ids[1]
    mask[0, 4:] = 0
    if wanted.dim() > 1:
        wanted[0] = IGNORED
        wanted[0, 3] = ids[0, 3]
    else:
        wanted[0] = (wanted[0] + 2) % 3
    return ids, mask, wanted


def others(case: Case, loss: Callable[..., torch.Tensor], batch: Batch) -> torch.Tensor:
    model = case.model
    with OpacusGradients(model, trained(model)) as gradients:
        return flat(gradients(loss, batch))[1:]


@pytest.mark.parametrize(
    ("case", "loss"),
    [(CAUSAL, answer_loss), (CLASSES, class_loss), (CLASSES, weighted_loss)],
    ids=["causal", "classes", "weighted"],
)
def test_one_record_moves_no_other_gradient_by_a_bit(
    case: Case, loss: Callable[..., torch.Tensor]
) -> None:
    before = others(case, loss, case.batch)
    after = others(case, loss, first_shortened(case))
    assert torch.equal(before, after)
    assert before.norm(dim=1).min() > 0


@pytest.mark.parametrize(
    ("case", "loss", "least"),
    [(CAUSAL, token_mean, 0.1), (CLASSES, weighted_mean, 0.1)],
    ids=["transformers-token-mean", "weighted-batch-mean"],
)
def test_a_batch_mean_moves_every_other_gradient(
    case: Case, loss: Callable[..., torch.Tensor], least: float
) -> None:
    before = others(case, loss, case.batch)
    after = others(case, loss, first_shortened(case))
    moved = (after - before).norm(dim=1) / before.norm(dim=1)
    assert moved.min() > least


def private(case: Case) -> Any:
    """What the self-test needs to know of a site's records."""
    return SimpleNamespace(
        labels=np.zeros(4),
        batch=lambda rows: tuple(part[torch.as_tensor(rows)] for part in case.batch),
    )


@pytest.mark.parametrize(
    ("case", "loss", "independent"),
    [
        (CAUSAL, answer_loss, True),
        (CLASSES, weighted_loss, True),
        (CAUSAL, token_mean, False),
        (CLASSES, weighted_mean, False),
    ],
)
def test_the_self_test_before_the_first_step_sees_the_difference(
    case: Case, loss: Callable[..., torch.Tensor], independent: bool
) -> None:
    model = case.model
    with OpacusGradients(model, trained(model)) as gradients:
        if independent:
            check_independence(gradients, loss, private(case))
        else:
            with pytest.raises(TrainingError, match="another record's gradient"):
                check_independence(gradients, loss, private(case))


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(2, 7), st.integers(2, 6)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_causal_loss_is_the_mean_over_the_records_own_answer(
    shape: tuple[int, int, int], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=draw)
    targets = torch.randint(-2, shape[2], shape[:2], generator=draw)
    targets[targets < 0] = IGNORED
    found = causal_lm(logits, targets)
    for row in range(shape[0]):
        each = [
            -torch.log_softmax(logits[row, at - 1], dim=0)[targets[row, at]]
            for at in range(1, shape[1])
            if targets[row, at] != IGNORED
        ]
        mean = torch.stack(each).mean() if each else torch.tensor(0.0)
        torch.testing.assert_close(found[row], mean)


def test_a_record_without_an_answer_has_no_gradient() -> None:
    logits = torch.randn(2, 4, 5, requires_grad=True)
    targets = torch.tensor([[1, 2, 3, 4], [2, IGNORED, IGNORED, IGNORED]])
    losses = causal_lm(logits, targets)
    losses.sum().backward()
    assert losses[1] == 0
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert logits.grad[0].any()


def test_class_weights_multiply_and_are_not_divided_out() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = classification(logits, labels)
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(plain, expected)
    assert torch.equal(classification(logits, labels, WEIGHTS), plain * WEIGHTS[labels])
    loss = ClassificationLoss(tuple(WEIGHTS.tolist()))
    found = loss(lambda states, _mask: states, logits, labels, labels)
    assert torch.equal(found, plain * WEIGHTS[labels])
