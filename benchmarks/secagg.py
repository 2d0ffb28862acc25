"""Measure the secure sum: against flwr's, against the machine, and as it grows.

    python -m benchmarks.secagg --quick
    python -m benchmarks.secagg --full-flwr --json FILE --chart FILE --markdown FILE

CPU time, medians of several repetitions with quartiles, ratios within one run.
Numerical libraries use one thread. Every sum is compared with the plain sum.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from cryptography.hazmat.backends.openssl import backend
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.chart import draw
from benchmarks.command import add_outputs, machine, publish
from benchmarks.measure import load_average
from benchmarks.plans import FULL, QUICK, Plan
from benchmarks.progress import Progress
from benchmarks.secagg_compare import against_flwr
from benchmarks.secagg_growth import growth, large, suites
from benchmarks.secagg_limits import against_machine, memory, threads
from benchmarks.secagg_run import Part, Run
from secfed import __version__

__all__ = ["main"]

PARTS: dict[str, Part] = {
    "machine": against_machine,
    "threads": threads,
    "flwr": against_flwr,
    "suites": suites,
    "memory": memory,
    "large": large,
    "growth": growth,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code says nothing about speed."""
    asked = _parser().parse_args(arguments)
    plan = QUICK if asked.quick else FULL
    if asked.full_flwr:
        plan = replace(plan, flwr_whole=max(clients for clients, _ in plan.flwr))
    with threadpool_limits(limits=1):
        found = _measure(plan, asked.only or list(PARTS))
    publish(found, asked)
    if asked.chart:
        asked.chart.parent.mkdir(parents=True, exist_ok=True)
        draw(found, asked.chart)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, 30 seconds")
    parser.add_argument(
        "--full-flwr",
        action="store_true",
        help="play flwr's largest session whole instead of some calls of each kind",
    )
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="a part; may be repeated"
    )
    add_outputs(parser, "json", "chart", "markdown")
    return parser


def _measure(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    found = {"format": 1, "machine": machine(), "versions": _versions()}
    start, load = time.monotonic(), load_average()
    with Progress(Console(stderr=True)) as progress:
        run = Run(progress.tick, progress.announce, plan=plan)
        sections = [asdict(section) for name in parts for section in PARTS[name](run)]
    return {
        **found,
        "quick": plan is QUICK,
        "command": shlex.join(["python", "-m", "benchmarks.secagg", *sys.argv[1:]]),
        "load_average": [load, load_average()],
        "minutes": (time.monotonic() - start) / 60,
        "sections": sections,
        "goals": [asdict(goal) for goal in run.goals],
        "left_out": list(dict.fromkeys(run.left_out)),
        "sums_checked": run.sums_checked,
    }


def _versions() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "secfed": __version__,
        **{name: version(name) for name in ("flwr", "cryptography", "numpy")},
        "OpenSSL": backend.openssl_version_text().removeprefix("OpenSSL "),
    }


if __name__ == "__main__":
    sys.exit(main())
