"""The shipped study's encoder on its built-in text of natural length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.training_plans import Case
from benchmarks.training_subject import Subject, start, trained
from secfed.adapters import attach_adapter
from secfed.data.icd10cm import load_icd10cm
from secfed.data.records import RecordTable
from secfed.models import BaseModel, encode_prefix, find_model, load_base_model
from secfed.study import load_study
from secfed.training import ClassificationLoss, PrivateRecords, classification

__all__ = ["encoder", "tokenizer", "wordings"]

_STUDY = Path(__file__).resolve().parent.parent / "examples/icd10_hospitals/study.toml"


class Pooled(nn.Module):
    """PEFT's token classifier read at sequence level: the mean of token logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Sequence logits (n, classes)."""
        found = self.network(input_ids=input_ids, attention_mask=attention_mask)
        weights = attention_mask[:, :, None].to(found.logits.dtype)
        logits: torch.Tensor = (found.logits * weights).sum(1) / weights.sum(1)
        return logits


@lru_cache(maxsize=1)
def _table() -> RecordTable:
    return load_icd10cm()


def wordings(records: int) -> RecordTable:
    """So many of the diagnosis wordings; the same in every run."""
    rows = np.random.default_rng(0).permutation(len(_table()))[:records]
    return _table().select(rows)


def tokenizer() -> Any:
    """The words of the study's encoder, without its weights."""
    import transformers  # noqa: PLC0415 - slow

    folder = find_model(load_study(_STUDY).model, _STUDY.parent)
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encoder(case: Case, *, exact: bool = False) -> Subject:
    """The study's encoder with a new adapter; ``exact``: float32 throughout."""
    study = load_study(_STUDY)
    table = wordings(case.size.records)
    base = load_base_model(study.model, _STUDY.parent, len(table.label_names))
    if exact:
        base = replace(base, compute_dtype=torch.float32)
    section = study.adapter.model_copy(update={"layers": case.layers})
    model = attach_adapter(base, section)
    adapter = start(model, section.lora_alpha / section.r)
    ids = base.tokenizer(
        list(table.texts), truncation=True, max_length=case.size.max_length
    )["input_ids"]
    return Subject(
        case=case,
        network=Pooled(model.network),
        model=model,
        adapter=adapter,
        trains=trained(adapter, case.method),
        examples=[
            {"input_ids": row, "labels": label}
            for row, label in zip(ids, table.labels.tolist(), strict=True)
        ],
        collate=_collator(base),
        plain_loss=_loss,
        loss=ClassificationLoss(),
        encode=lambda: _encode(base, table, case.layers),
    )


def _collator(base: BaseModel) -> Any:
    import transformers  # noqa: PLC0415 - secfed.models has set the offline switches

    return transformers.DataCollatorWithPadding(base.tokenizer)


def _loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return classification(logits, batch["labels"])


def _encode(base: BaseModel, table: RecordTable, layers: int) -> PrivateRecords:
    first = len(base.layers) - layers if layers else 0
    features = encode_prefix(base, table.texts, first)
    count = len(table)
    return PrivateRecords(features, table.labels, np.arange(count), count)
