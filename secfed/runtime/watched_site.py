"""A site that writes down what it does: its operations log, opened with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from secfed.canonical import file_sha256
from secfed.errors import SecfedError
from secfed.operations import LOG_NAME, OperationsLog, ended
from secfed.runtime.progress import Progress
from secfed.runtime.site_file import OpenSite, load_site_file, open_site

__all__ = ["log_of_site", "open_watched_site"]


def log_of_site(path: Path) -> OperationsLog:
    """The operations log of a site, from the site's own file.

    Raises:
        StudyError: The file is missing or malformed.
    """
    site = load_site_file(path)
    folder = path.resolve().parent / site.state
    return OperationsLog(folder / LOG_NAME, role="site", node=site.site)


def open_watched_site(
    path: Path,
    progress: Progress,
    say: Callable[[str], None],
    *,
    rehearsal: bool = False,
) -> OpenSite:
    """``open_site``, written down: what was read, and whether the study is refused.

    Raises:
        SecfedError: As ``open_site``.
    """
    site, folder = load_site_file(path), path.resolve().parent
    log = log_of_site(path)
    log.event("started")
    for name, file in (
        ("site", path),
        ("policy", folder / site.policy),
        ("roster", folder / site.roster),
    ):
        if file.is_file():
            log.configuration(name, file_sha256(file))
    try:
        ready = open_site(path, progress, say, rehearsal=rehearsal)
    except SecfedError as error:
        log.event(**ended(error))
        raise
    log = log.about(study=ready.roster.study.digest())
    for name in ready.roster.revoked:
        log.event("key-revoked", site=name)
    log.event("study-opened")
    ready.worker.event = log.event
    return ready
