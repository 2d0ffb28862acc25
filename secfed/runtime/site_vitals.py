"""A site's worker as its own operator's monitoring sees it.

It stands between the carrier and the worker, and changes nothing of what is answered.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace

from secfed.errors import SecfedError
from secfed.runtime.envelope import Sealed
from secfed.runtime.site_worker import SiteWorker
from secfed.runtime.vitals import SITE_PHASES, Vitals

__all__ = ["WatchedSite"]


class WatchedSite:
    """Answers as the worker does, and keeps how it is.

    Args:
        worker: The site.
        rounds: Of the study.
        epsilon_limit: Of the site's policy.
    """

    def __init__(self, worker: SiteWorker, rounds: int, epsilon_limit: float) -> None:
        self._worker = worker
        self._held = Vitals(
            role="site",
            healthy=False,
            rounds=rounds,
            epsilon_spent=worker.spent_epsilon(),
            epsilon_limit=epsilon_limit,
        )

    def linked(self, *, there: bool) -> None:
        """Told whether the connection's process runs."""
        self._held = replace(self._held, healthy=there)

    def answer(self, phase: str, sealed: Sealed) -> Sealed:
        """As ``SiteWorker.answer``; an order that it does not answer counts nothing.

        Raises:
            VerificationError: As the worker.
        """
        began = time.monotonic()
        if phase == "training":  # It goes on beside; the round is reserved by now.
            self._count()
        try:
            answer = self._worker.answer(phase, sealed)
        except Exception as error:
            self._held = replace(self._held, last_error=type(error).__name__)
            raise
        finally:
            spent = time.monotonic() - began
        self._note(phase, sealed, answer, spent)
        return answer

    def vitals(self) -> Vitals:
        """For monitoring; called in another thread."""
        return self._held

    def _note(self, phase: str, order: Sealed, answer: Sealed, spent: float) -> None:
        """Keep what a verified order was, and what its answer cost."""
        held, name = self._held, SITE_PHASES[phase]
        seconds = {**held.seconds, name: held.seconds.get(name, 0.0) + round(spent, 3)}
        self._held = replace(
            held,
            round=min(int(json.loads(order.header)["round"]), held.rounds),
            phase=name,
            seconds=seconds,
            bytes_up=held.bytes_up + len(answer.body),
            bytes_down=held.bytes_down + len(order.body),
            last_error=self._worker.last_error,
        )

    def _count(self) -> None:
        """Read the budget; what is wrong with it is the worker's to find."""
        with suppress(SecfedError, OSError):
            spent = self._worker.spent_epsilon()
            self._held = replace(self._held, epsilon_spent=spent)
