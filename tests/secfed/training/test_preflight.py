"""What cannot be trained privately is refused before the first step, by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import CASES, bert, gpt2, wrapped
from torch import nn

from secfed.errors import TrainingError
from secfed.training import preflight


class Encoder(nn.Module):
    """A trained linear layer beside whatever a test puts into ``odd``."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), odd)


class Linear8bitLt(nn.Module):
    """As much of bitsandbytes' layer as preflight looks at."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.state = type("State", (), {"threshold": threshold})()


class Doubled(nn.Linear):
    """A subclass whose forward pass is another one."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(requires_grad=False)


def checkpointed(**options: bool) -> nn.Module:
    model = gpt2()
    model.activation_checkpointing_enable(options)
    return frozen(model)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda: frozen(nn.BatchNorm1d(4)), "BatchNorm1d) normalises with statistics"),
        (lambda: frozen(nn.SyncBatchNorm(4)), "SyncBatchNorm) normalises"),
        (
            lambda: nn.InstanceNorm1d(4, track_running_stats=True),
            "InstanceNorm1d) keeps running statistics",
        ),
        (lambda: nn.Dropout(0.1), "Dropout) drops at random (p = 0.1)"),
        (lambda: checkpointed(use_reentrant=False), "gradient checkpointing that is"),
        (lambda: Linear8bitLt(6.0), "Linear8bitLt) chooses its outlier columns"),
        (lambda: nn.Bilinear(4, 4, 4), "Bilinear) trains weight, bias"),
        (lambda: Doubled(4, 4), "Doubled) trains weight, bias"),
        (lambda: nn.LSTM(4, 4), "LSTM) trains weight_ih_l0"),
        (
            lambda: nn.ParameterDict({"scale": torch.ones(4)}),
            "ParameterDict) holds the raw parameters scale",
        ),
        (lambda: nn.Linear(4, 4).bfloat16(), "is trained in torch.bfloat16"),
        (lambda: nn.Linear(4, 4).double(), "is trained in torch.float64"),
    ],
)
def test_a_layer_is_refused_by_name(odd: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(TrainingError) as caught:
        preflight(Encoder(odd()))
    text = str(caught.value)
    assert words in text
    assert "- block.1" in text


@pytest.mark.parametrize(
    "odd",
    [
        lambda: nn.LayerNorm(4),
        lambda: nn.Embedding(4, 4),
        lambda: nn.Dropout(0.0),
        lambda: nn.InstanceNorm1d(4),
        lambda: frozen(nn.LSTM(4, 4)),
        lambda: frozen(Doubled(4, 4)),
        lambda: Linear8bitLt(0.0),
        lambda: checkpointed(use_reentrant=True),
    ],
)
def test_what_keeps_records_apart_passes(odd: Callable[[], nn.Module]) -> None:
    preflight(Encoder(odd()))


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(TrainingError, match="no parameter is trainable"):
        preflight(frozen(Encoder(nn.Identity())))


def test_a_base_in_two_floating_types_is_refused() -> None:
    model = wrapped(bert(), CASES[0].config())
    preflight(model)
    layer = model.base_model.model.bert.encoder.layer[1].output.dense
    layer.to(torch.bfloat16)
    with pytest.raises(TrainingError, match="frozen weights mix types") as caught:
        preflight(model)
    assert "encoder.layer.1.output.dense.weight in torch.bfloat16" in str(caught.value)


def test_every_reason_is_listed_up_to_five() -> None:
    many = nn.Sequential(*(nn.Bilinear(2, 2, 2) for _ in range(7)))
    with pytest.raises(TrainingError) as caught:
        preflight(Encoder(many))
    text = str(caught.value)
    assert text.count("\n  - block") == 5
    assert text.endswith("and 2 more")


def test_without_rules_any_differentiable_parameter_will_do() -> None:
    preflight(Encoder(Doubled(4, 4)), by_rules=False)
    with pytest.raises(TrainingError, match="BatchNorm1d"):
        preflight(Encoder(nn.BatchNorm1d(4)), by_rules=False)
