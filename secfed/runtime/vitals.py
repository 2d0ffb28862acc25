"""What a process tells its own operator's monitoring, and how Prometheus reads it.

What is in here is on loopback for whoever is on the machine, so it is what a
coordinator publishes anyway, or what a site's budget says. No record, no count of
records, no score and no name of a site is in it. The seconds of a site's training
depend on how many records were sampled: monitoring of a site stays at the site.

The text format is Prometheus' exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import secfed
from secfed.runtime.sessions import PHASES

__all__ = ["PREPARING", "SITE_PHASES", "Vitals", "known_phase", "metrics_text"]

PREPARING: Final = "preparing"
SITE_PHASES: Final = {
    "adapter": "send the adapter",
    "training": "local training",
    **PHASES,
    "witness": "cosign the ledger",
}
"""An order's phase, and its name for people; a round has no other."""


@dataclass(frozen=True)
class Vitals:
    """How a process is.

    Attributes:
        role: Which party.
        healthy: Whether it gets on; ``False`` wants a person.
        round: The round that is played, from 1; 0 before the first.
        rounds: How many there are; 0 while it is not known.
        phase: Of the round.
        seconds: In each phase that has ended, since the process began.
        bytes_up: From sites to the coordinator, since the process began.
        bytes_down: The other way.
        epsilon_spent: By the rounds that ended (coordinator; the highest of all sites),
            or by all that was reserved on the site's population (site).
        epsilon_limit: Of the study, or of the site's own policy.
        sites: How many have answered this phase, were asked, and are needed.
        last_error: The class of the last error; empty where there was none.
    """

    role: Literal["coordinator", "site"]
    healthy: bool = True
    round: int = 0
    rounds: int = 0
    phase: str = PREPARING
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    epsilon_spent: float | None = None
    epsilon_limit: float | None = None
    sites: tuple[int, int, int] | None = None
    last_error: str = ""


def known_phase(text: str) -> str:
    """A phase of a round by its name for people; all else is preparing."""
    return text if text in SITE_PHASES.values() else PREPARING


def metrics_text(vitals: Vitals) -> str:
    """What ``/metrics`` answers."""
    lines = []
    for name, kind, text, samples in _metrics(vitals):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{_labels(labels)} {value}" for labels, value in samples]
    return "\n".join(lines) + "\n"


_Samples = list[tuple[Mapping[str, str], float]]
_Metric = tuple[str, Literal["gauge", "counter"], str, _Samples]


def _metrics(held: Vitals) -> Iterator[_Metric]:
    """Every metric that has a value."""
    about = {"role": held.role, "version": secfed.__version__}
    yield "secfed_info", "gauge", "Which process this is.", [(about, 1)]
    yield "secfed_healthy", "gauge", "As /healthz says.", [({}, int(held.healthy))]
    yield "secfed_round", "gauge", "The round that is played.", [({}, held.round)]
    if held.rounds:
        yield "secfed_rounds", "gauge", "Rounds of the study.", [({}, held.rounds)]
    now: _Samples = [({"phase": held.phase}, 1)]
    yield "secfed_phase_info", "gauge", "The phase of the round.", now
    spent: _Samples = [({"phase": p}, s) for p, s in sorted(held.seconds.items())]
    if spent:
        text = "Seconds in each phase that has ended."
        yield "secfed_phase_seconds_total", "counter", text, spent
    moved: _Samples = [
        ({"direction": "up"}, held.bytes_up),
        ({"direction": "down"}, held.bytes_down),
    ]
    yield "secfed_bytes_total", "counter", "Bytes from and to sites.", moved
    yield from _epsilons(held)
    if held.sites is not None:
        for name, count in zip(
            ("answered", "asked", "needed"), held.sites, strict=True
        ):
            yield f"secfed_sites_{name}", "gauge", f"Sites {name}.", [({}, count)]
    if held.last_error:
        last: _Samples = [({"class": held.last_error}, 1)]
        yield "secfed_last_error_info", "gauge", "Class of the last error.", last


def _epsilons(held: Vitals) -> Iterator[_Metric]:
    values = {"spent": held.epsilon_spent, "limit": held.epsilon_limit}
    for name, value in values.items():
        if value is not None:
            text = f"Epsilon: the {name}."
            yield f"secfed_epsilon_{name}", "gauge", text, [({}, value)]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
