"""Before anything is timed: all ways compute the same gradients, ours with noise.

Exactly, that is in float32, on one batch, with plain gradient descent of step size 1:
a round's change is then the gradient that its step used, with the other sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.training_plans import Case
from benchmarks.training_subject import Subject
from benchmarks.training_systems import (
    NOISE,
    Batches,
    Opacus,
    Plain,
    SecfedPrivate,
    Work,
)

__all__ = ["Agreement", "check"]

Array = NDArray[np.float64]

_HUGE = 1e6  # no gradient is as long
_TIGHT = 0.2  # of the mean gradient's length: nearly everybody's is cut
_CLOSE = 1e-3  # relative, float32 through a whole network
_DEVIATIONS = 6.0  # of the noise's own spread: fails once in 10**8 runs


@dataclass(frozen=True)
class Agreement:
    """Relative distances of gradients on one batch, and the size of our noise."""

    case: Case
    records: int
    opacus: float  # unclipped sum, Opacus against the plain loop
    secfed: float  # likewise secfed
    clipped: float  # sum of clipped gradients, secfed against Opacus
    shortened: float  # length of the clipped sum over the unclipped
    noise: float  # its measured standard deviation over the plan's
    numbers: int


def check(build: Callable[..., Subject], case: Case, records: int) -> Agreement:
    """Compare the gradients of ``case`` on a batch of about ``records`` records.

    Raises:
        RuntimeError: They differ, or nothing was clipped, or the noise is not there.
    """
    size = replace(
        case.size, records=2 * records, batch=records, steps=1, repetitions=1
    )
    batches = Batches(size, seed=1)
    subject = build(replace(case, size=size), exact=True)
    drawn = len(batches.rows()[0])
    expected = _gradient(subject, Plain(subject, make=_sgd), batches) * drawn
    clip = _TIGHT * float(np.linalg.norm(expected)) / drawn
    theirs = [
        _gradient(subject, Opacus(subject, clip=c, noise=0.0, make=_sgd), batches)
        * size.batch
        for c in (_HUGE, clip)
    ]
    wide, _ = _ours(subject, batches, _HUGE)
    narrow, noise = _ours(subject, batches, clip)
    found = Agreement(
        case=case,
        records=drawn,
        opacus=_distance(theirs[0], expected),
        secfed=_distance(wide, expected),
        clipped=_distance(narrow, theirs[1]),
        shortened=float(np.linalg.norm(narrow) / np.linalg.norm(expected)),
        noise=float(noise.std() / (NOISE * clip)),
        numbers=noise.size,
    )
    _require(found, float(np.linalg.norm(narrow)), clip)
    return found


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def _gradient(
    subject: Subject, system: Callable[[Batches], Work], batches: Batches
) -> Array:
    """What one step of size 1 subtracted from the parameters."""
    system(batches)
    after = subject.model.read()
    return -_flat({n: after[n] - subject.adapter.tensors[n] for n in subject.trains})


def _ours(subject: Subject, batches: Batches, clip: float) -> tuple[Array, Array]:
    """The clipped sum before noise, and the noise on it."""
    system = SecfedPrivate(subject, subject.encode(), clip=clip, sgd=True)
    system(batches)
    (update,) = system.kept
    clean, noisy = _flat(update.noiseless), _flat(update.change)
    return -clean * batches.size.batch, (clean - noisy) * batches.size.batch


def _flat(tensors: Any) -> Array:
    parts = [np.ravel(tensors[name]) for name in sorted(tensors)]
    return np.concatenate(parts).astype(np.float64)


def _distance(one: Array, other: Array) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def _require(found: Agreement, length: float, clip: float) -> None:
    """1. the same gradients, 2. clipped, 3. within the bound, 4. noise as planned."""
    far = max(found.opacus, found.secfed, found.clipped)
    spread = _DEVIATIONS / np.sqrt(2 * found.numbers)
    wrong = {
        "not the same gradients": not far < _CLOSE,
        "nothing was clipped": not found.shortened < 1 - _CLOSE,
        "the clipped sum is too long": not length <= found.records * clip * 1.001,
        "not the planned noise": not abs(found.noise - 1) < spread + _CLOSE,
    }
    for words, is_wrong in wrong.items():
        if is_wrong:
            raise RuntimeError(f"{words}: {found}")
