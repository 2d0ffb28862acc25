"""The tree head of a ledger: is it this ledger's, and which sites have seen it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from protocols import merkle
from secfed.canonical import sha256_hex
from secfed.checkpoints import Cosigned, log_key, open_checkpoint
from secfed.entries import Body, KeyEntry, PlanEntry, StudyEntry
from secfed.errors import LedgerError, VerificationError
from secfed.ledger import (
    CHECKPOINT_NAME,
    LEDGER_NAME,
    origin_of,
    split_lines,
    tree_head,
)
from secfed.notes import NoteKey
from secfed.signing import format_fingerprint
from secfed.study import Study
from secfed.verify.files import Bundle, read_plain
from secfed.verify.story import Story
from secfed.witness import witness_keys

__all__ = [
    "check_seen",
    "check_witnesses",
    "needed_witnesses",
    "read_head",
    "trusted_keys",
]


def read_head(bundle: Bundle, story: Story) -> tuple[Cosigned, str]:
    """The checkpoint, if the coordinator signed it and it is the head of the ledger.

    Raises:
        LedgerError: Entries were cut off or added, or are others.
        VerificationError: The checkpoint is another log's, or wrongly signed.
    """
    lines = split_lines(bundle.read(LEDGER_NAME))
    log = _log(bundle, story.study)
    keys = witness_keys(story.plan).values()
    found = open_checkpoint(bundle.read(CHECKPOINT_NAME), log, keys)
    said, computed = found.checkpoint, tree_head(lines, story.study)
    if said.size != computed.size:
        raise LedgerError(
            min(said.size, computed.size),
            f"the checkpoint counts {said.size} entries, the ledger {computed.size}",
        )
    if said.root != computed.root:
        raise LedgerError(said.size - 1, "the tree has another root at this entry")
    return found, f"{said.size} entries, root {said.root.hex()}, signed by the log"


def needed_witnesses(plan: PlanEntry, study: Study) -> int:
    """How many sites have to cosign: the study's value, else the sum's threshold."""
    section = study.ledger
    named = section.witnesses if section is not None else None
    return named if named is not None else plan.threshold


def trusted_keys(plan: PlanEntry, said: Iterable[Body]) -> dict[str, NoteKey]:
    """Every witness's key, but those that the ledger says are revoked."""
    revoked = {body.site for body in said if isinstance(body, KeyEntry)}
    return {s: key for s, key in witness_keys(plan).items() if s not in revoked}


def check_witnesses(
    head: Cosigned, story: Story, study: Study, pins: Mapping[str, str]
) -> str:
    """Enough sites cosigned this very tree, and the pinned ones with the pinned keys.

    Args:
        head: The checkpoint, opened under the keys that the plan names.
        story: Of the ledger.
        study: Says how many are needed.
        pins: Fingerprints of sites' keys that are known from elsewhere.

    Raises:
        VerificationError: Too few, or a site's key is not the pinned one.
    """
    keys = witness_keys(story.plan)
    trusted = trusted_keys(story.plan, story.notices.values())
    for site, pin in pins.items():
        if site not in keys or _fingerprint(keys[site]) != pin:
            raise VerificationError(f"{site}: not a witness with the pinned key")
        if site in trusted and keys[site].name not in head.times:
            raise VerificationError(f"{site}: not under this tree head")
    keys = trusted
    cosigned = {site: key for site, key in keys.items() if key.name in head.times}
    needed = needed_witnesses(story.plan, study)
    shown = ", ".join(_shown(site, key, head) for site, key in cosigned.items())
    if len(cosigned) < needed:
        raise VerificationError(
            f"{len(cosigned)} of {len(keys)} sites cosigned, {needed} are needed: "
            f"{shown or 'none'}"
        )
    pinned = "PINNED" if cosigned.keys() <= pins.keys() else "UNPINNED"
    said = f"{len(cosigned)} of {len(keys)} sites cosigned, {needed} needed: {shown}"
    if 2 * needed <= len(keys) + story.plan.max_colluders:
        said += (
            f"; {needed} do not rule out that other {needed} saw another history, "
            f"should {story.plan.max_colluders} collude"
        )
    return f"{pinned}: {said}"


def check_seen(bundle: Bundle, story: Story, seen: Iterable[Path]) -> str:
    """The ledger extends every checkpoint that was kept elsewhere.

    Raises:
        LedgerError: It does not: entries were cut off, or are others.
        VerificationError: A file is not a checkpoint of this log.
    """
    lines = split_lines(bundle.read(LEDGER_NAME))
    log, sizes = _log(bundle, story.study), []
    for path in seen:
        try:
            old = open_checkpoint(read_plain(path, str(path)), log).checkpoint
        except VerificationError as error:
            raise VerificationError(f"{path}: {error}") from error
        if old.size > len(lines):
            raise LedgerError(
                len(lines), f"cut off: {path} is a checkpoint of {old.size} entries"
            )
        if merkle.root(lines[: old.size]) != old.root:
            raise LedgerError(
                max(old.size - 1, 0),
                f"two histories of one log, here at the latest: {path} has another",
            )
        sizes.append(old.size)
    return f"it extends the checkpoints of {', '.join(map(str, sizes))} entries"


def _log(bundle: Bundle, study: StudyEntry) -> NoteKey:
    return log_key(origin_of(study), bundle.manifest.coordinator_key)


def _fingerprint(key: NoteKey) -> str:
    return sha256_hex(key.public)


def _shown(site: str, key: NoteKey, head: Cosigned) -> str:
    when = datetime.fromtimestamp(head.times[key.name], UTC)
    short = format_fingerprint(_fingerprint(key))[:19]
    return f"{site} ({short}, {when.isoformat(timespec='seconds')})"
