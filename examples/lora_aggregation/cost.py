"""What the server computes per module and round: by formula, and measured.

    python examples/lora_aggregation/cost.py --out runs/lora-aggregation

n sites train B of shape (d, r) and A of shape (r, k). The formulas are those of
the LoRA-aggregation study, with one correction:

- ``fedavg`` adds n factors of each kind: ``n r (d + k)`` additions;
- ``ffa-lora`` adds n factors B: ``n r d``. The study prints ``n r k``, which is
  the same where d = k and wrong elsewhere;
- ``fedsa-lora`` adds n factors A: ``n r k``;
- ``reconstruction`` multiplies and adds n products ``B_i @ A_i``: ``2 n d r k``;
  then it needs a singular value decomposition (SVD) of a (d, k) matrix. For m
  rows and c columns, c the smaller, about ``6 m c**2 + 20 c**3`` (R-SVD with
  thin factors; Golub and Van Loan, Matrix Computations, 3rd ed., section 5.4.5).
  LAPACK's divide and conquer, used here, may need less.

Every operation is counted once more by the code that is timed, from the shapes
of the arrays that it touches. Times are CPU seconds of all threads of this
process, in float32; set OMP_NUM_THREADS=1 for one thread.

Here the server has the sites' factors. Under masks it has sums, so the sites
multiply, and reconstruction's sum has d k numbers per site, not r (d + k).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from result_files import figures, markdown_table, stamp, write_json

Array = NDArray[np.float32]

RULES: Final = (
    "fedavg",
    "ffa-lora",
    "fedsa-lora",
    "reconstruction: products",
    "reconstruction: SVD",
)
_SEED = 0
_SHORTEST_SECONDS = 0.02
"""A measurement repeats its step until it has taken this long."""


@dataclass(frozen=True)
class Sizes:
    """One module: n sites, B (d, r), A (r, k)."""

    n: int
    d: int
    k: int
    r: int


def formula(rule: str, sizes: Sizes) -> int:
    """Operations of one rule, from the sizes alone."""
    n, d, k, r = sizes.n, sizes.d, sizes.k, sizes.r
    rows, columns = max(d, k), min(d, k)
    return {
        "fedavg": n * r * (d + k),
        "ffa-lora": n * r * d,
        "fedsa-lora": n * r * k,
        "reconstruction: products": 2 * n * d * r * k,
        "reconstruction: SVD": 6 * rows * columns**2 + 20 * columns**3,
    }[rule]


def ffa_as_printed(sizes: Sizes) -> int:
    """The study's formula for FFA-LoRA, kept to show that it is a misprint."""
    return sizes.n * sizes.r * sizes.k


@dataclass(frozen=True)
class Work:
    """What one rule does at the server: a step to time, and its operations."""

    step: Callable[[], object]
    operations: int | None  # None: not countable from shapes


def works(sizes: Sizes) -> dict[str, Work]:
    """The server's step of every rule on random factors."""
    random = np.random.default_rng(_SEED)
    b = random.standard_normal((sizes.n, sizes.d, sizes.r), dtype=np.float32)
    a = random.standard_normal((sizes.n, sizes.r, sizes.k), dtype=np.float32)
    # One product of the factors side by side is the sum of the n products.
    wide, tall = np.concatenate(b, axis=1), np.concatenate(a, axis=0)
    mean = wide @ tall / np.float32(sizes.n)
    return {
        "fedavg": Work(lambda: (b.mean(axis=0), a.mean(axis=0)), b.size + a.size),
        "ffa-lora": Work(lambda: b.mean(axis=0), b.size),
        "fedsa-lora": Work(lambda: a.mean(axis=0), a.size),
        "reconstruction: products": Work(
            lambda: wide @ tall, 2 * mean.size * wide.shape[1]
        ),
        "reconstruction: SVD": Work(
            lambda: np.linalg.svd(mean, full_matrices=False), None
        ),
    }


def seconds_of(step: Callable[[], object]) -> float:
    """CPU seconds of one call, from as many calls as it takes to see them."""
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < _SHORTEST_SECONDS:
        step()
        calls += 1
    return spent / calls


def measure(sizes: Sizes, repetitions: int) -> list[dict[str, Any]]:
    """One row per rule; the rules take turns."""
    todo = works(sizes)
    times: dict[str, list[float]] = {rule: [] for rule in RULES}
    for _ in range(repetitions):
        for rule in RULES:
            times[rule].append(seconds_of(todo[rule].step))
    return [_row(rule, sizes, todo[rule], times[rule]) for rule in RULES]


def _row(rule: str, sizes: Sizes, work: Work, times: Sequence[float]) -> dict[str, Any]:
    low, middle, high = np.percentile(times, [25, 50, 75])
    expected = formula(rule, sizes)
    if work.operations not in {None, expected}:
        raise RuntimeError(
            f"{rule}: the code does {work.operations} operations, the formula says "
            f"{expected}; one of them is wrong"
        )
    return {
        "rule": rule,
        "d": sizes.d,
        "k": sizes.k,
        "operations": expected,
        "counted": work.operations,
        "ms": {"median": 1e3 * middle, "q1": 1e3 * low, "q3": 1e3 * high},
        "ns per operation": 1e9 * middle / expected,
    }


def reading(found: Any) -> str:
    """What the rows say, as Markdown: a table and the test of the misprint."""
    rows = found["rows"]
    headings = ("rule", "d x k", "operations", "CPU ms", "ns per operation")
    lines = [
        (
            row["rule"],
            f"{row['d']:,} x {row['k']:,}",
            f"{row['operations']:,}",
            "{} [{}, {}]".format(
                *(figures(row["ms"][key]) for key in ("median", "q1", "q3"))
            ),
            figures(row["ns per operation"]),
        )
        for row in rows
    ]
    setup = found["setup"]
    return (
        f"n = {setup['n']} sites, r = {setup['r']}, one module, float32; median and "
        f"quartiles of {setup['repetitions']} measurements.\n\n"
        f"{markdown_table(headings, lines)}\n\n{_misprint(found)}"
    )


def _misprint(found: Any) -> str:
    """FFA-LoRA at (d, k) against (k, d): the two formulas predict opposites."""
    pair = _transposed(found["rows"])
    if pair is None:
        return "No module was measured both ways round, so FFA's formula is not tested."
    tall, wide = pair
    ratio = tall["ms"]["median"] / wide["ms"]["median"]
    share = tall["d"] / tall["k"]
    verdict = "n r d" if ratio > 1 else "n r k"
    return (
        f"FFA-LoRA takes {figures(ratio)} times as long at {tall['d']:,} x "
        f"{tall['k']:,} as at {wide['d']:,} x {wide['k']:,}. The formula n r d "
        f"predicts {figures(share)}, the printed n r k {figures(1 / share)}: the "
        f"measurement supports {verdict}."
    )


def _transposed(rows: Sequence[Any]) -> tuple[Any, Any] | None:
    shapes = {(row["d"], row["k"]): row for row in rows if row["rule"] == "ffa-lora"}
    for (d, k), row in shapes.items():
        if d > k and (k, d) in shapes:
            return row, shapes[k, d]
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write ``cost.json`` and ``cost.md``, and show the table."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    asked = _parser().parse_args(given)
    for d, k in asked.shapes:
        if asked.rank > min(d, k):
            _parser().error(f"rank {asked.rank} is above min({d}, {k})")
    record = stamp("cost.py", given, ("numpy",))
    setup = {"n": asked.sites, "r": asked.rank, "repetitions": asked.repetitions}
    rows = [
        row
        for d, k in asked.shapes
        for row in measure(Sizes(asked.sites, d, k, asked.rank), asked.repetitions)
    ]
    found = write_json(
        {**record, "seed": _SEED, "setup": setup, "rows": rows}, asked.out / "cost.json"
    )
    words = reading(found) + "\n"
    (asked.out / "cost.md").write_text(words, encoding="utf-8")
    sys.stdout.write(words)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Count and time what the server does for one module.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sites", type=_positive, default=100)
    parser.add_argument("--rank", type=_positive, default=8)
    parser.add_argument("--repetitions", type=_positive, default=5)
    parser.add_argument(
        "--shapes",
        type=_shape,
        nargs="+",
        metavar="DxK",
        help="sizes of the modules",
        default=[(1024, 1024), (4096, 1024), (1024, 4096)],
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _shape(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is not like 4096x1024")
    return _positive(parts[0]), _positive(parts[1])


if __name__ == "__main__":
    sys.exit(main())
