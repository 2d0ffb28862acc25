"""A study before a site's rules: what ``approve`` and ``policy check`` read.

The file is a deployed site's own (``north.toml``) or, where all sites run in one
process, the policy that they share (``site.toml``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secfed.errors import PlanError, VerificationError

if TYPE_CHECKING:
    from secfed.data import StudyData
    from secfed.governance import Outlay, StudyManifest
    from secfed.policy import SitePolicy
    from secfed.privacy.plan import PrivacyPlan
    from secfed.signing import CoordinatorKey

__all__ = ["AtSite", "open_at_site"]


@dataclass(frozen=True)
class AtSite:
    """A study, and the rules that it must pass here.

    Attributes:
        manifest: The study, in a deployment with the roster's keys.
        policy: Asks for approvals, where any are needed.
        site: The deployed site; empty where all run in one process.
        base_dir: Folder that the study's paths start from.
        state: The deployed site's durable folder.
        signer: The key that approves unless another is named.
        identity: The deployed site's fingerprint; it may sign where no operators are
            listed.
    """

    manifest: StudyManifest
    policy: SitePolicy
    site: str
    base_dir: Path
    state: Path | None
    signer: CoordinatorKey | None
    identity: str | None

    @property
    def operators(self) -> frozenset[str]:
        """Fingerprints of the keys that count."""
        own = frozenset(() if self.identity is None else {self.identity})
        return frozenset(self.policy.operators) or own

    def data(self) -> StudyData:
        """The records that are held here.

        Raises:
            DataError: They do not fit the study.
        """
        from secfed.data import load_sites  # noqa: PLC0415
        from secfed.data.own import load_own  # noqa: PLC0415

        study = self.manifest.study
        if self.site:
            return load_own(study, self.base_dir, self.site)
        return load_sites(study, self.base_dir)

    def plans(self, data: StudyData) -> dict[str, PrivacyPlan]:
        """Every site's plan, from declared numbers; none where the study has none."""
        from secfed.privacy.asked import plan_for  # noqa: PLC0415

        study, units = self.manifest.study, data.nominal_units
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return {site: plan_for(study, units[site]) for site in study.sites}
            except PlanError:
                return {}

    def tuned_by(self) -> dict[str, str]:
        """The runs by which the settings were chosen, and who signed each."""
        from secfed.runtime.earlier import open_tuning  # noqa: PLC0415

        study = self.manifest.study
        found = open_tuning(study, self.base_dir)
        return {
            run.ledger: earlier.signed
            for run, earlier in zip(study.tuning_runs, found, strict=True)
        }

    def outlays(
        self, data: StudyData, plans: Mapping[str, PrivacyPlan]
    ) -> dict[str, Outlay]:
        """What the study adds to the budgets that are kept here.

        Raises:
            PolicyError: A budget is kept in another unit, or damaged.
            ModelError, LedgerError: A run that the study names is not here.
        """
        from secfed.earlier_runs import charges_at  # noqa: PLC0415
        from secfed.governance import outlay  # noqa: PLC0415
        from secfed.governance.outlay import budget_file, events_of  # noqa: PLC0415
        from secfed.runtime.earlier import read_named  # noqa: PLC0415

        study = self.manifest.study
        named = read_named(study, self.base_dir).all
        return {
            site: outlay(
                self.policy,
                study.privacy.unit,
                events_of(study, plans[site]),
                budget_file(self.policy, site, self.state),
                charges_at(named, site),
            )
            for site in data.sites
            if site in plans
        }


def open_at_site(study: Path, file: Path) -> AtSite:
    """Read a study, or a roster, and the file of the site that is asked.

    Raises:
        StudyError: A file is malformed.
        VerificationError: The site's roster is of another study or coordinator.
    """
    from secfed.governance import (  # noqa: PLC0415
        SiteApprovals,
        StudyManifest,
        consent_of,
    )
    from secfed.policy import load_policy  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415
    from secfed.study.reading import read_toml  # noqa: PLC0415

    if "coordinator" in read_toml(file):
        return _deployed(study, file)
    manifest, policy = StudyManifest(load_study(study)), load_policy(file)
    if policy.approvals is not None:
        policy = consent_of(SiteApprovals(policy, manifest))
    return AtSite(manifest, policy, "", study.resolve().parent, None, None, None)


def _deployed(study: Path, file: Path) -> AtSite:
    """The site's own roster says what would run; the named study must be it."""
    from secfed.runtime.site_file import (  # noqa: PLC0415
        approving_policy,
        keys_of,
        load_site_file,
        pinned_roster,
    )

    site, folder = load_site_file(file), file.resolve().parent
    keys = keys_of(site, folder)
    roster = pinned_roster(site, folder, keys)
    if _study_digest(study) != roster.study.digest():
        raise VerificationError(
            f"{study}: another study than the one of {folder / site.roster}, which is "
            "what would run here"
        )
    return AtSite(
        roster.manifest,
        approving_policy(site, folder, keys, roster),
        site.site,
        folder,
        folder / site.state,
        keys.signer,
        keys.signer.fingerprint(),
    )


def _study_digest(path: Path) -> str:
    """Of a study.toml, or of the study in a roster."""
    from secfed.runtime.roster import read_roster  # noqa: PLC0415
    from secfed.study import load_study  # noqa: PLC0415

    if path.suffix == ".json":
        return read_roster(path.read_bytes(), path).study.digest()
    return load_study(path).digest()
