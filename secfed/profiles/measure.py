"""How long real training steps take here: on made-up tokens, never on records.

Every step is the one of a round: micro-batches, a gradient per record, clipping,
noise, optimizer, self-checks. Every record has the full length, so a real round, with
shorter texts, takes no longer. Steps of two sizes are timed, and the line through both
is what a record costs and what a step costs without any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

import numpy as np
import psutil
import torch

from secfed.adapters import AdaptedModel, attach_adapter, narrowed
from secfed.data.icd10cm import load_icd10cm
from secfed.errors import ProfileError
from secfed.model_files import find_model
from secfed.models import (
    BaseModel,
    encode_answers,
    encode_blocks,
    load_base_model,
    load_causal_model,
)
from secfed.privacy.noise import system_stream
from secfed.privacy.plan import PrivacyPlan
from secfed.profiles.facts import cores, find_gpu, memory_bytes
from secfed.profiles.profile import SiteProfile, Timing, workload_digest
from secfed.runtime.setup import public_start
from secfed.strategies import strategy_of
from secfed.strategies.base import trained_names
from secfed.strategies.products import cut_to_rank
from secfed.study import Study, load_study_dict
from secfed.tokens import answer_tokens, end_token, load_tokenizer
from secfed.training import (
    AnswerLoss,
    CausalLoss,
    ClassificationLoss,
    PrivateRecords,
    RecordLoss,
    TokenRecords,
    narrow,
    train_privately,
)
from secfed.types import Adapter

__all__ = ["Grid", "grid_for", "measure_site"]

MICRO_BATCHES: Final = (256, 512, 1024)
STEPS: Final = 3
_SHORTEST: Final = 8
_HALVINGS: Final = 3
_SECOND_SIZE: Final = 3
_SAMPLE_SECONDS: Final = 0.002
_DELTA: Final = 1e-6


@dataclass(frozen=True)
class Grid:
    """What is measured: every combination.

    Attributes:
        quantisations: ``none``, ``nf4`` or ``int8``.
        lengths: Tokens of a record.
        ranks: Of the factors; (0,) where the kind of adapter has none.
        micro_batches: Tokens at once.
        steps: Timed at each of two sizes, after one that is not.
    """

    quantisations: tuple[str, ...]
    lengths: tuple[int, ...]
    ranks: tuple[int, ...]
    micro_batches: tuple[int, ...]
    steps: int = STEPS


def grid_for(
    study: Study,
    quantisations: Sequence[str] = (),
    lengths: Sequence[int] = (),
    ranks: Sequence[int] = (),
    micro_batches: Sequence[int] = (),
) -> Grid:
    """What to measure for a study; what is left empty is the study's and its halves.

    Raises:
        ProfileError: A value is not one that this study can be given.
    """
    r, longest = study.adapter.r, study.model.max_length
    own_ranks = _halves(r, 1) if study.adapter.how.is_product else (r,)
    grid = Grid(
        tuple(quantisations) or (study.model.quantisation or "none",),
        tuple(lengths) or _halves(longest, min(_SHORTEST, longest)),
        tuple(ranks) or own_ranks,
        tuple(micro_batches) or MICRO_BATCHES,
    )
    allowed = range(1, r + 1) if study.adapter.how.is_product else (r,)
    if not set(grid.ranks) <= set(allowed):
        raise ProfileError(f"ranks of this study: {allowed[0]} to {allowed[-1]}")
    if max(grid.lengths) > longest or min(grid.lengths) < 2:  # noqa: PLR2004
        raise ProfileError(f"lengths go from 2 to the study's {longest}")
    if min(grid.micro_batches) < 1:
        raise ProfileError("a micro-batch has at least one token")
    return grid


def measure_site(
    study: Study,
    base_dir: Path,
    site: str,
    grid: Grid,
    say: Callable[[str], None] = lambda _text: None,
) -> SiteProfile:
    """Load the study's model and time every choice of the grid.

    Args:
        study: The study, or its draft.
        base_dir: Where a relative path of the model starts.
        site: Whose machine this is.
        grid: What is measured.
        say: Told in one line what is being measured.

    Raises:
        ProfileError: There is no such site.
        ModelError, StudyError: The model is not here, or a choice does not fit it.
    """
    if site not in study.sites:
        raise ProfileError(f"{site!r} is not a site of the study {study.name!r}")
    gpu, available = find_gpu(), memory_bytes()
    timings: list[Timing] = []
    for quantisation in grid.quantisations:
        bench = _Bench.prepared(_with_bits(study, quantisation), base_dir)
        for length in grid.lengths:
            for rank in grid.ranks:
                say(f"{quantisation}, {length} tokens, rank {rank}")
                timings += [
                    bench.timing(quantisation, length, rank, tokens, grid.steps)
                    for tokens in grid.micro_batches
                ]
    return SiteProfile(
        format=1,
        site=site,
        workload=workload_digest(study),
        memory_bytes=available,
        cores=cores(),
        threads=torch.get_num_threads(),
        gpu=None if gpu is None else gpu.name,
        timings=tuple(timings),
    )


@dataclass(frozen=True)
class _Bench:
    """A model with its adapter, and what a step of the study needs besides."""

    study: Study
    base: BaseModel
    model: AdaptedModel
    start: Adapter
    trains: tuple[str, ...]
    loss: RecordLoss
    answer: int

    @classmethod
    def prepared(cls, study: Study, base_dir: Path) -> Self:
        labels = _labels(study)
        base = _base(study, base_dir, len(labels))
        model = attach_adapter(base, study.adapter)
        strategy = strategy_of(study)
        weights = model.base_weights() if strategy.uses_base else {}
        start = public_start(study, base, model, labels)
        adapter = strategy.init(start, study.adapter.seed, weights).adapter
        loss, answer = _loss(study, base_dir)
        names = trained_names(strategy, adapter, 1)
        return cls(study, base, model, adapter, names, loss, answer)

    def timing(
        self, quantisation: Any, length: int, rank: int, tokens: int, steps: int
    ) -> Timing:
        """Steps of one micro-batch, and of several."""
        small = max(1, tokens // length)
        big = _SECOND_SIZE * small
        with _watched_memory() as peak:
            _, first = self._steps(small, length, rank, tokens, steps)
            overhead, second = self._steps(big, length, rank, tokens, steps)
        record = max(0.0, (second - first) / (big - small))
        return Timing(
            quantisation=quantisation,
            max_length=length,
            rank=rank,
            micro_batch_tokens=tokens,
            overhead_seconds=overhead,
            step_seconds=max(0.0, second - big * record),
            record_seconds=record,
            peak_bytes=peak[0],
            steps=steps,
        )

    def _steps(
        self, records: int, length: int, rank: int, tokens: int, steps: int
    ) -> tuple[float, float]:
        """Seconds before the first step, and the median of the steps behind it."""
        held = self._records(records, length, tokens)
        narrower = 0 < rank < self.study.adapter.r
        ends = [time.perf_counter()]
        with narrowed(self.model, rank if narrower else None):
            train_privately(
                self.model,
                narrow(cut_to_rank(self.start, rank), rank) if narrower else self.start,
                self.trains,
                held,
                _plan(self.study, records, steps + 1),
                self.study.training,
                1e-6,  # Weights hardly move, so that every step is like the first.
                system_stream(),
                loss=self.loss,
                progress=lambda _done, _total: ends.append(time.perf_counter()),
            )
        took = np.diff(ends)
        step = median(took[1:])
        return max(0.0, float(took[0] - step)), float(step)

    def _records(self, count: int, length: int, tokens: int) -> PrivateRecords:
        """Records of random tokens, each its own unit."""
        ids = _made_up(count, length, int(self.base.network.config.vocab_size))  # type: ignore[union-attr,arg-type]
        first, units = self.model.first_layer, np.arange(count)
        labels = np.zeros(count, np.int64)
        if self.study.is_prompted:
            asked = max(1, length - self.answer)
            answers = encode_answers(self.base, ids, [asked] * count, first)
            return TokenRecords(answers, labels, units, count, at_once=tokens)
        blocks = encode_blocks(self.base, ids, first)
        kind = TokenRecords if self.study.is_causal_lm else PrivateRecords
        return kind(blocks, labels, units, count, at_once=tokens)


def _halves(largest: int, least: int) -> tuple[int, ...]:
    """A number, its half and a quarter, as far as they are large enough."""
    several = [largest >> times for times in range(_HALVINGS)]
    return tuple(dict.fromkeys(max(number, least) for number in several))


def _made_up(count: int, length: int, vocabulary: int) -> list[list[int]]:
    drawn = np.random.default_rng(0).integers(1, vocabulary, size=(count, length))
    return [[int(token) for token in row] for row in drawn]


def _with_bits(study: Study, quantisation: str) -> Study:
    """The study with its base in other bits, checked as any study is."""
    values = study.canonical()
    values["model"] = {**values["model"], "quantisation": quantisation}
    return load_study_dict(values, f"study {study.name}")


def _labels(study: Study) -> tuple[str, ...]:
    """The public names of the classes; of texts none."""
    if study.data.is_builtin and not study.is_causal_lm:
        return load_icd10cm().label_names
    return study.data.labels or ()


def _base(study: Study, base_dir: Path, num_labels: int) -> BaseModel:
    if study.is_causal_lm:
        return load_causal_model(study.model, base_dir)
    return load_base_model(study.model, base_dir, num_labels)


def _loss(study: Study, base_dir: Path) -> tuple[RecordLoss, int]:
    """The loss of a record, and the tokens of the longest answer."""
    if study.task is not None and study.task.answers is not None:
        folder = find_model(study.model, base_dir)
        answers = tuple(study.task.answers.values())
        tokenizer, end = load_tokenizer(folder), end_token(folder)
        longest = max(map(len, answer_tokens(tokenizer, answers, end)))
        return AnswerLoss(longest), longest
    return (CausalLoss() if study.is_causal_lm else ClassificationLoss()), 0


def _plan(study: Study, records: int, steps: int) -> PrivacyPlan:
    """A plan that draws every record in every step: for timing only, on no data."""
    return PrivacyPlan(
        unit="record",
        max_records_per_unit=1,
        neighbouring="add-remove",
        clip_norm=study.privacy.clip_norm,
        noise_multiplier=1.0,
        sampling_probability=1.0,
        expected_batch=records,
        steps_per_round=steps,
        rounds=1,
        delta=_DELTA,
        nominal_units=records,
        clip_rule=study.privacy.clip_rule,
        clip_gamma=study.privacy.clip_gamma,
    )


@contextmanager
def _watched_memory() -> Iterator[list[int]]:
    """The most memory that this process has inside, looked at every 2 ms."""
    process, ended, peak = psutil.Process(), threading.Event(), [0]

    def look() -> None:
        while True:
            peak[0] = max(peak[0], int(process.memory_info().rss))
            if ended.wait(_SAMPLE_SECONDS):
                return

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
