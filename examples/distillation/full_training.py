"""Training of every weight: the teacher on public records, and the rows beside it.

NOT PRIVATE and unmasked: no clipping, no noise, no secure sum. On public records that
makes a teacher; on the sites' records it is what a private row is compared with, and
nothing that a site should ever allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from divided_texts import Labelled
from numpy.typing import NDArray
from torch import nn

from secfed.models import load_base_model, padded_batches
from secfed.study import Study
from secfed.training import soft_targets

__all__ = ["Recipe", "Student", "train_everywhere", "train_fully"]

_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Recipe:
    """How every weight is trained: AdamW, mean loss of a batch, linear decay."""

    epochs: int
    batch: int
    learning_rate: float
    weight: float = 0.0
    temperature: float = 1.0


class Student:
    """An encoder with a head on the mean over tokens, every weight trainable."""

    def __init__(self, study: Study, base_dir: Path, seed: int) -> None:
        torch.manual_seed(seed)
        labels = study.data.labels or ()
        self.base = load_base_model(study.model, base_dir, len(labels))
        self.network: Any = self.base.network
        self.network.requires_grad_(requires_grad=True)

    @property
    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of every text."""
        found: list[list[int]] = self.base.tokenizer(
            list(texts), truncation=True, max_length=self.base.max_length
        )["input_ids"]
        return found

    def logits(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """(n, classes): the mean of the logits of real tokens."""
        batch = self.base.tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt")
        low = self.base.compute_dtype is torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            each = self.network(**batch).logits.float()
        real = batch["attention_mask"][:, :, None].float()
        found: torch.Tensor = (each * real).sum(1) / real.sum(1)
        return found

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Logits (n, classes) of texts."""
        ids = self.ids(texts)
        found: dict[int, NDArray[np.float32]] = {}
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        self.network.eval()
        with torch.inference_mode():
            for rows in padded_batches(lengths, np.arange(len(ids)), _BATCH_TOKENS):
                said = self.logits([ids[row] for row in rows]).numpy()
                found |= dict(zip(rows.tolist(), said, strict=True))
        return np.stack([found[row] for row in range(len(ids))])

    def save(self, folder: Path) -> None:
        """As a folder that ``[distillation.teacher] path`` names."""
        self.network.save_pretrained(folder)
        self.base.tokenizer.save_pretrained(folder)

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of every number."""
        return {n: t.detach().clone() for n, t in self.network.state_dict().items()}


def train_fully(
    student: Student,
    held: Labelled,
    recipe: Recipe,
    seed: int,
    teacher: NDArray[np.float32] | None = None,
) -> None:
    """Train every weight on ``held``; ``teacher`` has a word (classes,) on each."""
    ids, labels = student.ids(held.texts), torch.tensor(held.labels)
    draw = np.random.default_rng(seed)
    steps = recipe.epochs * -(-len(ids) // recipe.batch)
    optimizer = torch.optim.AdamW(student.network.parameters(), recipe.learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    student.network.train()
    for _ in range(recipe.epochs):
        order = draw.permutation(len(ids))
        for start in range(0, len(order), recipe.batch):
            rows = order[start : start + recipe.batch]
            logits = student.logits([ids[row] for row in rows])
            loss = nn.functional.cross_entropy(logits, labels[rows])
            if teacher is not None:
                soft = soft_targets(
                    logits, torch.from_numpy(teacher[rows]), recipe.temperature
                ).mean()
                loss = (1 - recipe.weight) * loss + recipe.weight * soft
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()


def train_everywhere(
    student: Student, sites: Sequence[Labelled], recipe: Recipe, seed: int
) -> None:
    """FedAvg of every weight (McMahan et al., 2017): one epoch at a site per round.

    As many rounds as the recipe has epochs; the rate falls from round to round. The
    sites' sizes weigh, in the clear.
    """
    shares = [len(own.texts) / sum(len(o.texts) for o in sites) for own in sites]
    for number in range(recipe.epochs):
        before = student.weights()
        total: dict[str, torch.Tensor] = {}
        rate = recipe.learning_rate * (1 - number / recipe.epochs)
        local = replace(recipe, epochs=1, learning_rate=rate)
        for place, (own, share) in enumerate(zip(sites, shares, strict=True)):
            student.network.load_state_dict(before)
            train_fully(student, own, local, 1000 * seed + 10 * number + place)
            for name, value in student.weights().items():
                part = share * value.double()
                total[name] = total[name] + part if name in total else part
        student.network.load_state_dict(
            {name: total[name].to(before[name].dtype) for name in before}
        )
