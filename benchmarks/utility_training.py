"""One cell of the table: a method at an epsilon with a seed, trained and scored.

Every site trains with the code of a study (``train_privately``, ``calibrate``). The
updates are averaged in the clear: the secure sum gives the same mean up to a rounding
that is far below the noise. Noise comes from a simulation seed, so that a cell can be
repeated; that is NOT PRIVATE and is for public data only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.utility_bench import Bench, View
from benchmarks.utility_recipes import HEAD, Recipe
from secfed.privacy.noise import RandomStream, simulation_stream
from secfed.privacy.plan import PrivacyPlan, calibrate
from secfed.strategies import get_strategy, trained_names
from secfed.strategies.base import HEAD as HEAD_TENSORS
from secfed.strategies.base import ServerState
from secfed.training import ClassificationLoss, train_privately
from secfed.training.optimizers import make_optimizer
from secfed.training.plain import plain_step
from secfed.types import Adapter, Tensors

__all__ = ["Cell", "Result", "train"]


@dataclass(frozen=True)
class Cell:
    """What is measured once."""

    method: str
    epsilon: float
    seed: int

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.method}-eps{self.epsilon:g}-s{self.seed}"


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        accuracy: Of the scored adapter, which may be a mean over rounds.
        macro_f1: The same.
        by_round: Accuracy after every round, of that round's adapter.
        epsilon: Spent, the largest over the sites; None without privacy.
        noise_multiplier: The largest over the sites; None without privacy.
        seconds: Of training and scoring.
    """

    accuracy: float
    macro_f1: float
    by_round: list[float] = field(default_factory=list)
    epsilon: float | None = None
    noise_multiplier: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """As a cell's file holds it."""
        return asdict(self)


@dataclass(frozen=True)
class _Local:
    """What a site needs besides the model and the records."""

    cell: Cell
    recipe: Recipe
    plan: PrivacyPlan
    site: int

    def stream(self, round_number: int) -> RandomStream:
        return simulation_stream(
            self.cell.seed, self.cell.name, str(self.site), str(round_number)
        )


def train(
    bench: Bench,
    cell: Cell,
    recipe: Recipe,
    tick: Callable[[float], None] = lambda _share: None,
) -> Result:
    """Train all rounds of a cell and score it.

    1. for each round: every site trains, the updates are averaged;
    2. the last ``average_last`` adapters are averaged and scored.
    """
    started = time.perf_counter()
    views = bench.views(recipe)
    locals_ = _locals(bench, cell, recipe)
    state = ServerState(adapter=bench.start(recipe, cell.seed), round=0)
    history: list[Adapter] = []
    by_round: list[float] = []
    # 1
    for number in range(1, recipe.rounds + 1):
        head = cell.method == HEAD or number <= recipe.head_rounds
        view = views.head if head else views.whole
        state = _round(view, locals_, state, number, HEAD if head else cell.method)
        history.append(state.adapter)
        by_round.append(view.scores(state.adapter).accuracy)
        tick(number / recipe.rounds)
    # 2
    view = views.head if cell.method == HEAD else views.whole
    scores = view.scores(_mean(history[-recipe.average_last :]))
    private = math.isfinite(cell.epsilon)
    return Result(
        accuracy=scores.accuracy,
        macro_f1=scores.macro_f1,
        by_round=by_round,
        epsilon=max(_spent(own.plan) for own in locals_) if private else None,
        noise_multiplier=max(own.plan.noise_multiplier for own in locals_)
        if private
        else None,
        seconds=time.perf_counter() - started,
    )


def _locals(bench: Bench, cell: Cell, recipe: Recipe) -> list[_Local]:
    return [
        _Local(cell, recipe, _plan(recipe, units, cell.epsilon, bench.utility.delta), i)
        for i, units in enumerate(bench.units)
    ]


@lru_cache
def _plan(recipe: Recipe, units: int, epsilon: float, delta: float) -> PrivacyPlan:
    """A site's plan; without privacy it only draws the batches."""
    common: dict[str, Any] = {
        "delta": delta,
        "nominal_units": units,
        "expected_batch": recipe.expected_batch,
        "steps_per_round": recipe.steps_per_round,
        "rounds": recipe.rounds,
        "clip_norm": recipe.clip_norm,
        "unit": "record",
        "max_records_per_unit": 1,
        "neighbouring": "add-remove",
        "clip_rule": recipe.clip_rule,
        "clip_gamma": recipe.clip_gamma,
    }
    if math.isfinite(epsilon):
        return calibrate(epsilon=epsilon, **common)
    return PrivacyPlan(
        noise_multiplier=1.0,
        sampling_probability=recipe.expected_batch / units,
        **common,
    )


@lru_cache
def _spent(plan: PrivacyPlan) -> float:
    return plan.epsilon()


def _round(
    view: View,
    locals_: Sequence[_Local],
    state: ServerState,
    number: int,
    method: str,
) -> ServerState:
    """Every site trains from the same adapter; the rule applies the mean."""
    strategy = get_strategy(method)
    expected = trained_names(strategy, state.adapter, number)
    keep_head = method != HEAD and not locals_[0].recipe.train_head
    trains = [n for n in expected if not (keep_head and n.startswith(HEAD_TENSORS))]
    updates = [_local(view, own, state.adapter, trains, number) for own in locals_]
    mean = {
        name: np.mean([update[name] for update in updates], axis=0)
        if name in trains
        else np.zeros_like(state.adapter.tensors[name])
        for name in expected
    }
    return strategy.apply(state, mean, number)


def _local(
    view: View, own: _Local, adapter: Adapter, trains: Sequence[str], number: int
) -> Tensors:
    """One site's change in one round."""
    if not math.isfinite(own.cell.epsilon):
        return _plainly(view, own, adapter, trains, number)
    update = train_privately(
        view.model,
        adapter,
        trains,
        view.sites[own.site],
        own.plan,
        own.recipe.training(own.cell.method),
        own.recipe.learning_rate,
        own.stream(number),
    )
    return update.change


def _plainly(
    view: View, own: _Local, adapter: Adapter, trains: Sequence[str], number: int
) -> Tensors:
    """The same steps on the same batches with the recipe's rates, not private.

    ``train_without_privacy`` has one pair of rates for all methods; here each method
    has its own, as it has with privacy.
    """
    model, stream = view.model, own.stream(number)
    records = view.sites[own.site]
    model.write(adapter.tensors)
    chosen = model.set_trainable(trains)
    optimizer = make_optimizer(
        chosen, own.recipe.training(own.cell.method), own.recipe.learning_rate
    )
    model.train()
    for _ in range(own.plan.steps_per_round):
        batch = own.plan.sample_units(stream, records.num_units)
        plain_step(model, optimizer, ClassificationLoss(), records, batch)
    model.eval()
    after = model.read()
    return {name: after[name] - adapter.tensors[name] for name in trains}


def _mean(adapters: Sequence[Adapter]) -> Adapter:
    last = adapters[-1]
    return last.replaced(
        {
            name: np.mean([own.tensors[name] for own in adapters], axis=0)
            for name in last.tensors
        }
    )
