"""An incident as a signed file: what kind, when, which study, who says so.

There is no free text: what people write about an incident belongs into their own
system, under the time and the digest of this record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from secfed.canonical import sha256_hex
from secfed.operations import OperationsLog
from secfed.runtime.directory import open_run, write_atomically
from secfed.runtime.key_places import find_protecting_key
from secfed.runtime.keys import read_coordinator_key
from secfed.runtime.notices import keep_record
from secfed.runtime.roster import read_roster
from secfed.runtime.served import is_served, open_served, roster_of
from secfed.runtime.signed_records import signed
from secfed.runtime.site_file import keys_of, load_site_file
from secfed.runtime.watched_site import log_of_site
from secfed.runtime.watching import log_of_run
from secfed.signing import RECORD

__all__ = ["record_incident"]

_FOLDER: Final = "incidents"


@dataclass(frozen=True)
class _Party:
    """Who records an incident, and where."""

    name: str
    public: bytes
    sign: Callable[[bytes], bytes]
    folder: Path
    log: OperationsLog
    study: str | None


def record_incident(
    where: Path, incident: str, noticed_at: datetime
) -> tuple[Path, bytes]:
    """Write and sign an incident, and name it in the operations log.

    Args:
        where: A site's file, or a coordinator's run directory.
        incident: One of ``secfed.operations.INCIDENTS``.
        noticed_at: When somebody saw it.

    Returns:
        The file that was written, and its content.

    Raises:
        SecfedError: ``where`` is neither, or its keys cannot be read.
    """
    party = _coordinator(where) if where.is_dir() else _site(where)
    fields = {
        "kind": "incident",
        "by": party.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "noticed_at": noticed_at.astimezone(UTC).isoformat(timespec="seconds"),
        "study": party.study,
        "incident": incident,
    }
    data = signed(party.public, party.sign, fields)
    digest = sha256_hex(data)
    path = party.folder / f"{incident}-{digest[:12]}.json"
    if where.is_dir():  # A coordinator's ledger binds it.
        keep_record(path, data)
    else:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, data)
    party.log.event("incident-recorded", incident=incident, sha256=digest)
    return path, data


def _site(path: Path) -> _Party:
    site, folder = load_site_file(path), path.resolve().parent
    keys = keys_of(site, folder)
    log = log_of_site(path)
    roster = folder / site.roster
    study = None
    if roster.is_file():
        study = read_roster(roster.read_bytes(), roster).study.digest()
        log = log.about(study=study)
    folder = log.path.parent / _FOLDER
    return _Party(
        site.site, keys.identity.public_bytes, keys.sign_record, folder, log, study
    )


def _coordinator(run_dir: Path) -> _Party:
    private = run_dir / "private"
    if is_served(run_dir):
        served = open_served(run_dir)
        study = roster_of(served).study
        run_id, role = served.run_id, "coordinator"
        protecting = find_protecting_key(served.protecting_key)
        key = read_coordinator_key(Path(served.keys), protecting)
    else:
        study, record, _ = open_run(run_dir)
        run_id, role = record.run_id, "simulation"
        key = read_coordinator_key(private)  # A local run encrypts none.
    log = log_of_run(run_dir, study, run_id, role)
    return _Party(
        "coordinator",
        key.public_bytes,
        partial(key.sign, RECORD),
        private / _FOLDER,
        log,
        study.digest(),
    )
