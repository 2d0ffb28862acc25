"""Measure local training: secfed's private step against the loops one would write.

    python -m benchmarks.training --quick
    python -m benchmarks.training --json FILE --markdown FILE

Same records, same batches, same number of steps; CPU time with one thread, medians
and quartiles, ratios in pairs within one run. Gradients are compared first.
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

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks import training_gpu, training_memory, training_time
from benchmarks.command import add_outputs, machine, publish
from benchmarks.measure import load_average
from benchmarks.progress import Progress
from benchmarks.training_plans import FULL, QUICK, Plan
from benchmarks.training_run import Part, Run
from secfed import __version__

__all__ = ["main"]

PARTS: dict[str, Part] = {
    "time": training_time.time,
    "memory": training_memory.memory,
    "gpu": training_gpu.gpu,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code says nothing about speed."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        found = _measure(QUICK if asked.quick else FULL, asked.only or list(PARTS))
    publish(found, asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, 30 seconds")
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
        "mark": "benchmark-training",
        "machine": machine(),
        "versions": _versions(),
        "quick": plan is QUICK,
        "command": shlex.join(["python", "-m", "benchmarks.training", *sys.argv[1:]]),
        "load_average": [load, load_average()],
        "minutes": (time.monotonic() - start) / 60,
        "sections": sections,
        "goals": [asdict(goal) for goal in run.goals],
        "left_out": run.left_out,
        "rounds_checked": run.rounds_checked,
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "opacus", "peft", "transformers", "numpy")
    return {
        "Python": platform.python_version(),
        "secfed": __version__,
        **{name: version(name) for name in packages},
    }


if __name__ == "__main__":
    sys.exit(main())
