"""Whether enough operators approved what is about to run, asked at every round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from secfed.errors import PolicyError, VerificationError
from secfed.governance.approvals import Approval, read_approvals
from secfed.governance.differences import differences
from secfed.governance.study_manifest import StudyManifest
from secfed.policy import SEMI_HONEST, SitePolicy
from secfed.study import Study

__all__ = ["Standing", "consent_of", "standing"]

_CLOCK: Final = timedelta(minutes=5)
"""An approval from further ahead than this was not signed by this clock."""


@dataclass(frozen=True)
class Standing:
    """Which approvals of one manifest count at one moment, and why others do not.

    Attributes:
        needed: People who must have signed.
        counted: The last approval of every operator who may sign.
        ignored: Why other approvals of the manifest do not count, one line each.
        previous: The last approval of another version of the study.
    """

    needed: int
    counted: tuple[Approval, ...]
    ignored: tuple[str, ...]
    previous: Approval | None

    @property
    def approved(self) -> bool:
        """Whether enough different people have signed."""
        return len(self.counted) >= self.needed

    @property
    def exceptions(self) -> frozenset[str]:
        """Exceptions that as many people have signed as the study needs."""
        signed = [SEMI_HONEST in approval.exceptions for approval in self.counted]
        return frozenset({SEMI_HONEST} if sum(signed) >= self.needed else ())


def standing(
    folder: Path,
    manifest: StudyManifest,
    *,
    site: str,
    population: str,
    operators: frozenset[str],
    needed: int,
    now: datetime,
) -> Standing:
    """What the approvals of a site say of one manifest.

    Args:
        folder: The site's approvals.
        manifest: What is about to run.
        site: The deployed site, or empty.
        population: Whose budget pays.
        operators: Fingerprints of the keys that count.
        needed: How many different ones.
        now: The moment.

    Raises:
        VerificationError: A file there is damaged.
    """
    approvals, withdrawals = read_approvals(folder)
    # Whoever signed it: an operator who is no longer listed has still said stop.
    ended = {digest for w in withdrawals for digest in w.approvals}
    own = [a for a in approvals if (a.site, a.population) == (site, population)]
    counted: dict[str, Approval] = {}
    ignored = []
    for approval in own:
        if approval.manifest.digest() != manifest.digest():
            continue
        reason = _reason(approval, operators, ended, now)
        if reason:
            ignored.append(f"that of {approval.fingerprint[:16]} {reason}")
        else:
            counted[approval.fingerprint] = approval
    others = [
        a
        for a in own
        if a.manifest.study.name == manifest.study.name
        and a.manifest.digest() != manifest.digest()
        and a.fingerprint in operators
    ]
    return Standing(
        needed, tuple(counted.values()), tuple(ignored), others[-1] if others else None
    )


def _reason(
    approval: Approval, operators: frozenset[str], ended: set[str], now: datetime
) -> str:
    """Why an approval does not count; empty where it does."""
    if approval.fingerprint not in operators:
        return "is of nobody whom site.toml lists"
    if approval.digest in ended:
        return "was withdrawn"
    if now >= approval.expires_at:
        return f"expired on {approval.expires_at:%Y-%m-%d}"
    if approval.approved_at > now + _CLOCK:
        return f"is dated {approval.approved_at:%Y-%m-%d}, after now"
    return ""


def consent_of(
    policy: SitePolicy,
    manifest: StudyManifest,
    *,
    site: str = "",
    folder: Path | None = None,
    identity: str | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> SitePolicy:
    """The policy, so that every check of it also asks for the operators' approvals.

    Args:
        policy: The site's; without ``approvals`` one person must have signed.
        manifest: What is about to run.
        site: The deployed site; empty in one process.
        folder: Of the approvals; the policy's own by default.
        identity: Fingerprint of the site's key, which counts where the policy lists
            no operators.
        clock: Tells the moment.
    """
    place = folder or (Path(policy.approvals_dir) if policy.approvals_dir else None)
    needed = policy.approvals or 1
    own = frozenset(() if identity is None else {identity})
    operators = frozenset(policy.operators) or own

    def consent(study: Study) -> frozenset[str]:
        if study.digest() != manifest.study.digest():
            raise PolicyError("this is another study than was brought for approval")
        if place is None or not operators:
            lacks = "approvals_dir" if place is None else "operators"
            raise PolicyError(f"site.toml asks for approvals and names no {lacks}")
        try:
            found = standing(
                place,
                manifest,
                site=site,
                population=policy.population,
                operators=operators,
                needed=needed,
                now=clock(),
            )
        except VerificationError as error:
            raise PolicyError(
                f"no approval counts while a file of them is damaged: {error}; move it "
                "away and approve again"
            ) from error
        if not found.approved:
            raise PolicyError(_missing(found, manifest))
        return found.exceptions

    return policy.asking(consent, needed)


def _missing(found: Standing, manifest: StudyManifest) -> str:
    """Who has not signed, and what is new since the last version that was."""
    name = f"{manifest.study.name!r} ({manifest.short})"
    have = len(found.counted)
    text = f"study {name} is approved by {have} of {found.needed} operators"
    if found.ignored:
        text += f"; {'; '.join(found.ignored)}"
    if found.previous is not None and not have:
        day = f"{found.previous.approved_at:%Y-%m-%d}"
        changes = differences(found.previous.manifest, manifest)
        text += f". Since the version that was approved on {day}:"
        text += "".join(f"\n      {line}" for line in changes)
        return f"{text}\n    read it and sign with `secfed approve`"
    return f"{text}; read it and sign with `secfed approve`"
