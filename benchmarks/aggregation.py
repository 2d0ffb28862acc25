"""Measure the coordinator's step after the sum: means, and means of products.

    python -m benchmarks.aggregation --quick
    python -m benchmarks.aggregation --json FILE --markdown FILE

CPU time with one thread, medians and quartiles, ratios in pairs within one run. Every
result is compared with the plain mean or the dense one.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks import aggregation_means, aggregation_products, aggregation_widths
from benchmarks.aggregation_plans import FULL, QUICK, Plan
from benchmarks.aggregation_run import Part, Run
from benchmarks.command import add_outputs, machine, publish
from benchmarks.measure import load_average
from benchmarks.progress import Progress
from secfed import __version__

__all__ = ["main"]

PARTS: dict[str, Part] = {
    "means": aggregation_means.means,
    "products": aggregation_products.products,
    "sizes": aggregation_widths.sizes,
    "narrow": aggregation_widths.narrow,
    "rounding": aggregation_widths.rounding,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code says nothing about speed."""
    asked = _parser().parse_args(arguments)
    with threadpool_limits(limits=1):
        found = _measure(QUICK if asked.quick else FULL, asked.only or list(PARTS))
    publish(found, asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="a part; may be repeated"
    )
    add_outputs(parser, "json", "markdown")
    return parser


def _measure(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    start, load = time.monotonic(), load_average()
    with Progress(Console(stderr=True)) as progress:
        run = Run(progress.tick, progress.announce, plan=plan)
        sections = [asdict(section) for name in parts for section in PARTS[name](run)]
    return {
        "format": 1,
        "mark": "benchmark-aggregation",
        "machine": machine(),
        "versions": _versions(),
        "quick": plan is QUICK,
        "command": shlex.join(
            ["python", "-m", "benchmarks.aggregation", *sys.argv[1:]]
        ),
        "load_average": [load, load_average()],
        "minutes": (time.monotonic() - start) / 60,
        "sections": sections,
        "goals": [asdict(goal) for goal in run.goals],
        "left_out": run.left_out,
        "results_checked": run.results_checked,
    }


def _versions() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "secfed": __version__,
        **{name: version(name) for name in ("numpy", "scipy")},
    }


if __name__ == "__main__":
    sys.exit(main())
