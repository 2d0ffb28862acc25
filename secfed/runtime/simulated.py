"""A study with many sites on one machine, by Flower's simulation engine.

It is the deployment: the same coordinator (``serve.py``), the same sites
(``site_worker.py``), the same signed messages. Only what carries them differs, and that
one operator has all keys, records and budgets: a rehearsal of a deployment, which hides
nothing from whoever runs it. With a simulation seed the rounds are those of the local
runtime, number by number, and NOT PRIVATE.

A site's secrets of a round are in the memory of the one process that plays it. What
must last is in ``private/sites/NAME``, as on a machine of its own. A simulation that
was interrupted continues with the next round, as a deployment does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from secfed.canonical import parse_canonical
from secfed.data import StudyData, load_sites
from secfed.errors import StudyError, VerificationError
from secfed.policy import SitePolicy
from secfed.runtime.background import WhenAsked
from secfed.runtime.classes import keep_classes
from secfed.runtime.deployed import Deadlines
from secfed.runtime.directory import create_run
from secfed.runtime.envelope import Post, Sealed
from secfed.runtime.flower.simulation import require_ray, simulate
from secfed.runtime.partition import keep_partition
from secfed.runtime.progress import NoProgress, Progress
from secfed.runtime.roster import (
    Roster,
    make_request,
    make_roster,
    read_request,
    read_roster,
)
from secfed.runtime.serve import check_deployable, serve_rounds
from secfed.runtime.sessions import RoundTerms, terms_of
from secfed.runtime.setup import Prepared, prepare_data, site_identities
from secfed.runtime.site_worker import SiteWorker
from secfed.signing import CoordinatorKey, load_or_create
from secfed.study import Study
from secfed.types import LabelledTexts

__all__ = ["KIND", "PlayedSites", "Vanishing", "run_simulation"]

KIND: Final = "simulation"
"""Of a run in ``private/run.json``."""

_LOG_NAME: Final = "simulation.log"
_DAY: Final = Deadlines(joining=86400.0, training=86400.0, phase=86400.0)
"""Sites that share processors are slow, and a process that ends is noticed at once."""


def run_simulation(
    study: Study,
    base_dir: Path,
    run_dir: Path,
    policy: SitePolicy,
    progress: Progress,
    processes: int | None = None,
) -> dict[str, Any]:
    """Run one study to its release; continues where an earlier call stopped.

    1. what would refuse it; 2. the run's directory, keys and roster; 3. the
    coordinator's part of the data; 4. the rounds.

    Args:
        study: The study.
        base_dir: Folder that relative paths start from.
        run_dir: Where the evidence is written.
        policy: The rules of every site.
        progress: Told about phases and sites.
        processes: How many share the sites; one of each processor if None.

    Returns:
        The arm as in ``comparison.json``.

    Raises:
        SecfedError: What went wrong; the run directory stays resumable.
    """
    # 1
    _check(study)
    require_ray()
    # 2
    record = create_run(run_dir, study, base_dir, policy, kind=KIND)
    private = run_dir / "private"
    keep_partition(study, base_dir, private)
    key = load_or_create(private / "coordinator.key")
    roster = _roster_of(study, key, private)
    # 3
    progress.phase("reading the public test set")
    everything = load_sites(study, base_dir)
    data = replace(everything, sites={}, rows={})
    prepared = prepare_data(study, base_dir, data, None, progress)
    progress.arm(study.training.method, 1, 1)
    progress.phase("starting the sites' processes")
    played = PlayedSites(roster, str(base_dir.resolve()), str(private), policy)
    # 4
    found: dict[str, Any] = {}

    def coordinate(post: Post) -> None:
        found.update(
            serve_rounds(
                read_roster(roster, "roster"),
                prepared,
                run_dir,
                record.run_id,
                key,
                Vanishing(post, study, progress),
                _DAY,
                progress,
                rehearsal=True,
            )
        )

    simulate(study.sites, processes or _processors(), played.open, coordinate)
    return found


def _check(study: Study) -> None:
    """Refuse what a deployment cannot play yet, and what this engine does not.

    Raises:
        StudyError: The study runs in the local runtime only.
    """
    try:
        check_deployable(study, rehearsal=True)
    except StudyError as error:
        raise StudyError(
            error.path,
            error.key,
            "the simulation engine plays a deployment, which cannot do this yet; "
            "leave --engine simulation out",
        ) from error
    if study.evaluation is not None:
        raise StudyError(
            f"study {study.name}",
            "evaluation",
            "the simulation engine does not score held-back records yet; remove the "
            "table, or leave --engine simulation out",
        )


def _processors() -> int:
    return os.cpu_count() or 1


def _roster_of(study: Study, key: CoordinatorKey, private: Path) -> bytes:
    """Signed as in a deployment; the keys of all sites are made here."""
    requests = [
        read_request(make_request(identity, site, f"virtual node of {site}"), site)
        for site, identity in site_identities(study, private).items()
    ]
    return make_roster(key, study, "simulation", "no authority", requests)


# In a process of the simulation


@dataclass(frozen=True)
class PlayedSites:
    """What a process needs to know to play some of the sites; it can be pickled."""

    roster: bytes
    base_dir: str
    private_dir: str
    policy: SitePolicy

    def open(self, sites: tuple[str, ...]) -> Callable[[str, Sealed], Sealed]:
        """Make these sites ready to answer.

        Raises:
            SecfedError: What is wrong; nothing was spent.
        """
        torch.set_num_threads(1)
        roster = read_roster(self.roster, "roster")
        private = Path(self.private_dir)
        own = _of_sites(load_sites(roster.study, Path(self.base_dir)), sites)
        prepared = prepare_data(
            roster.study, Path(self.base_dir), own, self.policy, NoProgress()
        )
        keep_classes(prepared.records, prepared.label_names, private)
        workers = _workers(roster, prepared, self.policy, private)

        def answer(phase: str, sealed: Sealed) -> Sealed:
            return workers[_addressee(sealed, workers)].answer(phase, sealed)

        return answer


def _of_sites(data: StudyData, sites: tuple[str, ...]) -> StudyData:
    """What these sites hold, and no test set."""
    nothing = LabelledTexts((), data.holdout.labels[:0])
    held = {site: data.sites[site] for site in sites}
    return replace(data, sites=held, holdout=nothing, rows={}, holdout_rows=())


def _workers(
    roster: Roster, prepared: Prepared, policy: SitePolicy, private: Path
) -> dict[str, SiteWorker]:
    """The sites of this process; each has its own folder and its own secrets."""
    identities = site_identities(roster.study, private)
    terms, background = _Terms(), WhenAsked()
    return {
        site: SiteWorker(
            roster,
            site,
            identities[site],
            prepared,
            policy,
            private / "sites" / site,
            partial(_say, private / _LOG_NAME, site),
            background,
            terms.of,
        )
        for site in prepared.records
    }


def _addressee(sealed: Sealed, workers: Mapping[str, SiteWorker]) -> str:
    """Whom an order names; the site itself checks who signed it.

    Raises:
        VerificationError: Nobody who is played here.
    """
    try:
        header = parse_canonical(sealed.header)
    except ValueError as error:
        raise VerificationError(f"a malformed header: {error}") from error
    site = header.get("site") if isinstance(header, dict) else None
    if not isinstance(site, str) or site not in workers:
        raise VerificationError("an order for a site of another process")
    return site


def _say(log: Path, site: str, text: str) -> None:
    """A line of what the sites say; one write, because processes share the file."""
    with log.open("ab", buffering=0) as file:
        file.write(f"{site}: {text}\n".encode())


@dataclass
class _Terms:
    """A round's parameters, which every site of a process would derive alike."""

    _held: dict[int, RoundTerms] = field(default_factory=dict)

    def of(self, *arguments: Any) -> RoundTerms:
        """As ``terms_of``; the fifth argument is the round."""
        number = arguments[4]
        if number not in self._held:
            self._held = {number: terms_of(*arguments)}
        return self._held[number]


# Rehearsed failures


@dataclass
class Vanishing:
    """A post from which sites vanish as the study's ``[[simulation.dropouts]]`` say.

    A site's answer to the named phase is its last one in that round.
    """

    post: Post
    study: Study
    progress: Progress
    _gone: set[tuple[int, str]] = field(default_factory=set)

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        """As ``Post.exchange``."""
        if not orders or not self.study.simulation.dropouts:
            yield from self.post.exchange(phase, orders, seconds)
            return
        number = int(parse_canonical(next(iter(orders.values())).header)["round"])
        leaving = {
            d.site
            for d in self.study.simulation.dropouts
            if (d.round, d.phase) == (number, phase)
        }
        there = {s: o for s, o in orders.items() if (number, s) not in self._gone}
        for site, answer in self.post.exchange(phase, there, seconds):
            yield site, answer
            if site in leaving:
                self._gone.add((number, site))
                self.progress.note(f"{site} vanished after sending {phase}")
