"""Measure runs of 10 to 1,000 simulated sites: time, memory, messages, and growth.

    python -m benchmarks.simulation --quick
    python -m benchmarks.simulation --json FILE --markdown FILE

The same study with a tiny model, by Flower's simulation engine and by the local
runtime, each in a process of its own. Their adapters are compared, byte by byte, and
every run is verified. Memory is the most that all processes of a run had together, as
the sum of proportional set sizes: what processes share counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console

from benchmarks.command import add_outputs, machine, publish
from benchmarks.measure import Timing, exponent, load_average
from benchmarks.progress import Progress
from benchmarks.sections import GB, MB, Findings, Section
from benchmarks.simulation_study import write_study
from secfed import __version__
from secfed.canonical import file_sha256

__all__ = ["main"]

SIZES: Final = (10, 100, 1000)
ENGINES: Final = ("simulation", "local")
ROUNDS: Final = 2
GOAL_GB: Final = 24.0
_LOOK_SECONDS: Final = 2.0
_TWO: Final = 2


@dataclass(frozen=True)
class _Played:
    """One run: its rounds, its memory and its adapters."""

    engine: str
    sites: int
    found: dict[str, Any]
    memory: int
    processes: int
    cpu: float
    adapters: tuple[str, ...]

    def timing(self, of: str) -> Timing:
        """A number of every round, or the seconds of one of its phases."""
        rounds = self.found["rounds"]
        return Timing.of(
            [one[of] if of in one else one["phases"].get(of, 0.0) for one in rounds]
        )

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases of a round, in order."""
        return tuple(self.found["rounds"][0]["phases"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code says nothing about speed."""
    asked = _parser().parse_args(arguments)
    sizes = asked.sizes or ((4, 8) if asked.quick else SIZES)
    publish(_measure(sizes, asked.engines or ENGINES, quick=asked.quick), asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="4 and 8 sites")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="Of studies.")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="Both if left.")
    add_outputs(parser, "json", "markdown")
    return parser


def _measure(
    sizes: Sequence[int], engines: Sequence[str], *, quick: bool
) -> dict[str, Any]:
    start, load = time.monotonic(), load_average()
    with Progress(Console(stderr=True)) as progress:
        run = Findings(progress.tick, progress.announce)
        played = list(_all(sizes, engines, run))
    _same_adapters(played)
    most = max(one.memory for one in played)
    run.at_most(
        f"memory of all processes, {max(sizes):,} sites", GOAL_GB, most / GB, "GB"
    )
    return {
        "format": 1,
        "mark": "benchmark-simulation",
        "machine": machine(),
        "versions": _versions(),
        "quick": quick,
        "command": shlex.join(["python", "-m", "benchmarks.simulation", *sys.argv[1:]]),
        "load_average": [load, load_average()],
        "minutes": (time.monotonic() - start) / 60,
        "sections": [asdict(section) for section in _sections(played)],
        "goals": [asdict(goal) for goal in run.goals],
        "left_out": run.left_out,
        "sums_checked": sum(len(one.found["rounds"]) for one in played),
        "runs": [asdict(one) for one in played],
    }


# Playing


def _all(
    sizes: Sequence[int], engines: Sequence[str], run: Findings
) -> Iterator[_Played]:
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            study = write_study(Path(folder), size, ROUNDS)
            for engine in engines:
                run.announce(f"{size} sites, {engine}")
                yield _play(study, Path(folder) / engine, engine, size)
                run.tick()


def _play(study: Path, folder: Path, engine: str, size: int) -> _Played:
    """One run in a process of its own, whose memory is watched.

    Raises:
        RuntimeError: It failed, or does not verify.
    """
    processes = os.cpu_count() or 1
    before = os.times()
    child = subprocess.Popen(  # noqa: S603 - our own interpreter
        [
            *(sys.executable, "-m", "benchmarks.simulation_play"),
            *(str(study), str(folder), engine, str(processes)),
        ],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    most, count = 0, 0
    while child.poll() is None:
        memory, number = _memory(child.pid)
        most, count = max(most, memory), max(count, number)
        time.sleep(_LOOK_SECONDS)
    printed = child.stdout.read() if child.stdout else b""
    if child.returncode:
        raise RuntimeError(f"{size} sites, {engine}: exit code {child.returncode}")
    found = json.loads(printed)
    if not found["verified"]:
        raise RuntimeError(f"{size} sites, {engine}: the run does not verify")
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    adapters = tuple(
        file_sha256(path) for path in sorted((folder / "adapters").iterdir())
    )
    return _Played(engine, size, found, most, count, cpu, adapters)


def _memory(process: int) -> tuple[int, int]:
    """Proportional set size of a process and all below it, and how many they are."""
    total, count = 0, 0
    try:
        top = psutil.Process(process)
        family = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for one in family:
        try:
            total += one.memory_full_info().pss
            count += 1
        except psutil.Error:
            continue
    return total, count


def _same_adapters(played: Sequence[_Played]) -> None:
    """Every engine computed the same adapters.

    Raises:
        RuntimeError: One did not.
    """
    for size in {one.sites for one in played}:
        if len({one.adapters for one in played if one.sites == size}) > 1:
            raise RuntimeError(f"{size} sites: the engines gave different adapters")


# Telling


def _sections(played: Sequence[_Played]) -> Iterator[Section]:
    yield _rounds(played)
    yield _phases(played)
    yield _growth(played)


def _rounds(played: Sequence[_Played]) -> Section:
    section = Section(
        "rounds",
        "A round",
        "Messages are orders and answers; bytes are those of the protocol and of the "
        "adapter, without signatures and Flower's own. Memory and CPU time are those "
        "of all processes of the whole run, with its start; processes are those of "
        "secfed, Ray and Flower together. CPU time lacks processes that Ray's daemons "
        "end themselves.",
    )
    for one in played:
        seconds = one.timing("wall").median
        messages = one.timing("messages").median
        section.add(
            engine=one.engine,
            sites=one.sites,
            round_s=one.timing("wall"),
            run_s=one.found["seconds"],
            CPU_s=one.cpu,
            peak_GB=one.memory / GB,
            processes=one.processes,
            messages=messages,
            messages_per_s=messages / seconds,
            up_MB=one.timing("bytes_up").median / MB,
            down_MB=one.timing("bytes_down").median / MB,
        )
    return section


def _phases(played: Sequence[_Played]) -> Section:
    section = Section(
        "phases",
        "Seconds of each phase",
        "Elapsed, median of the rounds. Training includes the encoding of the update.",
    )
    for one in played:
        parts = {name.replace(" ", "_"): one.timing(name).median for name in one.phases}
        section.add(engine=one.engine, sites=one.sites, **parts)
    return section


def _growth(played: Sequence[_Played]) -> Section:
    section = Section(
        "growth",
        "How cost grows",
        "Exponent p in cost ~ sites^p, by least squares on logarithms over all sizes, "
        "and between the two largest. What is spent before the first site, such as "
        "Ray's own processes, makes p smaller than it is in the limit. Above 256 sites "
        "the secure sum is taken in cohorts, so a site's own part stops growing.",
    )
    for engine in dict.fromkeys(one.engine for one in played):
        own = [one for one in played if one.engine == engine]
        if len(own) < _TWO:
            continue
        sizes = [one.sites for one in own]
        costs = {
            "seconds of a round": [one.timing("wall").median for one in own],
            "peak memory": [float(one.memory) for one in own],
            "bytes of a round": [
                one.timing("bytes_up").median + one.timing("bytes_down").median
                for one in own
            ],
            "messages of a round": [one.timing("messages").median for one in own],
        }
        for cost, values in costs.items():
            section.add(
                engine=engine,
                cost=cost,
                from_size=sizes[0],
                to_size=sizes[-1],
                exponent=round(exponent(sizes, values), 2),
                between_the_largest=round(exponent(sizes[-2:], values[-2:]), 2),
            )
    return section


def _versions() -> dict[str, str]:
    names = ("flwr", "ray", "torch", "cryptography", "numpy")
    return {
        "Python": platform.python_version(),
        "secfed": __version__,
        **{name: version(name) for name in names},
    }


if __name__ == "__main__":
    sys.exit(main())
