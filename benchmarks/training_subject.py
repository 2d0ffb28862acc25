"""One adapted model and its records, as plain code and as secfed see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.training_plans import Case
from secfed.adapters import AdaptedModel
from secfed.strategies import get_strategy
from secfed.strategies.base import trained_names
from secfed.training import PrivateRecords
from secfed.training.losses import RecordLoss
from secfed.types import Adapter

__all__ = ["Subject", "start", "trained"]

_SPREAD = 0.02


@dataclass(frozen=True)
class Subject:
    """The same parameters behind two interfaces.

    Attributes:
        case: What this is.
        network: Maps token ids and their mask (n, tokens) to one row of logits per
            record, or one per token; PEFT's model is inside.
        model: The upper layers over cached states, for secfed; shares ``network``'s
            parameters.
        adapter: Where every round starts.
        trains: Names of the trained tensors.
        examples: Tokenised records without padding, for a ``DataLoader``.
        collate: Transformers' collator: pads to the longest of a batch.
        plain_loss: Logits and a padded batch to one number per record.
        loss: The same number, for secfed.
        encode: Makes secfed's records: everything below the adapter, once.
        device: Where plain code sends its batches.
    """

    case: Case
    network: nn.Module
    model: AdaptedModel
    adapter: Adapter
    trains: tuple[str, ...]
    examples: list[dict[str, Any]]
    collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
    plain_loss: Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
    loss: RecordLoss
    encode: Callable[[], PrivateRecords]
    device: str = "cpu"

    def begin(self) -> dict[str, nn.Parameter]:
        """Load the start; returns the trained parameters by name."""
        self.model.write(self.adapter.tensors)
        return self.model.set_trainable(self.trains)


def start(model: AdaptedModel, scaling: float) -> Adapter:
    """A start in the middle of training: no tensor is zero, so all have gradients."""
    source = np.random.default_rng(0)
    tensors = {
        name: (_SPREAD * source.standard_normal(p.shape)).astype(np.float32)
        for name, p in model.named().items()
    }
    return Adapter(tensors=tensors, scaling=scaling)


def trained(adapter: Adapter, method: str) -> tuple[str, ...]:
    """The tensors that a strategy trains: both factors of LoRA, or B alone (FFA)."""
    return trained_names(get_strategy(method), adapter, 1)
