"""Tokens per second of a large random model in bfloat16, where there is a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.measure import Timing
from benchmarks.sections import Section
from benchmarks.training_causal import causal, random_tokens
from benchmarks.training_plans import Case
from benchmarks.training_run import Run
from benchmarks.training_systems import (
    Batches,
    Opacus,
    Plain,
    SecfedPlain,
    SecfedPrivate,
    Work,
)
from benchmarks.training_time import in_turn

__all__ = ["gpu", "on_device"]


def gpu(run: Run) -> Iterator[Section]:
    """The same comparison on the first GPU; without one, only a word about it."""
    if torch.cuda.is_available():
        yield on_device(run, run.plan.gpu, "cuda")
    else:
        run.left_out.append(
            "tokens per second of a large model on a GPU, because there is none here"
        )


def on_device(run: Run, case: Case, device: str) -> Section:
    """Real tokens, padding not counted, per elapsed second."""
    run.announce(f"tokens per second on {device}: {case}")
    subject = causal(case, random_tokens, device=device)
    records = subject.encode()
    found = in_turn(
        run,
        case,
        {
            "plain": Plain(subject, torch.bfloat16),
            "Opacus": Opacus(subject, torch.bfloat16),
            "secfed": SecfedPrivate(subject, records),
            "secfed, no privacy": SecfedPlain(subject, records),
        },
        measure=_elapsed,
    )
    size, work = case.size, found.works["secfed"]
    parameters = sum(p.numel() for p in subject.network.parameters())
    section = Section(device, f"Tokens per second in bfloat16 on {_name(device)}", "")
    section.note = (
        f"A GPT-2 model with {parameters:,} parameters and random weights, "
        f"{case.adapter} on {case.where} layers, expected batch {size.batch}, "
        f"{work.tokens / work.examples:.0f} tokens per record on average and at most "
        f"{size.max_length}, {size.steps} steps per round."
    )
    per_example = work.tokens / work.examples
    section.rows = [
        {
            "system": name,
            "tokens per second": Timing.of(
                [per_example / one for one in seconds.values]
            ).to_json(),
            "time over plain": found.ratio(name, "plain").to_json(),
        }
        for name, seconds in found.seconds.items()
    ]
    return section


def _elapsed(system: Any, batches: Batches) -> tuple[Work, float]:
    """Until the device has finished what it was given."""
    _wait()
    start = time.perf_counter()
    work = system(batches)
    _wait()
    return work, time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "this processor"
