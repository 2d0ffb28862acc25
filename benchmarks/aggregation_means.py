"""The server step of rules that average factors: from the sum to the next adapter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.aggregation_plans import Study
from benchmarks.aggregation_run import Run
from benchmarks.measure import Timing, timed
from benchmarks.sections import MS, Section
from secfed.codec import Codec
from secfed.strategies import ServerState, get_strategy
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = ["means"]

_GOAL_MS = 50.0
_RULES = {"fedavg": (LORA_A, LORA_B), "ffa-lora": (LORA_B,)}
_RANGE = 6.0  # of numbers with a spread of 1; what is outside is cut


def means(run: Run) -> Iterator[Section]:
    """Decode the sum, and apply the mean."""
    study, modules = run.plan.means, run.plan.modules
    section = Section(
        "means",
        f"Server step after the sum, {study}, {modules} modules",
        "CPU milliseconds. Decoding: from the sum in a ring of 32 bits to the mean. "
        "Applying: from the mean to the next adapter, with all its checks.",
    )
    adapter = _adapter(study, modules)
    for name, trained in _RULES.items():
        run.announce(f"{name}, {study}")
        decode, apply = _measure(run, name, adapter, trained)
        total = Timing.of(np.add(decode.values, apply.values).tolist())
        section.add(
            rule=name,
            numbers=sum(
                v.size for n, v in adapter.tensors.items() if n.endswith(trained)
            ),
            decode_ms=decode.scaled(MS),
            apply_ms=apply.scaled(MS),
            total_ms=total.scaled(MS),
        )
        run.at_most(f"{name}: server step ({study})", _GOAL_MS, total.median * MS, "ms")
    yield section


def _adapter(study: Study, modules: int) -> Adapter:
    source = np.random.default_rng(0)
    tensors = {}
    for number in range(modules):
        for suffix, shape in (
            (LORA_A, (study.rank, study.size)),
            (LORA_B, (study.size, study.rank)),
        ):
            numbers = source.standard_normal(shape, dtype=np.float32)
            tensors[f"module.{number}{suffix}"] = numbers
    return Adapter(tensors, scaling=2.0)


def _measure(
    run: Run, name: str, adapter: Adapter, trained: tuple[str, ...]
) -> tuple[Timing, Timing]:
    """Both steps, repeated; the result is checked against the plain mean."""
    rule, sites = get_strategy(name), run.plan.means.sites
    like = {n: value for n, value in adapter.tensors.items() if n.endswith(trained)}
    codec = Codec.for_tensors(like, value_range=_RANGE, num_sites=sites)
    total = np.zeros(codec.length, dtype=np.uint32)
    plain = {n: np.zeros(value.shape) for n, value in like.items()}
    for number in range(sites):
        source = np.random.default_rng([1, number])
        update = _update(like, source)
        total += codec.encode(update, source).vector
        for n, value in update.items():
            plain[n] += value / sites
        run.tick()
    rows = []
    for _ in range(run.plan.repetitions):
        mean, decode = timed(codec.decode_mean, total, sites)
        state, apply = timed(rule.apply, ServerState(adapter=adapter, round=0), mean, 1)
        off = max(
            float(np.abs(state.adapter.tensors[n] - like[n] - plain[n]).max())
            for n in like
        )
        run.check(name, off, codec.error_bound + 1e-5)  # and float32 of the sum
        rows.append((decode, apply))
        run.tick()
    decode, apply = zip(*rows, strict=True)
    return Timing.of(decode), Timing.of(apply)


def _update(like: Tensors, source: np.random.Generator) -> Tensors:
    return {
        name: np.clip(
            source.standard_normal(value.shape, dtype=np.float32), -_RANGE, _RANGE
        )
        for name, value in like.items()
    }
