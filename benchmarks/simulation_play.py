"""One simulated run in a process of its own, with the time of each phase.

    python -m benchmarks.simulation_play STUDY RUN ENGINE PROCESSES

Prints one JSON object. Its memory is watched by who starts it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from secfed.policy import load_policy
from secfed.runtime.local import run_study
from secfed.runtime.progress import NoProgress
from secfed.runtime.sessions import PHASES
from secfed.runtime.simulated import run_simulation
from secfed.study import load_study
from secfed.verify import verify_run

__all__ = ["main"]

_SENT: Final = {"send the adapter", *PHASES.values()}
_TRAINING: Final = "local training"
_REST: Final = "apply, score, record"


class Timed(NoProgress):
    """Notes how long each phase of a round took, and how many sites answered in it.

    A phase lasts until the next one begins; the last one includes what follows the
    sum, up to the round's ledger entry.
    """

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        self._now: dict[str, Any] | None = None
        self._phase, self._since = "", time.perf_counter()

    def round(self, arm: str, round: int, rounds: int) -> None:  # noqa: A002
        """Begin a round."""
        del arm, round, rounds
        self._now = {"phases": {}, "messages": 0}
        self._phase, self._since = "", time.perf_counter()

    def phase(self, text: str) -> None:
        """End the phase before."""
        self._note()
        self._phase = text

    def site(self, site: str, done: int, total: int) -> None:
        """Count an order and its answer."""
        del site
        if self._now is not None and self._phase in _SENT:
            self._now["messages"] += 2
        if self._phase == PHASES["unmask"] and done == total:
            self.phase(_REST)

    def finished_round(self, metrics: Mapping[str, Any]) -> None:
        """Keep the round."""
        self._note()
        if self._now is not None:
            keys = ("survivors", "bytes_up", "bytes_down", "seconds")
            kept = {key: metrics[key] for key in keys}
            kept["survivors"] = len(kept["survivors"])
            kept["wall"] = sum(self._now["phases"].values())
            self.rounds.append(self._now | kept)
        self._now = None

    def _note(self) -> None:
        since, self._since = self._since, time.perf_counter()
        if self._now is not None:
            name = self._phase or "terms"
            held = self._now["phases"].get(name, 0.0)
            self._now["phases"][name] = held + self._since - since


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, verify and print."""
    given = sys.argv[1:] if arguments is None else arguments
    study, run, engine = Path(given[0]), Path(given[1]), given[2]
    start, timed = time.perf_counter(), Timed()
    policy = load_policy(study.parent / "site.toml")
    if engine == "simulation":
        loaded = load_study(study)
        run_simulation(loaded, study.parent, run, policy, timed, int(given[3]))
    else:
        run_study(load_study(study), study.parent, run, policy, timed)
    played = time.perf_counter() - start
    value = {
        "rounds": timed.rounds,
        "seconds": played,
        "verified": verify_run(run).passed,
    }
    sys.stdout.write(json.dumps(value) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
