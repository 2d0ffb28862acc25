"""Measure a round over processes: secfed's deployment, and Flower's own SecAgg+.

    python -m benchmarks.deployment --quick
    python -m benchmarks.deployment --json FILE --markdown FILE

Elapsed and CPU time, medians and quartiles over rounds, both systems in one run on
loopback. Every round of Flower's is compared with the plain mean; ours with nothing
but its own checks, because a coordinator does not have the updates.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.command import add_outputs, machine, publish
from benchmarks.deployment_flwr import STAGES, play_flwr
from benchmarks.deployment_path import Rounds, summed, timings
from benchmarks.deployment_secfed import BEFORE, PATH, play_secfed
from benchmarks.measure import Timing, load_average
from benchmarks.progress import Progress
from benchmarks.sections import Findings, Section
from secfed import __version__

__all__ = ["main"]

STUDY = Path(__file__).with_suffix(".toml")
POLICY = Path(__file__).parent.parent / "examples" / "icd10_hospitals" / "site.toml"
GOAL_SECONDS = 3.0
SITES = 3
AFTER_TRAINING = STAGES[2:]  # flwr trains in the first of these; the app does not.


@dataclass(kw_only=True)
class _Run(Findings):
    """Rounds of both systems."""

    ours: Rounds
    theirs: Rounds
    parameters: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code says nothing about speed."""
    asked = _parser().parse_args(arguments)
    with threadpool_limits(limits=1), tempfile.TemporaryDirectory() as folder:
        found = _measure(Path(folder), quick=asked.quick)
    publish(found, asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, 2 minutes")
    add_outputs(parser, "json", "markdown")
    return parser


def _measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    start, load = time.monotonic(), load_average()
    with Progress(Console(stderr=True)) as progress:
        run = _play(folder, 1 if quick else 5, quick=quick, progress=progress)
    sections = [asdict(section) for section in _sections(run)]
    return {
        "format": 1,
        "mark": "benchmark-deployment",
        "machine": machine(),
        "versions": _versions(),
        "quick": quick,
        "command": shlex.join(["python", "-m", "benchmarks.deployment", *sys.argv[1:]]),
        "load_average": [load, load_average()],
        "minutes": (time.monotonic() - start) / 60,
        "sections": sections,
        "goals": [asdict(goal) for goal in run.goals],
        "left_out": run.left_out,
        "sums_checked": len(run.ours) + len(run.theirs),
    }


def _play(folder: Path, flwr_rounds: int, *, quick: bool, progress: Progress) -> _Run:
    """Ours first; then as many numbers by Flower's workflow."""
    progress.announce(f"secfed, {SITES} sites")
    study = folder / "study.toml"
    text = STUDY.read_text("utf-8")
    study.write_text(text.replace("rounds = 12", "rounds = 4") if quick else text)
    ours, parameters = play_secfed(study, POLICY, folder / "secfed")
    progress.announce(f"flwr, {SITES} clients, {parameters:,} parameters")
    home = folder / "flwr"
    home.mkdir()
    theirs = play_flwr(SITES, parameters, flwr_rounds, home)
    return _Run(
        progress.tick,
        progress.announce,
        ours=ours,
        theirs=theirs,
        parameters=parameters,
    )


def _sections(run: _Run) -> Iterator[Section]:
    """What lies between training and the next adapter; then every part."""
    yield _paths(run)
    yield _parts(run)


def _paths(run: _Run) -> Section:
    section = Section(
        "paths",
        f"A round of {SITES} sites and {run.parameters:,} parameters over loopback",
        "After training: ours from the last trained site to the last site that has the "
        "new adapter; flwr's from the request for masked vectors to the mean (its "
        "clients do not train here), without the next round's first message, which "
        "brings the parameters. With keys and shares: all messages of a round.",
    )
    after, after_cpu = _of(run.ours, PATH)
    whole, whole_cpu = _of(run.ours, (*BEFORE, *PATH))
    theirs, theirs_cpu = _of(run.theirs, AFTER_TRAINING)
    stages, stages_cpu = _of(run.theirs, STAGES)
    for part, one, other, cpu, other_cpu in (
        ("after training", after, theirs, after_cpu, theirs_cpu),
        ("with keys and shares", whole, stages, whole_cpu, stages_cpu),
    ):
        section.add(part=part, system="secfed", wall_s=one, CPU_s=cpu)
        section.add(part=part, system="flwr", wall_s=other, CPU_s=other_cpu)
        section.add(
            part=part,
            system="flwr / secfed",
            wall_s=other.median / one.median,
            CPU_s=other_cpu.median / cpu.median,
        )
    run.at_most("after training, wall", GOAL_SECONDS, after.median, "s")
    ratio = stages.median / after.median
    run.at_least("flwr's SecAgg+ round over our path after training", 10, ratio, "x")
    return section


def _parts(run: _Run) -> Section:
    section = Section(
        "parts",
        "The same by parts",
        "Training is one step over a few short texts. Ours has TLS, node "
        "authentication, signed messages, the malicious-server protocol with hybrid "
        "keys; flwr's has none of them.",
    )
    for system, rounds in (("secfed", run.ours), ("flwr", run.theirs)):
        for part in rounds[0]:
            wall, cpu = _of(rounds, (part,))
            section.add(system=system, part=part, wall_s=wall, CPU_s=cpu)
    return section


def _of(rounds: Rounds, parts: Sequence[str]) -> tuple[Timing, Timing]:
    return timings([summed(one, parts) for one in rounds])


def _versions() -> dict[str, str]:
    return {
        "Python": platform.python_version(),
        "secfed": __version__,
        **{name: version(name) for name in ("flwr", "cryptography", "numpy")},
    }


if __name__ == "__main__":
    sys.exit(main())
