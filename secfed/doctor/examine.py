"""Which checks belong together: at a site of a deployment, and at home."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from secfed.doctor.findings import Finding, failed, unknown
from secfed.doctor.held import (
    check_model,
    check_pin,
    check_policy_file,
    check_records,
    check_rule,
)
from secfed.doctor.machine import (
    check_disk,
    check_gpu,
    check_memory,
    check_telemetry,
)
from secfed.doctor.network import TIMEOUT_SECONDS, network_findings, route_to
from secfed.doctor.versions import check_packages, check_python
from secfed.errors import StudyError
from secfed.policy import SitePolicy
from secfed.runtime.roster import Roster
from secfed.runtime.site_file import SiteFile, load_site_file
from secfed.study import Study, load_study
from secfed.study.reading import read_toml

__all__ = ["examine", "examine_site", "examine_study", "kind_of"]

_POLICY_NAME: Final = "site.toml"
_OUTPUT_NAME: Final = "runs"


def kind_of(path: Path) -> tuple[Literal["site", "study"], Path]:
    """Whether a file is a site's or a study, and which file of a folder is meant.

    Raises:
        StudyError: It is neither, or a folder has no or several files of a site.
    """
    if path.is_dir():
        files = sorted(path.glob("*.toml"))
        sites = [file for file in files if "coordinator" in read_toml(file)]
        if len(sites) != 1:
            raise StudyError(path, "", f"{len(sites)} files of a site; name one file")
        return "site", sites[0]
    values = read_toml(path)
    if "coordinator" in values:
        return "site", path
    if "study" in values:
        return "study", path
    raise StudyError(path, "", "neither the file of a site nor a study")


def examine(
    path: Path, timeout: float = TIMEOUT_SECONDS, *, rehearsal: bool = False
) -> tuple[Finding, ...]:
    """Every check for a site's file or folder, or for a study at home.

    Raises:
        StudyError: The file cannot be read.
    """
    kind, file = kind_of(path)
    if kind == "study":
        return examine_study(file)
    return examine_site(file, timeout, rehearsal=rehearsal)


def examine_study(path: Path) -> tuple[Finding, ...]:
    """At home: this machine and what the study needs; no network.

    Raises:
        StudyError: The study is not valid.
    """
    study, folder = load_study(path), path.resolve().parent
    held: list[Finding] = []
    policy = None
    if (folder / _POLICY_NAME).is_file():
        finding, policy = check_policy_file(folder / _POLICY_NAME)
        held.append(finding)
    held += [check_model(study, folder), check_records(study, folder, policy, None)]
    budgets = [Path(policy.budget_dir)] if policy and policy.budget_dir else []
    return (*_machine(study, folder, [Path(_OUTPUT_NAME), *budgets]), *held)


def examine_site(
    path: Path, timeout: float = TIMEOUT_SECONDS, *, rehearsal: bool = False
) -> tuple[Finding, ...]:
    """At a site: this machine, the site's own files, and the way to its coordinator.

    Raises:
        StudyError: The site's file cannot be read.
    """
    site, folder = load_site_file(path), path.resolve().parent
    pin, roster = check_pin(site, folder)
    policy_finding, policy = check_policy_file(folder / site.policy)
    budgets = [Path(policy.budget_dir)] if policy and policy.budget_dir else []
    study = roster.study if roster else None
    return (
        *_machine(study, folder, [folder / site.state, *budgets]),
        pin,
        policy_finding,
        *_held(site, folder, roster, policy, rehearsal=rehearsal),
        *_network(roster, timeout),
    )


def _machine(
    study: Study | None, base_dir: Path, written: list[Path]
) -> tuple[Finding, ...]:
    memory = unknown("memory", "the study is not known")
    if study is not None:
        memory = check_memory(study.model, base_dir)
    return (
        check_python(),
        check_packages(),
        memory,
        check_disk(written),
        check_gpu(),
        check_telemetry(),
    )


def _held(
    site: SiteFile,
    folder: Path,
    roster: Roster | None,
    policy: SitePolicy | None,
    *,
    rehearsal: bool,
) -> tuple[Finding, ...]:
    if roster is None:
        names = ("study", "model", "records")
        return tuple(unknown(name, "not tried: pin comes first") for name in names)
    return (
        check_rule(roster.study, rehearsal=rehearsal),
        check_model(roster.study, folder),
        check_records(roster.study, folder, policy, site.site),
    )


def _network(roster: Roster | None, timeout: float) -> tuple[Finding, ...]:
    """Nobody is contacted whom the pinned coordinator did not name."""
    if roster is None:
        return (unknown("network", "not tried: pin comes first"),)
    try:
        route = route_to(roster.address, roster.authority, timeout)
    except ValueError as error:
        mend = "ask the coordinator for a roster with its address"
        return (failed("network", str(error), mend),)
    return network_findings(route)
