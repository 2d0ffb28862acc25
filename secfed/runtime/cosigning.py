"""A run's sites are shown its ledger, and their cosignatures kept under its head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from secfed.checkpoints import Cosigned, log_key, open_checkpoint
from secfed.entries import PlanEntry
from secfed.errors import LedgerError, TooFewWitnessesError, VerificationError
from secfed.ledger import CHECKPOINT_NAME, Ledger
from secfed.notes import Note, NoteKey, parse_note
from secfed.runtime.directory import write_atomically
from secfed.runtime.progress import Progress
from secfed.runtime.witnesses import Asked, OfferFrom
from secfed.study import Study
from secfed.verify.heads import needed_witnesses, trusted_keys
from secfed.witness import offer_of

__all__ = ["Ask", "Cosigning"]

Ask = Callable[[OfferFrom], Asked]
"""Shows the ledger to the sites; what those that agree give."""


@dataclass(frozen=True)
class Cosigning:
    """The checkpoint of a run's ledger, and who has cosigned it.

    Attributes:
        ledger: Its plan is written.
        log_key: The coordinator's public key.
        folder: Where the checkpoint is kept.
        progress: Told of a line that is not the site's cosignature.
    """

    ledger: Ledger
    log_key: bytes
    folder: Path
    progress: Progress

    def gather(self, ask: Ask) -> int:
        """Show the ledger to the sites and keep their cosignatures under its head.

        Returns:
            How many sites cosigned.
        """
        note, keys = self.ledger.checkpoint(), self._keys()
        offer_from = partial(offer_of, self.ledger.lines(), note)
        for site, line in sorted(ask(offer_from).items()):
            signed = note.with_signatures([line])
            try:
                found = self._opened(signed, [keys[site]])
            except (VerificationError, KeyError) as error:
                self.progress.note(f"{site}: not its cosignature: {error}")
                continue
            if found.times:
                note = signed
        write_atomically(self.folder / CHECKPOINT_NAME, note.to_bytes())
        return len(note.signatures) - 1

    def require(self, ask: Ask, study: Study) -> None:
        """As ``gather``, where the run does not go on without enough cosignatures.

        Nobody is asked where enough of them stand under this very head already.

        Raises:
            TooFewWitnessesError: The run can be resumed when more sites agree.
        """
        needed = needed_witnesses(self._plan(), study)
        if self._held() >= needed:
            return
        found = self.gather(ask)
        if found < needed:
            raise TooFewWitnessesError(
                f"{self.folder}: {found} sites cosigned the ledger, {needed} are "
                "needed for a release. Each site's log says why it did not; resume "
                "the run when they agree"
            )

    def _held(self) -> int:
        """How many sites cosigned the ledger as it is now, by the file."""
        try:
            note = parse_note((self.folder / CHECKPOINT_NAME).read_bytes())
            if note.text != self.ledger.checkpoint().text:
                return 0
            return len(self._opened(note, self._keys().values()).times)
        except (OSError, VerificationError):
            return 0

    def _opened(self, note: Note, keys: Iterable[NoteKey]) -> Cosigned:
        log = log_key(note.signatures[0].name, self.log_key)
        return open_checkpoint(note.to_bytes(), log, keys)

    def _keys(self) -> dict[str, NoteKey]:
        """Of the sites whose keys are not revoked."""
        said = (entry.parsed() for entry in self.ledger.entries())
        return trusted_keys(self._plan(), said)

    def _plan(self) -> PlanEntry:
        plan = self.ledger.entries()[1].parsed()
        if not isinstance(plan, PlanEntry):
            raise LedgerError(1, "the second entry is not the plan")
        return plan
