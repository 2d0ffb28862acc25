"""What a coordinator knows of the budgets of sites on other machines.

The budgets and their receipts are the sites' files. The coordinator's file,
``private/asked.jsonl``, says which site it asked to begin a round, durably and before
it asked, and what the site signed in answer. Whom it asked counts as spent, unless the
site signed that it declined: an answer may be lost on its way, and a statement must
not say less than a site spent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from secfed.errors import RunDirectoryError
from secfed.privacy import accounting
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.accounts import Charged
from secfed.runtime.directory import append_line, read_lines

__all__ = ["RemoteAccounts"]

_ASKED: Final = "asked"
_RESERVED: Final = "reserved"
_DECLINED: Final = "declined"


class RemoteAccounts:
    """The sites' charges of one arm, from what was asked and answered.

    Args:
        path: The file; made when a site is asked first.
        plans: Every site's public plan.
        identities: Every site's pinned public identity.
        delta: At which epsilon is stated.

    Raises:
        RunDirectoryError: The file is damaged.
    """

    def __init__(
        self,
        path: Path,
        plans: Mapping[str, PrivacyPlan],
        identities: Mapping[str, bytes],
        delta: float,
    ) -> None:
        self._path = path
        self.plans = dict(plans)
        self.identities = dict(identities)
        self._delta = delta
        self._heads: dict[tuple[int, str], str | None] = {}
        for line in read_lines(path):
            try:
                self._apply(line["what"], line["round"], line["site"], line["head"])
            except (KeyError, TypeError, ValueError) as error:
                raise RunDirectoryError(f"{path}: damaged: {error}") from error

    @property
    def witnesses(self) -> None:
        """Sites cosign with the identities that the roster pins."""
        return

    @property
    def earlier(self) -> None:
        """A site does not tell the coordinator what else it spent."""
        return

    def ask(self, number: int, sites: Iterable[str]) -> None:
        """Note whom a round's first order goes to, before it goes."""
        for site in sorted(sites):
            self._note(_ASKED, number, site, None)

    def reserved(self, number: int, site: str, head: str) -> None:
        """Note that a site signed that it reserved the round."""
        self._note(_RESERVED, number, site, head)

    def declined(self, number: int, site: str) -> None:
        """Note that a site signed that it does not take part in the round."""
        self._note(_DECLINED, number, site, None)

    def require_funds(self, rounds: int) -> None:
        """Each site asks its own budget, before every round."""

    def require_known(self, heads: Callable[[str], Collection[str]]) -> None:
        """Each site checks its own budget against its own receipts."""

    def charges(self, number: int) -> dict[str, Charged]:
        """Each asked site's charge of one round, by its plan."""
        return {
            site: Charged(self.plans[site].round_event(), head)
            for (asked, site), head in sorted(self._heads.items())
            if asked == number
        }

    def evaluation_charges(self, number: int) -> dict[str, Charged]:
        """None: a deployment does not evaluate (``serve.check_deployable``)."""
        del number
        return {}

    def epsilon(self, number: int, *, evaluated: bool = False) -> dict[str, float]:
        """As ``Accounts.epsilon``, of the rounds up to this one."""
        del evaluated
        found = {}
        for site in self.charges(number):
            held = sum(s == site and asked <= number for asked, s in self._heads)
            events = [self.plans[site].round_event()] * held
            found[site] = accounting.epsilon(events, self._delta)
        return found

    def _note(self, what: str, number: int, site: str, head: str | None) -> None:
        line = {"what": what, "round": number, "site": site, "head": head}
        append_line(self._path, line)
        self._apply(what, number, site, head)

    def _apply(self, what: str, number: int, site: str, head: str | None) -> None:
        if site not in self.plans or what not in {_ASKED, _RESERVED, _DECLINED}:
            raise ValueError(f"an unknown line: {what!r} of {site!r}")
        if what == _DECLINED:
            self._heads.pop((number, site), None)
        else:
            self._heads[number, site] = head
