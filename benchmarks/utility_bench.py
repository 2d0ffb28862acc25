"""A data set ready to train on: models and features, each made once and shared.

Texts are run once through the layers below the first adapted one, for all arms,
epsilons and seeds that adapt the same layers. For the head alone they are run
through all layers and averaged, once: what remains is one vector per text. Both
are exact, because what they leave out is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.utility_data import Parts
from benchmarks.utility_recipes import Recipe, Utility
from secfed.adapters import (
    SequenceClassifier,
    attach_adapter,
    head_from_names,
    initial_adapter,
)
from secfed.evaluation import Scores, majority_scores, predict, score_logits
from secfed.models import Features, encode_prefix, load_base_model, padded_batches
from secfed.training import PrivateRecords
from secfed.types import Adapter, Tensors

__all__ = ["Bench", "View", "Views"]

_NAME_HEAD_SCALE = 10.0  # as in the runtime
_BATCH_TOKENS = 8192

Ticker = Callable[[str, float], None]
"""Told what is done now, and which share of it is done."""


@dataclass(frozen=True)
class View:
    """A model over cached features: the adapted layers and the head, or the head."""

    model: SequenceClassifier
    sites: tuple[PrivateRecords, ...]
    test: Features
    test_labels: NDArray[np.int64]

    def scores(self, adapter: Adapter) -> Scores:
        """On the test records."""
        logits = predict(self.model, adapter, self.test)
        return score_logits(logits, self.test_labels)


@dataclass(frozen=True)
class Views:
    """The same data set for adapters and for the head alone."""

    whole: View
    head: View


class Bench:
    """One data set; keeps the models and features of every layer split.

    Args:
        utility: The data set.
        parts: Its records.
        base_dir: Where a relative model path starts.
        tick: Shows progress.
    """

    def __init__(
        self,
        utility: Utility,
        parts: Parts,
        base_dir: Path,
        tick: Ticker = lambda _what, _share: None,
    ) -> None:
        self.utility, self.parts, self.tick = utility, parts, tick
        self._base_dir = base_dir
        self._prepared: dict[tuple[object, ...], Views] = {}
        self._features: dict[int, tuple[Features, ...]] = {}
        self._pooled: dict[int, tuple[Features, ...]] = {}
        self._names: dict[int, Tensors] = {}

    @property
    def units(self) -> list[int]:
        """Records of every site."""
        return [len(site) for site in self.parts.sites]

    def majority(self) -> float:
        """Accuracy of the best constant answer."""
        labels = self.parts.test.labels
        return majority_scores(labels, len(self.parts.test.label_names)).accuracy

    def views(self, recipe: Recipe) -> Views:
        """The adapted model, and the head over pooled features."""
        key = (recipe.layers, recipe.r, recipe.lora_alpha, recipe.target_modules)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(recipe)
        return self._prepared[key]

    def start(self, recipe: Recipe, seed: int) -> Adapter:
        """The public adapter before round 1."""
        model = self.views(recipe).whole.model
        start = initial_adapter(model, recipe.adapter(seed))
        if recipe.head_init == "zero":
            return start
        return start.replaced(self._names[recipe.layers])

    @property
    def _classes(self) -> int:
        return len(self.parts.test.label_names)

    def _prepare(self, recipe: Recipe) -> Views:
        base = load_base_model(self.utility.model, self._base_dir, self._classes)
        if recipe.layers not in self._features:
            first = len(base.layers) - recipe.layers
            tables = (*self.parts.sites, self.parts.test)
            self._features[recipe.layers] = tuple(
                encode_prefix(
                    base,
                    table.texts,
                    first,
                    lambda done, total: self.tick("encoding", done / total),
                )
                for table in tables
            )
        features = self._features[recipe.layers]
        model = attach_adapter(base, recipe.adapter(0))
        model.write(initial_adapter(model, recipe.adapter(0)).tensors)  # B = 0
        if recipe.layers not in self._pooled:  # bfloat16 rounds at the split
            names = self.parts.test.label_names
            head = head_from_names(base, model, names, _NAME_HEAD_SCALE)
            self._names[recipe.layers] = head
            pooled = tuple(_pooled(model, part) for part in features)
            self._pooled[recipe.layers] = pooled
        pooled = self._pooled[recipe.layers]
        # No layers are left: the features are what the head reads.
        top = SequenceClassifier(base, model.network, len(base.layers), model.kind)
        return Views(self._view(model, features), self._view(top, pooled))

    def _view(self, model: SequenceClassifier, features: tuple[Features, ...]) -> View:
        sites = tuple(
            PrivateRecords(own, table.labels, np.arange(len(table)), len(table))
            for own, table in zip(features[:-1], self.parts.sites, strict=True)
        )
        return View(model, sites, features[-1], self.parts.test.labels)


def _pooled(model: SequenceClassifier, features: Features) -> Features:
    """One vector per text: the mean of the frozen model's last states."""
    rows = np.arange(len(features))
    states = torch.empty(len(rows), features.states.shape[1])
    with torch.inference_mode():
        for batch in padded_batches(features.lengths, rows, _BATCH_TOKENS):
            states[torch.as_tensor(batch)] = model.pooled(*features.batch(batch))
    return Features(states=states, offsets=np.arange(len(rows) + 1))
