"""A deployed site and the ledger of a run: what it checks before it cosigns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from protocols.keys import SigningKey
from secfed.canonical import canonical_json, parse_canonical
from secfed.checkpoints import Cosigner, log_key, log_origin, witness_key
from secfed.earlier_runs import NamedRuns
from secfed.entries import ApprovalEntry, WithdrawalEntry
from secfed.errors import LedgerError, StaleOfferError, VerificationError
from secfed.ledger import Entry
from secfed.privacy.budget import Budget
from secfed.runtime.directory import write_atomically
from secfed.runtime.receipts import reservations
from secfed.runtime.witnesses import inspection, witness_folder
from secfed.study import Study
from secfed.witness import Inspect, Offer, Witness, answer_bytes

__all__ = ["LedgerWatch"]


@dataclass(frozen=True)
class LedgerWatch:
    """One site's view of the ledgers of one study.

    Attributes:
        study: As this site approved it.
        coordinator_key: Pinned.
        site: This site.
        identity: Its key, which cosigns.
        state_dir: Its durable folder, with its memory of each log.
        budget: Its own.
        named_runs: What the runs cost that the study names, as this site read it.
    """

    study: Study
    coordinator_key: bytes
    site: str
    identity: SigningKey
    state_dir: Path
    budget: Budget
    named_runs: NamedRuns

    def note_approval(self, commitment: str) -> None:
        """Keep what this site is about to say that it approved.

        Raises:
            VerificationError: What is kept is damaged.
        """
        known = self._approved()
        if commitment not in known:
            self._approvals_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            data = canonical_json(sorted({*known, commitment})) + b"\n"
            write_atomically(self._approvals_path, data)

    def _approved(self) -> set[str]:
        """All that it ever said; files of approvals come and go."""
        path = self._approvals_path
        if not path.exists():
            return set()
        try:
            found = parse_canonical(path.read_bytes().removesuffix(b"\n"))
        except ValueError as error:
            raise VerificationError(f"{path}: damaged: {error}") from error
        if not isinstance(found, list) or not all(isinstance(c, str) for c in found):
            raise VerificationError(f"{path}: damaged: not a list of digests")
        return set(found)

    @property
    def _approvals_path(self) -> Path:
        return self.state_dir / "sites" / self.site / "approvals.json"

    def cosign(self, run_id: str, offer: bytes) -> tuple[bytes, int | None]:
        """Check what a ledger says since this site looked last, and cosign it.

        Args:
            run_id: Whose ledger it is.
            offer: As received.

        Returns:
            The answer, and how many entries were cosigned; None where the offer
            starts elsewhere than this site's memory ends.

        Raises:
            LedgerError: Names the entry that is missing, other or wrong.
            VerificationError: The offer is malformed or not of this log.
        """
        witness = self._witness(run_id)
        try:
            line = witness.cosign(Offer.from_bytes(offer), int(time.time()))
        except StaleOfferError as stale:
            return answer_bytes(stale.size), None
        return answer_bytes(line), witness.size

    def _witness(self, run_id: str) -> Witness:
        origin = log_origin(self.study.digest(), run_id)
        inspect = inspection(
            self.study,
            self.coordinator_key,
            self.site,
            run_id,
            partial(reservations, self.state_dir, self.site, self.budget),
            self.named_runs,
        )
        return Witness(
            witness_folder(self.state_dir / "sites" / self.site, origin),
            log_key(origin, self.coordinator_key),
            Cosigner(
                witness_key(self.site, self.identity.public_bytes), self.identity.sign
            ),
            partial(self._inspect, inspect),
        )

    def _inspect(self, inspect: Inspect, entries: Sequence[Entry]) -> None:
        """As every witness; and nothing is made up in this site's name."""
        inspect(entries)
        approved = self._approved()
        for entry in entries:
            match entry.parsed():
                case ApprovalEntry(site=self.site, commitment=bound) if (
                    bound not in approved
                ):
                    raise LedgerError(entry.index, f"{self.site} never said that")
                case WithdrawalEntry(site=self.site):
                    raise LedgerError(entry.index, f"{self.site} did not withdraw")
