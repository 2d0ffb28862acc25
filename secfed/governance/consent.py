"""Whether enough operators approved what is about to run, asked at every round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from secfed.canonical import canonical_json, sha256_hex
from secfed.errors import PolicyError, VerificationError
from secfed.governance.approvals import Approval, read_approvals
from secfed.governance.differences import differences
from secfed.governance.study_manifest import StudyManifest
from secfed.policy import SEMI_HONEST, SitePolicy
from secfed.study import Study

__all__ = ["SiteApprovals", "Standing", "consent_of", "standing"]

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


@dataclass(frozen=True)
class SiteApprovals:
    """Where a site's approvals of one manifest are, and whose count.

    Attributes:
        policy: The site's; without ``approvals`` one person must have signed.
        manifest: What is about to run.
        site: The deployed site; empty in one process.
        identity: Fingerprint of the site's key, which counts where the policy lists
            no operators.
        clock: Tells the moment.
    """

    policy: SitePolicy
    manifest: StudyManifest
    site: str = ""
    identity: str | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def needed(self) -> int:
        """How many people must have signed."""
        return self.policy.approvals or 1

    def standing(self) -> Standing:
        """What the site's approvals say now.

        Raises:
            PolicyError: The policy names no folder of them, or nobody who may sign.
            VerificationError: A file there is damaged.
        """
        own = frozenset(() if self.identity is None else {self.identity})
        operators = frozenset(self.policy.operators) or own
        folder = self.policy.approvals_dir
        if folder is None or not operators:
            lacks = "approvals_dir" if folder is None else "operators"
            raise PolicyError(f"site.toml asks for approvals and names no {lacks}")
        return standing(
            Path(folder),
            self.manifest,
            site=self.site,
            population=self.policy.population,
            operators=operators,
            needed=self.needed,
            now=self.clock(),
        )

    def require(self, study: Study) -> frozenset[str]:
        """The exceptions that were signed, if enough people approved the study.

        Raises:
            PolicyError: They did not, or it is another study.
        """
        if study.digest() != self.manifest.study.digest():
            raise PolicyError("this is another study than was brought for approval")
        try:
            found = self.standing()
        except VerificationError as error:
            raise PolicyError(
                f"no approval counts while a file of them is damaged: {error}; move it "
                "away and approve again"
            ) from error
        if not found.approved:
            raise PolicyError(_missing(found, self.manifest))
        return found.exceptions

    def commitment(self) -> str | None:
        """SHA-256 of the approvals that count now; None where too few people signed.

        It is over the sorted digests of their files, each of which has a nonce: whoever
        has the files can show what is bound, and nobody else learns who signed.

        Raises:
            PolicyError, VerificationError: As ``standing``.
        """
        found = self.standing()
        if not found.approved:
            return None
        digests = sorted(approval.digest for approval in found.counted)
        return sha256_hex(canonical_json(digests))


def consent_of(approvals: SiteApprovals) -> SitePolicy:
    """The policy, so that every check of it also asks for the operators' approvals."""
    return approvals.policy.asking(approvals.require, approvals.needed)


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
