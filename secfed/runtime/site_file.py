"""The file of a site in a deployment, and what is checked before it connects.

Example::

    format = 1
    site = "north-general"
    # Folder of `secfed keys new`; the other paths, too, start beside this file.
    keys = "keys"
    roster = "roster.json"
    # Compared by telephone with the coordinator's, digit by digit.
    coordinator = "0011 2233 ..."
    policy = "site.toml"
    state = "state"
    # Under what the keys are encrypted: a path, or "keyring:NAME".
    protecting_key = "/etc/secfed/protecting.key"
    # Health and metrics of this site's process, on loopback only.
    metrics = 9465
    # How this machine computes; no sum and no plan depends on it. `secfed assign` and
    # `secfed doctor --measure` say what is fast here.
    micro_batch_tokens = 1024
    threads = 4
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from secfed.data.own import load_own
from secfed.errors import StudyError, VerificationError
from secfed.governance import SiteApprovals, consent_of
from secfed.policy import SitePolicy, load_policy
from secfed.runtime.directory import write_atomically
from secfed.runtime.key_places import find_protecting_key
from secfed.runtime.keys import AUTHORITY_NAME, SiteKeys, read_site_keys
from secfed.runtime.metrics_server import loopback
from secfed.runtime.progress import Progress
from secfed.runtime.roster import Roster, read_roster
from secfed.runtime.serve import check_deployable
from secfed.runtime.setup import Prepared, prepare_data
from secfed.runtime.site_vitals import WatchedSite
from secfed.runtime.site_worker import SiteWorker
from secfed.signing import fingerprint, format_fingerprint, parse_fingerprint
from secfed.study.fields import Count, SiteName
from secfed.study.reading import Table, checked, read_toml

__all__ = [
    "OpenSite",
    "SiteFile",
    "approving_policy",
    "keys_of",
    "load_site_file",
    "open_site",
    "pinned_roster",
    "with_micro_batch",
]


class SiteFile(Table):
    """A site's own file; relative paths start in its folder."""

    format: Literal[1]
    site: SiteName
    keys: str = "keys"
    roster: str = "roster.json"
    coordinator: str
    policy: str = "site.toml"
    state: str = "state"
    protecting_key: str | None = None
    metrics: Count | str | None = None
    micro_batch_tokens: Count | None = None
    threads: Count | None = None


@dataclass(frozen=True)
class OpenSite:
    """A site that is ready to answer, and what it needs to connect."""

    worker: SiteWorker
    watched: WatchedSite
    metrics: int | str | None
    roster: Roster
    keys: SiteKeys
    authority: Path
    state: Path


def load_site_file(path: Path) -> SiteFile:
    """Read and check a site's file.

    Raises:
        StudyError: Missing, not TOML, an unknown key or a wrong value.
    """
    site = checked(SiteFile, read_toml(path), path)
    if site.metrics is not None:
        loopback(site.metrics)
    try:
        parse_fingerprint(site.coordinator)
    except ValueError as error:
        raise StudyError(path, "coordinator", str(error)) from error
    return site


def keys_of(site: SiteFile, folder: Path) -> SiteKeys:
    """A site's keys, opened under the protecting key that it names.

    Raises:
        RunDirectoryError: They cannot be read, or are not protected as they should be.
    """
    protecting = find_protecting_key(site.protecting_key, folder)
    return read_site_keys(folder / site.keys, protecting)


def pinned_roster(site: SiteFile, folder: Path, keys: SiteKeys) -> Roster:
    """The site's roster, if it is the pinned coordinator's and names these keys.

    Raises:
        VerificationError: It is not.
    """
    path = folder / site.roster
    try:
        roster = read_roster(path.read_bytes(), path)
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read: {error.strerror}") from error
    found = fingerprint(roster.coordinator_key)
    if found != parse_fingerprint(site.coordinator):
        raise VerificationError(
            f"{path}: signed by another coordinator than this site pins:\n"
            f"  {format_fingerprint(found)}"
        )
    own = roster.requests.get(site.site)
    if own is None or own.data != keys.request(site.site):
        raise VerificationError(
            f"{path}: does not hold the request of {site.site!r} with these keys"
        )
    if site.site in roster.revoked:
        raise VerificationError(
            f"{path}: the keys of {site.site!r} are revoked; make new ones with "
            "`secfed keys new` in another folder and send a new request"
        )
    return roster


def open_site(
    path: Path,
    progress: Progress,
    say: Callable[[str], None],
    *,
    rehearsal: bool = False,
) -> OpenSite:
    """Check everything that can be checked before anybody connects.

    1. the keys and the roster; 2. the study; 3. the policy and the records.

    Raises:
        SecfedError: What is wrong; nothing was spent.
    """
    site, folder = load_site_file(path), path.resolve().parent
    # 1
    keys = keys_of(site, folder)
    roster = pinned_roster(site, folder, keys)
    # 2
    check_deployable(roster.study, rehearsal=rehearsal)
    # 3
    approvals = _approvals(site, folder, keys, roster)
    policy = consent_of(approvals)
    data = load_own(roster.study, folder, site.site)
    if site.threads is not None:
        torch.set_num_threads(site.threads)
    prepared = prepare_data(roster.study, folder, data, policy, progress)
    prepared = with_micro_batch(prepared, site.micro_batch_tokens)
    state = folder / site.state
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(state / AUTHORITY_NAME, roster.authority.encode())
    worker = SiteWorker(
        roster,
        site.site,
        keys.identity,
        prepared,
        policy,
        state,
        say,
        approvals=approvals,
    )
    rounds = roster.study.training.rounds
    return OpenSite(
        worker=worker,
        watched=WatchedSite(worker, rounds, policy.max_epsilon),
        metrics=site.metrics,
        roster=roster,
        keys=keys,
        authority=state / AUTHORITY_NAME,
        state=state,
    )


def approving_policy(
    site: SiteFile, folder: Path, keys: SiteKeys, roster: Roster
) -> SitePolicy:
    """The site's policy; every check of it asks whether its operators approved.

    A site on its own machine asks at least one person, whatever its policy says.

    Raises:
        StudyError: As ``load_policy``.
    """
    return consent_of(_approvals(site, folder, keys, roster))


def _approvals(
    site: SiteFile, folder: Path, keys: SiteKeys, roster: Roster
) -> SiteApprovals:
    return SiteApprovals(
        load_policy(folder / site.policy),
        roster.manifest,
        site=site.site,
        identity=fingerprint(keys.identity.public_bytes),
    )


def with_micro_batch(prepared: Prepared, tokens: int | None) -> Prepared:
    """The same records, of which so many padded tokens are computed at once.

    Guarantees:
        Plans, losses and the sum over a batch are the same.
    """
    records = {
        name: replace(held, at_once=tokens) for name, held in prepared.records.items()
    }
    return replace(prepared, records=records)
