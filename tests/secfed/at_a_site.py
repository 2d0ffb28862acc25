"""Training at one site, and its slow obvious version, for the tests of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small import flat
from torch import nn

from secfed.adapters import AdaptedModel
from secfed.models import Features
from secfed.privacy.noise import RandomStream
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.setup import Prepared
from secfed.study.sections import TrainingSection
from secfed.training import (
    PrivateRecords,
    train_privately,
)
from secfed.types import Adapter

RATE = 64.0
Records = PrivateRecords
Array = NDArray[np.float64]


def some(records: Records, rows: Sequence[int]) -> Records:
    """A site that holds only these records, each its own unit."""
    texts = [
        records.features.states[
            records.features.offsets[row] : records.features.offsets[row + 1]
        ]
        for row in rows
    ]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    states = torch.cat(texts) if texts else records.features.states[:0]
    chosen = np.array(rows, dtype=np.int64)
    return PrivateRecords(
        Features(states, offsets.astype(np.int64)),
        records.labels[chosen],
        np.arange(len(rows)),
        len(rows),
    )


def one_at_a_time(
    model: AdaptedModel,
    adapter: Adapter,
    names: Sequence[str],
    records: Records,
    rows: Sequence[int],
) -> Array:
    """The slow obvious version: autograd of one record, no padding, no Opacus."""
    model.write(adapter.tensors)
    parameters = list(model.set_trainable(names).values())
    gradients = []
    for row in rows:
        states, mask = records.features.batch(np.array([row]))
        target = torch.as_tensor(records.labels[[row]])
        loss = nn.functional.cross_entropy(model(states, mask), target)
        parts = torch.autograd.grad(loss, parameters)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.array(gradients, dtype=np.float64)


RULES: list[dict[str, Any]] = [
    {"clip_rule": "flat"},
    {"clip_rule": "normalised", "clip_gamma": 0.01},
    {"clip_rule": "per-tensor"},
]


def train(
    prepared: Prepared,
    adapter: Adapter,
    names: Sequence[str],
    records: Records,
    plan: PrivacyPlan,
    settings: TrainingSection,
    stream: RandomStream,
    rate: float = RATE,
    *,
    keep_noiseless: bool = False,
) -> Array:
    update = train_privately(
        prepared.model,
        adapter,
        names,
        records,
        plan,
        settings,
        rate,
        stream,
        keep_noiseless=keep_noiseless,
    )
    if keep_noiseless:
        assert update.noiseless is not None
        assert update.noiseless.keys() == update.change.keys()
    return flat(update.change)


def distance(found: Array, expected: Array) -> float:
    """Relative to the size of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def expected_contribution(tensors: Sequence[Array], plan: PrivacyPlan) -> Array:
    """The rules as the docstring of ``secfed.privacy.clipping`` writes them."""
    norms = [np.linalg.norm(t) for t in tensors]
    whole = float(np.linalg.norm(norms))
    factors = {
        "flat": [min(1.0, plan.clip_norm / max(whole, 1e-300))] * len(tensors),
        "normalised": [plan.clip_norm / (whole + (plan.clip_gamma or 0.0))]
        * len(tensors),
        "per-tensor": [
            min(1.0, plan.clip_norm / np.sqrt(len(tensors)) / max(norm, 1e-300))
            for norm in norms
        ],
    }[plan.clip_rule]
    return np.concatenate([t * f for t, f in zip(tensors, factors, strict=True)])


@contextmanager
def hooked(model: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
