"""When is it better to average LoRA factors than their products? A toy.

    python examples/lora_aggregation/toy.py --out runs/lora-aggregation

Invented matrices of known rank stand for the sites' updates; ``toy_model`` says
how they are made, what the methods do, and which errors are known exactly. A
curve is the root mean square (RMS) error of a method over the repetitions, rank
by rank. Beside the published curves stand the update zero, without which it
cannot be seen that all of them are bad, and the alignment of the factors.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from result_files import interval, stamp, write_json
from toy_model import (
    Array,
    Setup,
    World,
    best_factors,
    draw,
    estimates,
    mean_of_factors,
    shared_basis_rms,
    untruncated_rms,
    zero_rms,
)
from toy_page import page
from toy_reading import reading

NOISES: Final = (0.1, 1.0, 3.0, 5.0)
SCAN: Final = tuple(round(0.2 * step, 1) for step in range(1, 26))
"""The noises between which a crossing is looked for."""
_BATCHES = 10
"""A crossing's interval is that of this many groups of repetitions."""


def scores(
    world: World, noise: float, ranks: Sequence[int]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Squared errors and cosines with W, per method: (ranks, repetitions)."""
    factors = best_factors(world.sites(noise), world.p.shape[-1])
    true = world.true
    length = np.linalg.norm(true, axis=(-2, -1))
    errors: dict[str, list[Array]] = {}
    cosines: dict[str, list[Array]] = {}
    for rank in ranks:
        for name, update in estimates(factors, rank).items():
            along = (update * true).sum(axis=(-2, -1)) / length
            norm = np.linalg.norm(update, axis=(-2, -1))
            errors.setdefault(name, []).append(
                ((update - true) ** 2).sum(axis=(-2, -1))
            )
            cosines.setdefault(name, []).append(along / norm)
    return _stacked(errors), _stacked(cosines)


def _stacked(rows: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
    return {name: np.stack(parts) for name, parts in rows.items()}


def signs(setup: Setup, world: World, noise: float) -> dict[str, float]:
    """Fedavg's RMS error at r = rho under three rules for the signs in an SVD.

    A singular pair (u, v) may be (-u, -v): the product does not change, the mean
    of the factors does. Nothing in the data decides it.
    """
    b, a = best_factors(world.sites(noise), setup.inherent_rank)
    largest = np.take_along_axis(b, np.abs(b).argmax(-2)[..., None, :], axis=-2)
    random = np.random.default_rng([setup.seed, setup.repetitions])
    rules = {
        "as computed": np.ones_like(largest),
        "largest entry of u positive": np.sign(largest),
        "random": random.choice([-1.0, 1.0], size=largest.shape),
    }
    found = {}
    for name, rule in rules.items():
        update = mean_of_factors(b * rule, a * rule.swapaxes(-1, -2))
        errors = ((update - world.true) ** 2).sum(axis=(-2, -1))
        found[name] = math.sqrt(errors.mean())
    return found


def level(setup: Setup, world: World, noise: float) -> dict[str, Any]:
    """All curves of one noise, with paired differences of the squared errors."""
    errors, cosines = scores(world, noise, setup.ranks)
    zero = (world.true**2).sum(axis=(-2, -1))
    methods = {
        name: {
            "rms": np.sqrt(interval(values).clip(0)),
            "minus zero": interval(values - zero),
            "cosine": cosines[name].mean(axis=-1),
        }
        for name, values in errors.items()
    }
    return {
        "noise": noise,
        "exact": {
            "untruncated": untruncated_rms(setup, noise),
            "fedavg in a shared basis": shared_basis_rms(setup, noise),
            "zero": zero_rms(setup),
        },
        "methods": methods,
        "fedavg minus": {
            name: interval(errors["fedavg"] - errors[name]) for name in errors
        },
        "fedavg by signs": signs(setup, world, noise),
    }


def crossings(setup: Setup, world: World) -> dict[str, Any]:
    """Per rank: the noise at which fedavg's curve and reconstruction's cross.

    From the sign of the difference of mean squared errors along ``SCAN``, by
    linear interpolation. Also the error of both there, and the noises at which
    each becomes worse than zero. None for what does not happen exactly once.
    """
    ranks = (*range(1, setup.inherent_rank + 1), setup.size)
    rows = [scores(world, noise, ranks)[0] for noise in SCAN]
    fedavg = np.stack([row["fedavg"] for row in rows], axis=1)  # (ranks, noises, reps)
    other = np.stack([row["reconstruction"] for row in rows], axis=1)
    zero = (world.true**2).sum(axis=(-2, -1))
    return {
        "noises": SCAN,
        "by rank": [
            {
                "rank": rank,
                "curves cross": _crossing_with_interval(ours - theirs),
                "rms there": _rms_at(crossing((ours - theirs).mean(-1)), ours),
                "fedavg meets zero": _crossing_with_interval(zero - ours),
                "reconstruction meets zero": _crossing_with_interval(zero - theirs),
            }
            for rank, ours, theirs in zip(ranks, fedavg, other, strict=True)
        ],
    }


def _crossing_with_interval(gaps: Array) -> list[float] | None:
    """Noise, low and high; the interval is that of groups of repetitions."""
    noise = crossing(gaps.mean(axis=-1))
    groups = [crossing(part.mean(-1)) for part in np.array_split(gaps, _BATCHES, -1)]
    known = [value for value in groups if value is not None]
    if noise is None or len(known) < _BATCHES:
        return None
    mean, low, _ = interval(np.array(known))
    return [noise, noise - (mean - low), noise + (mean - low)]


def _rms_at(noise: float | None, errors: Array) -> float | None:
    if noise is None:
        return None
    return float(np.interp(noise, SCAN, np.sqrt(errors.mean(axis=-1))))


def crossing(gaps: Array) -> float | None:
    """The noise at which ``gaps`` along ``SCAN`` fall below 0, if they do so once."""
    (places,) = np.nonzero(np.diff(np.sign(gaps)))
    if len(places) != 1 or gaps[0] < 0:
        return None
    left, right = places[0], places[0] + 1
    share = gaps[left] / (gaps[left] - gaps[right])
    return float(SCAN[left] + share * (SCAN[right] - SCAN[left]))


def run(setup: Setup) -> dict[str, Any]:
    """The whole experiment, as one value for the file and the page."""
    world = draw(setup)
    return {
        "setup": {**asdict(setup), "noises": NOISES, "ranks": setup.ranks},
        "levels": [level(setup, world, noise) for noise in NOISES],
        "crossings": crossings(setup, world),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write ``toy.json`` and ``toy.html``, and say what was found."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked = _parser().parse_args(given)
    setup = Setup(sites=asked.sites, repetitions=asked.repetitions, seed=asked.seed)
    start = time.perf_counter()
    record = stamp("toy.py", given, ("numpy", "scipy", "matplotlib"))
    results = run(setup)
    seconds = round(time.perf_counter() - start, 1)
    found = write_json(
        {**record, "seed": setup.seed, "seconds": seconds, **results},
        asked.out / "toy.json",
    )
    (asked.out / "toy.html").write_text(page(found), encoding="utf-8")
    sys.stdout.write("\n\n".join(reading(found)) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Compare ways to average noisy LoRA updates on invented matrices.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sites", type=_at_least_two, default=Setup.sites)
    parser.add_argument("--repetitions", type=_repetitions, default=Setup.repetitions)
    parser.add_argument("--seed", type=_not_negative, default=Setup.seed)
    return parser


def _not_negative(text: str) -> int:
    return _from(0, text)


def _at_least_two(text: str) -> int:
    return _from(2, text)


def _repetitions(text: str) -> int:
    return _from(2 * _BATCHES, text)


def _from(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {least}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
