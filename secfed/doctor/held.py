"""What a study needs here: keys and roster, the model, the records, the policy."""

from __future__ import annotations

from pathlib import Path

from secfed.canonical import file_sha256
from secfed.data.loading import load_sites
from secfed.data.own import load_own
from secfed.doctor.findings import Finding, failed, found
from secfed.errors import DataError, ModelError, PolicyError, SecfedError, StudyError
from secfed.model_files import WEIGHTS, find_model
from secfed.policy import MOMENTARY, SitePolicy, load_policy
from secfed.policy import check as check_policy
from secfed.runtime.roster import Roster
from secfed.runtime.serve import check_deployable
from secfed.runtime.site_file import SiteFile, keys_of, pinned_roster
from secfed.study import MIN_UNITS, Study

__all__ = [
    "check_model",
    "check_pin",
    "check_policy_file",
    "check_records",
    "check_rule",
]


def check_pin(site: SiteFile, folder: Path) -> tuple[Finding, Roster | None]:
    """Whether the roster is the pinned coordinator's and names this site's keys."""
    try:
        roster = pinned_roster(site, folder, keys_of(site, folder))
    except SecfedError as error:
        mend = (
            "compare the coordinator's fingerprint by telephone (`secfed keys show`); "
            "a roster is made from the request of `secfed join` with these keys"
        )
        return failed("pin", str(error), mend), None
    return found("pin", "the roster is the pinned coordinator's, with our keys"), roster


def check_rule(study: Study, *, rehearsal: bool = False) -> Finding:
    """Whether sites on other machines can run the study's rule."""
    try:
        rule = check_deployable(study, rehearsal=rehearsal)
    except StudyError as error:
        return failed("study", str(error), "ask the coordinator for another study")
    return found("study", f"{study.name}, {rule.name}, {study.training.rounds} rounds")


def check_policy_file(path: Path) -> tuple[Finding, SitePolicy | None]:
    """Whether the site's policy can be read."""
    try:
        policy = load_policy(path)
    except StudyError as error:
        return failed("policy", str(error), f"correct {path.name}"), None
    return found("policy", f"of {policy.population}"), policy


def check_model(study: Study, base_dir: Path) -> Finding:
    """Whether the base model is here, and is the one that the study pins."""
    try:
        path = find_model(study.model, base_dir) / WEIGHTS
        digest = file_sha256(path)
    except (ModelError, OSError) as error:
        mend = "install the package, or copy the folder that [model] names"
        return failed("model", str(error), mend)
    if digest != study.model.sha256:
        return failed(
            "model",
            f"{path}: sha256 {digest[:16]}, the study pins {study.model.sha256[:16]}",
            "take the weights that the study was approved for",
        )
    return found("model", f"here, with the pinned sha256 {digest[:16]}")


def check_records(
    study: Study, base_dir: Path, policy: SitePolicy | None, site: str | None
) -> Finding:
    """Whether the records fit the schema and are enough; no number of them is said.

    Args:
        study: The study.
        base_dir: Where its relative sources start.
        policy: Of the site; None where there is none here.
        site: Whose records; None: of all sites, at home.
    """
    try:
        data = load_own(study, base_dir, site) if site else load_sites(study, base_dir)
    except (DataError, ModelError) as error:
        mend = "correct the file, or the columns and labels that [data] names"
        return failed("records", str(error), mend)
    floor = MIN_UNITS if policy is None else max(policy.min_units, MIN_UNITS)
    try:
        for held in data.sites.values():
            if policy is not None:
                check_policy(policy, study, held.num_units, without=MOMENTARY)
    except PolicyError as error:
        mend = "the policy outranks the study: ask for another study, or its operator"
        return failed("records", str(error), mend)
    whose = "records fit" if site else "all sites' records fit"
    return found("records", f"{whose} the schema; at least {floor} units, as asked")
