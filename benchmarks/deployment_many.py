"""Many sites with a small model as processes on one machine: memory, and completion.

    python -m benchmarks.deployment_many --sites 10

Every site is `secfed site run`, the coordinator `secfed serve`, with Flower's processes
below them and TLS between them. Memory is the sum of proportional set sizes: what
processes share counts once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.deployment import POLICY, STUDY
from benchmarks.deployment_secfed import Parties, set_up
from benchmarks.measure import load_average
from secfed.verify import verify_run

__all__ = ["main"]

_LOOK_SECONDS = 2.0
_WAITS = ("--joining", "3600", "--training", "3600", "--phase", "3600")
_SMALLER = {
    'sites = ["east", "north", "south"]': "",
    "max_records = 600": "max_records = 1500",
    "r = 10": "r = 2",
    "layers = 6": "layers = 1",
    "rounds = 12": "rounds = 2",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study once and print one JSON object; 0 if it ended and verifies."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--sites", type=int, default=10)
    sites = parser.parse_args(arguments).sites
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study.toml"
        study.write_text(small_study(sites), "utf-8")
        parties = set_up(Path(folder) / "parties", study, POLICY, _WAITS)
        found = _play(parties)
    sys.stdout.write(f"{json.dumps(found, indent=1)}\n")
    return 0 if found["exit_code"] == 0 and found["verified"] else 1


def small_study(sites: int) -> str:
    """The benchmark's study with so many sites and fewer numbers.

    Raises:
        ValueError: The study has not the line that is replaced.
    """
    names = [f"site-{number:02d}" for number in range(sites)]
    text = STUDY.read_text("utf-8")
    for line, other in _SMALLER.items():
        if line not in text:
            raise ValueError(f"no line {line!r} in {STUDY}")
        text = text.replace(line, other or f"sites = {json.dumps(names)}")
    return text


def _play(parties: Parties) -> dict[str, Any]:
    start, load, peak = time.monotonic(), load_average(), 0
    try:
        coordinator = parties.start_coordinator()
        for site in parties.study.sites:
            parties.start_site(site)
        while coordinator.poll() is None:
            peak = max(peak, _memory_bytes())
            time.sleep(_LOOK_SECONDS)
        codes = [parties.processes[s].wait(600) for s in parties.study.sites]
    finally:
        parties.stop()
    lines = (parties.run / "metrics.jsonl").read_text().splitlines()
    return {
        "sites": len(parties.study.sites),
        "exit_code": coordinator.returncode,
        "sites_ended_well": codes.count(0),
        "verified": verify_run(parties.run).passed,
        "survivors": [len(json.loads(line)["survivors"]) for line in lines[1:]],
        "peak_memory_GB": round(peak / 1e9, 2),
        "seconds": round(time.monotonic() - start),
        "load_average": [load, load_average()],
    }


def _memory_bytes() -> int:
    """Proportional set size of all processes below this one."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
