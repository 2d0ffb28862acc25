"""What a budget's entries say, how they are chained, and what they add up to.

A budget is a list of entries that only grows. Each entry has a *head*: the
SHA-256 of the head before it and of the entry's canonical JSON. A head therefore
fixes everything up to its entry, and says nothing about it, because the first
entry holds 32 random bytes that stay at the site. No file or clock is touched
here.

==============  ==============================================================
kind            says
==============  ==============================================================
``store``       whose budget this is; always the first entry, never again
``population``  a declared population, its unit and the site's limits now
``version``     a fingerprint of data that belongs to a population
``reserve``     a round is paid for, before its first step
``spend``       a reserved round was sent; it costs nothing more
==============  ==============================================================
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from secfed.canonical import canonical_json, parse_canonical
from secfed.errors import PlanError
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.plan import Unit

__all__ = [
    "Charge",
    "Entry",
    "Link",
    "Population",
    "Receipt",
    "State",
    "add_up",
    "extended",
    "fresh_nonce",
    "rendered",
    "unbroken",
]

Entry = Mapping[str, Any]

_LABEL = b"secfed budget entry 2\0"
_GENESIS = "0" * 64
_NONCE_BYTES = 16


@dataclass(frozen=True)
class Link:
    """One entry in its place; ``head`` fixes it and all entries before it."""

    sequence: int
    head: str
    entry: Entry


@dataclass(frozen=True)
class Population:
    """One declared population and the limits its site last set for it.

    ``versions`` are fingerprints of the data that was used as this population.
    """

    name: str
    unit: Unit
    max_epsilon: float
    delta: float
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Charge:
    """One round's event; ``reserved`` and ``spent`` cost the same.

    Attributes:
        reservation: The entry's number.
        population: Who pays.
        study_digest: Of which study.
        run_id: In which run and arm.
        round: From 1.
        event: What ran, for the study's own unit.
        group: How many units' worth is charged: the records per person, where
            records are charged to persons; 2 where a study's unit is the site, as a
            person may replace its update; else 1.
        state: Whether the round was sent.
        reserved_at: In UTC.
        head: What the ledger names, so that a rolled-back budget is noticed.
        unit: The study's own unit; None in entries from before it was kept.
        replaces: The head that was lost, where a reconciliation charged it again.
    """

    reservation: int
    population: str
    study_digest: str
    run_id: str
    round: int
    event: DpEvent
    group: int
    state: Literal["reserved", "spent"]
    reserved_at: str
    head: str
    unit: Unit | None = None
    replaces: str | None = None

    @property
    def cost(self) -> DpEvent:
        """The event for the population's unit."""
        return accounting.group_event(self.event, self.group)

    def receipt(self) -> Receipt:
        """What is kept elsewhere, to know this charge again."""
        return Receipt(
            head=self.head,
            population=self.population,
            study_digest=self.study_digest,
            run_id=self.run_id,
            round=self.round,
            event=accounting.event_to_json(self.event),
            group=self.group,
            unit=self.unit,
        )


@dataclass(frozen=True)
class Receipt:
    """A reservation as evidence outside the budget knows it.

    A ledger knows the study's ``unit`` and neither ``population`` nor ``group``.
    A site's own receipt knows all three; old ones have no unit.
    """

    head: str
    population: str | None
    study_digest: str
    run_id: str
    round: int
    event: Mapping[str, object]
    group: int | None
    unit: Unit | None


@dataclass(frozen=True)
class State:
    """Everything that a chain of entries adds up to.

    ``heads`` are those of the chain and those that a reconciliation replaced.
    """

    site: str
    populations: Mapping[str, Population] = field(default_factory=dict)
    charges: tuple[Charge, ...] = ()
    heads: frozenset[str] = frozenset()

    def charges_of(self, population: str) -> tuple[Charge, ...]:
        """One population's charges, in the order they were reserved."""
        return tuple(c for c in self.charges if c.population == population)


def fresh_nonce() -> str:
    """What makes a reservation unlike any other, also unlike its own repetition.

    Without it a round that is repeated after a restore, within a second, would
    have the head of the first and pass for it.
    """
    return secrets.token_hex(_NONCE_BYTES)


def extended(links: Sequence[Link], entry: Entry) -> Link:
    """The link that follows: its head commits to every entry so far."""
    previous = links[-1].head if links else _GENESIS
    data = _LABEL + bytes.fromhex(previous) + canonical_json(entry)
    return Link(len(links), hashlib.sha256(data).hexdigest(), entry)


def rendered(link: Link) -> bytes:
    """A link as one line of the copy beside the database."""
    fields = {"sequence": link.sequence, "head": link.head, "entry": link.entry}
    return canonical_json(fields) + b"\n"


def unbroken(rows: Iterable[tuple[int, str, bytes]]) -> tuple[tuple[Link, ...], bool]:
    """The links up to the first that does not follow, and whether that was all.

    Args:
        rows: Sequence, head and canonical JSON of each entry, in order.
    """
    links: list[Link] = []
    for sequence, head, data in rows:
        try:
            link = extended(links, parse_canonical(data))
        except ValueError:
            return tuple(links), False
        if (link.sequence, link.head) != (sequence, head):
            return tuple(links), False
        links.append(link)
    return tuple(links), True


def add_up(links: Sequence[Link]) -> State:
    """Read a whole chain.

    Raises:
        ValueError: An entry is not one that this version knows, or contradicts
            the entries before it.
    """
    if not links or links[0].entry.get("kind") != "store":
        raise ValueError("the first entry does not name a site")
    tally = _Tally(heads={links[0].head})
    for link in links[1:]:
        try:
            _KINDS[link.entry["kind"]](tally, link)
        except (KeyError, TypeError, PlanError) as error:
            raise ValueError(f"entry {link.sequence} is unknown: {error}") from error
        tally.heads.add(link.head)
    return State(
        site=str(links[0].entry["site"]),
        populations=tally.populations,
        charges=tuple(tally.charges.values()),
        heads=frozenset(tally.heads),
    )


@dataclass
class _Tally:
    heads: set[str]
    populations: dict[str, Population] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)


def _population(tally: _Tally, link: Link) -> None:
    entry, name = link.entry, str(link.entry["name"])
    before = tally.populations.get(name)
    if before is not None and before.unit != entry["unit"]:
        raise PlanError("the unit of a population never changes")
    tally.populations[name] = Population(
        name=name,
        unit=entry["unit"],
        max_epsilon=float(entry["max_epsilon"]),
        delta=float(entry["delta"]),
        versions=before.versions if before else (),
    )


def _version(tally: _Tally, link: Link) -> None:
    held = tally.populations[link.entry["population"]]
    versions = (*held.versions, str(link.entry["fingerprint"]))
    tally.populations[held.name] = replace(held, versions=versions)


def _reserve(tally: _Tally, link: Link) -> None:
    entry = link.entry
    charge = Charge(
        reservation=link.sequence,
        population=tally.populations[entry["population"]].name,
        study_digest=str(entry["study_digest"]),
        run_id=str(entry["run_id"]),
        round=int(entry["round"]),
        event=accounting.event_from_json(entry["event"]),
        group=int(entry["group"]),
        state="reserved",
        reserved_at=str(entry["at"]),
        head=link.head,
        unit=_known_unit(entry.get("unit")),
        replaces=str(entry["replaces"]) if entry.get("replaces") else None,
    )
    accounting.group_event(charge.event, charge.group)  # It has a cost.
    tally.charges[link.sequence] = charge
    if charge.replaces is not None:
        tally.heads.add(charge.replaces)


def _known_unit(value: object) -> Unit | None:
    if value is not None and value not in get_args(Unit):
        raise PlanError(f"{value!r} is not a privacy unit")
    return cast("Unit | None", value)


def _spend(tally: _Tally, link: Link) -> None:
    number = link.entry["reservation"]
    tally.charges[number] = replace(tally.charges[number], state="spent")


_KINDS = {
    "population": _population,
    "version": _version,
    "reserve": _reserve,
    "spend": _spend,
}
