"""A real GPU gives what the processor gives, up to rounding; skipped without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoders import make_encoder
from test_devices import (
    COUNT,
    KINDS,
    LABELS,
    PERSONS,
    Found,
    classifier,
    privately,
)

from secfed.evaluation import predict
from secfed.models import device_of
from secfed.training import ClassificationLoss, PrivateRecords
from secfed.training.gradients import gradients_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch finds no CUDA device here"
    ),
]

CLOSE = 1e-4
"""Relative to the length of the vector: float32 sums in another order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cuda")
    make_encoder(made / "bert")
    return made


def worked(folder: Path, kind: str, device: str, patch: pytest.MonkeyPatch) -> Found:
    patch.setenv("SECFED_DEVICE", device)
    _, model, adapter, texts = classifier(folder, kind=kind)
    assert device_of(model).type == device
    records = PrivateRecords(texts, LABELS, PERSONS, 5)
    found = privately(model, adapter, records)
    found["said"] = predict(model, adapter, texts)
    model.write(adapter.tensors)
    chosen = model.set_trainable(tuple(adapter.tensors))
    with gradients_of(model, chosen, by_rules=model.kind.by_rules) as gradients:
        each = gradients(ClassificationLoss(), records.batch(np.arange(COUNT)))
    rows = zip(chosen, each, strict=True)
    return found | {f"gradient {n}": g.numpy(force=True) for n, g in rows}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_private_step_and_an_evaluation_agree_with_the_processors(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = worked(folder, kind, "cpu", monkeypatch)
    far = worked(folder, kind, "cuda", monkeypatch)
    for name, value in far.items():
        off = np.linalg.norm(value - near[name]) / np.linalg.norm(near[name])
        assert off <= CLOSE, (name, off)
