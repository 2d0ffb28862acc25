"""Measure the noise energy that rules leave in the weights, against its closed form.

    python -m benchmarks.amplification --quick
    python -m benchmarks.amplification --json FILE --markdown FILE

A study on built-in text with the pretrained encoder is run under every rule, with
masks, and its noise is measured in every round by paired replay.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.amplification_runs import METHODS, Bench
from benchmarks.amplification_tables import judge, tables
from benchmarks.command import add_outputs, machine, publish
from benchmarks.measure import load_average
from benchmarks.progress import Progress
from benchmarks.sections import Findings
from secfed import __version__
from secfed.errors import SecfedError

__all__ = ["main"]

_QUICK_ROUNDS = 3
_QUICK_METHODS = ("ffa-lora", "flexlora")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code says nothing about the goals."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(asked.threads)
    try:
        with threadpool_limits(limits=asked.threads):
            found = _measure(asked)
    except SecfedError as error:
        console = Console(stderr=True)
        console.print(str(error), style="red", highlight=False, soft_wrap=True)
        return 2
    publish(found, asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="a minute: fewer rounds")
    parser.add_argument(
        "--only", action="append", choices=METHODS, help="a rule; may be repeated"
    )
    parser.add_argument("--threads", type=int, default=1, help="1 by default")
    add_outputs(parser, "json", "markdown")
    return parser


def _measure(asked: argparse.Namespace) -> dict[str, Any]:
    start, load = time.monotonic(), load_average()
    methods = asked.only or (_QUICK_METHODS if asked.quick else METHODS)
    with Progress(Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as d:
        findings = Findings(progress.tick, progress.announce)
        bench = Bench(Path(d), findings, rounds=_QUICK_ROUNDS if asked.quick else None)
        results = [bench.run(method) for method in methods]
    judge(results, findings)
    return {
        "format": 1,
        "mark": "benchmark-amplification",
        "machine": machine(),
        "versions": _versions(),
        "quick": asked.quick,
        "command": shlex.join(
            ["python", "-m", "benchmarks.amplification", *sys.argv[1:]]
        ),
        "load_average": [load, load_average()],
        "minutes": (time.monotonic() - start) / 60,
        "study": bench.study.canonical(),
        "sections": [asdict(section) for section in tables(results)],
        "goals": [asdict(goal) for goal in findings.goals],
        "left_out": findings.left_out,
        "sums_checked": sum(len(result.rounds) for result in results),
    }


def _versions() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "secfed": __version__,
        **{name: version(name) for name in ("numpy", "torch", "opacus", "peft")},
    }


if __name__ == "__main__":
    sys.exit(main())
