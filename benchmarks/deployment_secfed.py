"""secfed's own rounds over processes: `secfed site run` at every site, and TLS.

This process is the coordinator. Its post is timed from outside: from the last answer
of training to the last site that has taken the next round's adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from benchmarks.deployment_path import Cost, Reading, Rounds
from secfed.data.own import load_holdout
from secfed.runtime.deployed import Deadlines
from secfed.runtime.envelope import ORDERS, Post, Sealed
from secfed.runtime.flower.coordinator import Listener, coordinate
from secfed.runtime.keys import read_coordinator_key, read_server
from secfed.runtime.progress import NoProgress
from secfed.runtime.roster import Roster, read_roster
from secfed.runtime.serve import serve_rounds
from secfed.runtime.setup import prepare_data

# The example is a folder of files, not an installed package.
sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "deployment"))

from parties import Parties, protecting_of, set_up

__all__ = ["BEFORE", "COORDINATOR", "PATH", "play_secfed"]

BEFORE = ("advertise", "shares")
COORDINATOR = "step and commit"
PATH = ("masked-input", "confirm", "unmask", "witness", COORDINATOR, "adapter")
RUN_ID = "0123456789abcdef"
_DEADLINES = Deadlines(joining=3600.0, training=3600.0, phase=3600.0)


class _TimedPost:
    """A post that remembers when each exchange began and ended."""

    def __init__(self, inner: Post) -> None:
        self._inner = inner
        self.exchanges: list[tuple[str, Reading, Reading]] = []

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        """As ``Post.exchange``."""
        began, answers = Reading.now(), 0
        for site, sealed in self._inner.exchange(phase, orders, seconds):
            answers += 1
            yield site, sealed
        if answers != len(orders):
            raise RuntimeError(f"{answers} of {len(orders)} sites answered {phase}")
        self.exchanges.append((phase, began, Reading.now()))

    def rounds(self) -> Rounds:
        """Each round's parts, with the adapter of the round after it."""
        begins = [
            i for i, (phase, *_) in enumerate(self.exchanges) if phase == "adapter"
        ]
        return [
            _parts(self.exchanges[first : following + 1])
            for first, following in pairwise(begins)
        ]


def _parts(exchanges: list[tuple[str, Reading, Reading]]) -> dict[str, Cost]:
    """One round from its adapter to the next one's; each part ends a later moment.

    The coordinator's own part lies before the sites are shown the ledger, and after.
    """
    ends = {phase: end for phase, _, end in exchanges[:-1]}
    shown = next(begin for phase, begin, _ in exchanges if phase == "witness")
    _, next_begins, next_ends = exchanges[-1]
    before = dict(zip(ORDERS[1:], ORDERS, strict=False))
    parts = {p: ends[p].since(ends[before[p]]) for p in ORDERS[1:]}
    parts["witness"] = ends["witness"].since(shown)
    parts[COORDINATOR] = shown.since(ends["unmask"]) + next_begins.since(
        ends["witness"]
    )
    parts["adapter"] = next_ends.since(next_begins)
    return parts


def play_secfed(
    study_file: Path, policy_file: Path, folder: Path
) -> tuple[Rounds, int]:
    """The rounds of a study, and how many numbers each site sent.

    The first round, in which every process does everything for the first time, and the
    last, whose adapter is kept and not trained, are left out.

    Raises:
        RuntimeError: A site was missing in a phase.
        SecfedError: The study did not end.
    """
    parties = set_up(folder, study_file, policy_file)
    try:
        post, parameters = _coordinate(parties)
    finally:
        parties.stop()
    return post.rounds()[1:-1], parameters


def _coordinate(parties: Parties) -> tuple[_TimedPost, int]:
    home = parties.coordinator
    path = home / "roster.json"
    roster: Roster = read_roster(path.read_bytes(), path)
    data = load_holdout(roster.study, home)
    prepared = prepare_data(roster.study, home, data, None, NoProgress())
    host, port = roster.address.split(":")
    protecting = protecting_of(home)
    listener = Listener(host, int(port), *read_server(home / "keys", protecting))
    nodes = {name: request.node_key for name, request in roster.requests.items()}
    key = read_coordinator_key(home / "keys", protecting)

    found: list[tuple[_TimedPost, int]] = []

    def run(post: Post) -> None:
        for site in roster.study.sites:
            parties.start_site(site)
        timed, told, out = _TimedPost(post), NoProgress(), parties.run
        arm = serve_rounds(roster, prepared, out, RUN_ID, key, timed, _DEADLINES, told)
        found.append((timed, int(arm["trainable"])))

    coordinate(listener, nodes, home / "flower", run)
    return found[0]
