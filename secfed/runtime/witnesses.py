"""What a site asks of a ledger before it cosigns, and how a run asks its sites.

A site makes the auditor's checks on the entries (``secfed.verify``) and compares them
with its own receipts and budget, which nobody else has. Its memory is in
``secfed.witness``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from protocols.keys import SigningKey
from secfed.canonical import sha256_hex
from secfed.checkpoints import (
    COSIGN_ML_DSA_44,
    Cosigner,
    log_key,
    log_origin,
    witness_key,
)
from secfed.earlier_runs import NamedRuns
from secfed.errors import LedgerError, RunDirectoryError, VerificationError
from secfed.ledger import Entry
from secfed.notes import NoteKey, NoteSignature
from secfed.privacy.budget import Budget
from secfed.privacy.held_back import evaluation_run
from secfed.runtime.receipts import Reservation, reservations
from secfed.study import Study
from secfed.verify.claims import check_epsilon, check_plan
from secfed.verify.story import Evaluated, Started, Story, tell
from secfed.witness import Inspect, Offer, Witness

__all__ = [
    "Asked",
    "LocalWitnesses",
    "OfferFrom",
    "cosigner_of",
    "inspection",
    "witness_folder",
    "witness_vkeys",
]

OfferFrom = Callable[[int], Offer]
"""What the log shows from an entry on."""

Asked = Mapping[str, NoteSignature]
"""The cosignatures that sites gave, by site."""

_KEY_NAME: Final = "witness.key"
_SEED_BYTES: Final = 32


def witness_folder(parent: Path, origin: str) -> Path:
    """Where a site remembers one log, below its own folder."""
    return parent / "witness" / sha256_hex(origin.encode())[:16]


def inspection(
    study: Study,
    coordinator_key: bytes,
    site: str,
    run_id: str,
    reserved: Callable[[], Sequence[Reservation]],
    named_runs: NamedRuns,
) -> Inspect:
    """What a site asks of the entries of its study's ledger.

    1. They tell a run of this study under this key, in order.
    2. The plan is the study's, and every started round spent what it says.
    3. The runs that the study names cost what their own ledgers say.
    4. Every site's epsilon is what the accountant gives for it.
    5. They tell of this site's rounds what its receipts and its budget do.

    Args:
        study: As this site approved it.
        coordinator_key: Pinned.
        site: This site.
        run_id: The run and arm that its budget is charged for.
        reserved: Reads what it reserved itself, of all runs.
        named_runs: What the runs cost that the study names, as this site read it.
    """

    def inspect(entries: Sequence[Entry]) -> None:
        # 1
        story, _ = tell(entries, coordinator_key, study, finished=False)
        # 2
        check_plan(story, study)
        # 3
        _check_named(story, named_runs)
        # 4
        check_epsilon(story, study)
        # 5
        own = reserved()
        _check_own(site, story.rounds, _heads(own, run_id), len(entries))
        evaluated = _heads(own, evaluation_run(run_id))
        _check_own(site, story.evaluations, evaluated, len(entries))

    return inspect


def _check_named(story: Story, named_runs: NamedRuns) -> None:
    if story.plan.teacher != named_runs.teacher:
        raise LedgerError(1, "the teacher's costs are not those of its own ledger")
    for index, told in enumerate(story.tuning):
        if told != named_runs.tuning[index]:
            raise LedgerError(index + 2, "not what the tuning run's own ledger says")


def _heads(reserved: Sequence[Reservation], run_id: str) -> dict[int, set[str]]:
    """What the budget was after each round of a run, by round."""
    heads: dict[int, set[str]] = {}
    for run, number, head in reserved:
        if run == run_id:
            heads.setdefault(number, set()).add(head)
    return heads


def _check_own(
    site: str,
    told: Mapping[int, Started | Evaluated],
    heads: Mapping[int, set[str]],
    size: int,
) -> None:
    """No reservation of this site is left out, and none is made up.

    A ledger may charge a site for a round whose answer was lost, without a head.
    """
    for index, body in told.items():
        named, own = body.budget_heads.get(site), heads.get(body.round, set())
        if named is not None and named not in own:
            raise LedgerError(index, f"{site} has no record of this reservation")
        if own and site not in body.spent:
            raise LedgerError(index, f"it leaves out what {site} reserved")
    missing = heads.keys() - {body.round for body in told.values()}
    if missing:
        raise LedgerError(
            size, f"the log ends before round {min(missing)}, which {site} reserved"
        )


@dataclass
class LocalWitnesses:
    """All sites of a run in this process, each with a memory of its own.

    Attributes:
        study: Of the arm.
        private_dir: The run's private folder.
        run_id: The run and arm that budgets are charged for.
        coordinator_key: Whose log it is.
        identities: Every site's identity key.
        budgets: Every site's own.
        named_runs: What the runs cost that the study names.
        say: Told in one line why a site does not cosign.
    """

    study: Study
    private_dir: Path
    run_id: str
    coordinator_key: bytes
    identities: Mapping[str, SigningKey]
    budgets: Mapping[str, Budget]
    named_runs: NamedRuns
    say: Callable[[str], None]
    _open: dict[str, Witness] = field(default_factory=dict, init=False)

    def cosign(self, offer_from: OfferFrom) -> dict[str, NoteSignature]:
        """Ask every site; one that finds something wrong gives nothing."""
        found = {}
        for site in self.identities:
            try:
                witness = self._witness(site)
                offer = offer_from(witness.size)
                found[site] = witness.cosign(offer, int(time.time()))
            except VerificationError as error:
                self.say(f"{site} does not cosign the ledger: {error}")
        return found

    def _witness(self, site: str) -> Witness:
        if site not in self._open:
            origin = log_origin(self.study.digest(), self.run_id)
            self._open[site] = Witness(
                witness_folder(self.private_dir / "sites" / site, origin),
                log_key(origin, self.coordinator_key),
                cosigner_of(self.study, self.private_dir, site, self.identities[site]),
                inspection(
                    self.study,
                    self.coordinator_key,
                    site,
                    self.run_id,
                    partial(reservations, self.private_dir, site, self.budgets[site]),
                    self.named_runs,
                ),
            )
        return self._open[site]


def cosigner_of(
    study: Study, private_dir: Path, site: str, identity: SigningKey
) -> Cosigner:
    """A site's key as a witness: its identity, or a key of ML-DSA-44 beside it."""
    if study.ledger is None or study.ledger.cosignatures == "ed25519":
        return Cosigner(witness_key(site, identity.public_bytes), identity.sign)
    secret = _open_or_make(private_dir / "sites" / site / _KEY_NAME)
    public = secret.public_key().public_bytes_raw()
    return Cosigner(witness_key(site, public, COSIGN_ML_DSA_44), secret.sign)


def witness_vkeys(
    study: Study, private_dir: Path, identities: Mapping[str, SigningKey]
) -> dict[str, str] | None:
    """What a plan names beside the identities; None where sites cosign with those."""
    if study.ledger is None or study.ledger.cosignatures == "ed25519":
        return None
    keys: dict[str, NoteKey] = {
        site: cosigner_of(study, private_dir, site, identity).key
        for site, identity in identities.items()
    }
    return {site: key.vkey for site, key in keys.items()}


def _open_or_make(path: Path) -> Any:
    """A site's ML-DSA-44 key, 32 bytes of seed in a file that only it reads."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(partial, flags, 0o600), "wb") as file:
            file.write(os.urandom(_SEED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    seed = path.read_bytes()
    if len(seed) != _SEED_BYTES:
        raise RunDirectoryError(f"{path}: not a witness's key; restore the file")
    return MLDSA44PrivateKey.from_seed_bytes(seed)
