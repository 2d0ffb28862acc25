"""A session that a site answers, and the durable note of which were begun.

The session is in memory only. What is written is that it was begun: a site begins no
round, and no evaluation, a second time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfed.canonical import canonical_json
from secfed.client import Contribution, SiteRound
from secfed.errors import RunDirectoryError
from secfed.privacy.held_back import is_evaluation
from secfed.privacy.noise import RandomStream
from secfed.runtime.background import Job
from secfed.runtime.directory import write_atomically
from secfed.runtime.envelope import Order, Sealed
from secfed.types import Adapter

__all__ = ["Session", "last_begun", "named", "note_begun", "run_folder"]


@dataclass
class Session:
    """The round or evaluation that is being answered; holds secrets, unmasked."""

    round: int
    run_id: str
    broadcast: bytes = field(repr=False)
    adapter: Adapter = field(repr=False)
    site: SiteRound | None = None
    stream: RandomStream | None = None
    budget_head: str = ""
    training: Job[Contribution] | None = None
    counting: Job[NDArray[np.int64]] | None = None
    answered: dict[str, tuple[str, Sealed]] = field(default_factory=dict)

    @property
    def evaluates(self) -> bool:
        """Whether held-back records are scored, and nothing is trained."""
        return is_evaluation(self.run_id)

    def serves(self, order: Order) -> bool:
        """Whether an order is one of this session."""
        return (self.round, self.run_id) == (order.round, order.run_id)


def named(work: Order | Session) -> str:
    """What it is, for people."""
    what = "evaluation after round" if is_evaluation(work.run_id) else "round"
    return f"{what} {work.round}"


def run_folder(state_dir: Path, work: Order | Session) -> Path:
    """What a site keeps of one run."""
    return state_dir / "runs" / work.run_id.split("/")[0]


def last_begun(state_dir: Path, order: Order) -> int:
    """The last round of the order's run that was begun here, or evaluation; 0: none.

    Raises:
        RunDirectoryError: The note is damaged.
    """
    path = _note(state_dir, order)
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_bytes())["round"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(
            f"{path}: damaged, so it is not known which rounds were begun"
        ) from error


def note_begun(state_dir: Path, session: Session) -> None:
    """Note durably that a session begins."""
    value = {"run_id": session.run_id, "round": session.round, "attempt": 1}
    write_atomically(_note(state_dir, session), canonical_json(value) + b"\n")


def _note(state_dir: Path, work: Order | Session) -> Path:
    kind = "evaluation" if is_evaluation(work.run_id) else "session"
    return run_folder(state_dir, work) / f"{kind}.json"
